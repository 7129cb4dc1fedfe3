"""What the launcher said about this process, read from its environment before MPI starts.

Launchers and MPI libraries that do not belong together fail silently: N worlds of one rank, exit
code 0, each of them training on all of the data. So what the launcher meant is compared with what
MPI says.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

RANK_VARIABLES = ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID")
WORLD_SIZE_VARIABLES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "WORLD_SIZE")
LOCAL_SIZE_VARIABLES = ("MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_SIZE", "SLURM_NTASKS_PER_NODE")

JOB_PREFIXES = (
    *("PMI_", "PMIX_", "OMPI_COMM_WORLD_", "MPI_LOCAL"),  # launchers
    *("SLURM_", "PBS_", "LSB_"),  # batch systems
)
TERMINAL_COLUMNS = "LAUNCH_TERMINAL_COLUMNS"
BLAS_THREADS = "OPENBLAS_NUM_THREADS"
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
BESIDE_THIS_PYTHON = "start with the mpirun of the MPI that mpi4py loads, beside this Python"


def _first_number(names: tuple[str, ...], environment: Mapping[str, str]) -> int | None:
    for name in names:
        if environment.get(name, "").isdecimal():
            return int(environment[name])
    return None


def launched_rank(environment: Mapping[str, str] = os.environ) -> int:
    """The rank that the launcher gave this process; 0 without a launcher."""
    names = (*RANK_VARIABLES, "RANK") if under_torchrun(environment) else RANK_VARIABLES
    return _first_number(names, environment) or 0


def under_torchrun(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in environment


def under_launcher(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a launcher started this process."""
    return _first_number(RANK_VARIABLES, environment) is not None


def without_launcher(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment without what an enclosing job left in it, for starting a job of its own.

    A program or notebook that has started Open MPI without a launcher hands such variables to its
    children, too; and inside an allocation of a batch system a mpirun would start ranks elsewhere.
    What configures an MPI is kept.
    """
    return {
        name: value
        for name, value in environment.items()
        if not name.startswith(JOB_PREFIXES) or name.startswith("PMIX_MCA_")
    }


def is_one_of_many(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether mpirun started this process beside others."""
    return (_first_number(("PMI_SIZE", "OMPI_COMM_WORLD_SIZE"), environment) or 1) > 1


def terminal_columns(environment: Mapping[str, str] = os.environ) -> int | None:
    """Width of the terminal that people watch, where `launch local` told of one."""
    text = environment.get(TERMINAL_COLUMNS, "")
    return int(text) if text.isdecimal() else None


def ranks_on_this_node(environment: Mapping[str, str] = os.environ) -> int:
    """How many ranks share this machine; the whole world where the launcher does not say."""
    local = _first_number(LOCAL_SIZE_VARIABLES, environment)
    return local or _first_number(WORLD_SIZE_VARIABLES, environment) or 1


def foreign_launcher(vendor: str, environment: Mapping[str, str] = os.environ) -> str | None:
    """None, or why ranks with an MPI library of `vendor` would not find each other.

    For the moment before MPI starts: MPICH aborts under Open MPI's mpirun, and Open MPI under
    MPICH's starts as many worlds of one rank as there are processes.
    """
    open_mpi = "OMPI_COMM_WORLD_SIZE" in environment
    hydra = "MPI_LOCALNRANKS" in environment  # MPICH, Intel MPI, MVAPICH
    if open_mpi == hydra or open_mpi == (vendor == "Open MPI"):
        return None
    started = "Open MPI's" if open_mpi else "MPICH's"
    return f"the launcher is {started} but mpi4py loads {vendor}: {BESIDE_THIS_PYTHON}"


def world_mismatch(world_size: int, environment: Mapping[str, str] = os.environ) -> str | None:
    """None if MPI's world is the one that the launcher meant, else a sentence that says why not."""
    meant = {
        name: int(environment[name])
        for name in WORLD_SIZE_VARIABLES
        if environment.get(name, "").isdecimal()
    }
    if not meant and environment.get("SLURM_STEP_NUM_TASKS", "").isdecimal():
        # srun itself is the launcher; inside mpirun this would count its daemons, not the ranks
        meant["SLURM_STEP_NUM_TASKS"] = int(environment["SLURM_STEP_NUM_TASKS"])
    for name, launched in meant.items():
        if launched != world_size:
            return (
                f"the launcher started {launched} ranks ({name}) but MPI has a world of "
                f"{world_size}: {BESIDE_THIS_PYTHON}"
            )
    return None


def cores() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def threads_per_rank(num_ranks: int) -> int:
    """An equal share of the cores for each of the ranks on this machine, at least one."""
    return max(1, cores() // num_ranks)


def share_cores(environment: dict[str, str] | os._Environ[str] = os.environ) -> int:
    """Give this rank its share of the cores: threads per rank. Call it before importing numpy.

    numpy's BLAS gets one thread: products of 128 rows gain nothing from a second one, and beside
    another process two that wait for each other took 5 to 100 times as long. A variable that the
    user has set is left alone.
    """
    threads = threads_per_rank(ranks_on_this_node(environment))
    environment.setdefault(BLAS_THREADS, "1")
    for name in THREAD_VARIABLES:
        environment.setdefault(name, str(threads))
    return threads

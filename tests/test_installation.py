"""Ways to install, without installing: what the Makefile would do, and what the Dockerfile says."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

from helpers import ROOT

Make = Callable[..., subprocess.CompletedProcess[str]]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
OF_THE_CALLER = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "WHEELS", "SYSTEM_MPI", "PYTHON", "DATA")
FAKE_PYTHON = """#!/bin/sh
{ printf '|%s' "$@"; echo '|'; } >> calls
case "$*" in *"$FAILS"*) exit 4;; esac
"""


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Run make on a copy of the Makefile, in a folder with a space and without an environment."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    folder = tmp_path / "a clone"
    folder.mkdir()
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        kept = {name: value for name, value in os.environ.items() if name not in OF_THE_CALLER}
        return subprocess.run(
            ["make", *arguments],
            cwd=folder,
            env={"FAILS": "nothing does", **kept, **environment},
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run


@pytest.fixture
def venv(make: Make, tmp_path: Path) -> Path:
    """An environment whose Python writes what it is told into `calls`; $FAILS makes it fail."""
    environment = tmp_path / "a clone/.venv"
    (environment / "bin").mkdir(parents=True)
    (environment / "bin/python").write_text(FAKE_PYTHON)
    (environment / "bin/python").chmod(0o755)
    return environment


def calls(venv: Path) -> list[str]:
    """What the fake Python was told, a line for each time, words between bars."""
    return (venv.parent / "calls").read_text().splitlines()


def test_help_names_targets_that_exist(make: Make) -> None:
    named = set(re.findall(r"make ([a-z-]+)", make("help").stdout))
    assert {"demo", "test", "core", "install", "wheels", "readme"} <= named
    for target in named:
        done = make("-n", target)
        assert done.returncode == 0, target
        assert "Nothing to be done" not in done.stdout, target


def test_the_wheel_of_mpich_is_installed_where_no_other_mpi_is_chosen(
    make: Make, venv: Path
) -> None:
    assert make("core").returncode == 0
    (install,) = calls(venv)
    assert install.endswith("|--editable|.|mpich|")
    assert "--no-index" not in install
    assert make("core").returncode == 0
    assert len(calls(venv)) == 1, "what is installed is not installed again"


@pytest.mark.parametrize("chosen", ["1", "/opt/an mpi/bin/mpirun"])
@pytest.mark.parametrize("as_argument", [True, False])
def test_a_system_mpi_is_linked_instead_of_the_wheel(
    make: Make, venv: Path, chosen: str, as_argument: bool
) -> None:
    done = make("core", f"SYSTEM_MPI={chosen}") if as_argument else make("core", SYSTEM_MPI=chosen)
    assert done.returncode == 0, done.stderr
    install, link = calls(venv)
    assert install.endswith("|--editable|.|")
    assert link == f"|-m|launch|system-mpi|{'mpirun' if chosen == '1' else chosen}|"


def test_the_choice_of_a_system_mpi_outlives_the_variable(make: Make, venv: Path) -> None:
    (venv / ".system-mpi").write_text("/opt/mpi/bin/mpirun\n")
    assert make("install").returncode == 0
    (install,) = calls(venv)
    assert "mpich" not in install


def test_an_environment_left_without_any_mpi_is_not_taken_for_ready(make: Make, venv: Path) -> None:
    assert make("core", "SYSTEM_MPI=1", FAILS="system-mpi").returncode != 0
    assert not (venv / ".core").exists()
    assert make("core").returncode == 0
    (venv / "bin/mpirun").touch(0o755)
    assert make("core", "SYSTEM_MPI=1", FAILS="system-mpi").returncode != 0
    assert (venv / ".core").exists(), "the MPI that was there still is"


@pytest.mark.parametrize("target", ["core", "install"])
def test_with_wheels_no_index_is_asked(make: Make, venv: Path, target: str) -> None:
    (venv.parent / "the wheels").mkdir()
    (venv.parent / "the wheels/x.whl").touch()
    done = make(target, "WHEELS=the wheels")
    assert done.returncode == 0, done.stderr
    assert "|--no-index|--find-links|the wheels|--editable|" in calls(venv)[0]


@pytest.mark.parametrize("made", [True, False])
def test_a_folder_without_wheels_is_refused_and_the_cure_named(
    make: Make, venv: Path, made: bool
) -> None:
    if made:
        (venv.parent / "the wheels").mkdir()
    done = make("core", "WHEELS=the wheels")
    assert done.returncode == 2
    assert "WHEELS=the wheels must be a folder of wheels: make wheels" in done.stderr.split("\n")[0]
    assert not (venv.parent / "calls").exists()


def test_a_wheel_that_is_lacking_ends_with_what_to_do(make: Make, venv: Path) -> None:
    (venv.parent / "x.whl").touch()
    done = make("core", "WHEELS=.", FAILS="--no-index")
    assert done.returncode == 2
    assert "WHEELS=. lacks what pip names above: make wheels" in done.stderr
    assert not (venv / ".core").exists()


def test_the_wheels_are_all_that_an_installation_asks_for(make: Make, venv: Path) -> None:
    for target in ("install", "wheels"):
        assert make(target).returncode == 0
    install, collect = calls(venv)
    (extras,) = re.findall(r"--editable\|(\.\[.+\])\|mpich\|$", install)
    assert f"|{extras}|mpich|" in collect, "editable, extras and MPI"
    for backend in PROJECT["build-system"]["requires"]:
        assert f"|{backend}|" in collect
    assert "|editables|" in collect, "an editable installation builds with it"
    assert "--no-index" not in collect


def test_the_wheels_of_the_core_are_without_extras(make: Make, venv: Path) -> None:
    assert make("wheels", "EXTRAS=", "WHEELS=the wheels").returncode == 0
    assert "|--wheel-dir|the wheels|.|mpich|" in calls(venv)[0]


def test_a_python_that_is_too_old_makes_no_environment(make: Make, tmp_path: Path) -> None:
    done = make("core", "PYTHON=false")
    assert done.returncode == 2
    assert "Python 3.11 or newer is needed, false is not" in done.stderr
    assert not (tmp_path / "a clone/.venv").exists()


def test_an_environment_that_could_not_be_finished_is_not_left(make: Make, tmp_path: Path) -> None:
    half = tmp_path / "python"
    half.write_text(
        "#!/bin/sh\n[ $1 = -c ] || { mkdir -p .venv/bin; touch .venv/bin/python; exit 1; }"
    )
    half.chmod(0o755)
    assert make("core", f"PYTHON={half}").returncode == 2
    assert not (tmp_path / "a clone/.venv").exists()


def dockerfile() -> list[tuple[str, list[str]]]:
    """Instructions with their words; continued lines joined, comments left out."""
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line.split() for line in text.splitlines() if line.strip() and line[0] != "#"]
    return [(words[0], words[1:]) for words in lines]


def copied() -> list[str]:
    """What the Dockerfile copies, by its name in the repository."""
    files = [words for instruction, words in dockerfile() if instruction == "COPY"]
    return [word for words in files for word in words[:-1] if not word.startswith("--")]


def test_the_image_is_made_by_steps_of_the_makefile(make: Make) -> None:
    runs = [" ".join(words) for instruction, words in dockerfile() if instruction == "RUN"]
    commands = [command.split() for run in runs for command in re.split(r"&&|;", run)]
    assert ["make", "core"] in commands
    for name, *words in commands:
        assert name in ("apt-get", "rm", "useradd", "mkdir", "make"), name
        assert name != "make" or make("-n", *words).returncode == 0, words
    (default,) = [
        json.loads(" ".join(w)) for instruction, w in dockerfile() if instruction == "CMD"
    ]
    assert make("-n", *default[1:]).returncode == 0


def test_the_image_gets_all_that_an_installation_reads() -> None:
    project = PROJECT["project"]
    needed = {"Makefile", "pyproject.toml", "constraints.txt", project["readme"]}
    needed |= set(project["license-files"])
    needed |= set(PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"])
    assert set(copied()) == needed
    assert all((ROOT / name).exists() for name in copied())


def test_nothing_else_is_sent_to_the_builder() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    patterns = [line for line in lines if not line.startswith("#")]
    assert patterns[0] == "*"
    assert sorted(line[1:] for line in patterns if line.startswith("!")) == sorted(copied())


def test_the_image_has_a_python_that_will_do_and_a_user_of_its_own() -> None:
    instructions = dockerfile()
    ((image,),) = [words for instruction, words in instructions if instruction == "FROM"]
    (version,) = re.fullmatch(r"python:(3\.\d+)-slim", image).groups()  # type: ignore[union-attr]
    assert SpecifierSet(PROJECT["project"]["requires-python"]).contains(version)
    order = [instruction for instruction, _ in instructions]
    assert order.index("USER") < order.index("COPY"), "what is copied and made is the user's"

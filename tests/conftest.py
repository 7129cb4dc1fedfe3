"""Shared by all tests: real MPI ranks, and the real census file where it is at hand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from helpers import FULTON, Launch, clean_environment, finish, ranks
from launch import mpi
from preprocess.synthetic import write_synthetic
from preprocess_samples import GOOD


@pytest.fixture
def python(tmp_path: Path) -> Launch:
    """Run this Python with arguments in a folder of its own."""

    def run(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        return finish([sys.executable, *arguments], tmp_path, clean_environment(**environment))

    return run


@pytest.fixture
def mpirun(tmp_path: Path) -> Launch:
    """`helpers.ranks` in a folder of its own."""
    try:
        mpi.line_here(1)
    except mpi.MpiError as error:
        pytest.skip(str(error))

    def run(
        world_size: int, *arguments: str | Path, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        return ranks(world_size, tmp_path, *arguments, **environment)

    return run


@pytest.fixture(scope="session")
def fulton() -> Path:
    """The real file; tests that need it are skipped where it is absent."""
    if not FULTON.exists():
        pytest.skip("the census file fulton_ga_2000.csv is not beside this checkout")
    return FULTON


@pytest.fixture(scope="session")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,000 synthetic records, then one with a field too many, one odd and one missing age."""
    path = tmp_path_factory.mktemp("raw") / "raw.csv"
    write_synthetic(path, 1000, seed=1)
    with path.open("a") as file:
        file.write(f"{GOOD},1\n{GOOD.replace('51', 'x')}\n{GOOD.replace('51', 'NA')}\n")
    return path


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small data set of 4,000 synthetic records, made by the commands a user would type."""
    folder = tmp_path_factory.mktemp("data")
    raw, made = folder / "raw.csv", folder / "census"
    for command in (
        ["preprocess.synthetic", "--rows", "4000", "--seed", "7", "--output", raw],
        ["preprocess", "--input", raw, "--output", made],
    ):
        subprocess.run(
            [sys.executable, "-m", *map(str, command)],
            check=True,
            capture_output=True,
            env=clean_environment(),
            timeout=120,
        )
    return made


@pytest.fixture(scope="session")
def trained(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a private run on that data set, by one rank."""
    folder = tmp_path_factory.mktemp("runs")
    command = ["-m", "dpsgd.run", "--data", dataset, "--out", "run", "--ledger", "ledger",
               "--steps", "30", "--noise-multiplier", "2", "--hidden", "8,4"]  # fmt: skip
    subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=folder,
        check=True,
        capture_output=True,
        env=clean_environment(),
        timeout=120,
    )
    return folder / "run"

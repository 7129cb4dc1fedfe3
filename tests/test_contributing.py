"""CONTRIBUTING.md keeps its word: each example, in one file of a copy, passes the contract."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pytest

from helpers import ROOT, clean_environment, finish

PACKAGES = ("collectives", "dpsgd", "launch", "preprocess", "tests")
PYTEST = ("-m", "pytest", "-p", "no:cacheprovider")
TEXT = (ROOT / "CONTRIBUTING.md").read_text()


def example(first_words: str) -> str:
    """The block of code that begins with these words."""
    blocks = re.findall(r"```(?:python|toml)\n(.*?)```", TEXT, re.DOTALL)
    (found,) = (block for block in blocks if block.lstrip().startswith(first_words))
    return found


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The project, to be changed."""
    for name in PACKAGES:
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def run(copy: Path, *arguments: str) -> str:
    """This Python in the copy, which must come before the installed project."""
    done = finish([sys.executable, *arguments], copy, clean_environment(PYTHONPATH=str(copy)))
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_page_is_one_page() -> None:
    assert len(TEXT.splitlines()) < 125


def test_a_collective_is_one_file(copy: Path) -> None:
    (copy / "collectives/algorithms/star.py").write_text(example('"""Star'))
    found = run(copy, *PYTEST, "tests/test_schedules.py", "-k", "star")
    assert int(re.findall(r"(\d+) passed", found)[0]) >= 50
    assert "star" in run(copy, "-m", "dpsgd.run", "--help")


def test_a_gradient_engine_is_one_file(copy: Path) -> None:
    pytest.importorskip("torch", reason="the reference engine needs the extra torch")
    (copy / "dpsgd/engines/halves.py").write_text(example('"""Halves'))
    found = run(copy, *PYTEST, "tests/test_engines.py", "-k", "halves")
    assert int(re.findall(r"(\d+) passed", found)[0]) >= 10
    assert "halves" in run(copy, "-m", "dpsgd.run", "--help")


def test_a_column_is_two_lines_of_one_file(copy: Path) -> None:
    column, feature = example('{name = "state"').splitlines()
    spec = copy / "preprocess/specs/census-2000.toml"
    text = spec.read_text()
    before, last = '    {name = "employed",', "    # crosses\n"
    assert before in text and last in text
    text = text.replace(before, f"{column}\n{before}").replace(last, f"{feature}\n{last}")
    spec.write_text(text)
    run(copy, "-m", "preprocess.synthetic", "--rows", "300", "--seed", "1", "--output", "raw.csv")
    made = run(copy, "-m", "preprocess", "--input", "raw.csv", "--output", "set")
    assert "out-of-domain" not in made
    shown = run(copy, "-m", "dpsgd.run", "--data", "set", "--steps", "2", "--model", "logistic")
    assert f"logistic with {124 + 56 + 1} parameters" in shown

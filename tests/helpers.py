"""What several test files need and pytest does not provide."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
FULTON = ROOT.parent / "shared/data/census/fulton_ga_2000.csv"

OPEN_MPI_AS_ROOT = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",  # Open MPI 5
    "OMPI_MCA_rmaps_base_oversubscribe": "1",  # Open MPI 4
    "OMPI_MCA_osc": "^ucx",
}

Launch = Callable[..., subprocess.CompletedProcess[str]]


def clean_environment(**more: str) -> dict[str, str]:
    """The environment without anything that configures the program."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DPSGD_")}
    return kept | OPEN_MPI_AS_ROOT | more


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    """The only line of ours on stderr; the launcher's own text may follow."""
    ours = [line for line in done.stderr.splitlines() if line.startswith("dpsgd.run: error:")]
    assert len(ours) == 1, done.stderr
    assert "Traceback" not in done.stderr
    return ours[0]

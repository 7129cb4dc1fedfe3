"""Run by test_interrupts: the command line with Ctrl-C, on all ranks, in the middle of a phase."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import collectives.guard
from dpsgd import data, metrics, options, planning, run, run_folder, show, trainer

PHASES = {
    "options": (options, "gather"),
    "start": (collectives.guard, "start"),
    "load": (data, "_load"),
    "claim": (os, "fsync"),
    "show": (show, "Show"),
    "calibrate": (planning, "calibrate"),
    "train": (trainer._Step, "__call__"),
    "evaluate": (metrics, "evaluate"),
    "save": (run_folder, "write_json"),
}


def interrupted(*given: Any, **options: Any) -> Any:
    """What a terminal sends, while the real work would be going on."""
    os.kill(os.getpid(), signal.SIGINT)
    raise AssertionError("the interrupt was swallowed")


if __name__ == "__main__":
    phase, *arguments = sys.argv[1:]
    owner, name = PHASES[phase]
    setattr(owner, name, interrupted)
    if phase == "start":
        run.start = interrupted  # type: ignore[assignment]
    sys.exit(run.main(arguments))

"""Run under mpirun by test_run: the command line with one rank that fails in the middle."""

from __future__ import annotations

import os
import signal
import sys

from collectives.transports.mpi import world
from dpsgd import run, trainer

how, failing = sys.argv[1], sys.argv[2]
step = trainer._Step.__call__


def failing_step(self: trainer._Step, event: int, *rest: object, **named: object) -> None:
    if event == 5 and failing in ("all", str(world().rank)):
        if how == "exception":
            raise ZeroDivisionError("on purpose")
        if how == "exit":
            sys.exit(0)
        os.kill(os.getpid(), signal.SIGKILL)
    step(self, event, *rest, **named)  # type: ignore[arg-type]


trainer._Step.__call__ = failing_step  # type: ignore[method-assign,assignment]
sys.exit(run.main(sys.argv[3:]))

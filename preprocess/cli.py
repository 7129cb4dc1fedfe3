"""What the commands of this package share: an argument parser and errors in one line.

Nothing heavy is imported here, so that `--help` and every usage error come at once.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

from launch.world import is_one_of_many, launched_rank
from preprocess import __version__
from preprocess.errors import DataError, UsageError

EXIT_USAGE = 2
EXIT_LAUNCH = 4
EXIT_DATA = 5
EXIT_INTERRUPTED = 130  # as a shell reports it


class Parser(argparse.ArgumentParser):
    """Raises UsageError instead of printing, and names the nearest flag for a misspelt one."""

    def __init__(self, prog: str, description: str) -> None:
        self.flags: list[str] = []
        super().__init__(prog=f"python -m {prog}", description=description, allow_abbrev=False)
        self.add_argument("--version", action="version", version=f"{prog} {__version__}")

    def add_argument(self, *args: Any, **kwargs: Any) -> argparse.Action:
        """As in argparse; remembers the flags."""
        action = super().add_argument(*args, **kwargs)
        self.flags.extend(action.option_strings)
        return action

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Parse; an unknown flag is reported before whatever else is wrong because of it."""
        for argument in arguments:
            flag = argument.partition("=")[0]
            if flag == "--":
                break
            if flag.startswith("--") and flag not in self.flags:
                nearest = get_close_matches(flag, self.flags, n=1)
                advice = f"did you mean {nearest[0]}?" if nearest else "see --help"
                raise UsageError(f"unknown flag {flag}: {advice}")
        return self.parse_args(arguments)

    def error(self, message: str) -> NoReturn:
        """Called by argparse."""
        raise UsageError(message)


def run(prog: str, command: Callable[[Sequence[str]], None], arguments: Sequence[str]) -> int:
    """Run a command; its foreseen errors become one line on stderr and an exit code."""
    if is_one_of_many():
        message = "one process does all of this: start it without mpirun"
        return report(prog, message, EXIT_LAUNCH) if launched_rank() == 0 else 0
    before = signal.signal(signal.SIGTERM, _interrupt)  # clean up as for Ctrl-C
    try:
        command(arguments)
    except UsageError as error:
        return report(prog, str(error), EXIT_USAGE)
    except DataError as error:
        return report(prog, str(error), EXIT_DATA)
    except OSError as error:  # a full disk, a closed pipe, a folder that must not be entered
        return report(prog, str(error), EXIT_USAGE)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", __name__.partition(".")[0]):
            raise  # a mistake of ours
        return report(prog, _not_installed(package), EXIT_USAGE)
    except KeyboardInterrupt:
        return report(prog, "interrupted, no data set or file was written", EXIT_INTERRUPTED)
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0


def _interrupt(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def can_be_made(path: Path) -> bool:
    """Whether a file or folder could appear at this path, judged without writing anything."""
    real = Path(os.path.realpath(path))
    parent = next(parent for parent in real.parents if parent.exists())
    return parent.is_dir() and os.access(parent, os.W_OK | os.X_OK)


def _not_installed(package: str) -> str:
    return (
        f"the package {package} must be installed for {sys.executable}, it is not: "
        + ("pip install 'dpsgd[spark]', " if package == "pyspark" else "")
        + "make install, or start with .venv/bin/python"
    )


def report(prog: str, message: str, code: int) -> int:
    """One line on stderr; gives the code."""
    line = " ".join(message.split())  # a path may contain a line end
    print(f"{prog}: error: {line}", file=sys.stderr)
    return code

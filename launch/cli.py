"""What the commands of this package share: a parser, and errors in one line.

Exit codes: 0 done, 2 usage, 4 launch.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NoReturn

USAGE, LAUNCH = 2, 4


class UsageError(ValueError):
    """The command line asks for something impossible. Exit code 2."""


class LaunchError(RuntimeError):
    """The job cannot be started here; the message says what would help. Exit code 4."""


class Parser(argparse.ArgumentParser):
    """Raises UsageError, with a hint that the command may set, instead of printing and exiting."""

    hint = "see --help"

    def error(self, message: str) -> NoReturn:
        """Called by argparse."""
        raise UsageError(f"{message}; {self.hint}")


def shown(path: Path | str) -> str:
    """A path as one would type it here: relative if it lies below this folder."""
    path, here = Path(path), Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)

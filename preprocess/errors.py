"""What can go wrong for reasons outside the program. Commands turn these into exit codes."""

from __future__ import annotations


class DataError(ValueError):
    """A file is missing, damaged, or not what it should be. Exit code 5."""


class UsageError(ValueError):
    """The command line asks for something impossible. Exit code 2."""

"""Errors that a user can cause and cure, each with the exit code that the command line gives it.

Exit codes: 0 done, 2 usage or configuration, 3 privacy budget, 4 launch, 5 data, 70 a rank crashed.
"""

from __future__ import annotations

INTERRUPTED = 130
"""Exit code after Ctrl-C, as a shell reports it."""

CRASHED = 70
"""Exit code of a job in which a rank raised anything that is not a `UserError`."""


class UserError(Exception):
    """A mistake that can be foreseen; the message names the thing, its value and what is right."""

    exit_code = 2


class ConfigError(UserError):
    """Usage or configuration."""


class PrivacyError(UserError):
    """The privacy budget cannot be reached or cannot be proven."""

    exit_code = 3


class LaunchError(UserError):
    """The world is not the one that the launcher meant."""

    exit_code = 4


class DatasetError(UserError):
    """The data set is missing, damaged or not for this program."""

    exit_code = 5

"""The command line of dpsgd.run: flags become a Config; and --json, which other commands have, too.

Nothing heavy is imported here: a mistake is reported before numpy, torch or MPI are loaded.
"""

from __future__ import annotations

import argparse
import os
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NoReturn

import dpsgd
from dpsgd import options
from dpsgd.config import Config, nearest
from dpsgd.errors import ConfigError
from preprocess import output
from preprocess.errors import UsageError


@dataclass(frozen=True)
class Asked:
    """What a command line asks for. `file` is the configuration file, `json_to` a file or -."""

    config: Config
    file: Path | None
    json_to: str | None
    origins: list[dict[str, Any]] | None
    """The rows of --print-config, which are then all that is asked for."""


class Parser(argparse.ArgumentParser):
    """Raises ConfigError instead of exiting, and names the nearest valid flag."""

    def error(self, message: str) -> NoReturn:
        """Called by argparse."""
        raise ConfigError(message)

    def parse(self, arguments: list[str]) -> argparse.Namespace:
        """Parse; an argument that is not known is reported with the nearest flag."""
        found, unknown = self.parse_known_args(_with_negative_numbers(arguments))
        if unknown:
            flags = [flag for action in self._actions for flag in action.option_strings]
            hint = nearest(unknown[0].split("=")[0], flags)
            if unknown[0] in ("-n", "-np", "--np"):
                hint = "; ranks are started by mpirun -np N, or by python -m launch local -n N"
            raise ConfigError(f"unknown argument {unknown[0]}{hint}")
        return found


def parser() -> Parser:
    """One flag for each field of Config."""
    made = Parser(
        prog="python -m dpsgd.run",
        description="Differentially private training over MPI.",
        epilog="Every option can also stand in a TOML or JSON file (--config) or in the "
        "environment (DPSGD_MAX_GRAD_NORM=1); the command line is stronger than both.",
        allow_abbrev=False,
    )
    made.add_argument("--version", action="version", version=f"dpsgd {dpsgd.__version__}")
    made.add_argument("--config", type=Path, metavar="FILE", help="options in TOML or JSON")
    made.add_argument(
        "--print-config",
        action="store_true",
        help="show every option and where its value comes from, in the form of --config; then end",
    )
    made.add_argument(
        "--json",
        nargs="?",
        const="-",
        metavar="FILE",
        help="write run.json to FILE, or alone to standard output",
    )
    for one in fields(Config):
        flag = "--" + one.name.replace("_", "-")
        text = one.metadata["help"].replace("%", "%%")
        if one.metadata["kind"] == "true|false":
            made.add_argument(flag, action="store_true", default=None, help=text)
            continue
        if one.default is not None:
            text += f" (default {options.shown(one.default)})"
        made.add_argument(flag, metavar=one.metadata["kind"].upper(), help=text)
    return made


def parse(arguments: list[str]) -> Asked:
    """What is asked for. Raises ConfigError; ends the process after --help and --version."""
    found = parser().parse(arguments)
    given = {
        name: options.parse(name, value) if isinstance(value, str) else value
        for name, value in vars(found).items()
        if name in options.NAMES and value is not None
    }
    gathered = options.gather(found.config, os.environ, given)
    config = options.config_of(gathered)
    origins = options.rows(config, gathered) if found.print_config else None
    return Asked(config, found.config, found.json, origins)


def _with_negative_numbers(arguments: list[str]) -> list[str]:
    """`--delta -1e-5` as one word: argparse takes the number for a flag."""
    joined: list[str] = []
    for argument in arguments:
        if joined and joined[-1].startswith("--") and re.match(r"-\.?\d", argument):
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def check_json(json_to: str | None, *others: Path | None) -> None:
    """Raise ConfigError for a file that cannot be written, or that is needed otherwise."""
    try:
        output.check_json(json_to, *others)
    except UsageError as error:
        raise ConfigError(str(error)) from None


def write_json(json_to: str, content: dict[str, Any]) -> None:
    """Strict JSON to a file of the owner's, or alone on standard output. Raises ConfigError."""
    try:
        output.write_json(json_to, content)
    except UsageError as error:
        raise ConfigError(str(error)) from None

"""Where options come from: command line > environment > file > default.

`DPSGD_MAX_GRAD_NORM=1` in the environment, `max-grad-norm = 1` in a TOML or JSON file. Of options
that exclude each other (`epsilon`, `noise_multiplier`, `no_privacy`), the strongest place that
names one of them wins; two in one place are an error. Unknown names are errors, too.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from dpsgd.config import EXCLUSIVE, Config, is_given, nearest
from dpsgd.errors import ConfigError

KINDS = {
    "integer": "an integer",
    "number": "a number",
    "true|false": "true or false",
    "widths": "widths such as 64 or 64,32",
    "rows": "auto or an integer",
}

DEFAULT, NOT_GIVEN = "default", "not given"

NAMES = tuple(f.name for f in fields(Config))


@dataclass(frozen=True)
class Given:
    """A value that somebody gave, and where."""

    value: Any
    origin: str


def gather(
    file: Path | None, environment: Mapping[str, str], command_line: Mapping[str, Any]
) -> dict[str, Given]:
    """Merge the three places. Raises ConfigError for unknown names and for unfit values."""
    given: dict[str, Given] = {}
    for layer, origin in (
        (_from_file(file) if file else {}, f"file {file}"),
        (_from_environment(environment), "environment DPSGD_{NAME}"),
        (command_line, "flag --{flag}"),
    ):
        for group in EXCLUSIVE:
            if any(is_given(layer.get(name)) for name in group):
                for name in group:
                    given.pop(name, None)
        for name, value in layer.items():
            if value is not None:
                where = origin.replace("{NAME}", name.upper()).replace("{flag}", flag_of(name))
                given[name] = Given(value, where)
    return given


def config_of(given: Mapping[str, Given]) -> Config:
    """The configuration that was given. Raises ConfigError for values that do not fit."""
    return Config(**{name: one.value for name, one in given.items()})


def flag_of(name: str) -> str:
    """The name of an option on the command line and in a file."""
    return name.replace("_", "-")


def rows(config: Config, given: Mapping[str, Given]) -> list[dict[str, Any]]:
    """Every option with its value and where that came from; None where a value is left open."""
    values, found = config.to_json(), []
    for name, value in values.items():
        origin = given[name].origin if name in given else DEFAULT
        if value is None and (value := config.resolved_default(name)) is None:
            origin = NOT_GIVEN
        found.append({"name": flag_of(name), "value": value, "origin": origin})
    return found


def as_toml(table: list[dict[str, Any]]) -> str:
    """The rows as a file that `--config` reads: what was given, and the rest as comments."""
    lines = []
    for row in table:
        value = "" if row["value"] is None else json.dumps(row["value"], ensure_ascii=False)
        value = value.replace("\x7f", "\\u007f")  # the one character that TOML escapes and JSON not
        passive = "# " if row["origin"] in (DEFAULT, NOT_GIVEN) else ""
        lines.append(f"{passive}{row['name']} = {value}".removesuffix(" = "))
    width = max(map(len, lines))
    return "\n".join(
        f"{line:<{width}}  # {' '.join(row['origin'].split())}"
        for line, row in zip(lines, table, strict=True)
    )


def shown(value: Any) -> str:
    """A value as it would be typed."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def parse(name: str, text: str, origin: str = "") -> Any:
    """The value of option `name` from its text. Raises ConfigError if it is not one."""
    metadata = next(f.metadata for f in fields(Config) if f.name == name)
    try:
        return metadata["parse"](text)
    except ValueError:
        where = f" ({origin})" if origin else ""
        kind = KINDS[metadata["kind"]]
        raise ConfigError(f"{name} must be {kind}, got {text!r}{where}") from None


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    values = {}
    for variable, text in sorted(environment.items()):
        if variable.startswith("DPSGD_"):
            name = variable.removeprefix("DPSGD_").lower()
            if name not in NAMES:
                hint = nearest(variable, [f"DPSGD_{n.upper()}" for n in NAMES])
                raise ConfigError(f"unknown environment variable {variable}{hint}")
            values[name] = parse(name, text, f"environment {variable}")
    return values


def _from_file(path: Path) -> dict[str, Any]:
    try:
        content = path.read_bytes().decode("utf-8-sig")
        loaded = json.loads(content) if path.suffix == ".json" else tomllib.loads(content)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"config file {path} cannot be read: {reason}") from None
    except ValueError as error:
        raise ConfigError(f"config file {path} is not valid TOML or JSON: {error}") from None
    if not isinstance(loaded, dict):
        raise ConfigError(f"config file {path} must be a table of options")
    values = {}
    for key, value in loaded.items():
        name = key.replace("-", "_")
        if name not in NAMES:
            hint = nearest(key, [n.replace("_", "-") for n in NAMES])
            raise ConfigError(f"unknown option {key!r} in config file {path}{hint}")
        if value is not None:
            text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
            values[name] = parse(name, text, f"file {path}")
    return values

"""The built-in specs, a TOML file each, and how any spec file is read. See `preprocess.schema`.

    census-2000    18 columns of the 2000 census extracts; 124 features
    acs-person     person files of the American Community Survey (psam_pXX.csv), since 2013
    oregon-2000    persons of the 2000 census joined with their households
    adult          48,842 people of the 1994 survey: adult.data and adult.test

A file is found by being here.
"""

from __future__ import annotations

import tomllib
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

from preprocess.errors import DataError, UsageError
from preprocess.schema import from_schema
from preprocess.spec import Spec

FOLDER = Path(__file__).parent
NAMES = tuple(sorted(path.stem for path in FOLDER.glob("*.toml")))
DEFAULT = "census-2000"


def read_document(name: str) -> dict[str, Any]:
    """The document of a built-in spec, or of a TOML file. Raises UsageError, DataError."""
    path = FOLDER / f"{name}.toml" if name in NAMES else Path(name)
    if name not in NAMES and not path.suffix and not path.exists():
        nearest = get_close_matches(name, NAMES, n=1)
        hint = f"; did you mean {nearest[0]}?" if nearest else ""
        raise UsageError(
            f"spec must be a TOML file or one of {', '.join(NAMES)}, got {name!r}{hint}"
        )
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"spec must be an existing file, got {path}") from None
    except OSError as error:
        raise UsageError(f"spec must be readable, got {path}: {error.strerror}") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise DataError(f"spec {path} must be TOML: {error}") from None


def as_spec(name: str, document: dict[str, Any]) -> Spec:
    """The spec that a document is; an error names where it comes from."""
    try:
        return from_schema(document)
    except DataError as error:
        raise DataError(f"{name}: {error}") from None


def read_spec(name: str) -> Spec:
    """The spec of that name or file, without fitted numbers."""
    return as_spec(name, read_document(name))


@cache
def builtin(name: str) -> Spec:
    """A built-in spec."""
    return read_spec(name)


CENSUS_2000 = builtin(DEFAULT)

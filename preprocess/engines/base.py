"""What an engine takes and gives. All engines give the same for any input, however odd.

    clean(path, spec, split, progress) -> Cleaned

Guarantees, tested for every engine of the table against `sequential`:
    the same rows in the order of the file;
    the same refusals with the same line numbers, columns, values and rules;
    the same numbers of imputed values;
    the same side and shard of every row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from preprocess.errors import DataError
from preprocess.records import Refusal
from preprocess.spec import Spec
from preprocess.split import Split


class Refused(NamedTuple):
    """A refused record and the number of its line; the first line of the file is 1."""

    line: int
    refusal: Refusal


@dataclass(frozen=True, slots=True, kw_only=True)
class Cleaned:
    """All of a file: kept records as arrays, refused ones as a list."""

    codes: NDArray[np.uint8]  # [kept, used columns of the spec]
    sides: NDArray[np.uint8]  # [kept], 0 train, 1 test
    shards: NDArray[np.uint16]  # [kept]
    refused: list[Refused]
    imputed: Counter[str]  # by column


Progress: TypeAlias = Callable[[int, int], None]
"""Called now and then with the number of records and of bytes done so far."""

Engine: TypeAlias = Callable[[Path, Spec, Split, Progress], Cleaned]


@contextmanager
def open_raw(path: Path) -> Iterator[BufferedReader]:
    """The file, with errors that name it."""
    try:
        with path.open("rb") as file:
            yield file
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except FileNotFoundError:
        raise DataError(f"input must be an existing file, got {path}") from None
    except IsADirectoryError:
        raise DataError(f"input must be a file, got the folder {path}") from None
    except OSError as error:
        raise DataError(f"input must be readable, got {path}: {error.strerror}") from None

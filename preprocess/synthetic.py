"""python -m preprocess.synthetic --rows N --seed S --output RAW.csv

Writes a file with the 18 columns of a census extract and people who never lived, for trying things
out where no real file is at hand. The marginals and the dependence of the label resemble one real
county (see `synthetic_figures`); conclusions about real people must not be drawn from it.

Equal rows and seed give an equal file (for one version of numpy). People are drawn in chunks, so
memory stays small. A line is put together without a Python loop: every column is looked up in a
table of its texts, as bytes padded with NUL, and what was padding is then dropped.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from preprocess import cli
from preprocess.errors import UsageError
from preprocess.spec import CENSUS_2000

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PROG = "preprocess.synthetic"
CHUNK_ROWS = 100_000
MAX_ROWS = 1_000_000_000
MAX_SEED = 2**64 - 1


def main(arguments: Sequence[str]) -> int:
    """The command; gives its exit code."""
    return cli.run(PROG, _command, arguments)


def _command(arguments: Sequence[str]) -> None:
    parser = cli.Parser(PROG, "Write a synthetic census file of people who never lived.")
    parser.add_argument("--rows", type=int, required=True, metavar="N", help="records to write")
    parser.add_argument(
        "--seed", type=int, required=True, metavar="S", help="equal seed, equal file"
    )
    parser.add_argument(
        "--output", type=Path, required=True, metavar="RAW.csv", help="file to write"
    )
    options = parser.parse(arguments)
    if not 1 <= options.rows <= MAX_ROWS:
        raise UsageError(f"--rows must be in 1..{MAX_ROWS}, got {options.rows}")
    if not 0 <= options.seed <= MAX_SEED:
        raise UsageError(f"--seed must be in 0..2**64-1, got {options.seed}")
    write_synthetic(options.output, options.rows, options.seed)
    print(f"{options.rows:,} synthetic records in {options.output}")
    print(f"Next: python -m preprocess --input {options.output} --output DATASET")


def write_synthetic(path: Path, num_rows: int, seed: int) -> None:
    """Write the file under a temporary name, then rename: it is there complete or not at all."""
    path = Path(os.path.realpath(path))  # a link stays a link
    if path.exists() and not path.is_file():
        raise UsageError(f"--output must be a file, got {path}")
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:80]}.")
        temporary = Path(name)
        with os.fdopen(descriptor, "wb") as file:
            for text in synthetic_text(num_rows, seed):
                file.write(text)
        mask = os.umask(0o077)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        temporary.replace(path)
        temporary = None
    except OSError as error:
        raise UsageError(f"--output must be writable, got {path}: {error.strerror}") from None
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def synthetic_text(num_rows: int, seed: int) -> Iterator[bytes]:
    """The file, piece by piece."""
    import numpy as np

    from preprocess.synthetic_figures import draw_people

    yield (",".join(f'"{name}"' for name in CENSUS_2000.header) + "\n").encode()
    generator = np.random.Generator(np.random.PCG64(seed))
    for start in range(0, num_rows, CHUNK_ROWS):
        people = draw_people(generator, min(CHUNK_ROWS, num_rows - start))
        yield _as_lines([people[name] for name in CENSUS_2000.header])


def _as_lines(columns: list[NDArray[np.int64]]) -> bytes:
    import numpy as np

    pieces = []
    for number, column in enumerate(columns):
        end = b"," if number + 1 < len(columns) else b"\n"
        values, indices = np.unique(column, return_inverse=True)
        texts = np.array([_number_as_text(value) + end for value in values.tolist()])
        letters = texts.view(np.uint8).reshape(len(texts), -1)  # [values, longest text]
        pieces.append(letters[indices])
    matrix = np.concatenate(pieces, axis=1)  # [rows, bytes], padded with NUL
    text: bytes = matrix[matrix != 0].tobytes()
    return text


def _number_as_text(value: int) -> bytes:
    """As the real files have it, which were written by R: 100000 is shorter as 1e+05."""
    return b"1e+05" if value == 100_000 else str(value).encode()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

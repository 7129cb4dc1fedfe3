"""python -m preprocess.synthetic --rows N --seed S --output RAW.csv [--missing RATE ...]

Writes a file with the 18 columns of a census extract and people who never lived, for trying things
out where no real file is at hand. The marginals and the dependence of the label resemble one real
county (see `synthetic_figures`); conclusions about real people must not be drawn from it. With
rates of defects (see `defects`) it also writes the truth: the counts that a cleaner must find.

Equal rows, seed and rates give equal files (for one version of numpy), and rates change no person.
People are drawn in chunks, so memory stays small. A line is put together without a Python loop:
every column is looked up in a table of its texts, as bytes padded with NUL, and what was padding is
then dropped.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from preprocess import cli, defects
from preprocess.errors import UsageError
from preprocess.output import new_file
from preprocess.specs import CENSUS_2000

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


def _parser() -> cli.Parser:
    parser = cli.Parser(PROG, "Write a synthetic census file of people who never lived.")
    add = parser.add_argument
    add("--rows", type=int, required=True, metavar="N", help="records to write")
    add("--seed", type=int, required=True, metavar="S", help="equal seed, equal file")
    add("--output", type=Path, required=True, metavar="RAW.csv", help="file to write")
    for kind, what in defects.KINDS.items():
        add(f"--{kind}", type=float, metavar="RATE", help=f"part of the records, in [0, 1]: {what}")
    add(
        "--truth",
        type=Path,
        metavar="FILE",
        help="where to write what a cleaner must find, as JSON; default, with a rate: beside the "
        "output, RAW.truth.json",
    )
    return parser


def _command(arguments: Sequence[str]) -> None:
    options = _parser().parse(arguments)
    if not 1 <= options.rows <= MAX_ROWS:
        raise UsageError(f"--rows must be in 1..{MAX_ROWS}, got {options.rows}")
    if not 0 <= options.seed <= MAX_SEED:
        raise UsageError(f"--seed must be in 0..2**64-1, got {options.seed}")
    given = {kind: getattr(options, kind.replace("-", "_")) for kind in defects.KINDS}
    rates = {kind: rate for kind, rate in given.items() if rate is not None}
    truth = options.truth or (options.output.with_suffix(".truth.json") if rates else None)
    write_synthetic(options.output, options.rows, options.seed, rates, truth)
    print(f"{options.rows:,} synthetic records in {options.output}")
    if truth:
        print(f"What a cleaner must find in them: {truth}")
    raw = shlex.quote(str(options.output))
    print(f"Next: python -m preprocess --input {raw} --output DATASET")


def write_synthetic(
    path: Path,
    num_rows: int,
    seed: int,
    rates: Mapping[str, float] | None = None,
    truth_path: Path | None = None,
) -> None:
    """Write the file, and the truth about its defects (rates by kind) where a path is given.

    Raises UsageError, and leaves the files that were there, if the rates are impossible or a file
    cannot be written.
    """
    rates = rates or {}
    numbers = defects.records_by_kind(rates, num_rows)
    if (rates or truth_path is not None) and num_rows > defects.MAX_ROWS:
        raise UsageError(
            f"--rows must be at most {defects.MAX_ROWS} with defects or a truth, got {num_rows}"
        )
    if truth_path is not None:
        _check_truth(truth_path, path)
    with new_file("--output", path) as file:
        truth = defects.Truth()
        pieces = synthetic_text(num_rows, seed)
        if rates or truth_path is not None:
            pieces = defects.damage(pieces, num_rows, numbers, seed, truth)
        for piece in pieces:
            file.write(piece)
        if truth_path is not None:
            document = {"about": defects.NOTE, "seed": seed, "rates": dict(rates)} | truth.as_json()
            with new_file("--truth", truth_path) as truth_file:
                truth_file.write((json.dumps(document, indent=2) + "\n").encode())


def _check_truth(path: Path, output: Path) -> None:
    """What would otherwise fail after the work is done."""
    if os.path.realpath(path) == os.path.realpath(output):
        raise UsageError(f"--truth must be another file than --output, got {path}")
    if path.is_dir() or not cli.can_be_made(path):
        raise UsageError(f"--truth must be a writable file, got {path}")


def synthetic_text(num_rows: int, seed: int) -> Iterator[bytes]:
    """The file, piece by piece: the header, then some whole lines at a time."""
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

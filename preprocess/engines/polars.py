"""Vectorise the clean, delegate the odd.

The file is read in blocks that end at a line end. In a block,

1. line ends become LF, so that `bytes.split` finds the lines and line i is element i;
2. a line is *plain* if it has exactly the right number of commas, no quote, and only ASCII. On such
   lines there is nothing that Polars' reader could understand differently: no quotes, no ragged
   rows, no blank lines, no encoding. Behind a header of our own, row i is plain line i;
3. a plain line is *clean* if every used field is one of the canonical tokens of its domain
   ("0" ... "115"; not "007", not " 7"). Tokens are looked up in a table, nothing is cast;
4. every other line goes to `records.read_record`, the one function that knows what odd lines mean.

So the two engines can differ only where a canonical token is looked up. Memory: one block, the
codes of kept records (17 bytes each), and the refusals.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import polars as pl
from numpy.typing import NDArray

from preprocess.engines.base import Cleaned, Progress, Refused, open_raw
from preprocess.header import read_header
from preprocess.records import Layout, Refusal, read_record
from preprocess.spec import Spec
from preprocess.split import Split, place_all

BLOCK_BYTES = 8 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Consecutive lines of a file and what they mean. A blank line is neither kept nor refused."""

    first_line: int  # number of lines[0]; the first line of the file is 1
    lines: list[bytes]  # without their ends
    codes: NDArray[np.uint8]  # [lines, used columns], of no meaning where not kept
    is_kept: NDArray[np.bool_]  # [lines]
    refused: list[Refused]
    imputed: Counter[str]  # by column

    @property
    def num_records(self) -> int:
        """How many lines are records."""
        return int(np.count_nonzero(self.is_kept)) + len(self.refused)

    @property
    def num_bytes(self) -> int:
        """Bytes of the lines with ends of one byte."""
        return sum(map(len, self.lines)) + len(self.lines)


def clean(path: Path, spec: Spec, split: Split, progress: Progress) -> Cleaned:
    """Read a file as `engines.base` promises."""
    codes = [np.empty((0, len(spec.columns)), dtype=np.uint8)]
    sides = [np.empty(0, dtype=np.uint8)]
    shards = [np.empty(0, dtype=np.uint16)]
    refused: list[Refused] = []
    imputed: Counter[str] = Counter()
    num_records = num_bytes = 0
    for block in read(path, spec):
        kept = [block.lines[index] for index in np.flatnonzero(block.is_kept).tolist()]
        block_sides, block_shards = place_all(kept, split)
        codes.append(block.codes[block.is_kept])
        sides.append(block_sides)
        shards.append(block_shards)
        refused += block.refused
        imputed += block.imputed
        num_records += block.num_records
        num_bytes += block.num_bytes
        progress(num_records, num_bytes)
    return Cleaned(
        codes=np.concatenate(codes),
        sides=np.concatenate(sides),
        shards=np.concatenate(shards),
        refused=refused,
        imputed=imputed,
    )


def read(path: Path, spec: Spec, *, features_only: bool = False) -> Iterator[Block]:
    """All lines after the header, block by block; `features_only` as in `preprocess.header`."""
    with open_raw(path) as file:
        layout, first_line = read_header(file, spec, features_only=features_only)
        for lines in read_blocks(file, BLOCK_BYTES):
            yield _read_block(lines, first_line, layout)
            first_line += len(lines)


def _read_block(lines: list[bytes], first_line: int, layout: Layout) -> Block:
    codes, is_kept = _read_clean(lines, layout)
    refused: list[Refused] = []
    imputed: Counter[str] = Counter()
    for index in np.flatnonzero(~is_kept).tolist():
        record = read_record(lines[index], layout)
        if isinstance(record, Refusal):
            refused.append(Refused(first_line + index, record))
        elif record is not None:
            codes[index] = record.codes
            is_kept[index] = True
            imputed.update(record.imputed)
    return Block(
        first_line=first_line,
        lines=lines,
        codes=codes,
        is_kept=is_kept,
        refused=refused,
        imputed=imputed,
    )


def read_blocks(file: BinaryIO, block_bytes: int) -> Iterator[list[bytes]]:
    """The lines of a file without their ends (LF, CR LF or CR), about a block of bytes at a time.

    A block never ends between CR and LF: a CR that comes last waits for the byte after it.
    """
    waiting: list[bytes] = []  # pieces without a usable line end
    while piece := file.read(block_bytes):
        if waiting and waiting[-1].endswith(b"\r"):
            piece = waiting.pop() + piece
        end = max(piece.rfind(b"\n"), piece.rfind(b"\r", 0, len(piece) - 1)) + 1
        if end:
            yield _split_lines(b"".join([*waiting, piece[:end]]))
            waiting = [piece[end:]] if end < len(piece) else []
        else:
            waiting.append(piece)
    if rest := b"".join(waiting):
        yield _split_lines(rest)


def _split_lines(block: bytes) -> list[bytes]:
    lines = block.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    if not lines[-1]:
        lines.pop()  # what follows the last line end
    return lines


def _read_clean(lines: list[bytes], layout: Layout) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Codes [lines, used columns] of clean lines, zeros elsewhere; and which lines are clean."""
    codes = np.zeros((len(lines), len(layout.used)), dtype=np.uint8)
    is_clean = np.zeros(len(lines), dtype=np.bool_)
    commas = layout.num_fields - 1
    header = ",".join(map(str, range(layout.num_fields))).encode()
    text = b"\n".join([header, *lines])
    plain = [index for index, line in enumerate(lines) if line.count(b",") == commas]
    if b'"' in text or not text.isascii():
        plain = [index for index in plain if b'"' not in lines[index] and lines[index].isascii()]
    if len(plain) < len(lines):
        text = b"\n".join([header, *(lines[index] for index in plain)])
    table = pl.read_csv(
        text + b"\n",
        columns=[str(position) for position in sorted(position for _, position in layout.used)],
        infer_schema=False,  # everything is text
        quote_char=None,
    )
    if table.height != len(plain):
        raise RuntimeError(f"Polars must read {len(plain)} rows, got {table.height}")
    found = table.select(_look_up(layout)).to_numpy()  # [plain, used columns], NO_CODE if not clean
    rows = np.array(plain, dtype=np.intp)
    clean_rows = (found != NO_CODE).all(axis=1)
    codes[rows[clean_rows]] = found[clean_rows]
    is_clean[rows[clean_rows]] = True
    return codes, is_clean


NO_CODE = 65535


def _look_up(layout: Layout) -> list[pl.Expr]:
    """The code of a canonical token of each used column, or NO_CODE."""
    return [
        pl.col(str(position))
        .replace_strict(
            {str(code): code for code in range(column.low, column.high + 1)},
            default=NO_CODE,
            return_dtype=pl.UInt16,
        )
        .alias(column.name)
        for column, position in layout.used
    ]

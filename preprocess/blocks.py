"""Many lines at once: vectorise the clean, ask the oracle about the odd.

A file is read in blocks that end at a line end. In a block,

1. line ends become LF, so that line i ends at the i-th of them;
2. a line is *plain* if it is valid UTF-8, has exactly the right number of separators, and no quotes
   but around whole fields that hold neither quotes nor separators. Cutting a plain line at its
   separators gives its fields: no parser could understand it differently;
3. every *distinct* field of a used column is put through `records.read_token`, once. Fields of up
   to two bytes find their code in a table by their bytes, longer ones by their text. Nothing is
   cast, so nothing is understood differently;
4. what is not plain, and what a rule refuses, goes to `records.read_record`, the one function that
   knows what odd lines mean.

Two blocks are worked on at once, by a thread each: numpy and Polars let go of the interpreter.
Memory: some blocks, and tables of the distinct fields of each column.
"""

from __future__ import annotations

import os
import re
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import polars as pl
import polars_hash
from numpy.typing import NDArray

from preprocess.fields import Fields, Lines
from preprocess.header import BOM, read_header
from preprocess.meanings import CLEAN, IMPUTED, REFUSED, SKIPPED, Meanings, SecondFile
from preprocess.records import (
    NOT_IN_UNIVERSE,
    Layout,
    Lookup,
    Refusal,
    read_record,
    split_line,
)
from preprocess.sources import Source, open_source
from preprocess.spec import Spec
from preprocess.split import Split, digest_of

BLOCK_BYTES = 2 << 20
NUM_THREADS = min(2, len(os.sched_getaffinity(0)))
MAX_PLAIN_BYTES = 1 << 20  # a longer line is read by itself


class Refused(NamedTuple):
    """A refused record and the number of its line; the first line of the file is 1."""

    line: int
    refusal: Refusal


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Consecutive lines of a file and what they mean. A blank line is neither kept nor refused."""

    first_line: int  # number of the first of them; the first line of the file is 1
    num_lines: int
    num_bytes: int  # of the file
    kept: NDArray[np.intp]  # which lines, ascending
    codes: dict[str, NDArray[Any]]  # by used column [kept]
    digests: NDArray[np.uint64]  # of the lines, their first words [kept, 3]; if a split was given
    unit_digests: NDArray[np.uint64]  # of the keys of their units, the same
    skipped: dict[str, NDArray[np.intp]]  # lines that are not in the universe, by column
    refused: list[Refused]
    imputed: Counter[str]  # by column

    @property
    def num_records(self) -> int:
        """How many lines are records."""
        return len(self.kept) + sum(map(len, self.skipped.values())) + len(self.refused)


def read(
    source: Source,
    spec: Spec,
    lookup: Lookup | None = None,
    split: Split | None = None,
    *,
    features_only: bool = False,
) -> Iterator[Block]:
    """All lines after the header, block by block; `features_only` as in `preprocess.header`."""
    with open_source(source) as file:
        layout, first_line = read_header(file, spec, features_only=features_only)
        readers = [_Reader(layout, lookup, split) for _ in range(NUM_THREADS)]
        with ExitStack() as stack:
            threads = [stack.enter_context(ThreadPoolExecutor(1)) for _ in readers]
            waiting: deque[Future[Block]] = deque()
            for number, (text, num_bytes) in enumerate(read_blocks(file, BLOCK_BYTES)):
                turn = number % NUM_THREADS
                waiting.append(
                    threads[turn].submit(readers[turn].read, text, first_line, num_bytes)
                )
                first_line += text.count(b"\n")
                if len(waiting) == NUM_THREADS:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()


def read_blocks(file: BinaryIO, block_bytes: int) -> Iterator[tuple[bytes, int]]:
    """The lines of a file, each ended by LF, about a block of bytes at a time; and the bytes read.

    A block never ends between CR and LF: a CR that comes last waits for the byte after it.
    """
    waiting: list[bytes] = []  # pieces without a usable line end
    num_bytes = 0
    while piece := file.read(block_bytes):
        num_bytes += len(piece)
        if waiting and waiting[-1].endswith(b"\r"):
            piece = waiting.pop() + piece
        end = max(piece.rfind(b"\n"), piece.rfind(b"\r", 0, len(piece) - 1)) + 1
        if end:
            yield _with_lf(b"".join([*waiting, piece[:end]])), num_bytes
            num_bytes = 0
            waiting = [piece[end:]] if end < len(piece) else []
        else:
            waiting.append(piece)
    if rest := b"".join(waiting):
        yield _with_lf(rest), num_bytes


def _with_lf(block: bytes) -> bytes:
    if b"\r" in block:
        block = block.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return block if block.endswith(b"\n") else block + b"\n"


@dataclass(slots=True)
class _Odd:
    """What the oracle says of the lines that are read one by one."""

    kept: list[int] = field(default_factory=list)
    codes: list[tuple[float, ...]] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    unit_digests: list[bytes] = field(default_factory=list)
    skipped: dict[str, list[int]] = field(default_factory=dict)
    refused: list[Refused] = field(default_factory=list)
    imputed: Counter[str] = field(default_factory=Counter)


class _Reader:
    """Reads the blocks of one file."""

    def __init__(self, layout: Layout, lookup: Lookup | None, split: Split | None) -> None:
        self._layout, self._lookup, self._split = layout, lookup, split
        separator = layout.spec.separator
        self._known = {
            column.name: Meanings(column, layout.spec, self._token_of)
            for column, place in layout.used
            if place < layout.num_fields
        }
        self._second = SecondFile(layout, lookup) if lookup is not None else None
        not_special, blank = rf'[^"{re.escape(separator)}]*', f"[{layout.blanks}]*"
        field = f'(?:{not_special}|{blank}"{not_special}"{blank})'
        self._all_plain = f"^{field}(?:{re.escape(separator)}{field})*$"

    def read(self, text: bytes, first_line: int, num_bytes: int) -> Block:
        lines = Lines(text, self._layout.spec.separator)
        is_plain = self._find_plain(lines)
        at = np.flatnonzero(is_plain)
        fields = lines.fields(is_plain, self._layout.num_fields)
        codes, outcomes = self._look_up(fields)
        is_right = np.asarray((outcomes < SKIPPED).all(axis=0))  # [plain]
        first_wrong = (outcomes >= SKIPPED).argmax(axis=0)
        is_skipped = ~is_right & (outcomes[first_wrong, np.arange(len(at))] == SKIPPED)
        is_odd = np.ones(len(lines), np.bool_)
        is_odd[at[is_right | is_skipped]] = False
        odd = self._ask(lines, np.flatnonzero(is_odd), first_line)

        names = ["", *(column.name for column, _ in self._layout.used)]
        kept = np.concatenate([at[is_right], np.array(odd.kept, np.intp)])
        order = np.argsort(kept, kind="stable")
        is_plain[at[~is_right]] = False
        digests, unit_digests = self._hash(lines, is_plain, fields, is_right, odd, order)
        skipped = {
            name: np.sort(np.concatenate([
                at[is_skipped & (first_wrong == number)],
                np.array(odd.skipped.get(name, []), np.intp),
            ]))
            for number, name in enumerate(names)
            if number in first_wrong[is_skipped] or name in odd.skipped
        }  # fmt: skip
        imputed = Counter[str]()
        for name, row in zip(names, outcomes, strict=True):
            imputed[name] = int(np.count_nonzero((row == IMPUTED) & is_right))
        return Block(
            first_line=first_line,
            num_lines=len(lines),
            num_bytes=num_bytes,
            kept=kept[order],
            codes={
                column.name: np.concatenate([
                    codes[number][is_right],
                    np.array([record[number] for record in odd.codes], codes[number].dtype),
                ])[order]
                for number, (column, _) in enumerate(self._layout.used)
            },
            digests=digests,
            unit_digests=unit_digests,
            skipped=skipped,
            refused=odd.refused,
            imputed=+(imputed + odd.imputed),
        )  # fmt: skip

    def _find_plain(self, lines: Lines) -> NDArray[np.bool_]:
        """Which lines are plain [lines]."""
        is_plain: NDArray[np.bool_] = lines.num_fields == self._layout.num_fields
        is_plain &= lines.ends - lines.starts <= MAX_PLAIN_BYTES
        if self._layout.num_fields == 1:
            is_plain &= lines.count(lines.bytes > ord(" ")) > 0
        if not lines.text.isascii():
            is_plain &= lines.bytes[lines.starts] != BOM[0]  # Polars drops one that begins a text
            try:
                lines.text.decode()
            except UnicodeDecodeError:
                is_plain &= lines.count(lines.bytes > 127) == 0
        if b'"' in lines.text:
            is_quoted = is_plain & (lines.count(lines.bytes == ord('"')) > 0)
            is_plain[is_quoted] = lines.selected(is_quoted).str.contains(self._all_plain).to_numpy()
        return is_plain

    def _look_up(self, fields: Fields) -> tuple[list[NDArray[Any]], NDArray[np.uint8]]:
        """Codes of the used columns, each [plain], and outcomes [1 + used columns, plain].

        The first row of outcomes is about the keys.
        """
        layout = self._layout
        codes = []
        outcomes = np.zeros((1 + len(layout.used), len(fields)), np.uint8)
        if layout.unit is not None:
            is_empty = self._tokens(fields, layout.unit).str.len_bytes() == 0
            outcomes[0] = np.where(is_empty.to_numpy(), REFUSED, CLEAN)
        places = np.empty(0, np.intp)
        if layout.join is not None and self._second is not None:
            places = self._second.places(self._tokens(fields, layout.join))
            outcomes[0][places < 0] = REFUSED
        for number, (column, place) in enumerate(layout.used, start=1):
            if place < layout.num_fields:
                found = self._known[column.name].look_up(fields, place)
            else:
                assert self._second is not None
                found = self._second.look_up(column.name, places)
            codes.append(found[0])
            outcomes[number] = found[1]
        return codes, outcomes

    def _ask(self, lines: Lines, which: NDArray[np.intp], first_line: int) -> _Odd:
        """Put lines through the oracle."""
        odd = _Odd()
        for index in which.tolist():
            line = lines.line(index)
            record = read_record(line, self._layout, self._lookup)
            if isinstance(record, Refusal):
                if record.rule == NOT_IN_UNIVERSE:
                    odd.skipped.setdefault(record.column, []).append(index)
                else:
                    odd.refused.append(Refused(first_line + index, record))
            elif record is not None:
                odd.kept.append(index)
                odd.codes.append(record.codes)
                odd.imputed.update(record.imputed)
                if self._split is not None:
                    odd.digests.append(digest_of(line, self._split))
                    odd.unit_digests.append(digest_of(record.unit.encode(), self._split))
        return odd

    def _hash(
        self,
        lines: Lines,
        is_kept: NDArray[np.bool_],
        fields: Fields,
        is_right: NDArray[np.bool_],
        odd: _Odd,
        order: NDArray[np.intp],
    ) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        """The words of the digests of lines and of units, plain ones before `order` is applied."""
        none = np.empty((0, 3), np.uint64)
        if self._split is None:
            return none, none
        digests = [_digests(lines.selected(is_kept), self._split), _words(odd.digests)]
        if self._layout.unit is None:
            return np.concatenate(digests)[order], none
        units = self._tokens(fields, self._layout.unit).filter(pl.Series(is_right))
        of_units = [_digests(units, self._split), _words(odd.unit_digests)]
        return np.concatenate(digests)[order], np.concatenate(of_units)[order]

    def _token_of(self, field: str) -> str:
        fields = split_line(field, self._layout.spec.separator)
        assert fields is not None and len(fields) == 1
        return fields[0].strip(self._layout.blanks)

    def _tokens(self, fields: Fields, place: int) -> pl.Series:
        """The same for a column of fields of plain lines."""
        blanks = self._layout.blanks
        texts = fields.texts(*fields.bounds(place)).str.strip_chars(blanks)
        return texts.str.strip_prefix('"').str.strip_suffix('"').str.strip_chars(blanks)


def _digests(texts: pl.Series, split: Split) -> NDArray[np.uint64]:
    """The first words [n, 3] of the keyed hashes of texts."""
    salted = texts.to_frame("text").select(pl.lit(split.salt + "\0") + pl.col("text"))
    digests = salted.select(polars_hash.col("literal").chash.sha2_256().alias("digest"))
    words = digests.select(
        pl.col("digest").str.slice(at, 16).str.to_integer(base=16, dtype=pl.UInt64).alias(str(at))
        for at in (0, 16, 32)
    )
    return words.to_numpy()


def _words(digests: list[bytes]) -> NDArray[np.uint64]:
    return _as_words(b"".join(digest[:24] for digest in digests))


def _as_words(content: bytes) -> NDArray[np.uint64]:
    return np.frombuffer(content, ">u8").astype(np.uint64).reshape(-1, 3)

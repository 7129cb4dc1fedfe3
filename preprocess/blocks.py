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
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import polars as pl
import polars_hash
from numpy.typing import NDArray

from preprocess.header import BOM, read_header
from preprocess.records import (
    NOT_IN_UNIVERSE,
    Layout,
    Lookup,
    Refusal,
    read_record,
    read_token,
    split_line,
)
from preprocess.sources import Source, open_source
from preprocess.spec import Column, Spec
from preprocess.split import Split, digest_of

BLOCK_BYTES = 8 << 20
NUM_THREADS = min(2, len(os.sched_getaffinity(0)))
MAX_PLAIN_BYTES = 1 << 20  # a longer line is read by itself
MAX_KNOWN = 1 << 16  # distinct fields of a column that are remembered between blocks

CLEAN, IMPUTED, SKIPPED, REFUSED = range(4)
NOWHERE = 2**32 - 1
_RARE = [chr(code) for code in range(1, 32) if chr(code) not in "\t\n\r"]


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


class _Fields:
    """Where the fields of plain lines are in their text, which is cut at its separators."""

    def __init__(self, text: bytes, num_lines: int, num_fields: int, separator: str) -> None:
        self._bytes = np.frombuffer(text + b"\0", np.uint8)  # so that every field has two
        is_end = (self._bytes == ord(separator)) | (self._bytes == ord("\n"))
        ends = np.flatnonzero(is_end).astype(np.int32).reshape(num_lines, num_fields)
        self._ends = np.ascontiguousarray(ends.T)  # [fields, lines]

    def bounds(self, place: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """First bytes of the fields of a column, and their lengths, each [lines]."""
        ends = self._ends[place]
        starts = np.zeros_like(ends)
        np.add(self._ends[place - 1][: None if place else -1], 1, out=starts[0 if place else 1 :])
        return starts, ends - starts

    def short(self, starts: NDArray[np.int32], lengths: NDArray[np.int32]) -> NDArray[np.uint32]:
        """A number below LONG_FIELD for each field of up to two bytes; the others have none."""
        first = self._bytes[starts].astype(np.uint32)
        second = self._bytes[starts + 1].astype(np.uint32)
        capped = np.minimum(lengths, 2)
        text = (first | (second << np.uint32(8))) & _MASKS[capped]
        return np.asarray(text | (capped.astype(np.uint32) << np.uint32(16)))

    def texts(self, starts: NDArray[np.int32], lengths: NDArray[np.int32]) -> pl.Series:
        """Fields as text."""
        sizes = lengths + 1  # with what ends them
        ends = np.cumsum(sizes)
        total = int(ends[-1]) if len(ends) else 0
        places = np.repeat(starts - (ends - sizes), sizes) + np.arange(total)
        found = self._bytes[places]
        found[ends - 1] = ord("\n")
        return pl.Series(found.tobytes().decode().split("\n")[:-1], dtype=pl.String)


_MASKS = np.array([0, 0xFF, 0xFFFF], np.uint32)
LONG_FIELD = 3 << 16


class _Known:
    """What the distinct fields of one column mean: of field i, its code and what becomes of it."""

    def __init__(self, column: Column, spec: Spec, token_of: Callable[[str], str]) -> None:
        self._column, self._spec, self._token_of = column, spec, token_of
        self._forget()

    def _forget(self) -> None:
        self._places: dict[str, int] = {}
        self._short = np.full(LONG_FIELD + 1, NOWHERE, np.uint32)
        self._codes: list[float] = []
        self._outcomes: list[int] = []

    def look_up(self, fields: _Fields, place: int) -> tuple[NDArray[Any], NDArray[np.uint8]]:
        """Codes and outcomes of a column of fields."""
        starts, lengths = fields.bounds(place)
        keys = fields.short(starts, lengths)
        if len(self._codes) > MAX_KNOWN:
            self._forget()
        is_long = lengths > 2
        if is_long.any():
            keys[is_long] = LONG_FIELD
        at = self._short[keys]
        if at.max(initial=0) == NOWHERE:
            for key in np.unique(keys[at == NOWHERE]).tolist():
                if key != LONG_FIELD:
                    text = key.to_bytes(4, "little")[: key >> 16].decode()
                    self._short[key] = self._learn(text)
            at = self._short[keys]
            if keys.max() == LONG_FIELD:
                at[is_long] = self.places_of(fields.texts(starts[is_long], lengths[is_long]))
        return self.meaning(at)

    def places_of(self, texts: pl.Series) -> NDArray[np.uint32]:
        """Places in the list of what is known."""
        places = self._known_places(texts)
        if places.null_count():
            for text in texts.filter(places.is_null()).unique().to_list():
                self._places[text] = self._learn(text)
            places = self._known_places(texts)
        return places.to_numpy()

    def meaning(self, at: NDArray[np.uint32]) -> tuple[NDArray[Any], NDArray[np.uint8]]:
        """Codes and outcomes of places."""
        codes = np.array(self._codes, dtype=self._spec.stored_as(self._column))
        return codes[at], np.array(self._outcomes, dtype=np.uint8)[at]

    def _known_places(self, texts: pl.Series) -> pl.Series:
        return texts.replace_strict(self._places, default=None, return_dtype=pl.UInt32)

    def _learn(self, text: str) -> int:
        """Ask the oracle; gives the place of the answer."""
        code = read_token(self._token_of(text), self._column, self._spec)
        outcome = CLEAN
        if isinstance(code, str):
            outcome = SKIPPED if code == NOT_IN_UNIVERSE else REFUSED
            code = 0
        elif code is None:
            assert self._column.impute is not None
            code, outcome = self._column.impute, IMPUTED
        self._codes.append(code)
        self._outcomes.append(outcome)
        return len(self._codes) - 1


class _SecondFile:
    """The used columns of the second file as arrays, one entry for each of its keys."""

    def __init__(self, layout: Layout, lookup: Lookup) -> None:
        found = {key: fields for key, fields in lookup.items() if fields}
        self._places = {key: place for place, key in enumerate(found)}
        self._columns = {}
        for column, place in layout.used:
            if (index := place - layout.num_fields) >= 0:
                fields = pl.Series([fields[index] for fields in found.values()], dtype=pl.String)
                known = _Known(column, layout.spec, lambda field: field.strip(layout.blanks))
                self._columns[column.name] = known.meaning(known.places_of(fields))

    def places(self, keys: pl.Series) -> NDArray[np.intp]:
        """Which entry belongs to each key, -1 if none does."""
        return np.array([self._places.get(key, -1) for key in keys.to_list()], np.intp)

    def look_up(self, name: str, places: NDArray[np.intp]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Codes and outcomes of a column, of no meaning where there is no entry."""
        codes, outcomes = self._columns[name]
        if not len(codes):
            return np.zeros(len(places), codes.dtype), np.zeros(len(places), np.uint8)
        return codes[places], outcomes[places]


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
            column.name: _Known(column, layout.spec, self._token_of)
            for column, place in layout.used
            if place < layout.num_fields
        }
        self._second = _SecondFile(layout, lookup) if lookup is not None else None
        not_special, blank = rf'[^"{re.escape(separator)}]*', f"[{layout.blanks}]*"
        field = f'(?:{not_special}|{blank}"{not_special}"{blank})'
        self._all_plain = f"^{field}(?:{re.escape(separator)}{field})*$"

    def read(self, text: bytes, first_line: int, num_bytes: int) -> Block:
        buffer = np.frombuffer(text, np.uint8)
        ends = np.flatnonzero(buffer == ord("\n"))
        starts = np.concatenate([[0], ends[:-1] + 1])
        at = np.flatnonzero(self._find_plain(text, buffer, starts, ends))
        plain = _selected(text, buffer, starts, ends, at)
        lines = _as_lines(plain, len(at))
        fields = _Fields(plain, len(at), self._layout.num_fields, self._layout.spec.separator)
        codes, outcomes = self._look_up(fields, len(at))
        is_right = np.asarray((outcomes < SKIPPED).all(axis=0))  # [plain]
        first_wrong = (outcomes >= SKIPPED).argmax(axis=0)
        is_skipped = ~is_right & (outcomes[first_wrong, np.arange(len(at))] == SKIPPED)
        is_odd = np.ones(len(ends), np.bool_)
        is_odd[at[is_right | is_skipped]] = False
        odd = self._ask(text, starts, ends, np.flatnonzero(is_odd), first_line)

        names = ["", *(column.name for column, _ in self._layout.used)]
        kept = np.concatenate([at[is_right], np.array(odd.kept, np.intp)])
        order = np.argsort(kept, kind="stable")
        digests, unit_digests = self._hash(lines, fields, is_right, odd, order)
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
            num_lines=len(ends),
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

    def _find_plain(
        self,
        text: bytes,
        buffer: NDArray[np.uint8],
        starts: NDArray[np.intp],
        ends: NDArray[np.intp],
    ) -> NDArray[np.bool_]:
        """Which lines are plain [lines]."""
        num_separators = _count(buffer, self._layout.spec.separator, starts)
        is_plain: NDArray[np.bool_] = num_separators == self._layout.num_fields - 1
        suspects = ends - starts > MAX_PLAIN_BYTES
        if self._layout.num_fields == 1:
            suspects |= np.add.reduceat(buffer > ord(" "), starts, dtype=np.uint32) == 0
        if not text.isascii():
            suspects |= buffer[starts] == BOM[0]  # Polars drops a BOM where a text begins
            try:
                text.decode()
            except UnicodeDecodeError:
                suspects |= np.add.reduceat(buffer > 127, starts, dtype=np.uint32) > 0
        is_plain &= ~suspects
        if b'"' in text:
            quoted = np.flatnonzero(is_plain & (_count(buffer, '"', starts) > 0))
            lines = _as_lines(_selected(text, buffer, starts, ends, quoted), len(quoted))
            is_plain[quoted] = lines.str.contains(self._all_plain).to_numpy()
        return is_plain

    def _look_up(
        self, fields: _Fields, num_lines: int
    ) -> tuple[list[NDArray[Any]], NDArray[np.uint8]]:
        """Codes of the used columns, each [plain], and outcomes [1 + used columns, plain].

        The first row of outcomes is about the keys.
        """
        layout = self._layout
        codes = []
        outcomes = np.zeros((1 + len(layout.used), num_lines), np.uint8)
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

    def _ask(
        self,
        text: bytes,
        starts: NDArray[np.intp],
        ends: NDArray[np.intp],
        which: NDArray[np.intp],
        first_line: int,
    ) -> _Odd:
        """Put lines through the oracle."""
        odd = _Odd()
        for index in which.tolist():
            line = text[starts[index] : ends[index]]
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
        lines: pl.Series,
        fields: _Fields,
        is_right: NDArray[np.bool_],
        odd: _Odd,
        order: NDArray[np.intp],
    ) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        """The words of the digests of lines and of units, plain ones before `order` is applied."""
        none = np.empty((0, 3), np.uint64)
        if self._split is None:
            return none, none
        keep = pl.Series(is_right, dtype=pl.Boolean)
        digests = [_digests(lines.filter(keep), self._split), _words(odd.digests)]
        if self._layout.unit is None:
            return np.concatenate(digests)[order], none
        units = self._tokens(fields, self._layout.unit).filter(keep)
        of_units = [_digests(units, self._split), _words(odd.unit_digests)]
        return np.concatenate(digests)[order], np.concatenate(of_units)[order]

    def _token_of(self, field: str) -> str:
        fields = split_line(field, self._layout.spec.separator)
        assert fields is not None and len(fields) == 1
        return fields[0].strip(self._layout.blanks)

    def _tokens(self, fields: _Fields, place: int) -> pl.Series:
        """The same for a column of fields of plain lines."""
        blanks = self._layout.blanks
        texts = fields.texts(*fields.bounds(place)).str.strip_chars(blanks)
        return texts.str.strip_prefix('"').str.strip_suffix('"').str.strip_chars(blanks)


def _count(buffer: NDArray[np.uint8], byte: str, starts: NDArray[np.intp]) -> NDArray[np.uint32]:
    """How often a byte is in each line."""
    counts: NDArray[np.uint32] = np.add.reduceat(buffer == ord(byte), starts, dtype=np.uint32)
    return counts


def _selected(
    text: bytes,
    buffer: NDArray[np.uint8],
    starts: NDArray[np.intp],
    ends: NDArray[np.intp],
    which: NDArray[np.intp],
) -> bytes:
    """The text of some lines, with their ends."""
    if len(which) == len(starts):
        return text
    wanted = np.zeros(len(starts), np.bool_)
    wanted[which] = True
    return buffer[np.repeat(wanted, ends - starts + 1)].tobytes()


def _as_lines(text: bytes, num_lines: int) -> pl.Series:
    """Lines of valid UTF-8, none of them empty."""
    if not num_lines:
        return pl.Series(dtype=pl.String)
    separator = next((one for one in _RARE if one.encode() not in text), None)
    if separator is None:
        return pl.Series(text.decode().split("\n")[:-1])
    table = pl.read_csv(
        text, has_header=False, schema={"line": pl.String}, separator=separator, quote_char=None
    )
    return _checked(table, num_lines)["line"]


def _checked(table: pl.DataFrame, num_lines: int) -> pl.DataFrame:
    if table.height != num_lines:
        raise RuntimeError(f"Polars must read {num_lines} rows, got {table.height}")
    return table


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

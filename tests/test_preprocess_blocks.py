"""Files in blocks of many lines: every line means what the oracle says, wherever a block ends."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from preprocess import blocks, meanings
from preprocess.header import parse_header
from preprocess.records import NOT_IN_UNIVERSE, Record, Refusal, read_record
from preprocess.sources import find_sources
from preprocess.specs import CENSUS_2000
from preprocess_samples import GOOD, HEADER, LINE_ENDS, ODD_TOKENS, assert_same, clean, job_of

BOM = b"\xef\xbb\xbf"
FIELDS = GOOD.encode().split(b",")
ANY_FILE = settings(
    max_examples=120,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@st.composite
def odd_line(draw: st.DrawFn) -> bytes:
    """A good record with some fields replaced, added or removed; or something else entirely."""
    kind = draw(st.integers(0, 9))
    if kind == 0:
        odd = [b"", b" ", b"\t", b",", b",,", b"#", b"\x00", b'"', HEADER.encode(), BOM]
        return draw(st.sampled_from(odd))
    if kind == 1:
        return draw(st.binary(max_size=30)).replace(b"\n", b",").replace(b"\r", b'"')
    fields, tokens = FIELDS.copy(), st.sampled_from(ODD_TOKENS)
    if kind < 6:
        for _ in range(draw(st.integers(1, 3))):
            fields[draw(st.integers(0, 17))] = draw(tokens)
    if kind == 2:
        del fields[draw(st.integers(0, 17))]
    if kind == 3:
        fields.insert(draw(st.integers(0, 18)), draw(tokens))
    return b",".join(fields)


@st.composite
def odd_file(draw: st.DrawFn) -> bytes:
    ends = st.sampled_from(LINE_ENDS)
    start = draw(st.sampled_from([b"", BOM, b"\n", BOM + b"\r", b" \r\n"]))
    lines = draw(st.lists(st.tuples(odd_line(), ends), max_size=12))
    text = b"".join(line + end for line, end in lines)
    head = start + HEADER.encode() + draw(ends)
    return head + (text[:-1] if draw(st.booleans()) else text)


def lines_of(content: bytes) -> list[bytes]:
    """All lines of a file, by the definition."""
    text = content.removeprefix(BOM).replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    lines = text.split(b"\n")
    return lines if lines[-1] else lines[:-1]


ONE = GOOD.encode()


@given(content=odd_file(), block_bytes=st.integers(1, 120) | st.just(1 << 20))
@example(content=HEADER.encode(), block_bytes=7)
@example(content=HEADER.encode() + b"\r\n" + ONE + b"\r\n\r\n" + ONE + b"x", block_bytes=1)
@example(
    content=b"\r".join([HEADER.encode(), ONE + b",", ONE[:-6], ONE, BOM + ONE]), block_bytes=4096
)
@ANY_FILE
def test_blocks_and_the_oracle_agree_on_any_file(
    content: bytes, block_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "odd.csv"
    path.write_bytes(content)
    monkeypatch.setattr(blocks, "BLOCK_BYTES", block_bytes)
    job = job_of(path, folder=tmp_path)
    assert_same(clean("polars", job), clean("sequential", job))


@given(content=odd_file(), block_bytes=st.integers(1, 120), features_only=st.booleans())
@ANY_FILE
def test_every_line_of_a_block_is_what_the_oracle_says_of_it(
    content: bytes,
    block_bytes: int,
    features_only: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    path = tmp_path / "odd.csv"
    path.write_bytes(content)
    monkeypatch.setattr(blocks, "BLOCK_BYTES", block_bytes)
    layout = parse_header(HEADER.encode(), CENSUS_2000, features_only=features_only)
    lines = lines_of(content)
    next_line = 2 + next(number for number, line in enumerate(lines) if line.strip(b" \t"))
    (source,) = find_sources([path])
    for block in blocks.read(source, CENSUS_2000, features_only=features_only):
        assert block.first_line == next_line
        next_line += block.num_lines
        assert block.num_bytes <= len(content)
        kept, imputed, refused, skipped = {}, Counter[str](), [], Counter[str]()
        for index in range(block.num_lines):
            number = block.first_line + index
            record = read_record(lines[number - 1], layout)
            if isinstance(record, Record):
                kept[index] = record.codes
                imputed.update(record.imputed)
            elif isinstance(record, Refusal) and record.rule == NOT_IN_UNIVERSE:
                skipped[record.column] += 1
            elif record is not None:
                refused.append((number, record))
        assert block.kept.tolist() == list(kept)
        assert list(zip(*(codes.tolist() for codes in block.codes.values()), strict=True)) == list(
            kept.values()
        )
        assert block.refused == refused
        assert block.imputed == imputed
        assert {name: len(found) for name, found in block.skipped.items()} == skipped
        assert block.num_records == len(kept) + len(refused) + skipped.total()
    assert next_line == len(lines) + 1


@given(content=odd_file())
@settings(max_examples=60, deadline=None)
def test_lines_do_not_depend_on_the_size_of_a_block(content: bytes):
    expected = b"".join(line + b"\n" for line in lines_of(content))
    for block_bytes in (1, 2, 3, 64, 1 << 20):
        pieces = list(blocks.read_blocks(io.BytesIO(content.removeprefix(BOM)), block_bytes))
        assert b"".join(text for text, _ in pieces) == expected
        assert all(text.endswith(b"\n") for text, _ in pieces)
        assert sum(number for _, number in pieces) <= len(content)


def test_distinct_fields_that_are_forgotten_are_learned_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(meanings, "MAX_KNOWN", 3)
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 200)
    path = tmp_path / "raw.csv"
    lines = [GOOD.replace("51", str(15 + 7 * number % 101)) for number in range(60)]
    path.write_text("\n".join([HEADER, *lines]))
    job = job_of(path, folder=tmp_path)
    found = clean("polars", job)
    assert_same(found, clean("sequential", job))
    assert len(set(found.rows["age"].tolist())) == 60

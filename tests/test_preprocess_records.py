"""The meaning of one record, and of a header."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest

from preprocess.errors import DataError
from preprocess.header import MAX_HEADER_BYTES, parse_header, read_header
from preprocess.records import Record, Refusal, read_record, split_line
from preprocess.schema import as_schema
from preprocess.spec import Column, num_features
from preprocess.specs import CENSUS_2000

HEADER = ",".join(CENSUS_2000.header).encode()
LAYOUT = parse_header(HEADER, CENSUS_2000)
GOOD = dict.fromkeys(CENSUS_2000.header, "0") | {
    **{"state": "13", "puma": "1101", "age": "51", "educ": "11", "income": "2200"},
    **{"sex": "1", "married": "1", "uscitizen": "1", "englishability": "1", "fips": "13121"},
}
GOOD_CODES = (51, 11, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1, 0)  # age, educ, eleven bits, employed


def line(**changes: str) -> bytes:
    return ",".join((GOOD | changes).values()).encode()


def test_a_plain_record_becomes_its_codes_in_the_order_of_the_spec():
    assert read_record(line(), LAYOUT) == Record(GOOD_CODES, ())
    assert [column.name for column in CENSUS_2000.columns][-1] == "employed"


@pytest.mark.parametrize(
    "token", ["12.7", "1_2", "+51", "-51", "0x10", "\uff15\uff11", "1e1", "51\x00", "5 1",
              "51\xa0", "½", "1000000000", "0000000051", "51\u2028", "51.0", "--", "none\x1f"]
)  # fmt: skip
def test_a_token_that_is_not_one_to_nine_ascii_digits_is_refused(token: str):
    assert read_record(line(age=token), LAYOUT) == Refusal("age", token, "not-an-integer")


@pytest.mark.parametrize("token", ["51", " 51", "51\t ", '"51"', ' " 51 " ', "051", "000000051"])
def test_blanks_quotes_and_leading_zeros_do_not_change_a_value(token: str):
    assert read_record(line(age=token), LAYOUT) == Record(GOOD_CODES, ())


@pytest.mark.parametrize("column", CENSUS_2000.columns, ids=lambda column: column.name)
def test_domains_are_inclusive_and_nothing_beyond_them_is_kept(column: Column):
    for value in (column.low, column.high):
        assert isinstance(read_record(line(**{column.name: str(value)}), LAYOUT), Record)
    for value in (column.low - 1, column.high + 1, 256 + column.low, 999_999_999):
        rule = "not-an-integer" if value < 0 else "out-of-domain"
        expected = Refusal(column.name, str(value), rule)
        assert read_record(line(**{column.name: str(value)}), LAYOUT) == expected


@pytest.mark.parametrize("token", ["", " ", "NA", "n/a", "NaN", "?", ".", '""', '" NA "', "NULL"])
def test_a_missing_answer_becomes_the_public_constant_and_a_missing_label_refuses(token: str):
    assert read_record(line(age=token), LAYOUT) == Record((40, *GOOD_CODES[1:]), ("age",))
    refusal = read_record(line(employed=token), LAYOUT)
    assert isinstance(refusal, Refusal)
    assert (refusal.column, refusal.rule) == ("employed", "missing-label")


def test_columns_that_are_not_used_may_hold_anything():
    odd = line(income="1e+05", state="", puma="x y", fips="\u0663")
    assert read_record(odd, LAYOUT) == Record(GOOD_CODES, ())
    assert read_record(line(income="?").replace(b"?", b"\xff\x00"), LAYOUT) == Record(
        GOOD_CODES, ()
    )


def test_the_first_column_in_the_order_of_the_spec_is_the_reason():
    wrong = line(sex="7", age="x", employed="")  # sex comes first in the file, age in the spec
    assert read_record(wrong, LAYOUT) == Refusal("age", "x", "not-an-integer")


def test_invalid_utf8_in_a_used_column_is_refused():
    assert read_record(line(age="?").replace(b"?", b"5\xff"), LAYOUT) == Refusal(
        "age", "5\ufffd", "not-an-integer"
    )


def test_too_few_and_too_many_fields_are_refused():
    assert read_record(line() + b",", LAYOUT) == Refusal("", "19", "field-count")
    assert read_record(line()[:-6], LAYOUT) == Refusal("", "17", "field-count")
    assert read_record(b"\x00", LAYOUT) == Refusal("", "1", "field-count")


def test_blank_lines_mean_nothing():
    for blank in (b"", b" ", b"\t \t"):
        assert read_record(blank, LAYOUT) is None


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("", [""]),
        ("a,b", ["a", "b"]),
        ("a,", ["a", ""]),
        ('"a,b",c', ["a,b", "c"]),
        ('"a""b"', ['a"b']),
        ('""', [""]),
        ('"",', ["", ""]),
        (' "a" ,\t"b"\t', ["a", "b"]),
        ('a"b,c', ['a"b', "c"]),
        ('"a', None),
        ('"a"b', None),
        ('a, "', None),
        ('"a""', None),
        ('"a""",b', ['a"', "b"]),
    ],
)
def test_quotes_are_read_as_the_grammar_says(text: str, fields: list[str] | None):
    assert split_line(text) == fields


def test_bad_quotes_refuse_the_line_and_the_value_is_cut():
    refusal = read_record(b'"' + b"x" * 1000, LAYOUT)
    assert refusal == Refusal("", '"' + "x" * 79, "bad-quotes")


def test_a_header_is_matched_by_name_in_any_order_quoted_or_not():
    names = [f' "{name.upper()}"\t' for name in reversed(CENSUS_2000.header)]
    layout = parse_header(",".join(names).encode(), CENSUS_2000)
    reversed_line = b",".join(reversed(line().split(b",")))
    assert read_record(reversed_line, layout) == Record(GOOD_CODES, ())


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (HEADER.replace(b"age,", b""), ["missing: age"]),
        (HEADER + b",x", ["not expected: 'x'"]),
        (HEADER + b",age", ["twice: age"]),
        (HEADER.replace(b"income", b"pay"), ["missing: income", "not expected: 'pay'"]),
        (HEADER.replace(b",", b";"), ["semicolons"]),
        (HEADER.replace(b",", b"\t"), ["tabs"]),
        (line(), ["looks like a record", "state,puma,sex"]),
        (b"\xff\xfe" + HEADER.decode().encode("utf-16-le"), ["UTF-16", "UTF-8"]),
        (b"\xfe\xff" + HEADER.decode().encode("utf-16-be"), ["UTF-16"]),
        (b"\x89PNG\x1a\x00", ["missing: state, puma", "not expected: '"]),
        (b'"state', ["quote"]),
        (b"", ["no header"]),
        (b"\n \r\n\t\r", ["no header"]),
        (b"x" * (MAX_HEADER_BYTES + 1), [str(MAX_HEADER_BYTES)]),
    ],
)
def test_a_wrong_header_is_named(header: bytes, words: list[str]):
    with pytest.raises(DataError) as error:
        read_header(io.BufferedReader(io.BytesIO(header + b"\n")), CENSUS_2000)
    assert all(word in str(error.value) for word in words), error.value


def test_a_prediction_needs_the_columns_of_the_features_and_reads_no_other():
    names = [column.name for column in CENSUS_2000.inputs]
    assert names == [column.name for column in CENSUS_2000.columns if column.name != "employed"]
    header = ",".join(["id", *reversed(names), "id", "employed", "employed"]).encode()
    layout = parse_header(header, CENSUS_2000, features_only=True)
    values = ",".join(["a7", *(GOOD[name] for name in reversed(names)), "", "x", ""]).encode()
    assert read_record(values, layout) == Record(GOOD_CODES[:-1], ())
    assert read_record(values + b",", layout) == Refusal("", "18", "field-count")


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (HEADER.replace(b"age,", b"years,"), "13 columns that predictions need; missing: age"),
        (HEADER + b",Age", "; twice: age"),
        (HEADER.replace(b",", b";"), "(fields look separated by semicolons, commas are expected)"),
        (b"\xff\xfe" + HEADER, "UTF-16"),
    ],
)
def test_a_header_that_will_not_do_for_predictions_is_named(header: bytes, words: str):
    with pytest.raises(DataError) as error:
        parse_header(header, CENSUS_2000, features_only=True)
    assert words in str(error.value)
    assert "not expected" not in str(error.value)


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"])
def test_reading_a_header_stops_at_the_first_record(end: bytes):
    file = io.BufferedReader(io.BytesIO(b"\xef\xbb\xbf" + end + b" " + end + HEADER + end + b"x"))
    layout, next_line = read_header(file, CENSUS_2000)
    assert (layout, next_line, file.read()) == (LAYOUT, 4, b"x")


def test_the_encoding_has_124_features_44_of_them_without_crosses():
    assert num_features(CENSUS_2000) == 124
    encoding = as_schema(CENSUS_2000)["encoding"]
    crosses = [f for f in encoding["features"] if f["kind"] == "one-hot" and len(f["of"]) > 1]
    assert [[len(bins["lower_edges"]) for bins in cross["of"]] for cross in crosses] == [
        [7, 2],
        [7, 2, 2],
        [7, 2, 2],
        [2, 5],
    ]
    assert encoding["row_norm"] == 2.6


def test_the_label_and_the_income_that_leaks_it_are_never_features():
    text = str(as_schema(CENSUS_2000)["encoding"])
    assert "employed" not in text
    assert "income" not in text
    assert "income" not in [column.name for column in CENSUS_2000.columns]


def test_a_column_with_a_constant_outside_its_domain_is_refused():
    with pytest.raises(ValueError, match=r"impute of x must lie in 0\.\.1, got 2"):
        Column("x", 0, 1, 2)


def test_a_missing_token_that_is_a_number_is_missing_all_the_same():
    spec = replace(CENSUS_2000, missing_tokens=frozenset({"99"}))
    layout = parse_header(HEADER, spec)
    line = ",".join({**GOOD, "educ": "99", "age": "99"}.values()).encode()
    record = read_record(line, layout)
    assert isinstance(record, Record)
    assert record.codes[:2] == (40, 9) and record.imputed == ("age", "educ")
    with pytest.raises(ValueError, match="levels of sex must not be missing tokens, got 'NA'"):
        column = Column("sex", 0, 1, None, ("NA", "b"))
        columns = [column if one.name == "sex" else one for one in CENSUS_2000.columns]
        replace(CENSUS_2000, columns=tuple(columns))

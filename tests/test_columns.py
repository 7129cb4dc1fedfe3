"""docs/columns.md says what the built-in spec says."""

from __future__ import annotations

import re

from helpers import ROOT
from preprocess.records import RULES
from preprocess.specs import CENSUS_2000

TEXT = (ROOT / "docs/columns.md").read_text()


def rows(title: str) -> list[list[str]]:
    """The cells of the table whose header begins with this word."""
    lines = iter(TEXT.splitlines())
    while not next(lines).startswith(f"| {title} |"):
        pass
    next(lines)
    found = []
    while (line := next(lines, "")).startswith("|"):
        found.append([cell.strip() for cell in line.strip("|").split("|")])
    return found


def test_the_columns_are_those_of_the_spec_in_its_order() -> None:
    table = rows("column")
    assert tuple(row[0] for row in table) == CENSUS_2000.header
    columns = {column.name: column for column in CENSUS_2000.columns}
    inputs = {column.name for column in CENSUS_2000.inputs}
    for name, values, missing, use, _ in table:
        if name not in columns:
            assert (values, missing, use) == ("", "", "not read")
            continue
        column = columns[name]
        assert values == f"{column.low}-{column.high}"
        assert missing == ("refused" if column.impute is None else str(column.impute))
        assert use == ("feature" if name in inputs else "label")


def test_the_rules_and_the_missing_tokens_are_those_of_the_code() -> None:
    assert tuple(row[0].strip("`") for row in rows("rule")) == RULES
    (sentence,) = re.findall(r"one of: nothing, (.*), in any case", TEXT)
    assert {"", *re.findall("`([^`]+)`", sentence)} == CENSUS_2000.missing_tokens

"""docs/columns.md says what the built-in specs and the rules say."""

from __future__ import annotations

import re

from helpers import ROOT
from preprocess.records import NOT_IN_UNIVERSE, RULES
from preprocess.specs import CENSUS_2000, NAMES, builtin

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


def test_the_specs_are_those_that_are_built_in() -> None:
    table = rows("spec")
    assert tuple(row[0].strip("`") for row in table) == NAMES
    for name, files, people, _ in table:
        spec = builtin(name.strip("`"))
        assert ("without a header" in files) is not spec.first_line_names
        assert ("joined" in files) is (spec.join is not None)
        skipped = [column for column in spec.columns if column.outside == "skip"]
        assert ("of 16 and older" in people) is ([column.low for column in skipped] == [16])
        assert ("the default" in files) is (spec is CENSUS_2000)


def test_the_rules_and_the_missing_tokens_are_those_of_the_code() -> None:
    assert tuple(row[0].strip("`") for row in rows("rule")) == RULES
    assert len(RULES) - RULES.index("missing-label") == 6
    assert "among the last six" in TEXT
    assert rows("rule")[-1][0] == f"`{NOT_IN_UNIVERSE}`"
    (sentence,) = re.findall(r"one of: nothing, (.*), in any case", TEXT)
    assert {"", *re.findall("`([^`]+)`", sentence)} == CENSUS_2000.missing_tokens

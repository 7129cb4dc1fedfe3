"""The second file of a spec with a join: by key, the fields of its used columns.

It is held in memory, which suits the engines that run on one machine. A line that cannot be cut
into fields matches no record; a key that is there twice matches none either, and says so.
"""

from __future__ import annotations

from collections.abc import Iterator

from preprocess.header import check_names, joined_columns, parse_names, read_first_line
from preprocess.records import BLANKS, split_line
from preprocess.sources import Source, lines_of, open_source
from preprocess.spec import Spec


def read_lookup(source: Source, spec: Spec) -> dict[str, tuple[str, ...] | None]:
    """The table of `records.Lookup`. Raises DataError if the header is not that of the join."""
    lookup: dict[str, tuple[str, ...] | None] = {}
    for key, fields in read_pairs(source, spec):
        lookup[key] = None if key in lookup else fields
    return lookup


def read_pairs(source: Source, spec: Spec) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Key and fields of every line of the second file that can be cut into fields."""
    with open_source(source) as file:
        line, _ = read_first_line(file)
        places = join_places(line, spec)
        for text in lines_of(file):
            if (found := cut(text, places, spec)) is not None:
                yield found


def join_places(line: bytes, spec: Spec) -> tuple[int, ...]:
    """From the header: the number of its fields, the place of the key, those of used columns."""
    assert spec.join is not None
    names = parse_names(line, spec.join.header, spec.separator)
    check_names(names, spec.join.header, spec.other_columns, f"of {spec.join.name} in {spec.name}",
                line, spec.separator)  # fmt: skip
    used = [names.index(name) for name in joined_columns(spec)]
    return (len(names), names.index(spec.join.key), *used)


def cut(line: bytes, places: tuple[int, ...], spec: Spec) -> tuple[str, tuple[str, ...]] | None:
    """Key and fields of a line of the second file; None if it is blank or cannot be cut."""
    fields = split_line(line.decode("utf-8", errors="replace"), spec.separator)
    num_fields, key, *used = places
    if fields is None or len(fields) != num_fields:
        return None
    token = fields[key].strip(BLANKS.replace(spec.separator, ""))
    return token, tuple(fields[place] for place in used)

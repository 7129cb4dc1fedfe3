"""What python -m collectives.cost tells people: tables of plain text."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, TextIO

from collectives.arguments import UNITS
from collectives.price import Link

Rows = Sequence[dict[str, Any]]
TOO_NOISY = 0.25
"""Median error of a fit above which its predictions are not to be trusted."""
NOT_PRICED = (
    "not compared: too many messages to walk through, and closed forms know one kind of link only"
)


def shown_seconds(number: float) -> str:
    """Three digits and a unit: 56.1 us."""
    for unit, factor in (("ns", 1e-9), ("us", 1e-6), ("ms", 1e-3)):
        if number < 999.5 * factor:
            return f"{number / factor:.3g} {unit}"
    return f"{number:.3g} s" if number < 1000 else f"{number:.0f} s"


def shown_bytes(number: int) -> str:
    """As it would be typed: 64K, 1M, 4097."""
    for unit, factor in reversed(UNITS.items()):
        if number % factor == 0:
            return f"{number // factor}{unit}"
    return str(number)


def links(
    origin: str, link: Link, ranks_per_node: int, inside: Link | None, stream: TextIO
) -> None:
    """The costs that the predictions rest on."""
    print(
        f"# {origin}: alpha {shown_seconds(link.alpha)} a message, "
        f"overhead {shown_seconds(link.overhead)} each further one of a round, "
        f"beta {link.beta * 1e9:.3g} ns a byte sent, gamma {link.gamma * 1e9:.3g} ns a byte added",
        file=stream,
    )
    if inside:
        print(
            f"# {ranks_per_node} ranks a node; inside one alpha {shown_seconds(inside.alpha)}, "
            f"overhead {shown_seconds(inside.overhead)}, beta {inside.beta * 1e9:.3g} ns",
            file=stream,
        )


def world(
    world_size: int, names: Sequence[str], sizes: Sequence[int], rows: Rows, stream: TextIO
) -> None:
    """Predicted time for each algorithm and size."""
    cells = {(row["algorithm"], row["bytes"]): row for row in rows}
    width = max(len("algorithm"), *map(len, names)) + 2
    print(f"\n{world_size} rank{'s' * (world_size > 1)}, predicted time", file=stream)
    print(f"{'algorithm':<{width}}" + "".join(f"{shown_bytes(s):>11}" for s in sizes), file=stream)
    marks = set()
    for name in names:
        line = f"{name:<{width}}"
        for size in sizes:
            row = cells.get((name, size))
            mark = "-" if row is None else "*" if row["source"] != "walk" else " "
            line += f"{shown_seconds(row['seconds']):>10}{mark}" if row else f"{mark:>10} "
            marks.add(mark)
        print(line.rstrip(), file=stream)
    if "*" in marks:
        print("* by the closed form: too many messages to walk through", file=stream)
    if "-" in marks:
        print(f"- {NOT_PRICED}", file=stream)


def fastest(changes: Rows, stream: TextIO) -> None:
    """From which size on which algorithm is the fastest, in one world."""
    for change, after in itertools.zip_longest(changes, changes[1:]):
        until = f"to {after['bytes'] - 1:>12,}" if after else "on"
        text = f"from {change['bytes']:>12,} bytes {until:<16}{change['algorithm']} is the fastest"
        print(text, file=stream)


def fits(rows: Rows, stream: TextIO) -> None:
    """Measured beside predicted."""
    width = max(len("algorithm"), *(len(row["algorithm"]) for row in rows)) + 2
    print(
        f"{'algorithm':<{width}}{'transport':>10}{'ranks':>7}{'bytes':>8}{'measured':>11}"
        f"{'predicted':>11}{'error':>8}",
        file=stream,
    )
    for row in rows:
        print(
            f"{row['algorithm']:<{width}}{row['transport']:>10}{row['world_size']:>7}"
            f"{shown_bytes(row['bytes']):>8}{shown_seconds(row['seconds_median']):>11}"
            f"{shown_seconds(row['seconds']):>11}{row['relative_error']:>+8.0%}",
            file=stream,
        )
    errors = sorted(abs(row["relative_error"]) for row in rows)
    print(f"# median error {errors[len(errors) // 2]:.0%}, largest {errors[-1]:.0%}", file=stream)
    if errors[len(errors) // 2] > TOO_NOISY:
        print("# no link explains these rows: measure again, with more --repeats", file=stream)
    print(file=stream)


def exposures(rows: Rows, colluding: int, stream: TextIO) -> None:
    """What can be told apart from what is seen."""
    who = "rank" if colluding == 1 else f"{colluding} ranks together"
    print(
        "# the fewest contributions in any combination of what is seen: in the final sum, by the\n"
        f"# worst {who}, on the worst link; and how many ranks, each for itself, see somebody's\n"
        "# contribution alone",
        file=stream,
    )
    width = max(len("algorithm"), *(len(row["algorithm"]) for row in rows)) + 2
    seen_by = "rank" if colluding == 1 else f"{colluding} ranks"
    columns = {"public": "public", "ranks": seen_by, "link": "link",
               "ranks_that_see_one": "see one"}  # fmt: skip
    head = "".join(f"{title:>9}" for title in columns.values())
    print(f"{'algorithm':<{width}}{'transport':<10}{'ranks':>7}{head}", file=stream)
    for row in rows:
        cells = "".join(f"{row[key]:>9}" for key in columns)
        print(
            f"{row['algorithm']:<{width}}{row['transport']:<10}{row['world_size']:>7}{cells}",
            file=stream,
        )
    print("# shared memory can be read by all ranks of a node, vendors are opaque: 1", file=stream)

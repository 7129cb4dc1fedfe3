"""How fast should each all-reduce be, without a network: python -m collectives.cost

Predicts the time of every algorithm from what a message, a byte on its way and an added byte cost
(see `price`), shows which one is the fastest from which size on, and draws time against size. With
--fit the costs are those that explain best what collectives.bench has measured, and every
measured row is shown beside its prediction.

    python -m collectives.cost --world-sizes 8 512 --alpha 2e-6 --beta 4e-11
    mpirun -np 4 python -m collectives.bench --json bench.json
    python -m collectives.cost --fit bench.json
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TextIO

import collectives
from collectives import cost_table
from collectives.algorithms import ALGORITHMS, find
from collectives.arguments import Parser, allreduce, count, num_bytes, seconds, writable
from collectives.crossover import Curve, crossovers
from collectives.fit import compare, fit, read
from collectives.price import Link, UnpricedError, nodes_of
from launch.world import launched_rank

PLAIN_10_GBPS = Link(alpha=20e-6, beta=1 / 1.25e9, gamma=1 / 4e9)
"""Ten-gigabit Ethernet through TCP, and sums at 4 GB/s."""
INSIDE_A_NODE = Link(alpha=1e-6, beta=1 / 5e9, gamma=1 / 4e9)
"""Between ranks of one node: memory that is copied twice."""
COSTS = ("alpha", "beta", "gamma")
WORLD_SIZES = (4, 64, 1024, 65536)
EXPOSED_WORLD_SIZES = (2, 4, 8, 16)
SIZES = "4K 64K 1M 16M 64M"
MAX_WORLD_SIZE = 100_000
MAX_EXPOSED = 64
NO_MATPLOTLIB = "no picture: matplotlib is not installed: pip install 'dpsgd[report]'"


def parser() -> Parser:
    """The command line."""
    made = Parser(
        prog="python -m collectives.cost", description=__doc__.splitlines()[0], allow_abbrev=False
    )
    made.add_argument("--world-sizes", nargs="+", type=count, metavar="N",
                      help=f"default {' '.join(map(str, WORLD_SIZES))}; with --exposure "
                           f"{' '.join(map(str, EXPOSED_WORLD_SIZES))}")  # fmt: skip
    made.add_argument("--bytes", nargs="+", type=num_bytes, metavar="SIZE",
                      default=[num_bytes(size) for size in SIZES.split()],
                      help=f"sizes, K = 1024 (default {SIZES})")  # fmt: skip
    made.add_argument("--allreduce", nargs="+", type=allreduce, metavar="NAME",
                      help=f"ring, butterfly:4,2, ...; of {', '.join(ALGORITHMS)}")  # fmt: skip
    made.add_argument("--ranks-per-node", type=count, default=1, metavar="N",
                      help="ranks in a row that share a node (default 1)")  # fmt: skip
    for name, what in (("alpha", "a message"), ("beta", "a byte sent"), ("gamma", "a byte added")):
        made.add_argument(f"--{name}", type=seconds, metavar="SECONDS",
                          help=f"{what} (default {getattr(PLAIN_10_GBPS, name):.3g})")  # fmt: skip
    made.add_argument("--overhead", type=seconds, metavar="SECONDS",
                      help="each further message of a round (default alpha)")  # fmt: skip
    made.add_argument("--fit", type=Path, metavar="FILE", help="rows of collectives.bench --json")
    made.add_argument("--exposure", action="store_true",
                      help="instead: how many contributions hide behind each other")  # fmt: skip
    made.add_argument("--colluding", type=count, metavar="K",
                      help="ranks that tell each other, with --exposure (default 1)")  # fmt: skip
    made.add_argument("--out", type=Path, default=Path("runs/cost"), metavar="FOLDER",
                      help="for the pictures (default runs/cost)")  # fmt: skip
    made.add_argument("--json", metavar="FILE", nargs="?", const="-", type=writable,
                      help="rows, crossovers and links as JSON")  # fmt: skip
    return made


def main(arguments: list[str] | None = None) -> int:
    """Run the command; under mpirun one process does."""
    if launched_rank() > 0:
        return 0
    command = parser()
    options = command.parse_args(arguments)
    people = sys.stderr if options.json == "-" else sys.stdout
    try:
        _check(options)
        report = _exposures(options, people) if options.exposure else _costs(options, people)
    except ValueError as error:
        command.error(str(error))
    if options.json:
        text = json.dumps(report, allow_nan=False, indent=2) + "\n"
        if options.json == "-":
            sys.stdout.write(text)
            return 0
        try:
            Path(options.json).write_text(text, encoding="utf-8")
        except OSError as error:
            command.error(f"--json {options.json} cannot be written: {error.strerror}")
    return 0


def _check(options: argparse.Namespace) -> None:
    """What argparse cannot see; and the defaults that depend on other options."""
    usual = EXPOSED_WORLD_SIZES if options.exposure else WORLD_SIZES
    options.world_sizes = list(dict.fromkeys(options.world_sizes or usual))
    if options.colluding and not options.exposure:
        raise ValueError("--colluding asks who sees what: give --exposure as well")
    options.colluding = options.colluding or 1
    for world_size in options.world_sizes:
        if options.exposure and not 2 <= world_size <= MAX_EXPOSED:
            raise ValueError(
                f"world sizes must be from 2 to {MAX_EXPOSED} with --exposure, got {world_size}"
            )
        if not 2 <= world_size <= MAX_WORLD_SIZE:
            raise ValueError(f"world sizes must be from 2 to {MAX_WORLD_SIZE}, got {world_size}")
    options.bytes = sorted(set(options.bytes))
    options.allreduce = list(dict.fromkeys(options.allreduce or ALGORITHMS))
    costs = {one.name: getattr(options, one.name) for one in fields(Link)}
    options.given = {name: number for name, number in costs.items() if number is not None}
    if options.exposure and options.fit:
        raise ValueError("--exposure needs no costs of a link: leave out --fit")
    if options.given and not any(costs[name] or costs[name] is None for name in COSTS):
        raise ValueError(f"one of --{', --'.join(COSTS)} must be more than 0, got 0 for all")
    if options.fit and options.given:
        first = next(iter(options.given))
        raise ValueError(f"--fit finds the costs of a link: leave out --fit or --{first}")


def _costs(options: argparse.Namespace, people: TextIO) -> dict[str, Any]:
    """Predict, show and draw, for one transport after the other if they were fitted."""
    report: dict[str, Any] = {"rows": [], "crossovers": []}
    can_draw = importlib.util.find_spec("matplotlib") is not None
    if can_draw:
        _make_folder(options.out)
    if options.fit:
        measured = read(options.fit)
        links = fit(measured, ranks_per_node=options.ranks_per_node)
        report["links"] = {transport: asdict(link) for transport, link in links.items()}
        report["fit"] = compare(measured, links, ranks_per_node=options.ranks_per_node)
    else:
        usual = PLAIN_10_GBPS
        plain = {"alpha": usual.alpha, "beta": usual.beta, "gamma": usual.gamma}
        link = Link(**plain | options.given)
        links = {"": link}
        report["link"] = asdict(link)
    inside = INSIDE_A_NODE if options.ranks_per_node > 1 and not options.fit else None
    if inside:
        report["inside"] = asdict(inside)
    panels = {  # before the first table: a world that does not suit an algorithm is an error
        transport: [_curves(options, one, link, inside) for one in options.world_sizes]
        for transport, link in links.items()
    }
    if options.fit:
        cost_table.fits(report["fit"], people)
    for transport, link in links.items():
        origin = transport or ("as given" if options.given else "a plain 10 Gb/s network")
        cost_table.links(origin, link, options.ranks_per_node, inside, people)
        key = {"transport": transport} if transport else {}
        for world_size, curves in zip(options.world_sizes, panels[transport], strict=True):
            rows = [key | row for row in _rows(curves, options.bytes)]
            changes = [
                key | {"world_size": world_size, "bytes": size, "algorithm": name}
                for size, name in (crossovers(curves) if curves else ())
            ]
            cost_table.world(world_size, options.allreduce, options.bytes, rows, people)
            cost_table.fastest(changes, people)
            report["rows"] += rows
            report["crossovers"] += changes
        drawn = [curves for curves in panels[transport] if curves]
        if can_draw and drawn:
            from collectives.cost_picture import draw

            files = draw(drawn, origin, options.out, "-".join(["cost", *key.values()]))
            print(f"# wrote {' and '.join(map(str, files))}", file=people)
    if not can_draw:
        print(f"# {NO_MATPLOTLIB}", file=people)
    return report


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"out must be a folder, got {folder}: {error.strerror}") from None
    if not os.access(folder, os.W_OK):
        raise ValueError(f"out must be a folder that can be written, got {folder}")


def _curves(
    options: argparse.Namespace, world_size: int, link: Link, inside: Link | None
) -> list[Curve]:
    """One for each algorithm that can be priced in this world."""
    nodes = nodes_of(world_size, options.ranks_per_node)
    curves = []
    for name in options.allreduce:
        try:
            curves.append(Curve(name, find(name), world_size, link, nodes, inside))
        except UnpricedError:
            continue  # shown as a dash
    return curves


def _rows(curves: list[Curve], sizes: list[int]) -> list[dict[str, Any]]:
    return [
        {
            "algorithm": curve.name,
            "world_size": curve.world_size,
            "bytes": size,
            "seconds": curve.seconds(size),
            "source": "walk" if curve.is_walked(size) else "closed-form",
        }
        for curve in curves
        for size in sizes
    ]


def _exposures(options: argparse.Namespace, people: TextIO) -> dict[str, Any]:
    from collectives import exposure

    ways = [(name, way) for way in collectives.TRANSPORTS for name in options.allreduce]
    if set(ALGORITHMS) <= set(options.allreduce):
        ways += [(name, "vendor") for name in collectives.VENDORS]
    rows: list[dict[str, Any]] = []
    for world_size in options.world_sizes:
        for name, way in ways:
            algorithm = None if way == "vendor" else find(name)
            see_one = world_size
            if algorithm is not None and way == exposure.MESSAGES:
                alone = [exposure.of_ranks(algorithm, world_size, [r]) for r in range(world_size)]
                see_one = alone.count(1)
            rows.append(
                {
                    "algorithm": name,
                    "transport": way,
                    "world_size": world_size,
                    "public": exposure.public(world_size),
                    "colluding": options.colluding,
                    "ranks": exposure.ranks(algorithm, world_size, options.colluding, way),
                    "link": exposure.link(algorithm, world_size, way),
                    "ranks_that_see_one": see_one,
                }
            )
    cost_table.exposures(rows, options.colluding, people)
    return {"rows": rows}


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("python -m collectives.cost: interrupted", file=sys.stderr)
        sys.exit(130)

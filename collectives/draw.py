"""Who talks to whom: python -m collectives.draw ring --world-size 4

Draws a schedule as SVG. Ranks are lines, time goes to the right, a message is an arrow, and the
numbers where it begins are the parts that it carries.

A step is the time of one message, as if all took equally long (see `clocks`); in a step every rank
sends at most one and receives at most one. A round with many messages therefore takes many steps:
the grey bars behind a rank's line are its rounds.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.sax.saxutils import escape

from collectives.algorithms import ALGORITHMS, find
from collectives.arguments import Parser, allreduce, count
from collectives.clocks import Message
from collectives.price import Link, critical_path
from collectives.schedule import ADD, COPY, Algorithm, Combine, Parts, Traffic
from collectives.verify import ScheduleError, verify
from launch.world import launched_rank

MOST_RANKS = 32
STEP, ROW = 84, 56  # pixels of a step, and between two ranks
LEFT, TOP, RIGHT, BOTTOM = 84, 136, 24, 36
LEAST_WIDTH = 560  # of title and legend
GAP = 9  # between an arrow and the border of its step
BAR = 9  # half the height of a round's bar
ONE_A_MESSAGE = Link(alpha=1, beta=0, gamma=0)
LOOKS: dict[Combine, tuple[str, str]] = {ADD: ("#0072B2", ""), COPY: ("#D55E00", "7 3")}
"""Colours of Okabe and Ito, which colour-blind people can tell apart; and dashes."""
MEANINGS = {ADD: "is added", COPY: "is copied"}


def draw(algorithm: Algorithm, world_size: int) -> str:
    """The picture, as the text of an SVG file.

    Raises ValueError for too many or too few ranks, ScheduleError for a schedule that is wrong.
    """
    if not 2 <= world_size <= MOST_RANKS:
        raise ValueError(f"world size must be from 2 to {MOST_RANKS} to be drawn, got {world_size}")
    traffic = verify(algorithm, world_size)
    messages: list[Message] = []
    critical_path(algorithm, world_size, 1, ONE_A_MESSAGE, observe=messages.append)
    num_steps = 1 + max(map(_step, messages))
    width = max(LEAST_WIDTH, LEFT + num_steps * STEP + RIGHT)
    height = TOP + (world_size - 1) * ROW + BOTTOM
    parts = _number(algorithm.num_parts(world_size), "part")
    title = f"{algorithm.name}, {world_size} ranks, {parts}"
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="13" role="img">',
        f"<title>{escape(title)}</title>",
        *_definitions(),
        f'<rect width="{width}" height="{height}" fill="white"/>',
        _text(20, 32, title, 'font-size="19" font-weight="bold"'),
        _text(20, 54, _summary(traffic)),
        *_legend(),
        *_ground(num_steps, world_size),
        *_bars(messages),
        *_rank_lines(num_steps, world_size),
        *(_arrow(message) for message in messages),
        *(_label(message) for message in messages),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _step(message: Message) -> int:
    return round(message.begins)


def _x(step: int) -> int:
    return LEFT + step * STEP


def _y(rank: int) -> int:
    return TOP + rank * ROW


def _text(x: float, y: float, text: str, more: str = "") -> str:
    return f'<text x="{x:g}" y="{y:g}" {more}>{escape(text)}</text>'


def _line(x1: int, y1: int, x2: int, y2: int, more: str, inner: str = "") -> str:
    return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" {more}>{inner}</line>'


def _definitions() -> Iterator[str]:
    """Arrow heads."""
    yield "<defs>"
    for combine, (colour, _) in LOOKS.items():
        yield (
            f'<marker id="{combine.value}" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="6.5" '
            f'markerHeight="6.5" orient="auto"><path d="M0 0 10 5 0 10z" fill="{colour}"/></marker>'
        )
    yield "</defs>"


def _look(combine: Combine) -> str:
    colour, dashes = LOOKS[combine]
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    return f'stroke="{colour}" stroke-width="1.8"{dashed} marker-end="url(#{combine.value})"'


def _number(count: float, word: str) -> str:
    return f"{count:.3g} {word}{'s' * (count != 1)}"


def _summary(traffic: Traffic) -> str:
    return (
        f"{_number(traffic.rounds, 'round')}; the busiest rank sends "
        f"{_number(traffic.messages, 'message')}, {_number(traffic.sent, 'buffer')}"
    )


def _legend() -> Iterator[str]:
    for place, (combine, meaning) in enumerate(MEANINGS.items()):
        x = 20 + place * 185
        yield _line(x, 78, x + 40, 78, _look(combine))
        yield _text(x + 48, 82, f"part that {meaning}")
    yield f'<rect x="390" y="{78 - BAR}" width="40" height="{2 * BAR}" rx="4" fill="#e6e6e6"/>'
    yield _text(438, 82, "round of a rank")


def _ground(num_steps: int, world_size: int) -> Iterator[str]:
    """The numbers of the steps, and what separates them."""
    top, bottom = TOP - 24, _y(world_size - 1) + 24
    yield _text(20, top - 6, "step", 'fill="#555555"')
    for step in range(num_steps + 1):
        yield _line(_x(step), top, _x(step), bottom, 'stroke="#dddddd"')
        if step < num_steps:
            middle = _x(step) + STEP / 2
            yield _text(middle, top - 6, str(step + 1), 'text-anchor="middle" fill="#555555"')


def _bars(messages: list[Message]) -> Iterator[str]:
    """From the first to the last message of each round of each rank."""
    spans: dict[tuple[int, int], list[int]] = {}
    for message in messages:
        spans.setdefault((message.source, message.sent_at[0]), []).append(_step(message))
        spans.setdefault((message.dest, message.received_at[0]), []).append(_step(message))
    for (rank, _), steps in spans.items():
        x, width = _x(min(steps)) + 3, (max(steps) + 1 - min(steps)) * STEP - 6
        y = _y(rank) - BAR
        yield f'<rect x="{x}" y="{y}" width="{width}" height="{2 * BAR}" rx="4" fill="#e6e6e6"/>'


def _rank_lines(num_steps: int, world_size: int) -> Iterator[str]:
    for rank in range(world_size):
        yield _text(20, _y(rank) + 4, f"rank {rank}")
        yield _line(_x(0), _y(rank), _x(num_steps), _y(rank), 'stroke="#999999"')


def _arrow(message: Message) -> str:
    step, combine = _step(message), message.combine
    x, y = (_x(step) + GAP, _x(step + 1) - GAP), (_y(message.source), _y(message.dest))
    what = f"rank {message.source} to rank {message.dest}: {_named(message.parts)}"
    said = f"<title>{what}, {combine.value}</title>"
    return _line(x[0], y[0], x[1], y[1], f'class="message" {_look(combine)}', said)


def _label(message: Message) -> str:
    """The parts, on that side of the rank's line where the arrow does not go."""
    away = -1 if message.dest > message.source else 1
    x, y = _x(_step(message)) + GAP, _y(message.source) + away * 17 + 4.5
    text, colour = _range(message.parts), LOOKS[message.combine][0]
    halo = _text(x, y, text, 'stroke="white" stroke-width="4" stroke-linejoin="round"')
    return halo + _text(x, y, text, f'fill="{colour}"')


def _range(parts: Parts) -> str:
    first, last = parts[0], parts[1] - 1
    return str(first) if first == last else f"{first}-{last}"


def _named(parts: Parts) -> str:
    return f"part{'s' * (parts[1] - parts[0] > 1)} {_range(parts)}"


def main(arguments: list[str] | None = None) -> int:
    """Run the command; under mpirun one process does."""
    if launched_rank() > 0:
        return 0
    command = Parser(
        prog="python -m collectives.draw", description=__doc__.splitlines()[0], allow_abbrev=False
    )
    command.add_argument("allreduce", type=allreduce, metavar="NAME",
                         help=f"ring, tree:4, ...; of {', '.join(ALGORITHMS)}")  # fmt: skip
    command.add_argument("--world-size", type=count, default=4, metavar="N", help="default 4")
    command.add_argument("--output", type=Path, metavar="FILE", help="default runs/NAME-N.svg")
    options = command.parse_args(arguments)
    words = re.sub(r"\W+", "-", options.allreduce)
    file = options.output or Path("runs", f"{words}-{options.world_size}.svg")
    if file.suffix != ".svg":
        command.error(f"output must be a file whose name ends in .svg, got {file}")
    try:
        text = draw(find(options.allreduce), options.world_size)
        if file.parent == Path("runs"):
            file.parent.mkdir(exist_ok=True)
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        command.error(f"output must be a file that can be written, got {file}: {error.strerror}")
    except (ScheduleError, ValueError) as error:
        command.error(str(error))
    print(f"wrote {file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

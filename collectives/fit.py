"""Which link explains what was measured? Least squares on the rows of the bench.

With alpha = overhead + flight, each row says: overhead m + beta b + gamma c + flight w = seconds,
where m, b and c are the messages, the bytes sent and the bytes added on the critical path, and w
the messages that are waited for. Errors are relative to the measured seconds, so that 4 KB count as
much as 64 MB:

    minimise over overhead, beta, gamma, flight >= 0
        sum of ((overhead m + beta b + gamma c + flight w) / seconds - 1)^2

With four unknowns the constraint is settled by trying which of them are not 0. Of equally good
answers, that with flight 0 is taken: without rows of several messages a round, overhead = alpha.
The critical path depends on the answer, so it is looked for again until it stays.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from collectives.algorithms import find
from collectives.price import Link, find_path, nodes_of, predict
from collectives.schedule import Algorithm, Price

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

VENDOR = "vendor"
"""The transport of opaque all-reduces, which have no schedule to be priced."""
FIRST_GUESS = Link(alpha=1e-5, beta=1e-9, gamma=1e-10)
MAX_ROUNDS = 6
UNKNOWNS = 4  # overhead, beta, gamma, flight
SUBSETS = [one for size in (4, 3, 2, 1) for one in combinations(range(UNKNOWNS), size)]
BETTER = 1 - 1e-9  # by how much an error must shrink to be preferred,
ROUNDING = 1e-24  # and by more than this


def read(file: Path) -> list[Mapping[str, Any]]:
    """The rows in a file of `collectives.bench --json`. Raises ValueError, which names the file."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"fit must be a file to read, got {file}: {error.strerror}") from None
    except ValueError:
        raise ValueError(f"fit must be JSON of collectives.bench, got {file}: not JSON") from None
    rows = found.get("rows") if isinstance(found, dict) else None
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"fit must be JSON of collectives.bench, got {file}: no rows")
    try:
        return priced(rows)
    except ValueError as error:
        raise ValueError(f"fit must be JSON of collectives.bench, got {file}: {error}") from None


def priced(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The rows with a schedule and with messages. Raises ValueError for what is no such row."""
    kept = []
    for number, row in enumerate(rows, 1):
        try:
            if row["transport"] == VENDOR:
                continue
            find(str(row["algorithm"]))
            sound = (
                isinstance(row["transport"], str)
                and isinstance(row["world_size"], int) and row["world_size"] >= 1
                and isinstance(row["bytes"], int) and row["bytes"] >= 0
                and 0 < float(row["seconds_median"]) < math.inf
            )  # fmt: skip
        except (TypeError, KeyError) as error:
            raise ValueError(f"row {number} is none of collectives.bench: {error!r}") from None
        except ValueError as error:
            raise ValueError(f"row {number}: {error}") from None
        if not sound:
            raise ValueError(f"row {number} is none of collectives.bench: {dict(row)}")
        if row["world_size"] > 1 and row["bytes"]:
            kept.append(row)
    return kept


def fit(rows: Iterable[Mapping[str, Any]], *, ranks_per_node: int = 1) -> dict[str, Link]:
    """The link of each transport that explains best what `collectives.bench` has measured.

    A row needs algorithm, transport, world_size, bytes and seconds_median; others are ignored, and
    so are rows of the vendors' all-reduces and of a single rank. Raises ValueError if a transport
    has fewer than three rows, or none is left.
    """
    by_transport: dict[str, list[Mapping[str, Any]]] = {}
    for row in priced(rows):
        by_transport.setdefault(row["transport"], []).append(row)
    if not by_transport:
        raise ValueError("there must be rows of schedules on 2 or more ranks, got none")
    for transport, those in by_transport.items():
        if len(those) < 3:
            raise ValueError(
                f"alpha, beta and gamma need 3 or more rows of 2 or more ranks, "
                f"got {len(those)} of transport {transport!r}"
            )
    return {key: _fit_one(those, ranks_per_node) for key, those in by_transport.items()}


def compare(
    rows: Iterable[Mapping[str, Any]], links: Mapping[str, Link], *, ranks_per_node: int = 1
) -> list[dict[str, Any]]:
    """Each row that `fit` has used, with the predicted `seconds` and their relative error."""
    compared = []
    for row in priced(rows):
        nodes = nodes_of(row["world_size"], ranks_per_node)
        where = find(row["algorithm"]), row["world_size"], row["bytes"], links[row["transport"]]
        predicted = predict(*where, nodes=nodes)
        compared.append(
            {
                "algorithm": row["algorithm"],
                "transport": row["transport"],
                "world_size": row["world_size"],
                "bytes": row["bytes"],
                "seconds_median": row["seconds_median"],
                "seconds": predicted,
                "relative_error": predicted / row["seconds_median"] - 1,
            }
        )
    return compared


def _fit_one(rows: list[Mapping[str, Any]], ranks_per_node: int) -> Link:
    import numpy as np

    where = [
        (find(row["algorithm"]), row["world_size"], row["bytes"],
         nodes_of(row["world_size"], ranks_per_node))
        for row in rows
    ]  # fmt: skip
    measured = np.array([float(row["seconds_median"]) for row in rows])
    link, paths = FIRST_GUESS, list[Price]()
    for _ in range(MAX_ROUNDS):
        before, paths = paths, [_path(*one, link) for one in where]
        if paths == before:
            break
        counts = np.array(
            [
                (path.alpha + path.overhead, path.beta * size, path.gamma * size, path.alpha)
                for path, (_, _, size, _) in zip(paths, where, strict=True)
            ]
        )
        link = _solve(counts / measured[:, None])
    return link


def _path(
    algorithm: Algorithm, world_size: int, size: int, nodes: tuple[int, ...], link: Link
) -> Price:
    return find_path(algorithm, world_size, size, link, nodes=nodes)[0].outside


def _solve(counts: NDArray[np.float64]) -> Link:
    """The non-negative parameters for which `counts` @ parameters is nearest to 1."""  # [rows, 4]
    import numpy as np

    scales = np.linalg.norm(counts, axis=0)  # alpha and beta differ by a factor of a million
    scales[scales == 0] = 1
    scaled, ones = counts / scales, np.ones(len(counts))
    best, least = np.zeros(UNKNOWNS), math.inf
    for subset in map(list, SUBSETS):
        found, _, rank, _ = np.linalg.lstsq(scaled[:, subset], ones, rcond=1e-9)
        if rank < len(subset) or (found < 0).any():
            continue  # these rows cannot tell them apart, or one of them should be 0
        error = float(np.sum((scaled[:, subset] @ found - 1) ** 2))
        if error < least * BETTER - ROUNDING:
            best, least = np.zeros(UNKNOWNS), error
            best[subset] = found
    overhead, beta, gamma, flight = (best / scales).tolist()
    return Link(alpha=overhead + flight, beta=beta, gamma=gamma, overhead=overhead)

"""Links that are fitted to rows of the bench."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import fields
from typing import Any

import pytest

from collectives import ALGORITHMS, find
from collectives.fit import compare, fit
from collectives.price import Link, predict

MB = 1024**2
PARAMETERS = [one.name for one in fields(Link)]


def measured(
    link: Link, transport: str = "mpi", names: Iterable[str] = ALGORITHMS
) -> list[dict[str, Any]]:
    """Rows as those of the bench, from a machine that behaves as the model says."""
    return [
        {"algorithm": name, "transport": transport, "world_size": world_size, "bytes": size,
         "seconds_median": predict(find(name), world_size, size, link)}
        for name in names for world_size in (4, 6) for size in (4096, 65536, MB, 16 * MB)
    ]  # fmt: skip


TRUE_LINKS = [
    Link(alpha=3e-6, beta=2e-10, gamma=1e-10),
    Link(alpha=5e-4, beta=4e-8, gamma=0),
    Link(alpha=0, beta=4e-8, gamma=3e-9),
    Link(alpha=1e-3, beta=0, gamma=1e-9),
    Link(alpha=5e-4, overhead=4e-5, beta=4e-8, gamma=1e-9),
    Link(alpha=5e-6, overhead=0, beta=2e-10, gamma=1e-10),
]


def near(found: Link, true: Link, rel: float) -> bool:
    pairs = [(getattr(found, n), getattr(true, n)) for n in PARAMETERS]
    return all(one == pytest.approx(other, rel=rel, abs=1e-18) for one, other in pairs)


@pytest.mark.parametrize("true", TRUE_LINKS)
def test_fit_finds_the_link_behind_the_rows(true: Link) -> None:
    rows = measured(true)
    found = fit(rows)
    assert near(found["mpi"], true, 1e-9)
    assert max(abs(row["relative_error"]) for row in compare(rows, found)) < 1e-9


def test_fit_of_noisy_rows_is_near_and_never_negative() -> None:
    dice = random.Random(7)
    rows = measured(TRUE_LINKS[0])
    for row in rows:
        row["seconds_median"] *= dice.uniform(0.9, 1.1)
    found = fit(rows)["mpi"]
    assert found.alpha == pytest.approx(3e-6, rel=0.1)
    for name in ALGORITHMS:  # beta and gamma come nearly always together: what counts is the time
        told = predict(find(name), 8, MB, found)
        assert told == pytest.approx(predict(find(name), 8, MB, TRUE_LINKS[0]), rel=0.1)
    for row in rows:
        row["seconds_median"] = dice.uniform(1e-6, 1e-3)  # nothing the model could explain
    nonsense = fit(rows)["mpi"]  # a Link refuses negative costs
    assert nonsense.alpha + nonsense.beta + nonsense.gamma > 0


def test_every_transport_has_a_link_of_its_own_and_vendors_have_none() -> None:
    vendor = {"algorithm": "mpi", "transport": "vendor", "world_size": 4, "bytes": 4096,
              "seconds_median": 1.0}  # fmt: skip
    alone = {"algorithm": "ring", "transport": "shm", "world_size": 1, "bytes": 4096,
             "seconds_median": 1e-6}  # fmt: skip
    rows = [vendor, alone, *measured(TRUE_LINKS[0]), *measured(TRUE_LINKS[1], "shm")]
    found = fit(rows)
    assert list(found) == ["mpi", "shm"]
    assert near(found["mpi"], TRUE_LINKS[0], 1e-9)
    assert near(found["shm"], TRUE_LINKS[1], 1e-9)


def test_rows_that_cannot_tell_beta_from_gamma_are_explained_all_the_same() -> None:
    rows = measured(TRUE_LINKS[0], names=["ring"])
    assert max(abs(row["relative_error"]) for row in compare(rows, fit(rows))) < 1e-9


def test_rows_that_cannot_tell_the_overhead_leave_it_at_alpha() -> None:
    """One message a round and port: the overhead of further ones is never seen."""
    true = Link(alpha=5e-4, overhead=4e-5, beta=4e-8, gamma=1e-9)
    found = fit(measured(true, names=["ring", "halving-doubling", "recursive-doubling"]))["mpi"]
    assert near(found, Link(alpha=5e-4, beta=4e-8, gamma=1e-9), 1e-9)
    assert found.overhead == found.alpha


def test_fit_says_what_is_missing() -> None:
    rows = measured(TRUE_LINKS[0])
    with pytest.raises(ValueError, match="got none"):
        fit([])
    with pytest.raises(ValueError, match=r"3 or more rows .* got 2 of transport 'mpi'"):
        fit(rows[:2])
    with pytest.raises(ValueError, match=r"row 1: algorithm must be one of .* got 'rang'"):
        fit([rows[0] | {"algorithm": "rang"}])
    with pytest.raises(ValueError, match=r"row 2 is none .*'bytes'"):
        fit([rows[0], {key: value for key, value in rows[1].items() if key != "bytes"}])
    with pytest.raises(ValueError, match=r"row 1 is none .*-1"):
        fit([rows[0] | {"seconds_median": -1}])

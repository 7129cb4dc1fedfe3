"""How near all-reduces over emulated hosts come to what their schedules should cost.

Every row of the benchmark is held against two predictions. The plain one is made without the row:
alpha is half the round trip of a short message while all other pairs of hosts do the same, the
overhead is what of it is not the latency of the lines, beta is what the lines were set to, and
additions are free. The fitted one has the alpha, overhead, beta and gamma that explain the rows of
this MPI best; what is off by then is the model and not the guess.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from dataclasses import asdict
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from collectives import fit
from collectives.cost_table import shown_bytes
from collectives.price import Link
from emulated_hosts import Hosts, bytes_per_second
from emulated_mpi import ENVIRONMENTS, HostsError
from helpers import ROOT

SIZES = ("4K", "64K", "1M")
SECONDS_TO_FINISH = 600
MODELS = ("fitted", "plain")
LONG = 1024**2  # bytes from which on the rate of the links decides, not their latency
LARGEST_ERROR, LARGEST_ERROR_OF_SHORT = 0.10, 0.20
BEST_FOR_LONG = ("ring", "halving-doubling")
LEAST_REACHED = 0.90


def report(hosts: Hosts, options: argparse.Namespace) -> int:
    """Print a table for each MPI; with --json its rows as well. 1 if the model is too far off."""
    found = {}
    for mpi in [options.mpi] if options.mpi else ENVIRONMENTS:
        found[mpi] = _measure(hosts, mpi, bytes_per_second(options.rate), options.latency)
        _table(mpi, found[mpi])
    if options.json:
        options.json.write_text(json.dumps(found, allow_nan=False, indent=2) + "\n")
    complaints = [f"{mpi}: {one}" for mpi, those in found.items() for one in _far(those["rows"])]
    for one in complaints:
        print(f"# too far off: {one}")
    return 1 if complaints else 0


def _far(rows: list[dict[str, Any]]) -> list[str]:
    """What is not as near to the model as it should be."""
    far = []
    for row in rows:
        what = f"{row['algorithm']} at {shown_bytes(row['bytes'])}"
        if "fitted_seconds" not in row:
            continue
        error = row["fitted_seconds"] / row["seconds_median"] - 1
        most = LARGEST_ERROR if row["bytes"] >= LONG else LARGEST_ERROR_OF_SHORT
        if abs(error) > most:
            far.append(f"{what}: fitted model {error:+.0%}, at most {most:.0%}")
        reached = row["plain_seconds"] / row["seconds_median"]
        if row["bytes"] >= LONG and row["algorithm"] in BEST_FOR_LONG and reached < LEAST_REACHED:
            far.append(f"{what}: {reached:.0%} of the plain model, at least {LEAST_REACHED:.0%}")
    return far


def _output(hosts: Hosts, mpi: str, *program: str | Path, **options: Any) -> str:
    try:
        done = hosts.run(mpi, *program, capture_output=True, timeout=SECONDS_TO_FINISH, **options)
    except subprocess.TimeoutExpired:
        raise HostsError(f"{program[0]} under {mpi} ran for over {SECONDS_TO_FINISH} s") from None
    if done.returncode != 0:
        reason = (done.stderr.strip() or done.stdout.strip()).splitlines() or ["it said nothing"]
        raise HostsError(f"{mpi} ended with code {done.returncode}: {reason[0]}")
    return done.stdout


def _measure(hosts: Hosts, mpi: str, rate: float, latency: float) -> dict[str, Any]:
    pairs = {"num_hosts": hosts.num_hosts // 2 * 2}
    short = json.loads(_output(hosts, mpi, ROOT / "tests/ranks_link.py", "4", **pairs))
    alpha = short["one_way_seconds"]
    plain = Link(alpha=alpha, overhead=max(0, alpha - latency), beta=1 / rate, gamma=0)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "rows.json")
        bench = ["-m", "collectives.bench", "--transport", "mpi", "--bytes", *SIZES]
        _output(hosts, mpi, *bench, "--json", file)
        rows = json.loads(file.read_text())["rows"]
    links = fit.fit(rows)
    rows_of_schedules = fit.priced(rows)
    by_plain = fit.compare(rows, dict.fromkeys(links, plain))
    by_fitted = fit.compare(rows, links)
    for row, one, other in zip(rows_of_schedules, by_plain, by_fitted, strict=True):
        row.update(plain_seconds=one["seconds"], fitted_seconds=other["seconds"])
    return {
        "plain": asdict(plain),
        "fitted": {k: asdict(v) for k, v in links.items()},
        "rows": rows,
    }


def _table(mpi: str, found: dict[str, Any]) -> None:
    print(f"\n# {mpi}, times in microseconds")
    for name, link in {"plain": found["plain"], **found["fitted"]}.items():
        title = "plain" if name == "plain" else f"fitted to the rows of {name}"
        print(
            f"# {title}: alpha {link['alpha'] * 1e6:.0f} us, "
            f"overhead {link['overhead'] * 1e6:.0f} us, "
            f"beta {link['beta'] * 1e9:.1f} ns, gamma {link['gamma'] * 1e9:.1f} ns"
        )
    print(f"{'size':<6}{'algorithm':<20}{'measured':>10}{'native':>8}", end="")
    print("".join(f"{model:>10}{'ratio':>7}" for model in MODELS))
    ordered = sorted(found["rows"], key=itemgetter("bytes", "transport", "algorithm"))
    for size, rows in groupby(ordered, key=itemgetter("bytes")):
        errors: dict[str, float] = dict.fromkeys(MODELS, 0)
        for row in rows:
            measured = row["seconds_median"]
            line = f"{shown_bytes(size):<6}{row['algorithm']:<20}{measured * 1e6:>10.0f}"
            line += f"{row['ratio_to_native']:>8.2f}"
            for model in MODELS:
                if f"{model}_seconds" in row:
                    ratio = row[f"{model}_seconds"] / measured
                    line += f"{row[f'{model}_seconds'] * 1e6:>10.0f}{ratio:>7.2f}"
                    errors[model] = max(errors[model], abs(ratio - 1))
            print(line)
        largest = "".join(f"{f'{errors[model]:.0%}':>17}" for model in MODELS)
        print(f"{shown_bytes(size):<6}{'largest error':<38}{largest}\n")
    print(
        "# native: MPI's own all-reduce / measured (row mpi); ratio: predicted / measured",
        flush=True,
    )

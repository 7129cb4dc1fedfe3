"""python -m preprocess.bench [--rows N] [--engines ...] [--cores 1 2] [--input RAW ...]

How long each engine takes to turn one raw file into a data set, on one core and on several. Every
measurement is a process of its own that may use so many cores:

    cold     from its start to the written data set: Python, imports, a JVM if there is one
    warm     the same work once more in the same process, a data set again
    memory   the most that it and its children had together, shared pages counted once

`sequential` has nothing that could be warm: its warm time is that of the work alone, done once. The
floor is reading the bytes of the file. Without --input the file is synthetic, with defects at known
rates, and kept in ~/.cache/dpsgd (or under XDG_CACHE_HOME). Rows, as JSON and on the screen, have
engine, cores, rows, seconds_cold, seconds_warm, rows_per_second (warm), peak_rss_mb,
speedup_over_sequential (warm, same run). Two pictures go to --out.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from preprocess import cli, engines, specs
from preprocess.errors import DataError, UsageError
from preprocess.output import check_json, say, write_json

PROG = "preprocess.bench"
DEFAULT_ROWS = 1_223_992
RATES = {"missing": 0.01, "out-of-range": 0.003, "ragged": 0.001, "non-ascii-digits": 0.0005,
         "duplicates": 0.01}  # fmt: skip
SEED = 1
SINGLE = ("sequential",)  # engines that have no use for a second core
SAMPLING_SECONDS = 0.1
READ_BYTES = 1 << 20
COLUMNS = {
    "engine": "engine", "cores": "cores", "seconds_cold": "cold s", "seconds_warm": "warm s",
    "rows_per_second": "rows/s", "peak_rss_mb": "MB", "speedup_over_sequential": "x sequential",
}  # fmt: skip


def main(arguments: Sequence[str]) -> int:
    """The command; gives its exit code."""
    return cli.run(PROG, _command, arguments)


def _parser() -> cli.Parser:
    parser = cli.Parser(PROG, "Time every engine of preprocess on the same file.")
    add = parser.add_argument
    add("--rows", type=int, default=DEFAULT_ROWS, metavar="N",
        help=f"records of a synthetic file; default {DEFAULT_ROWS:,}")  # fmt: skip
    add("--input", nargs="+", metavar="RAW", help="files of yours instead")
    add("--join", metavar="RAW", help="the second file, for a spec that joins two")
    add("--spec", default=specs.DEFAULT, metavar="SPEC", help="what the files mean")
    add("--engines", nargs="+", choices=engines.ENGINES, default=list(engines.ENGINES),
        metavar="NAME", help=f"default: {' '.join(engines.ENGINES)}")  # fmt: skip
    add("--cores", type=int, nargs="+", metavar="N", help="default: 1, 2, 4, ... and all there are")
    add("--out", type=Path, default=Path("runs/preprocess"), metavar="DIR", help="for the pictures")
    add("--json", nargs="?", const="-", metavar="FILE", help="rows as JSON: to FILE, or on stdout")
    add("--measure", nargs=2, metavar=("ENGINE", "CORES"), help=argparse.SUPPRESS)
    return parser


def _command(arguments: Sequence[str]) -> None:
    options = _parser().parse(arguments)
    if options.measure:
        _measure(options)
        return
    available = len(os.sched_getaffinity(0))
    cores = options.cores or sorted({available, *(2**i for i in range(available.bit_length()))})
    cores = [number for number in cores if options.cores or number <= available]
    _check(options, cores, available)
    source = options.input or [str(_synthetic(options.rows))]
    floor = _floor(source)
    rows: list[dict[str, Any]] = []
    say(f"reading the bytes alone takes {floor:.3f} s", sys.stderr)
    names = sorted(options.engines, key=lambda name: name not in SINGLE)
    for name in names:
        for number in [1] if name in SINGLE else cores:
            say(f"{PROG}: {name} on {number} of {available} cores", sys.stderr)
            rows.append(_measured(options, source, name, number))
    _compare(rows)
    table = _table(rows, floor)
    say(table, sys.stderr if options.json == "-" else sys.stdout)
    report = {"rows": rows, "floor_seconds": round(floor, 4), "input": source}
    if options.json is not None:
        write_json(options.json, report)
    _draw(rows, options.out, sys.stderr if options.json == "-" else sys.stdout)


def _check(options: argparse.Namespace, cores: list[int], available: int) -> None:
    if not 1 <= options.rows <= 10**9:
        raise UsageError(f"--rows must be in 1..10**9, got {options.rows}")
    if wrong := [number for number in cores if not 1 <= number <= available]:
        raise UsageError(f"--cores must be in 1..{available}, got {wrong[0]}")
    if "spark" in options.engines:
        if importlib.util.find_spec("pyspark") is None:
            raise UsageError(
                "engine spark needs the package pyspark, which is not installed: make install, or "
                "pip install 'dpsgd[spark]'; --engines names others"
            )
        from preprocess.jvm import find_java

        find_java()
    check_json(options.json, options.out)
    if not cli.can_be_made(options.out / "x") or (
        options.out.exists() and not options.out.is_dir()
    ):
        raise UsageError(f"--out must be a folder that can be written, got {options.out}")


def _synthetic(num_rows: int) -> Path:
    """A synthetic file with defects, made once."""
    from preprocess.synthetic import write_synthetic

    base = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    path = Path(base) / "dpsgd" / f"preprocess-{num_rows}.csv"
    if not path.exists():
        say(f"{PROG}: making {num_rows:,} synthetic records once: {path}", sys.stderr)
        write_synthetic(path, num_rows, SEED, RATES)
    return path


def _floor(source: list[str]) -> float:
    """Seconds to read the bytes, which are in the memory of the system by then."""
    from preprocess.sources import find_sources, open_source

    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        for one in find_sources(source):
            with open_source(one) as file:
                while file.read(READ_BYTES):
                    pass
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def _measured(
    options: argparse.Namespace, source: list[str], engine: str, cores: int
) -> dict[str, Any]:
    """Start a process that measures itself; gives its row."""
    command = [sys.executable, "-m", PROG, "--measure", engine, str(cores), "--spec", options.spec,
               "--input", *source]  # fmt: skip
    command += ["--join", options.join] if options.join else []
    environment = {**os.environ, "POLARS_MAX_THREADS": str(cores)}
    started = time.time()
    child = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    peak = _Peak(child.pid)
    try:
        out, _ = child.communicate()
    except BaseException:
        child.terminate()
        child.wait()
        raise
    finally:
        peak.stop()
    if child.returncode:
        raise DataError(f"engine {engine} on {cores} cores ended with code {child.returncode}")
    found = json.loads(out)
    cold = found["first_done"] - started
    warm = found["seconds"][-1]
    return {
        "engine": engine,
        "cores": cores,
        "rows": found["rows"],
        "seconds_cold": round(cold, 3),
        "seconds_warm": round(warm, 3),
        "rows_per_second": round(found["rows"] / warm),
        "peak_rss_mb": round(peak.megabytes),
    }


def _measure(options: argparse.Namespace) -> None:
    """What the child does: the work, once or twice."""
    engine, cores = options.measure[0], int(options.measure[1])
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    from preprocess.making import make_dataset
    from preprocess.sources import find_sources

    seconds: list[float] = []
    first_done = 0.0
    records = 0
    for _ in range(1 if engine in SINGLE else 2):
        with TemporaryDirectory(prefix="dpsgd-bench-") as folder:
            started = time.perf_counter()
            found = make_dataset(
                specs.read_spec(options.spec),
                find_sources(options.input),
                Path(folder) / "set",
                joined=find_sources([options.join])[0] if options.join else None,
                engine=engine,
                processes=cores,
            )
            seconds.append(time.perf_counter() - started)
            first_done = first_done or time.time()
            records = found.as_json()["records"]
    print(json.dumps({"seconds": seconds, "first_done": first_done, "rows": records}))


class _Peak:
    """The most memory that a process and its descendants have together, looked at now and then."""

    def __init__(self, pid: int) -> None:
        self.megabytes = 0.0
        self._pid = pid
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(SAMPLING_SECONDS):
            self.megabytes = max(self.megabytes, sum(map(_megabytes, _tree(self._pid))))


def _tree(pid: int) -> list[int]:
    """A process and all that it has started."""
    found = [pid]
    for parent in found:
        try:
            for task in Path(f"/proc/{parent}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
        except OSError:
            continue
    return found


def _megabytes(pid: int) -> float:
    """Memory of a process, its part of shared pages."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0.0
    line = next((line for line in text.splitlines() if line.startswith("Pss:")), "Pss: 0 kB")
    return int(line.split()[1]) / 1024


def _compare(rows: list[dict[str, Any]]) -> None:
    """Add the speed-up over the sequential engine, if it was there."""
    base = next((row["seconds_warm"] for row in rows if row["engine"] == "sequential"), None)
    for row in rows:
        row["speedup_over_sequential"] = (
            None if base is None else round(base / row["seconds_warm"], 2)
        )


def _table(rows: list[dict[str, Any]], floor: float) -> str:
    cells = [[*COLUMNS.values(), "x floor"]]
    for row in rows:
        shown = [_shown(row[name]) for name in COLUMNS]
        cells.append([*shown, f"{row['seconds_warm'] / floor:.0f}"])
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in cells
    )


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    return f"{value:,.2f}" if isinstance(value, float) else f"{value:,}"


def _draw(rows: list[dict[str, Any]], folder: Path, stream: Any) -> None:
    if importlib.util.find_spec("matplotlib") is None:
        say("no picture: matplotlib is not installed: pip install 'dpsgd[report]'", stream)
        return
    from preprocess.bench_picture import draw

    folder.mkdir(parents=True, exist_ok=True)
    for path in draw(rows, folder):
        say(f"picture: {path}", stream)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

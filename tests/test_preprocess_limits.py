"""What is too much: bad records, a long line, the space on a disk."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from helpers import clean_environment
from preprocess import __main__ as command
from preprocess_samples import (
    FAST_ENGINES,
    GOOD,
    HEADER,
    clean,
    job_of,
)


@pytest.mark.parametrize(
    ("fraction", "code"), [("0.29", 0), ("0.28", 5), ("0.2899999", 5), ("1", 0), ("0", 5)]
)
def test_more_bad_records_than_the_limit_make_no_data_set_and_just_as_many_do(
    fraction: str, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "raw.csv"
    path.write_text("\n".join([HEADER, *[GOOD] * 71, *["x"] * 29]))
    arguments = ["--input", str(path), "--max-bad-fraction", fraction]
    for more in (["--dry-run"], ["--output", str(tmp_path / "set")]):
        assert command.main([*arguments, *more]) == code
        error = capsys.readouterr().err
        limit = f"must be at most {float(fraction):.3g} of {path}, got 29 of 100: 29 refused ones"
        assert (limit in error) is (code == 5), error
        assert ("give --max-bad-fraction" in error) is (code == 5)
    assert (tmp_path / "set").exists() is (code == 0)


def test_by_default_half_of_the_records_may_be_bad(tmp_path: Path):
    path = tmp_path / "raw.csv"
    for num_bad, code in ((3, 0), (4, 5)):
        path.write_text("\n".join([HEADER, *[GOOD] * 3, *["x"] * num_bad]))
        assert command.main(["--input", str(path), "--dry-run"]) == code


@pytest.mark.parametrize("engine", FAST_ENGINES)
@pytest.mark.parametrize("odd", [b"x", b",", b'"', b'""', b"\xff", b"7,\t "])
def test_a_line_of_20_megabytes_is_refused_like_any_other(engine: str, odd: bytes, tmp_path: Path):
    path = tmp_path / "raw.csv"
    long = odd * (20_000_000 // len(odd))
    path.write_bytes(b"\n".join([HEADER.encode(), GOOD.encode(), long, GOOD.encode()]))
    found = clean(engine, job_of(path, folder=tmp_path))
    assert len(found.rows) == 2
    (refused,) = found.refused
    assert refused.line == 3
    assert len(refused.refusal.value) <= 80


LIMITED = """
import resource, signal, sys
from preprocess import gather
from preprocess.__main__ import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
gather.SPILL_BYTES = int(sys.argv[2])
sys.exit(main(sys.argv[3:]))
"""


@pytest.mark.parametrize("engine", FAST_ENGINES)
@pytest.mark.parametrize(("limit", "spill"), [(100, 1 << 30), (300, 1), (7000, 1 << 30)])
def test_a_full_disk_is_one_line_and_leaves_nothing(
    engine: str, limit: int, spill: int, raw: Path, tmp_path: Path
):
    """Files may have `limit` bytes: too few for the quarantine, the rows, or the cache."""
    arguments = ["--input", raw, "--output", tmp_path / "a" / "set", "--engine", engine]
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(limit), str(spill), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        env=clean_environment(),
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("preprocess: error: output must be writable, got ")
    assert "File too large" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []

"""A cleaner finds exactly the defects that were made, and changes no undamaged record."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from preprocess import blocks, synthetic
from preprocess.engines.base import Batch, Job
from preprocess.gather import Gathered
from preprocess.synthetic import write_synthetic
from preprocess_samples import ENGINES, FAST_ENGINES, NAMES, clean, job_of

DEFECTS = [
    {"missing": 0.1, "out-of-range": 0.05, "ragged": 0.02, "non-ascii-digits": 0.03,
     "duplicates": 0.2},
    {"missing": 0.25, "out-of-range": 0.25, "ragged": 0.25, "non-ascii-digits": 0.25},
    {"missing": 1.0},
    {"out-of-range": 0.5, "duplicates": 0.499},
    {"ragged": 0.001},
]  # fmt: skip


def assert_finds_the_truth(found: Batch, job: Job, truth: Path) -> None:
    """The counts of a manifest are those that the defects make necessary."""
    with Gathered(job, None) as gathered:
        gathered.take([found])
    counts = gathered.found.as_json()
    expected = json.loads(truth.read_text())["counts"]
    assert {name: counts[name] for name in expected} == expected


@pytest.mark.parametrize("rates", DEFECTS)
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("chunk_rows", [97, 100_000])
def test_exactly_the_defects_that_were_made_are_found(
    rates: dict[str, float],
    seed: int,
    chunk_rows: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(synthetic, "CHUNK_ROWS", chunk_rows)
    good, raw, truth = (tmp_path / name for name in ("good.csv", "raw.csv", "raw.truth.json"))
    write_synthetic(good, 2000, seed)
    write_synthetic(raw, 2000, seed, rates, truth)
    before, after = (path.read_bytes().splitlines()[1:] for path in (good, raw))
    for engine in FAST_ENGINES:
        job = job_of(raw, folder=tmp_path)
        cleaned, undamaged = clean(engine, job), clean(engine, job_of(good, folder=tmp_path))
        assert_finds_the_truth(cleaned, job, truth)
        refused = {entry.line - 2 for entry in cleaned.refused}
        kept = [index for index in range(2000) if index not in refused]
        same = [row for row, index in enumerate(kept) if after[index] == before[index]]
        assert len(same) >= 2000 - sum(round(rate * 2000) for rate in rates.values())
        np.testing.assert_array_equal(
            cleaned.rows[same][NAMES], undamaged.rows[[kept[row] for row in same]][NAMES]
        )


@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_finds_the_defects_of_one_file(engine: str, tmp_path: Path):
    raw, truth = tmp_path / "raw.csv", tmp_path / "raw.truth.json"
    write_synthetic(raw, 3000, 9, DEFECTS[0], truth)
    job = job_of(raw, folder=tmp_path)
    assert_finds_the_truth(clean(engine, job), job, truth)


def test_a_large_damaged_file_is_cleaned_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(synthetic, "CHUNK_ROWS", 30_000)
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 1 << 20)
    raw, truth = tmp_path / "raw.csv", tmp_path / "raw.truth.json"
    write_synthetic(raw, 100_000, 4, DEFECTS[0], truth)
    job = job_of(raw, folder=tmp_path)
    assert_finds_the_truth(clean("polars", job), job, truth)

"""The same again: nothing is done, or the same bytes come out, however it is done."""

from __future__ import annotations

import gzip
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers import Launch
from preprocess import __main__ as command
from preprocess import gather
from preprocess.specs import FOLDER
from preprocess_samples import FAST_ENGINES, GOOD, HEADER, contents, read
from test_preprocess_command import NO_WRITES


def make(raw: Path, target: Path, *more: str) -> dict[str, bytes]:
    """Run the command; gives all files of the data set."""
    assert command.main(["--input", str(raw), "--output", str(target), *more]) == 0
    return contents(target)


def states(folder: Path) -> dict[Path, tuple[int, int]]:
    """Which files there are: not only their bytes."""
    return {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in (folder, *folder.rglob("*"))}


@pytest.fixture
def mine(raw: Path, tmp_path: Path) -> Path:
    """A copy of the raw file that may be changed."""
    return Path(shutil.copy(raw, tmp_path / "mine.csv"))


def test_a_data_set_that_is_up_to_date_is_not_touched(
    mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    make(mine, tmp_path / "set")
    before = states(tmp_path)
    capsys.readouterr()
    make(mine, tmp_path / "set", "--engine", "sequential")
    out = capsys.readouterr().out
    assert "nothing to do (--force makes it again)" in out
    assert out.endswith(f"Next: mpirun -np 4 python -m dpsgd.run --data {tmp_path}/set\n")
    assert states(tmp_path) == before


def touch(raw: Path, dataset: Path) -> None:
    os.utime(raw, ns=(0, raw.stat().st_mtime_ns + 1))


def flip_a_bit(raw: Path, dataset: Path) -> None:
    part = dataset / "train/part-00000.parquet"
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)


def grow(raw: Path, dataset: Path) -> None:
    times = raw.stat().st_atime_ns, raw.stat().st_mtime_ns
    raw.write_text(raw.read_text() + GOOD + "\n")
    os.utime(raw, ns=times)


def lose_a_shard(raw: Path, dataset: Path) -> None:
    (dataset / "test/part-00002.parquet").unlink()


def cut_a_shard(raw: Path, dataset: Path) -> None:
    os.truncate(dataset / "train/part-00001.parquet", 100)


def change_the_schema(raw: Path, dataset: Path) -> None:
    path = dataset / "schema.json"
    path.write_bytes(path.read_bytes().replace(b"115", b"114"))


def lose_the_manifest(raw: Path, dataset: Path) -> None:
    (dataset / "manifest.json").write_text("{}")


@pytest.mark.parametrize(
    "change",
    [touch, grow, lose_a_shard, cut_a_shard, flip_a_bit, change_the_schema, lose_the_manifest],
    ids=lambda change: change.__name__,
)
def test_what_is_not_up_to_date_or_not_whole_is_made_again(
    change: Callable[[Path, Path], None], mine: Path, tmp_path: Path
):
    make(mine, tmp_path / "set")
    change(mine, tmp_path / "set")
    before = states(tmp_path / "set")
    again = make(mine, tmp_path / "set")
    assert not set(before.values()) & set(states(tmp_path / "set").values())
    assert again == make(mine, tmp_path / "set", "--force")
    assert again == make(mine, tmp_path / "new")
    read(tmp_path / "set", "train")


@pytest.mark.parametrize(
    "more",
    [["--split-salt", "b"], ["--test-fraction", "0.3"], ["--shards", "3"], ["--force"],
     ["--spec", "mine.toml"]],
)  # fmt: skip
def test_another_spec_or_split_makes_a_data_set_again(
    more: list[str], mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    text = (FOLDER / "census-2000.toml").read_text()
    (tmp_path / "mine.toml").write_text(text.replace("impute = 40", "impute = 41"))
    make(mine, tmp_path / "set")
    before = states(tmp_path / "set")
    after = make(mine, tmp_path / "set", *more)
    assert not set(before.values()) & set(states(tmp_path / "set").values())
    assert after == make(mine, tmp_path / "new", *more)


def test_the_order_of_lines_and_files_changes_no_byte_of_any_shard(raw: Path, tmp_path: Path):
    head, *lines = raw.read_text().splitlines()
    expected = make(raw, tmp_path / "set")
    random.Random(1).shuffle(lines)
    for number, part in enumerate((lines[:300], lines[300:])):
        (tmp_path / f"{number}.csv").write_text("\r\n".join([head, *part]))
    for engine in FAST_ENGINES:
        found = make(tmp_path / "[01].csv", tmp_path / engine, "--engine", engine)
        assert found.keys() == expected.keys()
        differ = {name for name in found if found[name] != expected[name]}
        assert differ == {"manifest.json", "quarantine.csv"}


@pytest.mark.parametrize("spill_bytes", [1, 3000, 20_000])
@pytest.mark.parametrize("engine", FAST_ENGINES)
def test_rows_that_wait_on_disk_give_the_same_bytes(
    engine: str, spill_bytes: int, mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from preprocess import blocks
    from preprocess.engines import sequential

    monkeypatch.setattr(blocks, "BLOCK_BYTES", 1000)
    monkeypatch.setattr(sequential, "RECORDS_IN_BATCH", 100)
    expected = make(mine, tmp_path / "set", "--engine", engine)
    spilled = []
    spill = gather.Gathered._spill
    monkeypatch.setattr(gather.Gathered, "_spill", lambda self: (spilled.append(1), spill(self)))
    monkeypatch.setattr(gather, "SPILL_BYTES", spill_bytes)
    assert make(mine, tmp_path / "other" / "set", "--engine", engine) == expected
    assert spilled
    assert {path.name for path in tmp_path.iterdir()} == {"mine.csv", "set", "other"}


@pytest.mark.parametrize("where", ["new", "a/b/new"])
def test_a_crash_with_rows_on_disk_leaves_nothing(
    where: str, mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gather, "SPILL_BYTES", 1)
    monkeypatch.setattr(gather.Gathered, "_in_order", fail)
    assert command.main(["--input", str(mine), "--output", str(tmp_path / where)]) == 2
    assert list(tmp_path.iterdir()) == [mine]


def test_a_dry_run_of_gzip_and_of_units_writes_nothing(python: Launch, tmp_path: Path):
    (tmp_path / "raw.gz").write_bytes(gzip.compress(f"{HEADER}\n{GOOD}\n".encode()))
    spec = (FOLDER / "census-2000.toml").read_text()
    unit = 'unit = {kind = "household", key = "puma"}\n[encoding]'
    (tmp_path / "spec.toml").write_text(spec.replace("[encoding]", unit))
    before = states(tmp_path)
    for engine in FAST_ENGINES:
        arguments = ["--input", "raw.gz", "--spec", "spec.toml", "--dry-run", "--engine", engine]
        done = python("-B", "-c", NO_WRITES, *arguments)
        assert (done.returncode, "writes" in done.stderr) == (0, False), done.stderr
    assert states(tmp_path) == before


def test_equal_lines_that_mean_different_records_have_one_order(tmp_path: Path):
    one, two = tmp_path / "one.csv", tmp_path / "two.csv"
    names = HEADER.decode() if isinstance(HEADER, bytes) else HEADER
    swapped = names.replace("sex", "?").replace("latino", "sex").replace("?", "latino")
    line = GOOD.decode() if isinstance(GOOD, bytes) else GOOD
    for path, header in ((one, names), (two, swapped)):
        path.write_text(f"{header}\n" + f"{line}\n" * 3)
    found = []
    for number, order in enumerate(((one, two), (two, one))):
        target = tmp_path / str(number)
        arguments = ["--input", *map(str, order), "--output", str(target)]
        assert command.main(arguments) == 0
        parts = {path.name: path.read_bytes() for path in (target / "train").iterdir()}
        found.append(parts | {path.name: path.read_bytes() for path in (target / "test").iterdir()})
    assert found[0] == found[1]

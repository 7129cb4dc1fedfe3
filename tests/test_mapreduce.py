"""The mapper and the reducer: in a shell, under Hadoop, on this machine; whole or in any splits."""

from __future__ import annotations

import io
import json
import os
import shlex
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

import preprocess.engines.mapreduce as engine
from hadoop import JobFailed, run_pipe_job
from helpers import ROOT, _marked, clean_environment
from preprocess import __main__ as command
from preprocess import shards
from preprocess.engines.base import Batch, Job
from preprocess.errors import DataError
from preprocess.mapreduce import __main__ as mapreduce
from preprocess.mapreduce import mapper, reducer
from preprocess.mapreduce.cluster import write_code
from preprocess.mapreduce.job import describe_job, find_part, read_job
from preprocess.mapreduce.parts import batches, read_parts
from preprocess.mapreduce.reader import Reader
from preprocess.mapreduce.tasks import line_start
from preprocess.records import read_record
from preprocess.schema import from_schema
from preprocess.spec import Spec
from preprocess.specs import builtin
from preprocess_samples import GOOD, HEADER, assert_same, clean, job_of, odd_text, together

BOM = b"\xef\xbb\xbf"
CENSUS = ROOT.parent / "shared/data/census"
OREGON = [CENSUS / f"oregon_2000_{what}.csv" for what in ("persons", "households")]
needs_oregon = pytest.mark.skipif(not OREGON[0].exists(), reason="the real files are not here")

SMALL = from_schema(
    {
        "format": 2,
        "name": "small",
        "header": ["home", "age", "works"],
        "missing_tokens": [""],
        "label": "works",
        "unit": {"kind": "household", "key": "home", "max_records": 2},
        "join": {"name": "homes", "key": "home", "header": ["home", "rooms"]},
        "columns": [
            {"name": "age", "low": 16, "high": 99, "impute": 40, "outside": "skip"},
            {"name": "rooms", "low": 0, "high": 9, "impute": 1},
            {"name": "works", "low": 0, "high": 1},
        ],
        "encoding": {"row_norm": 1, "features": [{"kind": "number", "column": "age",
                                                  "divide_by": 99}]},
    }
)  # fmt: skip
PEOPLE = (
    BOM + b' \r\n\rage,works,"home"\r\n20,1,a\r21,0,b\n\r\n22,1,"a"\r\n15,1,a\r\r\n99,0,c\n,1,a\n'
    b'x,1,a\n30,1\n40,1,\n"5,1,a\n31,1, a \r\n32,0,d\n33,0,\xff\xfe\r\n34,0,e'
)
HOMES = b'\nhome,rooms\r\na,3\r\n"b","4"\rd,1\n\nd,2\ne,\nx\n\xff\xff,2\n'


def python(*options: str) -> list[str]:
    return [sys.executable, *options, "-m", "preprocess.mapreduce"]


def odd_file(folder: Path, lines: int = 2000) -> Job:
    """A long file of all kinds of lines, line ends and bytes."""
    path = folder / "odd, é.csv"
    head = BOM + b"\n" + HEADER.encode() + b"\r\n"
    path.write_bytes(head + odd_text(lambda draw: GOOD.encode().split(b","), lines, seed=2))
    return job_of(path, folder=folder)


def small_files(folder: Path, spec: Spec = SMALL) -> Job:
    """Two files to join."""
    people, homes = folder / "people.csv", folder / "homes.csv"
    people.write_bytes(PEOPLE)
    homes.write_bytes(HOMES)
    return job_of(people, folder=folder, spec=spec, join=homes)


def described(job: Job, folder: Path) -> Path:
    describe_job(job, folder / "JOB.json")
    return folder / "JOB.json"


def collected(output: list[Path], job: Job) -> Batch:
    """What is in the output of reducers."""
    return together(batches(read_parts(output, job), job), job.spec)


@pytest.mark.parametrize("make", [odd_file, small_files])
def test_the_pair_works_in_a_shell(make: Callable[[Path], Job], tmp_path: Path) -> None:
    job = make(tmp_path)
    files = [job.sources[0], *([job.joined] if job.joined else [])]
    line = shlex.join(python())
    maps = "; ".join(
        f"cat {shlex.quote(str(file.path))} | preprocess_input={number} {line} map JOB.json"
        for number, file in enumerate(files)
    )
    described(job, tmp_path)
    script = f"({maps}) | LC_ALL=C sort | {line} reduce JOB.json > out"
    shell = ["sh", "-c", script]
    subprocess.run(shell, check=True, cwd=tmp_path, timeout=120, env=clean_environment())
    assert_same(collected([tmp_path / "out"], job), clean("sequential", job))


@pytest.mark.spark
@pytest.mark.parametrize("make", [odd_file, small_files])
def test_hadoop_gives_what_the_oracle_gives(make: Callable[[Path], Job], tmp_path: Path) -> None:
    job = make(tmp_path)
    split_bytes = job.sources[0].num_bytes // 5
    counters = under_hadoop(job, tmp_path, reducers=3, split_bytes=split_bytes)
    expected = clean("sequential", job)
    assert_same(collected(sorted((tmp_path / "out").glob("part-*")), job), expected)
    told = {name: number for (group, name), number in counters.items() if group == "preprocess"}
    assert told["kept"] == len(expected.rows)
    assert told["refused"] == len(expected.refused)
    assert told["imputed"] == expected.imputed.total()
    assert told["not in universe"] == expected.skipped.total()
    assert told["records"] == expected.num_records


@pytest.mark.spark
@needs_oregon
def test_hadoop_joins_the_real_files(tmp_path: Path) -> None:
    job = job_of(OREGON[0], folder=tmp_path, spec=builtin("oregon-2000"), join=OREGON[1])
    under_hadoop(job, tmp_path, reducers=2, split_bytes=2 << 20)
    found = collected(sorted((tmp_path / "out").glob("part-*")), job)
    assert_same(found, clean("sequential", job))
    assert_same(clean("mapreduce", job), found)


def under_hadoop(job: Job, folder: Path, **options: int) -> dict[tuple[str, str], int]:
    """Run the pair; its code comes from a zip, and from nowhere else."""
    write_code(folder / "preprocess.zip")
    path = described(job, folder)
    line = ["env", f"PYTHONPATH={folder / 'preprocess.zip'}", *python("-S")]
    inputs = [one.path for one in [*job.sources, *filter(None, [job.joined])]]
    return run_pipe_job(
        [*line, "map", str(path)], [*line, "reduce", str(path)], inputs, folder / "out", **options
    )


@pytest.mark.spark
def test_a_mapper_that_fails_fails_the_hadoop_job(tmp_path: Path) -> None:
    job = odd_file(tmp_path, 10)
    other = replace(job.sources[0], path=tmp_path / "other.csv")
    other.path.write_bytes(b"1\n")
    path = described(job, tmp_path)
    with pytest.raises(
        JobFailed, match=r"must end like one of .*odd, é\.csv, got file:.*other\.csv"
    ):
        run_pipe_job([*python(), "map", str(path)], ["cat"], [other.path], tmp_path / "out")


@pytest.mark.parametrize("role", ["map", "reduce"])
def test_the_pair_needs_only_the_standard_library(role: str, tmp_path: Path) -> None:
    path = described(small_files(tmp_path), tmp_path)
    done = subprocess.run(
        [*python("-X", "importtime"), role, path], input=b"", capture_output=True, timeout=60,
        env=clean_environment(preprocess_input="0"),
    )  # fmt: skip
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.decode().splitlines()}
    assert done.returncode == 0
    assert "preprocess.records" in imported
    assert not {name.partition(".")[0] for name in imported} & {"numpy", "polars"}


def in_splits(job: Job, path: Path, split_bytes: int) -> Batch:
    """All in this process: every file in splits of so many bytes, and values in random order."""
    description = read_job(path)
    lines = list[bytes]()
    for number, source in enumerate([*job.sources, *filter(None, [job.joined])]):
        content = source.path.read_bytes()
        for start in range(0, len(content), split_bytes):
            length = min(split_bytes, len(content) - start)
            ends = [line_start(io.BytesIO(content), at) for at in (start, start + length)]
            out = io.BytesIO()
            environment = {
                "preprocess_input": str(number),
                "mapreduce_map_input_start": str(start),
                "mapreduce_map_input_length": str(length),
            }
            given = io.BytesIO(content[slice(*ends)])
            mapper.run(description, environment, given, out, io.StringIO())
            lines += out.getvalue().splitlines(keepends=True)
    Random(split_bytes).shuffle(lines)
    lines.sort(key=lambda line: line.partition(b"\t")[0])
    with (path.parent / "part-0").open("wb") as part:
        reducer.run(description, io.BytesIO(b"".join(lines)), part, io.StringIO())
    return collected([path.parent / "part-0"], job)


WITHOUT_JOIN = replace(
    SMALL, join=None, columns=tuple(column for column in SMALL.columns if column.name != "rooms")
)
WITHOUT_HEADER = replace(WITHOUT_JOIN, header=("age", "works", "home"), first_line_names=False)


@pytest.mark.parametrize("spec", [SMALL, WITHOUT_JOIN, WITHOUT_HEADER])
def test_splits_of_any_size_give_the_same(spec: Spec, tmp_path: Path) -> None:
    job = small_files(tmp_path, spec)
    job = job if spec.join else replace(job, joined=None)
    expected = clean("sequential", job)
    assert {refused.refusal.rule for refused in expected.refused} >= {
        *("bad-quotes", "field-count", "missing-unit", "not-an-integer")
    }
    path = described(job, tmp_path)
    for split_bytes in range(1, len(PEOPLE) + 2):
        assert_same(in_splits(job, path, split_bytes), expected)


@pytest.mark.parametrize("split_bytes", [23, 64])
def test_the_engine_gives_the_same_for_any_splits(
    split_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = small_files(tmp_path)
    monkeypatch.setattr(engine, "MIN_SPLIT_BYTES", split_bytes)
    monkeypatch.setattr(engine, "SPLIT_BYTES", split_bytes)
    monkeypatch.setattr(engine, "PARTITION_BYTES", 100)
    assert_same(clean("mapreduce", job), clean("sequential", job))


@pytest.mark.spark
def test_a_file_without_a_header_keeps_all_boms_but_the_first(tmp_path: Path) -> None:
    """Also where Hadoop has taken that one off."""
    path = tmp_path / "raw.csv"
    path.write_bytes(BOM + BOM + b"20,1,a\n" + BOM + b"21,1,a\n22,1,a\n")
    job = job_of(path, folder=tmp_path, spec=WITHOUT_HEADER)
    expected = clean("sequential", job)
    assert [refused.line for refused in expected.refused] == [1, 2]
    assert_same(in_splits(job, described(job, tmp_path), 100), expected)
    under_hadoop(job, tmp_path)
    assert_same(collected(list((tmp_path / "out").glob("part-*")), job), expected)


def test_a_reader_says_what_the_oracle_says(tmp_path: Path) -> None:
    draw = Random(5)
    tokens = [b"1", b"16", b' "17" ', b"40", b"", b" ", b'"', b'"a"', b'""', b'"1,2"', b"a", b"b"]
    layout = read_job(described(small_files(tmp_path), tmp_path)).reader(0)._layout
    lookup = {"a": ("3",), "b": None, "17": ('"4"',), "": ("5",)}
    for spec_layout, given in ((layout, lookup), (layout, None)):
        reader = Reader(spec_layout)
        for _ in range(5000):
            line = b",".join(draw.choice(tokens) for _ in range(draw.choice([1, 2, 3, 3, 3, 3])))
            expected = read_record(line, spec_layout, given)
            assert reader.read(line, given) == expected
            asked = reader.join_token(line)
            if isinstance(asked, str):
                assert reader.read(line, {asked: ("6",)}) != read_record(line, spec_layout, {})
            else:
                assert asked == expected


def test_a_file_that_changes_meanwhile_is_a_data_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = odd_file(tmp_path, 50)

    def describe_and_change(*given: object) -> None:
        describe_job(*given)  # type: ignore[arg-type]
        with job.sources[0].path.open("ab") as file:
            file.write(b"\n")

    monkeypatch.setattr(engine, "describe_job", describe_and_change)
    with pytest.raises(DataError, match=r"é\.csv: file changed while it was read \(it had "):
        clean("mapreduce", job)


def test_a_mapper_that_fails_is_one_error_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def describe_wrongly(job: Job, path: Path) -> None:
        describe_job(job, path)
        document = json.loads(path.read_text())
        document["split"]["shards"] = 0
        path.write_text(json.dumps(document))

    monkeypatch.setattr(engine, "describe_job", describe_wrongly)
    with pytest.raises(RuntimeError, match=r"^mapper ended with code 2: .*shards must be in"):
        clean("mapreduce", small_files(tmp_path))


def test_a_reducer_that_fails_is_one_error_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damage(*given: Any) -> list[engine.Run]:
        runs = map_all(*given)
        for path, offsets in runs:
            Path(path).write_bytes(b"x" * offsets[-1])
        return runs

    map_all = engine._map
    monkeypatch.setattr(engine, "_map", damage)
    with pytest.raises(RuntimeError, match=r"^reducer ended with code 1: ValueError: .*not found$"):
        clean("mapreduce", small_files(tmp_path))


def test_an_interrupt_leaves_no_process_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_JOB", str(tmp_path))
    monkeypatch.setattr(engine, "SPLIT_BYTES", 10_000)
    monkeypatch.setattr(engine, "MIN_SPLIT_BYTES", 10_000)

    def interrupt(records: int, num_bytes: int) -> None:
        deadline = time.monotonic() + 30
        while not list(_marked(str(tmp_path))):  # between two tasks there may be none
            assert time.monotonic() < deadline
        raise KeyboardInterrupt

    job = replace(odd_file(tmp_path), progress=interrupt)
    with pytest.raises(KeyboardInterrupt):
        clean("mapreduce", job)
    assert list(_marked(str(tmp_path))) == []
    assert list(job.scratch().iterdir()) == []


def test_a_batch_that_nobody_wants_leaves_no_process_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_JOB", str(tmp_path))
    monkeypatch.setattr(engine, "PARTITION_BYTES", 10_000)
    job = odd_file(tmp_path)
    given = engine.clean(job)
    next(given)
    given.close()
    assert list(_marked(str(tmp_path))) == []
    assert list(job.scratch().iterdir()) == []


def test_plan_and_collect_make_the_data_set_of_one_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    raw = odd_file(tmp_path).sources[0].path
    most = ["--max-bad-fraction", "1"]
    assert command.main(["--input", str(raw), "--output", "one", "--engine", "polars", *most]) == 0
    capsys.readouterr()
    assert mapreduce.main(["plan", "--input", str(raw), "--output", "job"]) == 0
    printed = capsys.readouterr().out
    assert f"-input '{raw}'" in printed
    assert "-files job/JOB.json,job/preprocess.zip" in printed
    line = shlex.join(python("-S"))
    script = f"cat '{raw}' | {line} map job/JOB.json | LC_ALL=C sort | {line} reduce job/JOB.json"
    environment = clean_environment(PYTHONPATH="job/preprocess.zip")
    Path("out").mkdir()
    with Path("out/part-00000").open("wb") as out:
        subprocess.run(["sh", "-c", script], check=True, stdout=out, env=environment, timeout=60)
    assert mapreduce.main(["collect", "job", "out", "--output", "two", *most]) == 0
    assert "Refused records, with line numbers" in capsys.readouterr().out
    one, two = (shards.read_manifest(Path(name)) for name in ("one", "two"))
    assert two.pop("engine") == "mapreduce"
    assert one.pop("engine") == "polars"
    assert two == one
    for path in ("schema.json", "quarantine.csv"):
        assert Path("two", path).read_bytes() == Path("one", path).read_bytes()
    assert mapreduce.main(["collect", "job", "out", "--output", "three"]) == 5
    assert "refused records must be at most 0.5" in capsys.readouterr().err
    assert not Path("three").exists()


def test_parts_that_are_missing_or_there_twice_are_refused(tmp_path: Path) -> None:
    job = small_files(tmp_path)
    path = described(job, tmp_path)
    in_splits(job, path, 60)
    lines = (tmp_path / "part-0").read_bytes().splitlines(keepends=True)
    for number in range(len(lines)):
        for changed in (lines[:number] + lines[number + 1 :], [*lines, lines[number]]):
            if lines[number].startswith(b"~\t"):
                continue  # only counts
            (tmp_path / "part-1").write_bytes(b"".join(changed))
            with pytest.raises(DataError, match="output must have"):
                collected([tmp_path / "part-1"], job)
    (tmp_path / "part-1").write_bytes(b"0123\n")
    with pytest.raises(DataError, match=r"part-1 must be what a reducer wrote"):
        collected([tmp_path / "part-1"], job)


def test_a_file_is_known_by_the_end_of_its_path(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a/x.csv", "b/x.csv", "b/y.csv")]
    for file in files:
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"{HEADER}\n")
    description = read_job(described(job_of(*files, folder=tmp_path), tmp_path))
    uris = {"hdfs://host:8020/in/b/x.csv": 1, "file:/b/y.csv": 2, f"file:{files[0]}": 0, "y.csv": 2}
    for uri, number in uris.items():
        assert find_part(description, {"mapreduce_map_input_file": uri}).source == number
    for uri in ("hdfs://host/x.csv", "hdfs://host/z.csv", ""):
        with pytest.raises(DataError, match="mapreduce_map_input_file must end like one of"):
            find_part(description, {"mapreduce_map_input_file": uri})
    with pytest.raises(DataError, match="preprocess_input must be set"):
        find_part(description, {})


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["map"], 2, "command must be map JOB.json"),
        ([], 2, "got nothing"),
        (["map", "absent"], 5, "absent must be what plan has written"),
        (["plan", "--input", "x"], 2, "--output"),
        (["collect", "absent", "x", "--output", "y"], 5, "JOB.json must be what plan has written"),
    ],
)
def test_a_usage_error_is_one_line(
    arguments: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert mapreduce.main(arguments) == code
    captured = capsys.readouterr()
    assert captured.err.startswith("preprocess.mapreduce")
    assert words in captured.err
    assert len(captured.err.splitlines()) == 1


def test_the_zip_has_the_code_and_nothing_else(tmp_path: Path) -> None:
    write_code(tmp_path / "preprocess.zip")
    with zipfile.ZipFile(tmp_path / "preprocess.zip") as archive:
        names = archive.namelist()
    assert {name.partition("/")[0] for name in names} == {"preprocess", "launch"}
    assert {os.path.splitext(name)[1] for name in names} == {".py", ".toml"}  # noqa: PTH122

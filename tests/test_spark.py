"""Spark gives what the oracle gives: in many blocks, of many files, of DataFrames, on a cluster."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from helpers import FULTON, clean_environment
from preprocess import engines
from preprocess.errors import DataError
from preprocess.making import make_dataset
from preprocess.schema import from_schema
from preprocess.shards import QUARANTINE
from preprocess.sources import find_sources
from preprocess.spec import Spec
from preprocess.specs import CENSUS_2000, builtin
from preprocess.split import SIDES, Split
from preprocess_samples import (
    GOOD,
    HEADER,
    assert_same,
    clean,
    contents,
    job_of,
    odd_text,
    together,
)

pyspark = pytest.importorskip("pyspark", reason="pyspark is not installed")
spark_columns = pytest.importorskip("preprocess.spark.columns")
spark_session = pytest.importorskip("preprocess.spark.session")
engine = pytest.importorskip("preprocess.engines.spark")

pytestmark = pytest.mark.spark
ONE = GOOD.encode()
HEAD = HEADER.encode()
OREGON = [FULTON.with_name(f"oregon_2000_{name}.csv") for name in ("persons", "households")]


@pytest.fixture
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(spark_session.OPTIONS, "spark.sql.files.maxPartitionBytes", "20000")


def small_spec(columns: list[dict[str, Any]], **more: Any) -> Spec:
    names = [column["name"] for column in columns]
    feature = {"kind": "scaled", "column": names[0], "low": 0, "high": 1}
    document = {"format": 2, "name": "small", "header": names, "columns": columns}
    encoding = {"row_norm": 1, "features": [feature]}
    return from_schema({**document, "label": names[-1], "encoding": encoding, **more})


def assert_spark_agrees(*inputs: Path, folder: Path, **more: Any) -> None:
    job = job_of(*inputs, folder=folder, **more)
    assert_same(clean("spark", job), clean("sequential", job))


@pytest.mark.usefixtures("_small_blocks")
def test_lines_have_their_numbers_in_every_block_and_a_header_is_a_record_the_second_time(
    tmp_path: Path,
):
    path = tmp_path / "odd.csv"
    draw = Random(3)
    text = odd_text(lambda draw: ONE.split(b","), 2500, seed=2)
    again = [
        b"\r\n" + HEAD + b"\r",
        b"\n\n" + HEAD + b"\n",
        b"\n" + HEAD.replace(b"s", b"S") + b"\n",
    ]
    for place in sorted(draw.sample(range(len(text)), 3)):
        text = text[:place] + draw.choice(again) + text[place:]
    path.write_bytes(b"\xef\xbb\xbf\r\n \n\r" + HEAD + b"\r\n" + text)
    job = job_of(path, folder=tmp_path, split=Split(shards=7, test_fraction=0.4, salt="é\0"))
    expected = clean("sequential", job)
    assert_same(clean("spark", job), expected)
    assert len(expected.refused) > 1000


@pytest.mark.usefixtures("_small_blocks")
def test_files_differ_in_the_order_of_columns_in_packing_and_in_names_that_spark_reads_otherwise(
    tmp_path: Path,
):
    names = list(CENSUS_2000.header)
    paths = [tmp_path / name for name in ("_a [1].csv", "b*.gz", ".c.csv", "d.csv.gz", "e.zip")]
    for number, path in enumerate(paths):
        order = list(range(18))
        if number % 2:
            Random(number).shuffle(order)
        head = ",".join(f'"{names[place].upper()}" ' for place in order).encode() + b"\n"
        fields = [ONE.split(b",")[place] for place in order]
        text = head + odd_text(lambda draw, fields=fields: list(fields), 400, seed=number)
        if path.suffix == ".zip":
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("e.csv", text)
        elif path.name.endswith(".csv.gz"):
            path.write_bytes(gzip.compress(text))
        else:
            path.write_bytes(text)
    assert_spark_agrees(*paths, folder=tmp_path)


def test_tokens_that_spark_would_cast_are_what_the_oracle_says_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    missing = ["", ".", "-", "nan", "inf", "-9", "1d", "9999999999", "2000000000", "+1", "0x1", "é",
               "1e1", "3"]  # fmt: skip
    spec = small_spec(
        [
            {"name": "x", "kind": "number", "low": -5, "high": 7.5, "impute": 0.1},
            {"name": "y", "kind": "number", "low": 0, "high": 9, "impute": 1, "outside": "clip"},
            {"name": "i", "low": 0, "high": 300, "impute": 4, "outside": "clip"},
            {"name": "j", "low": -70000, "high": 300, "impute": -2, "outside": "skip"},
            {"name": "word", "levels": ["a", "ß", "né", *map(str, range(10, 300))], "impute": "a"},
            {"name": "label", "low": 0, "high": 20, "outside": "skip"},
        ],
        missing_tokens=missing,
        separator="|",
        classes=[[1, 2, 3], [7, 0], [20]],
    )
    more = "12.7 1e1 1E1 -0 -0.0 0.1 1E-5 7.5000001 -5 Infinity 1f 0001 -7 301 70001 É a A né ß 299"
    more += " 300 \u0661 1.123456789 1.1234567891 999999999 -999999999 2147483648 5. 3.0"
    tokens = [one.encode() for one in [*missing, *map(str.upper, missing), *more.split()]]
    tokens += [b" .\t", b'" 7 "', b" 3 ", b'"3"']

    def fields(draw: Random) -> list[bytes]:
        found = [b"1.5", b"2", b"3", b"4", b"17", b"7"]
        for _ in range(draw.choice([1, 1, 1, 2, 3])):
            found[draw.randrange(6)] = draw.choice(tokens)
        return found

    path = tmp_path / "raw.csv"
    draw = Random(5)
    lines = [b"|".join(fields(draw)) for _ in range(3000)]
    path.write_bytes(b"\n".join([b"x|y|i|j|word|label", *lines]))
    assert_spark_agrees(path, folder=tmp_path, spec=spec)
    monkeypatch.setattr(spark_columns, "MAX_FIELDS_IN_PATTERN", 0)
    assert_spark_agrees(path, folder=tmp_path, spec=spec)


def test_most_lines_never_reach_the_oracle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked: list[int] = []
    odd = engine._Table.odd
    monkeypatch.setattr(
        engine._Table, "odd", lambda table, ours: asked.append(table._num_odd) or odd(table, ours)
    )
    spec = builtin("acs-person")
    path = tmp_path / "acs.csv"
    one = [
        b"40",
        b"16",
        b"01",
        b" 2",
        b"1",
        b"",
        b'"1"',
        b"1",
        b"2",
        b"",
        b"\t2",
        b"2",
        b"",
        b"",
        b"1",
    ]
    child = [b"7", *[b""] * 14]
    lines = [b",".join(fields) for fields in [one, child] * 50]
    path.write_bytes(b"\n".join([",".join(spec.header).encode(), *lines, b"", b"x"]))
    job = job_of(path, folder=tmp_path, spec=spec)
    found = clean("spark", job)
    assert_same(found, clean("sequential", job))
    assert asked == [1]
    assert len(found.rows) == found.skipped["agep"] == found.imputed["hisp"] == 50


def test_the_second_file_means_what_the_oracle_says_of_odd_keys_and_lines(tmp_path: Path):
    spec = small_spec(
        [
            {"name": "x", "low": 0, "high": 9, "impute": 1},
            {"name": "rooms", "kind": "number", "low": 0, "high": 9, "impute": 1},
            {"name": "street", "levels": ["a, b", "c"], "impute": "c"},
            {"name": "label", "low": 0, "high": 1},
        ],
        header=["key", "x", "label"],
        missing_tokens=["", "na"],
        join={"name": "homes", "key": "key", "header": ["rooms", "key", "street"]},
    )
    first, second = tmp_path / "first.csv", tmp_path / "second.csv"
    keys = [b"1", b'"1"', b' " 1"', b"2", b'"2,2"', b"", b"\xff", b"\xef\xbf\xbd", b"key", b"4",
            b"5", b"6", b"7", b"8", b'"a""b"', b"nowhere"]  # fmt: skip
    records = [key + rest for key in keys for rest in (b",3,1", b",,0", b",x,1", b",3", b",4,na")]
    first.write_bytes(b"\n".join([b"key,x,label", *records]))
    second.write_bytes(
        b'rooms,key,street\r1,1,c\r2,2,c\r3,2,c\r\n\n4,"2,2",c\n,,\r5,\xfe,c\r6,4,c,\r7,4,"a, b"\n'
        b'rooms,key,street\nx,5,c\n12,6,c\nNA,7,q\n 8 , 8 ,"c"\n1,"a""b",c\nbad,"6'
    )
    assert_spark_agrees(first, folder=tmp_path, spec=spec, join=second)
    second.write_bytes(second.read_bytes() + b"\nrooms,key,street")
    assert_spark_agrees(first, folder=tmp_path, spec=spec, join=second)


@pytest.mark.skipif(not OREGON[0].exists(), reason="the census files of Oregon are not here")
def test_spark_joins_the_real_persons_with_their_households(tmp_path: Path):
    job = job_of(OREGON[0], folder=tmp_path, spec=builtin("oregon-2000"), join=OREGON[1])
    found = clean("spark", job)
    assert_same(found, clean("polars", job))
    assert len(found.rows) > 10_000


def test_a_file_that_changes_meanwhile_is_a_data_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "raw.csv"
    path.write_text(f"{HEADER}\n{GOOD}\n")

    def write_table(*arguments: Any) -> None:
        path.write_text(f"{HEADER}\n{GOOD}\n{GOOD}\n")

    monkeypatch.setattr(engine, "write_table", write_table)
    with pytest.raises(DataError, match=r"raw\.csv: file changed while it was read"):
        clean("spark", job_of(path, folder=tmp_path))


FRAME_SPEC = small_spec(
    [
        {"name": "age", "low": 0, "high": 99, "impute": 40},
        {"name": "ratio", "kind": "number", "low": 0, "high": 1},
        {"name": "is_member", "low": 0, "high": 1, "impute": 0},
        {"name": "town", "levels": ["A, B", 'C"', "d e"], "impute": "d e"},
        {"name": "answer", "low": 0, "high": 1},
    ],
    missing_tokens=["", "nan"],
)
FRAME = [
    (40.0, 0.5, True, "A, B", 1),
    (None, 1.0, None, 'C"', 0),
    (39.5, 0.5, False, "d\r\ne", 1),
    (float("nan"), 0.25, False, None, 1),
    (7.0, None, True, " d e ", 0),
    (1e30, 0.5, True, "d e", 1),
    (5.0, 0.125, True, "d e", None),
]
FRAME_AS_TEXT = """age,ratio,is_member,town,answer
40,0.5,1,"A, B",1
,1,,"C""\",0
39.5,0.5,0,d e,1
NaN,0.25,0,,1
7,,1, d e ,0
1.0E30,0.5,1,d e,1
5,0.125,1,d e,
"""


def frame_of(tmp_path: Path) -> Any:
    spark = spark_session.session(job_of(__file__, folder=tmp_path))
    return spark.createDataFrame(
        FRAME, "`Age ` double, ratio float, is_member boolean, town string, ANSWER int"
    )


def test_a_dataframe_is_the_text_that_it_stands_for(tmp_path: Path):
    path = tmp_path / "frame.csv"
    path.write_text(FRAME_AS_TEXT)
    job = job_of(path, folder=tmp_path, spec=FRAME_SPEC)
    expected, frame = clean("sequential", job), frame_of(tmp_path)
    found = together(engine.clean_frame(frame, job), FRAME_SPEC)
    key = lambda one: one.refusal  # noqa: E731
    assert sorted(found.refused, key=key) == sorted(
        (replace(one, line=0) for one in expected.refused), key=key
    )
    assert_same(replace(found, refused=[]), replace(expected, refused=[]))
    assert len(found.rows) == 3
    with pytest.raises(DataError, match=r"header must name .* missing: town"):
        list(engine.clean_frame(frame.drop("town"), job))


def test_a_dataset_from_a_dataframe_has_the_rows_of_one_from_the_file(tmp_path: Path):
    path = tmp_path / "frame.csv"
    path.write_text(FRAME_AS_TEXT)
    expected = make_dataset(
        FRAME_SPEC, find_sources([path]), tmp_path / "text", engine="sequential"
    )
    found = engine.dataset_from_frame(frame_of(tmp_path), tmp_path / "frame", FRAME_SPEC)
    assert found.as_json() == expected.as_json()
    for side in SIDES:
        assert contents(tmp_path / "frame" / side) == contents(tmp_path / "text" / side)
    with pytest.raises(DataError, match="DataFrame"):
        engine.dataset_from_frame(frame_of(tmp_path).limit(0), tmp_path / "none", FRAME_SPEC)
    assert not (tmp_path / "none").exists()


def test_executors_need_only_the_standard_library(tmp_path: Path):
    context = spark_session.session(job_of(__file__, folder=tmp_path)).sparkContext
    script = "import sys; sys.path.insert(0, sys.argv[1]); import preprocess.spark.oracle"
    archive = spark_session._folder() / "packages.zip"
    assert context.listFiles and any(name.endswith("packages.zip") for name in context.listFiles)
    subprocess.run([sys.executable, "-I", "-S", "-c", script, archive], check=True, timeout=60)


def test_without_pyspark_one_line_says_what_to_install(tmp_path: Path):
    path = tmp_path / "raw.csv"
    path.write_text(f"{HEADER}\n{GOOD}\n")
    script = (
        "import sys; sys.modules['pyspark'] = None; from preprocess.__main__ import main; "
        "sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "--input", path, "--dry-run", "--engine", "spark"],
        env=clean_environment(), capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert "pyspark must be installed" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_spark_submit_on_a_cluster_of_two_machines_writes_the_same_data_set(tmp_path: Path):
    home = tmp_path / "spark"  # workers write into it
    home.mkdir()
    for entry in Path(pyspark.__file__).parent.iterdir():
        (home / entry.name).symlink_to(entry)
    submit = home / "bin/spark-submit"
    if not submit.exists():
        pytest.skip("this pyspark has no bin/spark-submit")
    path = tmp_path / "raw.csv"
    path.write_bytes(HEAD + b"\n" + odd_text(lambda draw: ONE.split(b","), 600, seed=6))
    env = clean_environment(
        SPARK_HOME=str(home),
        PYSPARK_PYTHON=sys.executable,
        SPARK_LOCAL_IP="127.0.0.1",
        JAVA_HOME=str(spark_session.find_java()),
    )
    main = Path(engines.__file__).parents[1] / "__main__.py"
    command = [submit, "--master", "local-cluster[2,1,1024]",
               "--conf", f"spark.local.dir={tmp_path}",
               "--conf", "spark.sql.files.maxPartitionBytes=8000"]  # fmt: skip
    options = ["--input", path, "--max-bad-fraction", "1"]
    done = subprocess.run(
        [*command, main, *options, "--output", tmp_path / "there", "--engine", "spark"],
        cwd=tmp_path, env=env, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    here = [sys.executable, "-m", "preprocess", *options, "--output", tmp_path / "here"]
    subprocess.run([*here, "--engine", "sequential"], env=env, check=True, capture_output=True)
    found, expected = contents(tmp_path / "there"), contents(tmp_path / "here")
    for content in (found, expected):
        manifest = json.loads(content.pop("manifest.json"))
        assert manifest.pop("engine") in ("spark", "sequential")
        content["rest"] = json.dumps(manifest).encode()
    assert found == expected
    assert QUARANTINE in found

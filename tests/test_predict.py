"""Using a trained model: the same scores as in training, line by line."""

from __future__ import annotations

import csv
import json
import shutil
import stat
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from dpsgd import metrics, scoring
from dpsgd.predict import predict_file
from helpers import Launch
from preprocess import blocks
from preprocess.specs import CENSUS_2000
from preprocess.split import Split, place
from preprocess_samples import GOOD

RUN = ("-m", "dpsgd.run")
PREDICT = ("-m", "dpsgd.predict")
HEADER = ",".join(CENSUS_2000.header)


@pytest.fixture(scope="module")
def raw_lines(dataset: Path) -> list[bytes]:
    """The raw file that the data set was made of: a header and 4,000 records."""
    return (dataset.parent / "raw.csv").read_bytes().splitlines()


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def scored(run: Path, lines: list[bytes], folder: Path) -> list[dict[str, str]]:
    """Predictions for a file of these lines."""
    (folder / "raw.csv").write_bytes(b"\n".join(lines))
    predict_file(run, folder / "raw.csv", folder / "pred.csv")
    return read(folder / "pred.csv")


@pytest.mark.mpi
def test_the_test_split_of_the_raw_file_gives_exactly_the_metrics_of_the_run(
    mpirun: Launch, python: Launch, tmp_path: Path, dataset: Path, raw_lines: list[bytes]
) -> None:
    done = mpirun(3, *RUN, "--data", dataset, "--out", "run", "--ledger", "l", "--steps", "100",
                  "--insecure-seed", "7")  # fmt: skip
    assert done.returncode == 0, done.stderr
    expected = json.loads((tmp_path / "run/run.json").read_text())["metrics"]
    raw = dataset.parent / "raw.csv"
    done = python(*PREDICT, "--run", "run", "--input", raw, "--output", "pred.csv")
    assert (done.returncode, done.stderr) == (0, "")
    assert "NOT PRIVATE: the model carries no privacy guarantee." in done.stdout
    rows = read(tmp_path / "pred.csv")
    assert [int(row["line"]) for row in rows] == list(range(2, 4002))
    label = CENSUS_2000.header.index("employed")
    test = [
        (float(row["score"]), int(row["class"]), int(line.split(b",")[label]))
        for row, line in zip(rows, raw_lines[1:], strict=True)
        if place(line, Split())[0] == 1
    ]
    scores, classes, labels = map(np.array, zip(*test, strict=True))
    assert 700 < len(labels) < 900
    assert expected["accuracy"] == np.mean(classes == labels)
    assert expected["auc"] == metrics.evaluate(scores, labels)["auc"]


def test_the_order_of_columns_an_id_and_the_label_do_not_matter(
    trained: Path, tmp_path: Path, raw_lines: list[bytes]
) -> None:
    expected = scored(trained, raw_lines, tmp_path)
    assert len({row["score"] for row in expected}) > 100
    names = [name.strip(b'"') for name in raw_lines[0].split(b",")]
    people = [
        dict(zip(names, line.split(b","), strict=True)) | {b"id": b'"x,%d"' % number}
        for number, line in enumerate(raw_lines[1:])
    ]
    needed = [column.name.encode() for column in CENSUS_2000.inputs]
    for columns in (
        [*reversed(names), b"id"],
        [b"id", *sorted(set(names) - {b"employed"})],
        needed,
    ):
        lines = [b",".join(columns)]
        lines += [b",".join(person[name] for name in columns) for person in people]
        assert scored(trained, lines, tmp_path) == expected
    odd = [b"", b"NA", b"x", b"7", b"1", b"0"]  # labels that would refuse a training record
    for number, person in enumerate(people):
        person[b"employed"] = odd[number % len(odd)]
    lines = [b",".join(names), *(b",".join(person[name] for name in names) for person in people)]
    assert scored(trained, lines, tmp_path) == expected


def test_rows_keep_their_line_numbers_among_refused_and_blank_lines(
    trained: Path, tmp_path: Path
) -> None:
    good = GOOD.encode()
    missing_age, age_40 = good.replace(b"51", b"NA"), good.replace(b"51", b" 40 ")
    young, odd = good.replace(b"51", b"9"), good.replace(b"51", b"secret")
    lines = [b"\xef\xbb\xbf", HEADER.encode(), good, b"", good + b",1", young, b" \t", missing_age,
             age_40, b'"' + good, odd, good]  # fmt: skip
    for end in (b"\n", b"\r\n", b"\r"):
        (tmp_path / "raw.csv").write_bytes(end.join(lines) + end)
        done = predict_file(trained, tmp_path / "raw.csv", tmp_path / "pred.csv")
        rows = read(tmp_path / "pred.csv")
        assert [(int(row["line"]), row["refused"]) for row in rows] == [
            (3, ""),
            (5, "field-count"),
            (6, "age: out-of-domain"),
            (8, ""),
            (9, ""),
            (10, "bad-quotes"),
            (11, "age: not-an-integer"),
            (12, ""),
        ]
        for row in rows:
            assert (row["score"] == "") == (row["class"] == "") == bool(row["refused"])
        scores = {row["line"]: row["score"] for row in rows}
        assert scores["3"] == scores["12"] != scores["8"] == scores["9"], "imputed as in training"
        assert "secret" not in (tmp_path / "pred.csv").read_text(), "no raw values"
        assert (done.records, done.scored) == (8, 4)
        assert done.imputed_by_column == {"age": 1}


def test_scores_are_the_probabilities_of_the_network_in_the_file(
    trained: Path, tmp_path: Path, raw_lines: list[bytes]
) -> None:
    from dpsgd.data import encode
    from preprocess.header import parse_header
    from preprocess.records import Record, read_record
    from preprocess.schema import from_schema

    with safe_open(trained / "model.safetensors", "numpy") as file:
        tensors = {name: file.get_tensor(name).astype(np.float64) for name in file.keys()}  # noqa: SIM118
        spec = from_schema(json.loads(file.metadata()["schema"]))
    layout = parse_header(HEADER.encode(), CENSUS_2000)
    records = [read_record(line, layout) for line in raw_lines[1:301]]
    codes = np.array([r.codes for r in records if isinstance(r, Record)], np.uint8)
    names = [column.name for column in CENSUS_2000.columns]
    value = encode(dict(zip(names, codes.T, strict=True)), spec).astype(np.float64)
    for number in range(3):
        value = value @ tensors[f"layers.{number}.weight"].T + tensors[f"layers.{number}.bias"]
        if number < 2:
            value = 0.5 / value.shape[1] ** 0.5 * np.tanh(value)
    rows = scored(trained, raw_lines[:301], tmp_path)
    found = np.array([float(row["score"]) for row in rows])
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-value[:, 0])), atol=1e-7)
    assert [row["class"] for row in rows] == ["1" if one > 0 else "0" for one in value[:, 0]]


def test_results_do_not_depend_on_the_size_of_a_block(
    trained: Path, tmp_path: Path, raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = set()
    for block_bytes, rows_at_once in ((1 << 23, 8192), (1 << 23, 7), (1000, 8192), (97, 1)):
        monkeypatch.setattr(blocks, "BLOCK_BYTES", block_bytes)
        monkeypatch.setattr(scoring, "ROWS_AT_ONCE", rows_at_once)
        done = predict_file(trained, raw, tmp_path / "pred.csv")
        assert done.refused_by_rule == {"field-count": 1, "not-an-integer": 1}
        contents.add((tmp_path / "pred.csv").read_bytes())
    assert len(contents) == 1


def test_the_model_file_alone_is_enough_and_only_the_owner_reads_the_scores(
    trained: Path, tmp_path: Path, raw: Path
) -> None:
    (tmp_path / "published").mkdir()
    shutil.copy(trained / "model.safetensors", tmp_path / "published")
    (tmp_path / "alone.csv").write_text("old")
    (tmp_path / "alone.csv").chmod(0o644)
    predict_file(str(trained), str(raw), str(tmp_path / "all.csv"))
    predict_file(tmp_path / "published", raw, tmp_path / "alone.csv")
    assert (tmp_path / "all.csv").read_bytes() == (tmp_path / "alone.csv").read_bytes()
    for name in ("all.csv", "alone.csv"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600


def test_the_summary_and_the_report_say_what_was_done(
    python: Launch, trained: Path, tmp_path: Path, raw: Path
) -> None:
    arguments = (*PREDICT, "--run", trained, "--input", raw, "--output", "pred.csv")
    done = python(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["counts"] == {
        "records": 1003,
        "scored": 1001,
        "refused": 2,
        "refused_by_rule": {"field-count": 1, "not-an-integer": 1},
        "imputed_by_column": {"age": 1},
    }
    privacy = json.loads((trained / "privacy.json").read_text())
    assert report["privacy"] == {k: privacy[k] for k in ("private", "epsilon", "delta", "unit")}
    people = done.stderr
    for words in ("1,003 records read", "1,001", "field-count", "age ", "pred.csv",
                  "1e-05)-differentially private for one training record",
                  "about the people in the input: not covered"):  # fmt: skip
        assert words in people
    done = python(*arguments, "--json", "report.json")
    assert json.loads((tmp_path / "report.json").read_text())["counts"] == report["counts"]
    assert "1,003 records read" in done.stdout
    assert done.stderr == ""


def test_help_and_usage_errors_load_nothing_heavy_and_predicting_loads_no_mpi(
    python: Launch, trained: Path, raw: Path, tmp_path: Path
) -> None:
    heavy = {"numpy", "polars", "safetensors", "torch", "mpi4py"}
    for arguments, code in (
        (["--help"], 0),
        (["--version"], 0),
        (["--rnu", "x"], 2),
        (["--run", "x", "--input", "a", "--output", "a"], 2),
        (["--run", "x", "--input", "a", "--output", "."], 2),
    ):
        done = python("-X", "importtime", *PREDICT, *arguments)
        imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
        assert done.returncode == code
        assert "dpsgd.errors" in imported
        assert not imported & heavy
    script = (
        "import sys; from dpsgd.predict import predict_file\n"
        f"predict_file({str(trained)!r}, {str(raw)!r}, 'pred.csv')\n"
        "print({'mpi4py', 'torch'} & set(sys.modules))"
    )
    assert python("-c", script).stdout == "set()\n"

"""How predicting fails: one line, its exit code, and nothing half-written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from dpsgd import predict, scoring
from dpsgd.errors import ConfigError, DatasetError, UserError
from dpsgd.predict import predict_file
from helpers import Launch
from preprocess import blocks
from preprocess.specs import CENSUS_2000
from preprocess_samples import GOOD

HEADER = ",".join(CENSUS_2000.header)


def fail(capsys: pytest.CaptureFixture[str], code: int, words: str, *arguments: str | Path) -> None:
    """The command ends with this code and one line on stderr that has the words."""
    assert predict.main([str(argument) for argument in arguments]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("dpsgd.predict: error: "), captured.err
    assert len(captured.err.splitlines()) == 1
    assert words in captured.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--run, --input, --output"),
        (["--rnu", "x"], "unknown flag --rnu: did you mean --run?"),
        (["--run", "RUN", "--input", "RAW"], "--output"),
        (["--run", "RUN", "--input", "RAW", "--output", "RAW"], "must not replace what is read"),
        (["--run", "RUN", "--input", "RAW", "--output", "RUN/model.safetensors"], "what is read"),
        (["--run", "RUN", "--input", "RAW", "--output", "."], "--output must be a file, got"),
        (["--run", "RUN", "--input", "RAW", "--output", "RAW/p"], "--output must be writable"),
        (["--run", "RUN", "--input", "RAW", "--output", "p", "--json", "no/x"], "--json must be"),
        (["--run", "RUN", "--input", "RAW", "--output", "p", "--json", "p"], "a file of its own"),
    ],
)
def test_a_usage_error_is_one_line_and_code_2(
    arguments: list[str], words: str, trained: Path, raw: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    before = raw.read_bytes(), (trained / "model.safetensors").read_bytes()
    arguments = [a.replace("RUN", str(trained)).replace("RAW", str(raw)) for a in arguments]
    fail(capsys, 2, words, *arguments)
    assert list(tmp_path.iterdir()) == []
    assert (raw.read_bytes(), (trained / "model.safetensors").read_bytes()) == before


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "input must be an existing file"),
        ("", "no header"),
        (HEADER, "must have a valid record, got only a header"),
        (f"{HEADER}\n\n \n", "must have a valid record, got only a header"),
        (
            f"{HEADER}\n\n{GOOD},\n{GOOD.replace('51', 'x')}\n",
            "2 refused ones, the first in line 3",
        ),
        (f"{HEADER}\n{GOOD.replace('51', 'x')}\n", "the first in line 2, age: not-an-integer"),
        (f"{HEADER.replace('age', 'years')}\n{GOOD}\n", "missing: age"),
        (f"{HEADER},Sex\n{GOOD},1\n", "twice: sex"),
        (f"{HEADER}\n{GOOD}\n".replace(",", ";"), "semicolons"),
        (f"{HEADER}\n{GOOD}\n".encode("utf-16"), "is UTF-16"),
    ],
)
def test_an_input_that_cannot_be_used_is_one_line_and_code_5_and_changes_nothing(
    content: str | bytes | None, words: str, trained: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (tmp_path / "pred.csv").write_text("old")
    if content is not None:
        content = content.encode() if isinstance(content, str) else content
        (tmp_path / "raw.csv").write_bytes(content)
    before = sorted(tmp_path.iterdir())
    for output in (tmp_path / "pred.csv", tmp_path / "new" / "pred.csv"):
        fail(
            capsys, 5, words, "--run", trained, "--input", tmp_path / "raw.csv", "--output", output
        )
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "pred.csv").read_text() == "old"


Change = Callable[[dict[str, Any], dict[str, Any]], object]


def rewritten(trained: Path, folder: Path, change: Change) -> Path:
    """A copy of the model file alone, with other tensors or metadata."""
    with safe_open(trained / "model.safetensors", "numpy") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = {name: json.loads(text) for name, text in file.metadata().items()}
    change(metadata, tensors)
    folder.mkdir()
    texts = {name: json.dumps(value) for name, value in metadata.items()}
    save_file(tensors, folder / "model.safetensors", texts)
    return folder


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m, t: m.clear(), "metadata must have model"),
        (lambda m, t: m.pop("schema"), "metadata must have schema"),
        (lambda m, t: m.update(model=[1]), "metadata model must be a JSON object, got a list"),
        (lambda m, t: m["model"].update(name="tree"), "must be one of logistic, mlp, cnn"),
        (lambda m, t: m["model"].update(name="logistic"), "hidden of this model must be []"),
        (lambda m, t: m["model"].update(hidden=["8"]), "must be positive integers, got ['8']"),
        (lambda m, t: m["model"].update(activation="gelu"), "activation must be one of"),
        (lambda m, t: m["model"].update(num_params=1), "num_params of this model must be"),
        (
            lambda m, t: m["schema"]["encoding"]["features"].pop(),
            "num_features of the model must be the 114 of the schema's encoding, got 124",
        ),
        (lambda m, t: m["schema"].update(format=1), "an older version: run preprocess and the"),
        (lambda m, t: m["schema"].pop("missing_tokens"), "schema must have missing_tokens"),
        (lambda m, t: m["schema"]["columns"].pop(0), "made of used columns, got age"),
        (lambda m, t: m["schema"]["columns"][0].update(low=300), "domain of age must lie in"),
        (lambda m, t: m["privacy"].pop("private"), "private must be true or false, got None"),
        (lambda m, t: m["privacy"].pop("epsilon"), "epsilon of a private model must be"),
        (lambda m, t: m["privacy"].update(delta=float("nan")), "delta of a private model must be"),
        (lambda m, t: t.pop("layers.1.bias"), "tensors must be layers.0.weight, layers.0.bias"),
        (
            lambda m, t: t.update({"layers.0.weight": t["layers.0.weight"][1:].copy()}),
            "layers.0.weight must be F32 [8, 124], got F32 [7, 124]",
        ),
        (
            lambda m, t: t.update({"layers.2.bias": t["layers.2.bias"].astype(np.float64)}),
            "layers.2.bias must be F32 [1], got F64 [1]",
        ),
        (lambda m, t: t["layers.2.bias"].fill(np.nan), "layers.2.bias must be finite"),
    ],
)  # fmt: skip
def test_a_model_that_does_not_fit_together_is_named(
    change: Change, words: str, trained: Path, raw: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    run = rewritten(trained, tmp_path / "run", change)
    fail(capsys, 5, words, "--run", run, "--input", raw, "--output", tmp_path / "pred.csv")
    assert list(tmp_path.iterdir()) == [run]


def test_a_rewritten_model_that_is_unchanged_is_accepted(
    trained: Path, raw: Path, tmp_path: Path
) -> None:
    run = rewritten(trained, tmp_path / "run", lambda metadata, tensors: None)
    assert predict_file(run, raw, tmp_path / "pred.csv").scored == 1001


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda run: shutil.rmtree(run), "run must be a folder that dpsgd.run has made, got"),
        (lambda run: (run / "model.safetensors").unlink(), "must hold model.safetensors"),
        (lambda run: (run / "model.safetensors").write_bytes(b"x" * 100), "is damaged"),
        (
            lambda run: (run / "model.safetensors").write_bytes(
                (run / "model.safetensors").read_bytes()[:-4]
            ),
            "is damaged",
        ),
        (lambda run: (run / "model.safetensors").write_bytes(b""), "model.safetensors"),
        (lambda run: (run / "schema.json").write_bytes(b"\xff"), "schema.json must be JSON"),
        (lambda run: (run / "schema.json").write_text("[]"), "schema.json must be a JSON object"),
        (
            lambda run: (run / "schema.json").unlink() or (run / "schema.json").mkdir(),
            "schema.json beside it must be readable: Is a directory",
        ),
    ],
)
def test_a_run_folder_that_is_damaged_is_named(
    damage: Callable[[Path], object], words: str, trained: Path, raw: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    damage(run)
    fail(capsys, 5, words, "--run", run, "--input", raw, "--output", tmp_path / "pred.csv")
    assert not (tmp_path / "pred.csv").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda schema: schema["columns"].pop(0), "columns age: {'name': 'age'"),
        (lambda schema: schema["columns"][1].update(high=17), "columns educ high: 16 against 17"),
        (lambda schema: schema["missing_tokens"].append("x"), "missing_tokens 7: nothing against"),
    ],
)
def test_another_schema_beside_the_model_is_refused_and_its_column_named(
    change: Callable[[dict[str, Any]], object], words: str, trained: Path, raw: Path,
    tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    schema = json.loads((run / "schema.json").read_text())
    change(schema)
    (run / "schema.json").write_text(json.dumps(schema))
    arguments = ("--run", run, "--input", raw, "--output", tmp_path / "pred.csv")
    fail(capsys, 5, f"not that of schema.json beside it: {words}", *arguments)


def test_an_interrupt_is_one_line_and_leaves_what_was_there(
    trained: Path, raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 1000)
    calls = []

    def interrupt(*arguments: Any) -> str:
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return "row\n"

    monkeypatch.setattr(scoring, "rows_of", interrupt)
    (tmp_path / "pred.csv").write_text("old")
    arguments = ("--run", trained, "--input", raw, "--output", tmp_path / "pred.csv")
    fail(capsys, 130, "interrupted", *arguments)
    assert (tmp_path / "pred.csv").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["pred.csv"]


def test_a_disk_that_fills_up_is_one_line_and_leaves_nothing(
    python: Launch, trained: Path, raw: Path, tmp_path: Path
) -> None:
    script = (
        "import resource, signal, sys; from dpsgd.predict import main\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    done = python("-c", script, "--run", trained, "--input", raw, "--output", "pred.csv")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("dpsgd.predict: error: --output must be writable, got")
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_program_gets_the_errors_of_this_package(
    trained: Path, raw: Path, tmp_path: Path
) -> None:
    with pytest.raises(DatasetError, match="existing file"):
        predict_file(trained, tmp_path / "none.csv", tmp_path / "pred.csv")
    with pytest.raises(DatasetError, match="run must be a folder"):
        predict_file(tmp_path / "none", raw, tmp_path / "pred.csv")
    with pytest.raises(ConfigError, match="must be a file"):
        predict_file(trained, raw, tmp_path)
    assert issubclass(DatasetError, UserError)

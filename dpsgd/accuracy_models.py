"""The runs that `accuracy` compares on one salted split.

A run is a row: model, epsilon and delta (None without privacy), accuracy and AUC on the test
records. A private model is trained by the command that a user would type, with the defaults for
whatever is not compared. The others are scikit-learn's: logistic regression on the same features,
gradient boosting on the codes of the columns, and the majority class.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpsgd.accuracy_table import BOOSTING, LOGISTIC, MAJORITY, PRIVATE
from dpsgd.data import encode
from dpsgd.errors import DatasetError, UserError
from launch.mpi import search_path
from launch.world import without_launcher
from preprocess import shards
from preprocess.schema import from_schema

BASELINES = (LOGISTIC, BOOSTING, MAJORITY)


class RunError(UserError):
    """A command failed: its exit code becomes ours, its words are shown."""

    def __init__(self, command: list[str], exit_code: int, words: str) -> None:
        name = " ".join(command[command.index("-m") :])
        super().__init__(f"python {name} ended with code {exit_code}\n{words.strip()}")
        self.exit_code = exit_code if exit_code > 0 else 128 - exit_code  # by a signal: as a shell


@dataclass(frozen=True, kw_only=True)
class Split:
    """A data set on disk, and its records: by side, train and test."""

    dataset: Path
    num_records: int
    features: dict[str, NDArray[np.float32]]  # [records, num_features]
    codes: dict[str, NDArray[np.uint8]]  # [records, columns without the label]
    labels: dict[str, NDArray[np.uint8]]  # [records]


def make_split(raw: Path, dataset: Path, salt: str) -> Split:
    """Preprocess a raw file into the folder `dataset`.

    Raises RunError as `python -m preprocess` ends, DatasetError if a side has only one class.
    """
    _run([sys.executable, "-m", "preprocess", "--input", str(raw), "--output", str(dataset),
          "--split-salt", salt])  # fmt: skip
    manifest = shards.read_manifest(dataset)
    spec = from_schema(shards.read_schema(dataset, manifest))
    features, codes, labels = {}, {}, {}
    for side in ("train", "test"):
        columns = shards.read_rows(dataset, manifest, side, 0, shards.num_rows(manifest, side))
        features[side] = encode(columns, spec)
        labels[side] = columns.pop(spec.label)
        codes[side] = np.column_stack(list(columns.values()))
        if len(np.unique(labels[side])) < 2:
            raise DatasetError(
                f"{raw}: {spec.label} must take both values among the {len(labels[side])} "
                f"{side} records of salt {salt}, or there is nothing to predict"
            )
    return Split(dataset=dataset, num_records=sum(map(len, labels.values())), features=features,
                 codes=codes, labels=labels)  # fmt: skip


def private(split: Split, epsilon: float, launcher: list[str]) -> dict[str, Any]:
    """Train on the ranks that `launcher` starts, all options but epsilon at their defaults."""
    out = split.dataset.with_name(f"{split.dataset.name}-epsilon-{epsilon!r}")
    _run([*launcher, sys.executable, "-m", "dpsgd.run", "--data",
          str(split.dataset), "--out", str(out), "--epsilon", str(epsilon)])  # fmt: skip
    run = json.loads((out / "run.json").read_text(encoding="utf-8"))
    return {
        "model": PRIVATE,
        "epsilon": epsilon,
        "delta": run["privacy"]["delta"],
        "accuracy": run["metrics"]["accuracy"],
        "auc": run["metrics"]["auc"],
    }


def without_privacy(split: Split, name: str) -> dict[str, Any]:
    """Fit and score one of BASELINES."""
    from sklearn.dummy import DummyClassifier
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score

    models: dict[str, tuple[Any, dict[str, Any]]] = {
        LOGISTIC: (LogisticRegression(max_iter=5000), split.features),
        BOOSTING: (HistGradientBoostingClassifier(random_state=0), split.codes),
        MAJORITY: (DummyClassifier(), split.codes),
    }
    model, inputs = models[name]
    model.fit(inputs["train"], split.labels["train"])
    score = model.predict_proba(inputs["test"])[:, 1]
    return {
        "model": name,
        "epsilon": None,
        "delta": None,
        "accuracy": float(np.mean((score > 0.5) == split.labels["test"])),
        "auc": float(roc_auc_score(split.labels["test"], score)),
    }


def _run(command: list[str]) -> None:
    """Run to the end, without the options that the environment holds. Raises RunError."""
    environment = {
        name: value for name, value in without_launcher().items() if not name.startswith("DPSGD_")
    }
    environment["PATH"] = search_path(Path(command[0]))
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, errors="replace",
    ) as child:  # fmt: skip
        try:
            out, words = child.communicate()
        except BaseException:  # asked to end, mpirun takes its ranks along; killed, it may not
            child.terminate()
            child.communicate()
            raise
    if child.returncode != 0:
        raise RunError(command, child.returncode, words or out)

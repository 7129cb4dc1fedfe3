"""A trained model as it is read back from a run folder.

`model.safetensors` may be published by itself, so it holds all that is needed to use it: tensors by
layer, and in its metadata the shape of the model, the schema of the records and the privacy of the
training. Nothing in the file is trusted before it has been checked against the rest.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from dpsgd.data import levels
from dpsgd.errors import ConfigError, DatasetError
from dpsgd.models import Model, check_name, inputs_of, rebuild
from preprocess.errors import DataError
from preprocess.schema import first_difference, from_schema
from preprocess.spec import Spec, num_features

MODEL = "model.safetensors"
SCHEMA = "schema.json"


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """Parameters [num_params], finite, and what they mean."""

    model: Model
    params: NDArray[np.float32]
    spec: Spec
    schema: dict[str, Any]  # that of the spec
    privacy: dict[str, Any]  # as in privacy.json


def load_model(run: Path) -> TrainedModel:
    """The model of a run folder, of which only the model file must be there.

    Raises DatasetError if that is missing, damaged, made by an older version or does not fit
    together, or if a `schema.json` beside it is another one.
    """
    if not run.is_dir():
        raise DatasetError(f"run must be a folder that dpsgd.run has made, got {run}")
    path = run / MODEL
    try:
        with safe_open(path, "numpy") as file:
            metadata = _metadata(file.metadata() or {})
            spec = from_schema(metadata["schema"])
            _check_inputs(metadata["model"], spec)
            model = rebuild(metadata["model"])
            params = _params(file, model)
        _check_privacy(metadata["privacy"])
        _check_schema_beside(run / SCHEMA, metadata["schema"])
    except FileNotFoundError:
        raise DatasetError(f"run folder {run} must hold {MODEL}: it has not ended well") from None
    except OSError as error:
        raise DatasetError(f"{path} must be readable: {error.strerror or error}") from None
    except SafetensorError as error:
        raise DatasetError(f"{path} is damaged: {error}") from None
    except (ConfigError, DataError, DatasetError) as error:
        raise DatasetError(f"{path}: {error}") from None
    return TrainedModel(
        model=model,
        params=params,
        spec=spec,
        schema=metadata["schema"],
        privacy=metadata["privacy"],
    )


def _metadata(found: dict[str, str]) -> dict[str, dict[str, Any]]:
    documents: dict[str, dict[str, Any]] = {}
    for key in ("model", "schema", "privacy"):
        if key not in found:
            raise DatasetError(f"metadata must have {key}: this file was not written by dpsgd.run")
        documents[key] = _as_object(found[key], f"metadata {key}")
    return documents


def _as_object(text: str | bytes, what: str) -> dict[str, Any]:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:  # also wrong UTF-8
        raise DatasetError(f"{what} must be JSON: {error}") from None
    if not isinstance(document, dict):
        raise DatasetError(f"{what} must be a JSON object, got a {type(document).__name__}")
    return document


def _check_inputs(described: dict[str, Any], spec: Spec) -> None:
    """The model must be made for what the schema gives; it is not built before."""
    check_name(str(described.get("name")))
    if inputs_of(described["name"]) == "levels":
        name, of = "levels", "columns"
        wanted: Any = list(levels(spec))
    else:
        name, of = "num_features", "encoding"
        wanted = num_features(spec)
    if described.get(name) != wanted:
        raise DatasetError(
            f"{name} of the model must be the {wanted} of the schema's {of}, got "
            f"{described.get(name)!r:.80}"
        )


def _params(file: Any, model: Model) -> NDArray[np.float32]:
    """The tensors, checked, one after the other in the order of the flat buffer."""
    names = [tensor.name for tensor in model.tensors]
    if set(file.keys()) != set(names):
        raise DatasetError(
            f"tensors must be {', '.join(names)}, got {', '.join(sorted(file.keys()))}"
        )
    for tensor in model.tensors:
        found, shape = file.get_slice(tensor.name), list(tensor.shape)
        if (found.get_dtype(), found.get_shape()) != ("F32", shape):
            raise DatasetError(
                f"{tensor.name} must be F32 {shape}, got {found.get_dtype()} {found.get_shape()}"
            )
        if not np.isfinite(file.get_tensor(tensor.name)).all():
            raise DatasetError(f"{tensor.name} must be finite, it is not: the training diverged")
    return np.concatenate([file.get_tensor(name).ravel() for name in names])


def _check_privacy(privacy: dict[str, Any]) -> None:
    """As far as it is shown to people."""
    if privacy.get("private") not in (True, False):
        raise DatasetError(f"private must be true or false, got {privacy.get('private')!r:.80}")
    if not privacy["private"]:
        return
    for name in ("epsilon", "delta"):
        value: Any = privacy.get(name)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (is_number and 0 < value < math.inf):
            raise DatasetError(f"{name} of a private model must be positive, got {value!r:.80}")
    if not isinstance(privacy.get("unit"), str):
        raise DatasetError(f"unit of privacy must be text, got {privacy.get('unit')!r:.80}")


def _check_schema_beside(path: Path, schema: dict[str, Any]) -> None:
    try:
        beside = _as_object(path.read_bytes(), path.name)
    except FileNotFoundError:
        return
    except OSError as error:
        raise DatasetError(f"{path.name} beside it must be readable: {error.strerror}") from None
    if difference := first_difference(schema, beside):
        raise DatasetError(f"its schema is not that of {path.name} beside it: {difference}")

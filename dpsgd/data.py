"""The part of a data set that this rank owns, as one matrix.

A data set holds compact codes; its schema says how they become features: numbers divided by a
public constant, and one-hot columns of public bins, or of crosses of bins. Every row is scaled to a
public norm. Models that embed columns take the number of the level of each column instead: the bin
where the column is one-hot by itself, otherwise the code. Nothing is fitted to the data.

Rank r owns rows [n r / p, n (r + 1) / p) of the training rows in the order of the shards. Under the
neighbouring relation (one record's gradient becomes zero) n and this partition are public.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from collectives.guard import together
from collectives.schedule import part_bounds
from dpsgd.errors import DatasetError
from dpsgd.models import Inputs
from preprocess import shards
from preprocess.errors import DataError

if TYPE_CHECKING:
    from mpi4py import MPI

SUPPORTED_UNITS = ("record",)


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Inputs of the model and labels 0 or 1 [rows].

    Inputs are features, float32 [rows, num_features], or levels, int64 [rows, columns].
    """

    features: NDArray[Any]
    labels: NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """One rank's part, and the public facts about the whole.

    `part` is (rank, world_size) and `content_sha256` tells of which data set: training checks that
    the parts of all ranks make up one whole. The hash is of private data; it is never shown.
    """

    path: Path
    part: tuple[int, int]
    content_sha256: str = field(repr=False)
    schema: dict[str, Any]
    unit: str
    num_examples: int
    num_features: int
    levels: tuple[int, ...]
    inputs: Inputs
    train: Rows
    test: Rows


def load_dataset(path: Path | str, comm: MPI.Intracomm, inputs: Inputs = "features") -> Dataset:
    """Read this rank's rows. Every rank must call it.

    `inputs` are what the model takes: `levels` for the transformer, else `features`. Raises
    DatasetError, on all ranks, if the data set is missing, damaged, empty or has a unit of privacy
    that the trainer cannot protect.
    """
    return together(comm, DatasetError, lambda: _load(Path(path), comm.rank, comm.size, inputs))


def _load(path: Path, rank: int, world_size: int, inputs: Inputs) -> Dataset:
    if not os.path.lexists(path):
        demo = "make demo makes one, and " if path == Path("data/demo") else ""
        raise DatasetError(
            f"data set {path} does not exist; {demo}`python -m preprocess --input RAW.csv "
            f"--output {path}` makes it from a census file"
        )
    try:
        manifest = shards.read_manifest(path)
        schema = shards.read_schema(path, manifest)
        unit = manifest["unit"]
        if unit not in SUPPORTED_UNITS:
            raise DatasetError(
                f"data set {path}: unit of privacy must be {SUPPORTED_UNITS[0]!r}, got {unit!r}"
            )
        num_examples = shards.num_rows(manifest, "train")
        if num_examples == 0:
            raise DatasetError(f"data set {path} has no training records")
        parts = {}
        for split in ("train", "test"):
            bounds = part_bounds(shards.num_rows(manifest, split), world_size)
            codes = shards.read_rows(path, manifest, split, bounds[rank], bounds[rank + 1])
            features = as_inputs(codes, schema, inputs)
            parts[split] = Rows(features=features, labels=codes[schema["label"]].astype(np.float32))
    except DataError as error:
        raise DatasetError(str(error)) from None
    except OSError as error:
        raise DatasetError(f"data set {path} cannot be read: {error.strerror}") from None
    except (KeyError, TypeError) as error:
        raise DatasetError(
            f"data set {path}: manifest.json or schema.json is incomplete ({error}); make it again "
            f"with python -m preprocess"
        ) from None
    return Dataset(
        path=path,
        part=(rank, world_size),
        content_sha256=hashlib.sha256(json.dumps(manifest["files"]).encode()).hexdigest(),
        schema=schema,
        unit=unit,
        num_examples=num_examples,
        num_features=sum(map(_width, schema["encoding"]["features"])),
        levels=levels(schema),
        inputs=inputs,
        **parts,
    )


def as_inputs(
    codes: Mapping[str, NDArray[np.uint8]], schema: Mapping[str, Any], inputs: Inputs
) -> NDArray[Any]:
    """Codes of n records to what a model takes: features or levels, n rows."""
    if inputs == "levels":
        columns = [_cell(codes, [bins]) for bins, _ in _levels(schema)]
        return np.ascontiguousarray(np.stack(columns, axis=1))
    return encode(codes, schema["encoding"])


def encode(codes: Mapping[str, NDArray[np.uint8]], encoding: dict[str, Any]) -> NDArray[np.float32]:
    """Codes of n records to features [n, num_features], every row scaled to the public norm."""
    num_rows = len(next(iter(codes.values())))
    widths = [_width(feature) for feature in encoding["features"]]
    features = np.zeros((num_rows, sum(widths)), np.float32)
    first = 0
    for feature, width in zip(encoding["features"], widths, strict=True):
        if feature["kind"] == "number":
            features[:, first] = codes[feature["column"]] / np.float32(feature["divide_by"])
        else:
            features[np.arange(num_rows), first + _cell(codes, feature["of"])] = 1
        first += width
    norms = np.sqrt(np.einsum("ij,ij->i", features, features))
    features *= (np.float32(encoding["row_norm"]) / np.maximum(norms, 1e-12))[:, None]
    return features


def levels(schema: Mapping[str, Any]) -> tuple[int, ...]:
    """How many levels each column has, for models that embed columns."""
    return tuple(width for _, width in _levels(schema))


def _levels(schema: Mapping[str, Any]) -> list[tuple[dict[str, Any], int]]:
    """For each column, in the order of the features: how it is cut, and into how many levels."""
    features = schema["encoding"]["features"]
    alone = [f["of"] for f in features if f["kind"] == "one-hot" and len(f["of"]) == 1]
    cut = {of[0]["column"]: of[0] for of in alone}
    domains = {column["name"]: (column["low"], column["high"]) for column in schema["columns"]}
    names = [
        name
        for feature in features
        for name in ([feature["column"]] if feature["kind"] == "number" else
                     [one["column"] for one in feature["of"]])
    ]  # fmt: skip
    found = []
    for name in dict.fromkeys(names):
        low, high = domains[name]
        bins = cut.get(name, {"column": name, "lower_edges": list(range(low, high + 1))})
        found.append((bins, len(bins["lower_edges"])))
    return found


def _width(feature: dict[str, Any]) -> int:
    """Number of columns of one feature."""
    if feature["kind"] == "number":
        return 1
    if feature["kind"] == "one-hot":
        return int(np.prod([len(one["lower_edges"]) for one in feature["of"]]))
    raise DatasetError(f"feature kind must be number or one-hot, got {feature['kind']!r}")


def _cell(codes: Mapping[str, NDArray[np.uint8]], of: list[dict[str, Any]]) -> NDArray[np.int64]:
    """Which column of a one-hot feature is 1, for each record [n]."""
    cell = np.zeros(len(next(iter(codes.values()))), np.int64)
    for one in of:
        edges = one["lower_edges"]
        values = np.arange(256)
        bins = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, None)
        cell = cell * len(edges) + bins[codes[one["column"]]]
    return cell

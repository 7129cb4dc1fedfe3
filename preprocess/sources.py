"""Which raw files there are, and how their bytes are read.

An input is a file, a glob or several of them. gzip and zip are read as what they hold: of a zip
archive every member whose name ends in .csv, .txt or .data, or its only member. A Parquet file is
first written as text (see `preprocess.parquet`). Whatever is read must stay as it is until its end:
a file that shrinks or grows meanwhile is an error. A pipe is read once, as plain text.
"""

from __future__ import annotations

import gzip
import io
import lzma
import os
import shutil
import stat
import time
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from glob import glob, has_magic
from pathlib import Path
from typing import IO, Literal, TypeAlias

from preprocess.errors import DataError, UsageError

TEXT_SUFFIXES = (".csv", ".txt", ".data", ".test", ".tsv")
NO_FILES = "__MACOSX/"  # notes of a Mac about the files of an archive
COPY_BYTES = 1 << 20

Packing: TypeAlias = Literal["none", "gzip", "zip", "parquet", "pipe"]


@dataclass(frozen=True, kw_only=True)
class Source:
    """One raw table. `name` is what people are told, `path` is the file that is opened."""

    name: str
    path: Path
    packing: Packing
    member: str = ""  # of a zip archive
    num_bytes: int  # of text, or of the compressed file where more is not known
    state: tuple[int, int]  # size and time of change of the file, in bytes and nanoseconds


def find_sources(patterns: Sequence[Path | str]) -> list[Source]:
    """The sources that files and globs name, in that order, those of a glob sorted.

    Raises DataError for a file that is not there, cannot be read or is named twice.
    """
    paths: list[Path] = []
    for pattern in map(str, patterns):
        found = [Path(pattern)]
        if has_magic(pattern) and not os.path.lexists(pattern):
            found = sorted(Path(path) for path in glob(pattern, recursive=True))  # noqa: PTH207
            if not found:
                raise DataError(f"input must name existing files, got {pattern}: no file is so")
        paths += found
    real = [os.path.realpath(path) for path in paths]
    for path, place in zip(paths, real, strict=True):
        if real.count(place) > 1:
            raise UsageError(f"input must name every file once, got {path} twice")
    return [source for path in paths for source in _sources_of(path)]


def _sources_of(path: Path) -> list[Source]:
    with _named(path):
        if stat.S_ISFIFO(path.stat().st_mode):  # nothing is known of it, and it is read once
            state = (0, time.time_ns())
            return [Source(name=str(path), path=path, packing="pipe", num_bytes=0, state=state)]
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise DataError("input must be a file or a pipe")
            start = file.read(4)
    state = (status.st_size, status.st_mtime_ns)
    source = Source(
        name=str(path), path=path, packing="none", num_bytes=status.st_size, state=state
    )
    if start.startswith(b"\x1f\x8b"):
        return [replace(source, packing="gzip")]
    if start == b"PAR1":
        return [replace(source, packing="parquet")]
    if start != b"PK\x03\x04":
        return [source]
    with _named(path), zipfile.ZipFile(path) as archive:
        files = [
            entry
            for entry in archive.infolist()
            if not (entry.is_dir() or entry.filename.startswith(NO_FILES))
        ]
    texts = [entry for entry in files if entry.filename.lower().endswith(TEXT_SUFFIXES)]
    members = texts or files
    if not members or (not texts and len(files) > 1):
        raise DataError(
            f"{path} must hold a file that ends in {', '.join(TEXT_SUFFIXES)}, or one file only, "
            f"got {', '.join(entry.filename for entry in files[:5]) or 'an empty archive'}"
        )
    return [
        replace(source, packing="zip", name=f"{path}/{entry.filename}", member=entry.filename,
                num_bytes=entry.file_size)
        for entry in members
    ]  # fmt: skip


@contextmanager
def open_source(source: Source) -> Iterator[io.BufferedReader]:
    """The text of a source. Errors name it, also those that the block raises."""
    with _named(source.path, source.name), source.path.open("rb") as file:
        _check_unchanged(source, file.fileno())
        with _unpacked(source, file) as text:
            yield text
        _check_unchanged(source, file.fileno())


@contextmanager
def _unpacked(source: Source, file: io.BufferedReader) -> Iterator[io.BufferedReader]:
    if source.packing == "gzip":
        with gzip.GzipFile(fileobj=file) as unpacked:
            yield io.BufferedReader(unpacked, COPY_BYTES)
    elif source.packing == "zip":
        with zipfile.ZipFile(file) as archive, archive.open(source.member) as unpacked_member:
            yield io.BufferedReader(unpacked_member, COPY_BYTES)  # type: ignore[arg-type]
    else:
        yield file


def lines_of(file: io.BufferedReader) -> Iterator[bytes]:
    """The rest of a file by Python's universal newlines, LF, CR LF or CR; lines without their end.

    Latin-1 maps every byte to one character and back, so a line is cut as text and given as bytes.
    """
    text = io.TextIOWrapper(file, encoding="latin-1", newline=None)
    try:
        for line in text:
            yield line.removesuffix("\n").encode("latin-1")
    finally:
        text.detach()


def as_plain_file(source: Source, folder: Path) -> Source:
    """The same text as a file that may be read from any byte on, made in `folder` if need be."""
    if source.packing == "none":
        return source
    number = sum(1 for _ in folder.glob("unpacked-*"))
    path = folder / f"unpacked-{number:05d}"
    with open_source(source) as text, _private(path) as copy:
        shutil.copyfileobj(text, copy, COPY_BYTES)
        copy.flush()
        status = os.fstat(copy.fileno())
    return replace(
        source, path=path, packing="none", member="", num_bytes=status.st_size,
        state=(status.st_size, status.st_mtime_ns),
    )  # fmt: skip


def check_state(source: Source) -> None:
    """Raise DataError if the file of a source is not as it was; of a pipe nothing is known."""
    if source.packing == "pipe":
        return
    with _named(source.path, source.name), source.path.open("rb") as file:
        _check_unchanged(source, file.fileno())


def _private(path: Path) -> IO[bytes]:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")


def _check_unchanged(source: Source, descriptor: int) -> None:
    if source.packing == "pipe":
        return
    status = os.fstat(descriptor)
    if (status.st_size, status.st_mtime_ns) != source.state:
        before = source.state[0]
        how = f"it had {before:,} bytes and has {status.st_size:,}"
        raise DataError(
            f"file changed while it was read ({how if before != status.st_size else 'in place'}); "
            f"start again when it is complete"
        )


@contextmanager
def _named(path: Path, name: str | None = None) -> Iterator[None]:
    """Errors that name the file."""
    name = name or str(path)
    try:
        yield
    except DataError as error:
        raise DataError(f"{name}: {error}") from None
    except FileNotFoundError as error:
        if error.filename is not None and Path(error.filename) != path:
            raise  # another file
        raise DataError(f"input must be an existing file, got {path}") from None
    except IsADirectoryError:
        raise DataError(f"input must be a file, got the folder {path}") from None
    except PermissionError as error:
        if error.filename is not None and Path(error.filename) != path:
            raise
        raise DataError(f"input must be readable, got {path}: {error.strerror}") from None
    except (gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError) as error:
        raise DataError(f"{name} is damaged or cut off: {error}") from None
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise DataError(f"{name} must be a whole zip archive: {error}") from None
    except RuntimeError as error:
        if "password" not in str(error):
            raise
        raise DataError(f"{name} must not be encrypted") from None

"""One file of the Census Bureau over HTTPS: asked for, resumed, checked, made to appear whole.

What arrives goes to a partial file, and what the server calls it (ETag or Last-Modified) to a note
beside it. A later call goes on from there (Range, If-Range), or from zero if the server has another
file by now or does not say which it has.

Guarantees:
- the target is what the server has, whole, or absent.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import socket
import ssl
import sys
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import date
from email.message import Message
from http.client import HTTPException, HTTPMessage, HTTPResponse, IncompleteRead, RemoteDisconnected
from io import FileIO
from ipaddress import ip_address
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from preprocess import __version__, output
from preprocess.errors import DataError, UsageError

PROG = "preprocess.download"
BASE_URL = "https://www2.census.gov/programs-surveys/acs/data/pums"
SURVEYS = {"acs1": ("1-Year", 2005), "acs5": ("5-Year", 2009)}
"""The folder, and the first year."""
LAST_YEAR_WITHOUT_FOLDER = 2006
STATES = (
    "ak al ar az ca co ct dc de fl ga hi ia id il in ks ky la ma md me mi mn mo ms mt nc nd ne nh "
    "nj nm nv ny oh ok or pa pr ri sc sd tn tx us ut va vt wa wi wv wy"
)
PERSON_FILE = re.compile(r"(psam_p|ss\d\dp)\w+\.csv")  # the latter until 2016
TIMEOUT_SECONDS = 30.0
CHUNK_BYTES = 1 << 20
GOES_ON = "the same command goes on from there"
ELSEWHERE = (
    "a file downloaded elsewhere can be given straight to "
    "python -m preprocess --spec acs-person --input FILE.zip"
)
NOT_WHOLE = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError, OSError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """One published file. Raises UsageError if there is none."""

    survey: str
    year: int
    state: str
    base_url: str = BASE_URL

    def __post_init__(self) -> None:
        first, last = SURVEYS[self.survey][1], date.today().year
        if not first <= self.year <= last:
            raise UsageError(
                f"--year must be in {first}..{last} for --survey {self.survey}, got {self.year}"
            )
        if (self.survey, self.year) == ("acs1", 2020):
            raise UsageError(
                "--year must not be 2020 for --survey acs1: there is no standard file of that "
                "year; take another year, or --survey acs5"
            )
        if self.state not in STATES.split():
            raise UsageError(
                "--state must be two lower-case letters such as ca or pr, or us for the whole "
                f"nation, got {self.state}"
            )

    @property
    def url(self) -> str:
        """Where it is."""
        is_flat = self.year <= LAST_YEAR_WITHOUT_FOLDER
        folder = f"{self.year}" if is_flat else f"{self.year}/{SURVEYS[self.survey][0]}"
        return f"{self.base_url.rstrip('/')}/{folder}/csv_p{self.state}.zip"

    @property
    def host(self) -> str:
        """Who has it."""
        return urlsplit(self.base_url).netloc

    def __str__(self) -> str:
        return f"--survey {self.survey} --year {self.year} --state {self.state}"


class Files(NamedTuple):
    """What is written, side by side."""

    target: Path
    sums: Path
    partial: Path
    note: Path

    @classmethod
    def beside(cls, target: Path) -> Files:
        """By the target's name."""
        partial = output.TEMPORARY + target.name
        names = (target.name, target.name + ".sha256", partial, partial + ".json")
        return cls(*map(target.with_name, names))


def download(release: Release, files: Files, expected: str = "") -> tuple[str, int]:
    """Write the file; gives its SHA-256, and the byte from which an earlier download went on."""
    with _open_partial(files) as file:
        sha256, start = _fetch(release, file, files.note)
        try:
            _check_archive(release, files.partial)
            if expected not in ("", sha256):
                raise DataError(
                    f"{release.url} has SHA-256 {sha256}, --sha256 says {expected}: nothing is kept"
                )
        except DataError:
            file.truncate(0)
            raise
        os.fsync(file.fileno())
        with output.new_file("--output", files.sums) as sums:
            name = os.fsencode(files.target.name)
            sums.write(f"# {release}\n{sha256}  ".encode() + name + b"\n")
        files.partial.replace(files.target)
    files.note.unlink(missing_ok=True)
    folder = os.open(files.target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return sha256, start


@contextmanager
def _open_partial(files: Files) -> Iterator[FileIO]:
    """The partial file, for this process alone. Nothing stays of an empty one."""
    made = [parent for parent in files.partial.parents if not parent.exists()]
    try:
        files.partial.parent.mkdir(parents=True, exist_ok=True)
        with files.partial.open("a+b", buffering=0) as file:
            _lock(file, files.partial)
            try:
                yield file
            finally:
                if os.fstat(file.fileno()).st_size == 0:
                    files.partial.unlink(missing_ok=True)
                    files.note.unlink(missing_ok=True)
    finally:
        for parent in made:
            with suppress(OSError):  # not empty
                parent.rmdir()


def _lock(file: FileIO, path: Path) -> None:
    is_free = True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        is_free = False
    except OSError:  # some file systems of clusters have no locks
        pass
    # Between our open and our lock another process may have renamed or removed it.
    if not (is_free and path.exists() and os.path.samestat(path.stat(), os.fstat(file.fileno()))):
        raise UsageError(f"--output must be free, another process downloads to it: {path}")


def _fetch(release: Release, file: FileIO, note: Path) -> tuple[str, int]:
    """Complete the partial file. Raises DataError, and keeps what has arrived."""
    saved = _read_note(note, release.url)
    size = file.seek(0, os.SEEK_END)
    if saved.get("total"):
        size = min(size, saved["total"] - 1)  # a last byte to ask for: is it still the same file?
    response, start, total = _ask(release, saved, size)
    with response:
        file.truncate(start)
        validator = saved["validator"] if start else _validator(response.headers)
        if not start:
            note.unlink(missing_ok=True)  # it was about what is truncated
            if validator:
                text = json.dumps({"url": release.url, "validator": validator, "total": total})
                with output.new_file("--output", note) as note_file:
                    note_file.write(text.encode())
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256")
        broken = _receive(response, file, total, digest.update)
    if broken:
        part = f"{file.tell():,}" + (f" of {total:,}" if total else "")
        again = GOES_ON if validator else "the same command starts again, the server has no ETag"
        raise DataError(f"{release.host} broke off after {part} bytes, {broken}: {again}")
    return digest.hexdigest(), start


def _read_note(note: Path, url: str) -> dict[str, Any]:
    """What the server called the file that the partial one is a part of; empty if not known."""
    try:
        saved = json.loads(note.read_text())
    except (OSError, ValueError):
        return {}
    kinds = {"url": str, "validator": str, "total": int | None}
    is_note = isinstance(saved, dict) and all(
        name in saved and isinstance(saved[name], kind) for name, kind in kinds.items()
    )
    return saved if is_note and saved["url"] == url else {}


def _validator(headers: Message) -> str | None:
    """What If-Range may say: a weak ETag does not promise equal bytes."""
    etag: str | None = headers.get("ETag")
    return etag if etag and not etag.startswith("W/") else headers.get("Last-Modified")


def _ask(
    release: Release, saved: Mapping[str, Any], size: int
) -> tuple[HTTPResponse, int, int | None]:
    """The answer, the byte of the file that it begins with, and the size of the whole file."""
    resumes = bool(saved) and size > 0
    headers = {"Range": f"bytes={size}-", "If-Range": saved["validator"]} if resumes else {}
    response = _open(release, headers)
    if response.status == 206:
        given = response.headers.get("Content-Range", "")
        match = re.fullmatch(rf"bytes {size}-\d+/(\d+)", given)
        is_same = _validator(response.headers) in (None, saved["validator"])  # nobody has to heed
        if match and is_same and saved["total"] in (None, int(match[1])):
            return response, size, int(match[1])
        response.close()
        response = _open(release, {})
    return response, 0, response.length


def _open(release: Release, headers: Mapping[str, str]) -> HTTPResponse:
    """The answer: the file, or the range of it that `headers` ask for. Raises DataError."""
    about_us = {"User-Agent": f"{PROG}/{__version__}", "Accept-Encoding": "identity"}
    request = Request(release.url, headers=about_us | dict(headers))
    try:
        response: HTTPResponse = build_opener(_Redirects).open(request, timeout=TIMEOUT_SECONDS)
        if response.status == 200 or (response.status == 206 and headers):
            return response
        response.close()
        code = response.status
    except DataError:
        raise
    except HTTPError as error:
        error.close()
        code = error.code
    except (OSError, HTTPException, ValueError) as error:  # ValueError: a malformed redirect
        raise DataError(
            f"{release.host} is not reached, {_why(error)}: there is no network here, or a proxy "
            f"that https_proxy must name; {ELSEWHERE}"
        ) from None
    if code == 416 and headers:  # shorter than what has arrived
        return _open(release, {})
    raise _refusal(release, code)


class _Redirects(HTTPRedirectHandler):
    """Follows to https; to http only between servers on this machine."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        """Called by urllib."""
        if not is_safe(newurl, http_too=_is_loopback(urlsplit(req.full_url).hostname)):
            fp.close()
            raise DataError(f"{req.host} sends to {newurl!a}, but only https is safe: {ELSEWHERE}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def is_safe(url: str, *, http_too: bool) -> bool:
    parts = urlsplit(url)
    is_local = http_too and parts.scheme == "http" and _is_loopback(parts.hostname)
    return is_local or parts.scheme == "https"


def _is_loopback(host: str | None) -> bool:
    try:
        return host == "localhost" or ip_address(host or "").is_loopback
    except ValueError:
        return False


def _refusal(release: Release, code: int) -> DataError:
    if code not in (404, 410):
        return DataError(
            f"{release.host} answers {code} for {release.url}: try the same command later; "
            + ELSEWHERE
        )
    sure = date.today().year - 2  # one year appears after 10 months, five after 12 or 13
    advice = f"take --year {sure}" if release.year > sure else "take another year or state"
    return DataError(
        f"{release.host} has no file for {release}, it answers {code} for {release.url}: a year "
        f"is published about a year after its end; {advice}"
    )


def _why(error: BaseException) -> str:
    if isinstance(error, URLError) and isinstance(error.reason, OSError):
        error = error.reason
    known: dict[type[BaseException], str] = {
        ssl.SSLCertVerificationError: f"its TLS certificate is not accepted ({error})",
        ssl.SSLError: f"TLS fails ({error})",
        socket.gaierror: "its name is not known",
        ConnectionRefusedError: "the connection is refused",
        TimeoutError: f"nothing comes for {TIMEOUT_SECONDS:g} seconds",
        RemoteDisconnected: "it closes the connection",
        IncompleteRead: "the connection ended",
    }
    return next((text for kind, text in known.items() if isinstance(error, kind)), str(error))


def _receive(
    response: HTTPResponse, file: FileIO, total: int | None, update: Callable[[bytes], object]
) -> str:
    """Append the body to the file; gives why it ended early, if it did."""
    start = done = file.tell()
    started = last = time.monotonic()
    while total is None or done < total:
        try:
            piece = response.read1(min(CHUNK_BYTES, (total or sys.maxsize) - done))
        except (OSError, HTTPException) as error:
            return _why(error)
        if not piece:
            break
        _write(file, piece)
        update(piece)
        done += len(piece)
        now = time.monotonic()
        if now - last >= output.SECONDS_BETWEEN_REPORTS:
            last = now
            part = f" of {total / 1e6:,.1f} MB, {done / total:.0%}" if total else " MB"
            rate = (done - start) / 1e6 / (now - started)
            output.say(f"{PROG}: {done / 1e6:,.1f}{part}, {rate:,.1f} MB/s", sys.stderr)
    return "" if total in (None, done) else "the connection ended"


def _write(file: FileIO, piece: bytes) -> None:
    left = memoryview(piece)
    try:
        while left:
            left = left[file.write(left) :]
    except OSError as error:
        raise UsageError(
            f"--output must be writable, got {file.name!s}: {error.strerror}; with room, {GOES_ON}"
        ) from None


def _check_archive(release: Release, path: Path) -> None:
    """Read all of it, since its members have checksums. Raises DataError."""
    problem = ""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [PurePosixPath(name).name.lower() for name in archive.namelist()]
            if damaged := archive.testzip():
                problem = f"{damaged!a} is damaged"
    except NOT_WHOLE as error:
        problem = f"{error}"
    if problem:
        raise DataError(
            f"{release.url} did not arrive as a whole zip file, {problem}: nothing is kept, the "
            f"same command starts again; a browser may tell more, and {ELSEWHERE}"
        )
    if not any(map(PERSON_FILE.fullmatch, names)):
        raise DataError(
            f"{release.url} must hold a person file such as psam_p06.csv, got {names[:3]!a}: "
            "nothing is kept"
        )

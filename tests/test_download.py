"""The download against a real server on this machine: whole, or absent, and always one line."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import json
import random
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from helpers import ROOT, clean_environment, finish, started
from preprocess import download, fetch, output
from preprocess.download import Release
from preprocess.errors import UsageError

PATH = "/2023/1-Year/csv_pca.zip"
ARGUMENTS = ["--survey", "acs1", "--year", "2023", "--state", "ca"]
MODIFIED = ("Tue, 01 Oct 2024 00:00:00 GMT", "Wed, 02 Oct 2024 00:00:00 GMT")


def archive(seed: int = 1, name: str = "psam_p06.csv", num_bytes: int = 100_000) -> bytes:
    """A zip file with a member whose bytes do not compress."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(name, random.Random(seed).randbytes(num_bytes))
        file.writestr("ACS2023_PUMS_README.pdf", b"read me")
    return packed.getvalue()


BODY = archive()
HALF = len(BODY) // 2


@dataclass
class Behaviour:
    """What the server has, and in what respects it misbehaves."""

    body: bytes = BODY
    etag: str | None = '"one"'
    modified: str | None = MODIFIED[0]
    status: int | None = None
    ranges: bool = True  # otherwise it sends all
    if_range: bool = True  # otherwise it sends the range of whatever it has now
    unsatisfiable: bool = False
    range_shift: int = 0  # Content-Range tells another start than was asked for
    names_range: bool = True
    length_shift: int = 0  # Content-Length is wrong by this
    chunked: bool = False
    says_length: bool = True
    end: int | None = None  # the connection ends when so much of the answer has been sent
    location: str | None = None
    stalls: bool = False  # after `end` bytes it stays connected and silent
    garbage: bytes | None = None  # instead of an HTTP answer
    asked: list[dict[str, str]] = field(default_factory=list)
    halted: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)


class Handler(BaseHTTPRequestHandler):
    """Answers as `server.behaviour` says."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        does: Behaviour = self.server.behaviour  # type: ignore[attr-defined]
        does.asked.append(dict(self.headers))
        self.close_connection = True
        if does.garbage is not None:
            self.wfile.write(does.garbage)
        elif does.location and self.path == PATH:
            self._head(302, {"Location": does.location, "Content-Length": "0"})
        elif does.status or not self.path.endswith(PATH):
            self._head(does.status or 404, {"Content-Length": "0"})
        else:
            self._file(does)

    def _file(self, does: Behaviour) -> None:
        start = self._start(does)
        if start and (does.unsatisfiable or start >= len(does.body)):
            self._head(416, {"Content-Range": f"bytes */{len(does.body)}", "Content-Length": "0"})
            return
        rest = does.body[start:]
        headers = {"ETag": does.etag, "Last-Modified": does.modified}
        if start and does.names_range:
            shown = start + does.range_shift
            headers["Content-Range"] = f"bytes {shown}-{len(does.body) - 1}/{len(does.body)}"
        if does.chunked:
            headers["Transfer-Encoding"] = "chunked"
            rest = b"%x\r\n%b\r\n0\r\n\r\n" % (len(rest), rest)
        elif does.says_length:
            headers["Content-Length"] = str(len(rest) + does.length_shift)
        self._head(206 if start else 200, headers)
        self.wfile.write(rest[: does.end])
        if does.stalls:
            self.wfile.flush()
            does.halted.set()
            does.released.wait(60)

    def _start(self, does: Behaviour) -> int:
        asked, condition = self.headers.get("Range"), self.headers.get("If-Range")
        if not (asked and does.ranges):
            return 0
        is_same = condition in (does.etag, does.modified)
        return int(asked.removeprefix("bytes=").rstrip("-")) if is_same or not does.if_range else 0

    def _head(self, status: int, headers: dict[str, str | None]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if value is not None:
                self.send_header(name, value)
        self.send_header("Connection", "close")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Silent."""


class Server(ThreadingHTTPServer):
    """A server whose behaviour can be exchanged."""

    behaviour = Behaviour()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Silent: the other side may have gone."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@pytest.fixture(scope="module")
def one_server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def server(one_server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    one_server.behaviour = Behaviour()
    yield one_server
    one_server.behaviour.released.set()


@dataclass
class Place:
    """Where the tests download to, and the command."""

    server: Server
    folder: Path
    capsys: pytest.CaptureFixture[str]

    @property
    def target(self) -> Path:
        return self.folder / "ca.zip"

    @property
    def partial(self) -> Path:
        return self.folder / ".unfinished-ca.zip"

    def run(self, *more: str, **behaviour: Any) -> tuple[int, str]:
        """The command on a server that behaves so; its exit code, and what it printed last."""
        self.server.behaviour = Behaviour(**behaviour)
        words = [*ARGUMENTS, "--base-url", self.server.url, "--output", str(self.target), *more]
        code = download.main(words)
        captured = self.capsys.readouterr()
        if code == 0:
            assert captured.err == ""
            return code, captured.out
        assert captured.out == ""
        assert captured.err.startswith("preprocess.download: error: ")
        assert captured.err.count("\n") == 1
        return code, captured.err

    @property
    def asked(self) -> list[dict[str, str]]:
        return self.server.behaviour.asked

    def names(self) -> set[str]:
        return {path.name for path in self.folder.iterdir()} if self.folder.exists() else set()


WHOLE = {"ca.zip", "ca.zip.sha256"}
NOTE = '{"url": "URL", "validator": "x", "total": 9}'
PART = {".unfinished-ca.zip", ".unfinished-ca.zip.json"}


@pytest.fixture
def place(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Place:
    return Place(server, tmp_path / "data", capsys)


def test_the_command_downloads_and_a_second_call_finds_nothing_to_do(
    server: Server, tmp_path: Path
):
    command = [sys.executable, "-m", "preprocess.download", *ARGUMENTS, "--base-url", server.url]
    environment = clean_environment(PYTHONPATH=str(ROOT))
    name = "data/psam_pca_acs1_2023.zip"
    following = f"Next: python -m preprocess --spec acs-person --input {name} --output DATASET"
    for first in (f"{len(BODY):,} bytes of {server.url}{PATH} in {name}", "Nothing to do: "):
        done = finish([*command], tmp_path, environment, timeout=60)
        assert (done.returncode, done.stderr) == (0, "")
        lines = done.stdout.splitlines()
        assert lines[0].startswith(first)
        assert lines[1:] == [f"SHA-256 {hashlib.sha256(BODY).hexdigest()}", following]
        assert len(server.behaviour.asked) == 1
    assert (tmp_path / name).read_bytes() == BODY
    if sha256sum := shutil.which("sha256sum"):
        check = [sha256sum, "--check", "--strict", Path(name).name + ".sha256"]
        subprocess.run(check, cwd=tmp_path / "data", check=True, capture_output=True, timeout=60)


@pytest.mark.parametrize(
    ("survey", "year", "state", "path"),
    [
        ("acs1", 2005, "ar", "2005/csv_par.zip"),
        ("acs1", 2006, "us", "2006/csv_pus.zip"),
        ("acs1", 2007, "pr", "2007/1-Year/csv_ppr.zip"),
        ("acs1", 2023, "ca", "2023/1-Year/csv_pca.zip"),
        ("acs5", 2009, "dc", "2009/5-Year/csv_pdc.zip"),
        ("acs5", 2020, "us", "2020/5-Year/csv_pus.zip"),
    ],
)
def test_a_release_is_where_the_bureau_publishes_it(survey: str, year: int, state: str, path: str):
    release = Release(survey=survey, year=year, state=state)
    assert release.url == f"https://www2.census.gov/programs-surveys/acs/data/pums/{path}"


def test_a_broken_download_goes_on_where_it_stopped(place: Place):
    code, message = place.run(end=HALF)
    assert code == 5
    assert f"broke off after {HALF:,} of {len(BODY):,} bytes" in message
    assert "the same command goes on from there" in message
    assert place.names() == PART
    assert place.partial.read_bytes() == BODY[:HALF]
    code, _ = place.run()
    assert code == 0
    assert [(ask["Range"], ask["If-Range"]) for ask in place.asked] == [(f"bytes={HALF}-", '"one"')]
    assert place.target.read_bytes() == BODY
    assert place.names() == WHOLE


def test_a_file_that_changed_meanwhile_starts_from_zero(place: Place):
    other = archive(seed=2)
    for if_range in (True, False):
        assert place.run(end=HALF)[0] == 5
        changed = {"body": other, "etag": '"two"', "modified": MODIFIED[1], "if_range": if_range}
        assert place.run(**changed)[0] == 0
        assert place.target.read_bytes() == other
        assert len(place.asked) == (1 if if_range else 2)
        shutil.rmtree(place.folder)


@pytest.mark.parametrize(
    "behaviour",
    [
        {"ranges": False},
        {"unsatisfiable": True},
        {"range_shift": 1},
        {"names_range": False},
        {"body": archive(num_bytes=10), "if_range": False},
        {"body": archive(num_bytes=90_000), "if_range": False},
    ],
    ids=["all", "416", "another range", "no range", "shorter", "shorter, but longer than the part"],
)
def test_a_server_that_cannot_resume_sends_the_file_again(place: Place, behaviour: dict[str, Any]):
    assert place.run(end=HALF)[0] == 5
    assert place.run(**behaviour)[0] == 0
    assert place.target.read_bytes() == behaviour.get("body", BODY)
    assert place.names() == WHOLE


def test_without_a_strong_validator_nothing_is_glued_together(place: Place):
    assert place.run(end=HALF)[0] == 5
    code, message = place.run(end=HALF + 1, etag=None, modified=None)
    assert (code, place.names()) == (5, {".unfinished-ca.zip"})
    assert "the same command starts again, the server has no ETag" in message
    assert place.run(etag='W/"weak"', end=HALF)[0] == 5
    assert "Range" not in place.asked[0]
    assert place.run(etag='W/"weak"')[0] == 0
    assert place.asked[0]["If-Range"] == MODIFIED[0]
    assert place.target.read_bytes() == BODY


def test_what_was_glued_together_wrongly_is_refused_by_its_checksums(place: Place):
    """The server hides that it has another file of equal size."""
    assert place.run(end=HALF)[0] == 5
    code, message = place.run(body=archive(seed=2), if_range=False)
    assert (code, place.names()) == (5, set())
    assert "did not arrive as a whole zip file" in message
    assert place.run(body=archive(seed=2))[0] == 0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[1]",
        '{"url": 1}',
        "\xff",
        '{"url": "URL"}',
        NOTE.replace("URL", "https://x"),
        NOTE.replace("9", '"9"'),
    ],
)
def test_a_partial_file_that_is_not_known_is_not_trusted(place: Place, text: str):
    place.folder.mkdir()
    place.partial.write_bytes(b"something else")
    text = text.replace("URL", place.server.url + PATH)
    (place.folder / ".unfinished-ca.zip.json").write_text(text, encoding="latin-1")
    assert place.run()[0] == 0
    assert "Range" not in place.asked[0]
    assert place.target.read_bytes() == BODY


@pytest.mark.parametrize("is_complete", [True, False])
def test_a_partial_file_that_is_complete_or_longer_asks_whether_it_is_current(
    place: Place, is_complete: bool
):
    assert place.run(end=HALF)[0] == 5
    place.partial.write_bytes(BODY if is_complete else BODY + b"more")
    assert place.run()[0] == 0
    assert place.asked[0]["Range"] == f"bytes={len(BODY) - 1}-"
    assert place.target.read_bytes() == BODY


@pytest.mark.parametrize("seed", range(40))
def test_whatever_happens_the_file_is_as_on_the_server_or_absent(place: Place, seed: int):
    draw = random.Random(seed)
    version = 0
    for _ in range(6):
        version += draw.random() < 0.3
        body = archive(seed=version, num_bytes=30_000 + 1000 * version)
        sound = {"body": body, "etag": f'"{version}"', "modified": f"v{version}"}
        damaged = body[: len(body) // 2] + b"damaged" + body[len(body) // 2 + 7 :]
        fault = draw.choice(
            [
                {"end": draw.randrange(len(body))},
                {"end": draw.randrange(len(body)), "chunked": True},
                {"end": draw.randrange(len(body)), "says_length": False},
                {"end": draw.randrange(len(body)), "etag": None, "modified": None},
                {"end": draw.randrange(len(body)), "ranges": False},
                {"end": draw.randrange(len(body)), "if_range": False},
                {"length_shift": draw.choice([-1000, -1, 1, 1000])},
                {"unsatisfiable": True, "end": draw.randrange(len(body))},
                {"range_shift": -1, "end": draw.randrange(len(body))},
                {"status": draw.choice([404, 403, 500, 503, 204, 304])},
                {"garbage": draw.choice([b"", b"hello", b"HTTP/1.1 200 OK\r\nContent-Le"])},
                {"body": damaged, "etag": '"damaged"'},
            ]
        )
        code, _ = place.run(**sound | fault)
        assert code in (0, 5)
        assert place.target.exists() is (code == 0)
        if code == 0:
            break
    else:
        assert place.run(**sound)[0] == 0
    assert place.target.read_bytes() == body
    assert place.names() == WHOLE


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        ({"body": b"<html>We will be back soon</html>"}, "File is not a zip file"),
        ({"body": b""}, "File is not a zip file"),
        ({"body": BODY[:-1]}, "did not arrive as a whole zip file"),
        ({"body": archive(name="psam_h06.csv")}, "must hold a person file such as psam_p06.csv"),
        ({"body": BODY[:900] + b"?" + BODY[901:]}, "did not arrive as a whole zip file"),
        ({"length_shift": -1}, "did not arrive as a whole zip file"),
        ({"says_length": False, "end": HALF}, "did not arrive as a whole zip file"),
    ],
    ids=["page", "empty", "cut", "households", "damaged", "length too small", "no length"],
)
def test_a_wrong_or_damaged_file_is_not_kept(place: Place, behaviour: dict[str, Any], words: str):
    code, message = place.run(**behaviour)
    assert code == 5
    assert words in message
    assert "nothing is kept" in message
    assert not place.folder.exists()


@pytest.mark.parametrize("name", ["psam_pusa.csv", "ss16pca.csv", "csv/PSAM_P06.CSV"])
def test_person_files_of_all_years_are_known(place: Place, name: str):
    assert place.run(body=archive(name=name))[0] == 0


def test_a_missing_file_says_which_and_what_would_be_right(place: Place):
    code, message = place.run(status=404)
    assert code == 5
    assert "no file for --survey acs1 --year 2023 --state ca" in message
    assert "take another year or state" in message
    assert not place.folder.exists()
    now = str(fetch.date.today().year)
    code, message = place.run("--year", now)
    assert code == 5
    assert f"take --year {int(now) - 2}" in message


@pytest.mark.parametrize("status", [204, 206, 403, 416, 429, 500, 503])
def test_a_server_that_refuses_is_named_with_its_answer(place: Place, status: int):
    code, message = place.run(status=status)
    assert code == 5
    assert f"answers {status} for {place.server.url}{PATH}: try the same command later" in message
    assert "--input FILE.zip" in message
    assert not place.folder.exists()


@contextlib.contextmanager
def closed_port() -> Iterator[int]:
    """A port that nobody listens on, and nobody else gets."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


def test_no_network_is_one_line_that_says_what_else_can_be_done(
    place: Place, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(fetch, "TIMEOUT_SECONDS", 0.1)
    with closed_port() as port:
        for more, behaviour, words in (
            (f"http://127.0.0.1:{port}", {}, "the connection is refused"),
            ("https://census.invalid", {}, "its name is not known"),
            (place.server.url.replace("http:", "https:"), {}, "TLS fails"),
            (place.server.url, {"garbage": b""}, "it closes the connection"),
            (place.server.url, {"garbage": b"SSH-2.0\r\n"}, "SSH-2.0"),
        ):
            code, message = place.run("--base-url", more, **behaviour)
            assert code == 5
            assert f"{more.partition('//')[2]} is not reached, {words}" in message
            assert "there is no network here" in message
            assert "python -m preprocess --spec acs-person --input FILE.zip" in message
            assert not place.folder.exists()


@pytest.fixture
def tls_url(server: Server, tmp_path: Path) -> Iterator[str]:
    """A second port of the server that speaks TLS, with the certificate localhost.pem."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    secret = (Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "localhost.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    (tmp_path / "key.pem").write_bytes(key.private_bytes(*secret))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "localhost.pem", tmp_path / "key.pem")
    with Server(("127.0.0.1", 0), Handler) as secure:
        secure.socket = context.wrap_socket(secure.socket, server_side=True)
        thread = threading.Thread(target=secure.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"https://localhost:{secure.server_port}"
        secure.shutdown()
        thread.join()


def test_https_needs_a_certificate_that_this_machine_trusts(
    place: Place, tls_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Server, "behaviour", Behaviour())
    code, message = place.run("--base-url", tls_url)
    assert code == 5
    assert "its TLS certificate is not accepted" in message
    assert "--input FILE.zip" in message
    assert not place.folder.exists()
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "localhost.pem"))
    assert place.run("--base-url", tls_url)[0] == 0
    assert place.target.read_bytes() == BODY


def test_a_silent_server_is_left_after_a_time_and_what_arrived_is_kept(
    place: Place, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(fetch, "TIMEOUT_SECONDS", 0.1)
    code, message = place.run(end=HALF, stalls=True)
    place.server.behaviour.released.set()
    assert code == 5
    assert "nothing comes for 0.1 seconds: the same command goes on from there" in message
    assert place.partial.read_bytes() == BODY[:HALF]


def test_redirects_go_to_https_or_stay_on_this_machine(place: Place):
    assert place.run(end=HALF)[0] == 5
    assert place.run(location=f"{place.server.url}/mirror{PATH}")[0] == 0
    assert [ask["Range"] for ask in place.asked] == [f"bytes={HALF}-"] * 2
    shutil.rmtree(place.folder)
    for location in ("http://census.invalid/x.zip", "http://[::1/", "file:///etc/passwd", PATH):
        code, message = place.run(location=location)
        assert code == 5, location
        assert "http://census" not in location or "only https is safe" in message
    assert not place.folder.exists()


def test_a_checksum_that_was_asked_for_must_agree(place: Place):
    right, wrong = hashlib.sha256(BODY).hexdigest(), "0" * 64
    code, message = place.run("--sha256", wrong)
    assert code == 5
    assert f"has SHA-256 {right}, --sha256 says {wrong}: nothing is kept" in message
    assert not place.folder.exists()
    assert place.run("--sha256", right.upper())[0] == 0
    assert place.run("--sha256", right)[0] == 0
    code, message = place.run("--sha256", wrong)
    assert code == 5
    assert f"{place.target} has SHA-256 {right}, --sha256 says {wrong}" in message
    assert place.target.read_bytes() == BODY


def test_a_file_that_was_there_is_never_replaced(place: Place):
    place.folder.mkdir()
    place.target.write_bytes(b"mine")
    code, message = place.run()
    assert code == 2
    assert "--output must be a new file" in message
    assert place.target.read_bytes() == b"mine"
    place.target.unlink()
    assert place.run()[0] == 0
    code, message = place.run("--state", "or")
    assert code == 2
    assert f"{place.target} is --survey acs1 --year 2023 --state ca" in message
    place.target.write_bytes(b"damaged")
    code, message = place.run()
    assert code == 5
    assert f"{place.target} is damaged" in message
    assert place.asked == []
    assert place.target.read_bytes() == b"damaged"


def test_a_link_stays_a_link(place: Place, tmp_path: Path):
    place.folder.mkdir()
    place.target.symlink_to(tmp_path / "elsewhere.zip")
    assert place.run()[0] == 0
    assert place.target.is_symlink()
    assert (tmp_path / "elsewhere.zip").read_bytes() == BODY


def test_two_downloads_to_one_file_do_not_mix(place: Place):
    assert place.run(end=HALF)[0] == 5
    with place.partial.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        code, message = place.run()
        assert code == 2
        assert "another process downloads to it" in message
        assert place.asked == []
    assert place.run()[0] == 0


def test_progress_is_said_in_megabytes_per_cent_and_speed(
    place: Place, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(output, "SECONDS_BETWEEN_REPORTS", 0)
    monkeypatch.setattr(fetch, "CHUNK_BYTES", HALF)
    release = Release(survey="acs1", year=2023, state="ca", base_url=place.server.url)
    download.download(release, download.Files.beside(place.target))
    lines = place.capsys.readouterr().err.splitlines()
    assert lines
    assert all(line.startswith("preprocess.download: 0.") for line in lines)
    assert " of 0.1 MB, 100%, " in lines[-1]
    assert lines[-1].endswith(" MB/s")


def test_a_full_disk_is_one_line_and_the_same_command_goes_on(place: Place):
    """A limit on the size of files stands in for the disk."""
    command = [sys.executable, "-m", "preprocess.download", *ARGUMENTS, "--base-url"]
    limit = ["sh", "-c", 'ulimit -f 50; exec "$@"', "sh"]
    done = finish(
        [*limit, *command, place.server.url, "--output", place.target],
        ROOT, clean_environment(), timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "File too large; with room, the same command goes on from there" in done.stderr
    assert place.names() == PART
    assert place.run()[0] == 0
    assert "Range" in place.asked[0]
    assert place.target.read_bytes() == BODY


def test_ctrl_c_is_one_line_and_the_same_command_goes_on(place: Place):
    place.server.behaviour = does = Behaviour(end=HALF, stalls=True)
    command = [sys.executable, "-m", "preprocess.download", *ARGUMENTS, "--base-url"]
    command += [place.server.url, "--output", str(place.target)]
    with started([*command], ROOT, clean_environment()) as job:
        assert does.halted.wait(60)
        job.send_signal(signal.SIGINT)
        out, errors = job.communicate(timeout=60)
    does.released.set()
    assert (job.returncode, out) == (130, "")
    assert errors.count("\n") == 1
    assert "interrupted, what has arrived is kept: the same command goes on" in errors
    assert not place.target.exists()
    assert place.run()[0] == 0
    assert place.target.read_bytes() == BODY


@pytest.mark.parametrize("where", ["_receive", "_check_archive"])
def test_ctrl_c_loses_nothing_wherever_it_comes(
    place: Place, monkeypatch: pytest.MonkeyPatch, where: str
):
    work = getattr(fetch, where)

    def interrupted(*arguments: Any) -> None:
        work(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fetch, where, interrupted)
        code, _ = place.run()
    assert (code, place.names()) == (130, PART)
    assert place.run()[0] == 0
    assert place.asked[0]["Range"] == f"bytes={len(BODY) - 1}-"
    assert place.names() == WHOLE


def test_the_report_is_strict_json_to_a_file_or_alone_on_stdout(place: Place, tmp_path: Path):
    assert place.run(end=HALF)[0] == 5
    report = tmp_path / "report.json"
    assert place.run("--json", str(report))[0] == 0
    found = json.loads(report.read_text())
    assert found.pop("seconds") >= 0
    assert found == {
        "survey": "acs1",
        "year": 2023,
        "state": "ca",
        "url": place.server.url + PATH,
        "file": str(place.target),
        "num_bytes": len(BODY),
        "sha256": hashlib.sha256(BODY).hexdigest(),
        "is_new": True,
        "resumed_from_byte": HALF,
    }
    words = [*ARGUMENTS, "--base-url", place.server.url, "--output", str(place.target), "--json"]
    assert download.main(words) == 0
    captured = place.capsys.readouterr()
    assert json.loads(captured.out)["is_new"] is False
    assert captured.err.splitlines()[-1].startswith("Next: python -m preprocess --spec acs-person")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--survey", "acs3"], "acs3"),
        (["--year", "2004"], "--year must be in 2005.."),
        (["--year", "9999"], "got 9999"),
        (["--year", "2020"], "--year must not be 2020 for --survey acs1"),
        (["--year", "20x3"], "20x3"),
        (["--survey", "acs5", "--year", "2008"], "--year must be in 2009.."),
        (["--state", "CA"], "--state must be two lower-case letters"),
        (["--state", "california"], "got california"),
        (["--state", "gu"], "got gu"),
        (["--state", ""], "--state must be"),
        (["--sha256", "abc"], "--sha256 must be 64 hexadecimal digits, got abc"),
        (["--output", "x.csv"], "--output must end in .zip, got x.csv"),
        (["--output", "."], "--output must end in .zip"),
        (["--output", "folder.zip"], "--output must be a writable file"),
        (["--output", "/dev/null/x.zip"], "--output must be a writable file"),
        (["--json", "."], "--json must be a writable file"),
        (["--output", "x.zip", "--json", "x.zip"], "--json must be a file of its own"),
        (["--output", "x.zip", "--json", "x.zip.sha256"], "--json must be a file of its own"),
        (["--base-url", "http://www2.census.gov"], "--base-url must be an https address"),
        (["--base-url", "http://127.0.0.1.census.gov"], "--base-url must be an https address"),
        (["--base-url", "ftp://www2.census.gov"], "--base-url must be an https address"),
        (["--base-url", "file:///tmp"], "--base-url must be an https address"),
        (["--base-url", "https://"], "--base-url must be an https address"),
        (["--base-url", "https://a b"], "--base-url must be an https address"),
        (["--base-url", "https://me:secret@x"], "--base-url must be an https address"),
        (["--base-url", "https://x:port"], "--base-url must be an https address"),
        (["--base-url", "https://x/?q=1"], "--base-url must be an https address"),
        (["--base-url", "https://[::1"], "--base-url must be an https address"),
        (["--base-url", f"https://{'a' * 64}.x"], "--base-url must be an https address"),
        (["--stat", "ca"], "did you mean --state?"),
    ],
)
def test_a_usage_error_comes_before_the_network(
    server: Server,
    more: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    Path("folder.zip").mkdir()
    assert download.main([*ARGUMENTS, "--base-url", server.url, *more]) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    assert captured.err.startswith("preprocess.download: error: ")
    assert words in captured.err
    assert server.behaviour.asked == []
    assert [path.name for path in tmp_path.iterdir()] == ["folder.zip"]


def test_a_release_that_cannot_be_is_refused_in_code_too():
    with pytest.raises(UsageError, match="--year must not be 2020"):
        Release(survey="acs1", year=2020, state="ca")

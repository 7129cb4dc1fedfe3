"""python -m preprocess.download --survey acs1 --year 2023 --state ca

Fetches the person file of the American Community Survey (PUMS) as the Census Bureau publishes it:

    https://www2.census.gov/programs-surveys/acs/data/pums/2023/1-Year/csv_pca.zip

What arrives goes to `.unfinished-FILE.zip`, and what the server calls it (ETag or Last-Modified) to
`.unfinished-FILE.zip.json`. The same command goes on from there (Range, If-Range); from zero if the
server has another file by now or does not say which it has. A whole file (the zip's own checksums
agree, a person file is in it, SHA-256 is as asked) is renamed to FILE.zip; FILE.zip.sha256, which
`sha256sum -c` reads, lies beside it, so that a second call sees that there is nothing to do.

Exit codes: 0 done, 2 usage or the disk, 5 the network, the server or the file, 130 interrupted.

Guarantees:
- FILE.zip is what the server has, whole, or absent (`preprocess.fetch`).
- A FILE.zip that was there before stays as it was.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from preprocess import cli, output
from preprocess.errors import DataError, UsageError
from preprocess.fetch import BASE_URL, GOES_ON, PROG, SURVEYS, Files, Release, download, is_safe


def main(arguments: Sequence[str]) -> int:
    """The command; gives its exit code."""
    is_interrupted = False

    def command(arguments: Sequence[str]) -> None:
        nonlocal is_interrupted
        try:
            _command(arguments)
        except KeyboardInterrupt:
            is_interrupted = True

    code = cli.run(PROG, command, arguments)
    if is_interrupted:
        message = f"interrupted, what has arrived is kept: {GOES_ON}"
        return cli.report(PROG, message, cli.EXIT_INTERRUPTED)
    return code


def _parser() -> cli.Parser:
    parser = cli.Parser(PROG, "Download a person file of the American Community Survey.")
    add = parser.add_argument
    add("--survey", required=True, choices=SURVEYS, help="of one year, or of five")
    add("--year", required=True, type=int, metavar="YEAR", help="the year, or the last of five")
    add("--state", required=True, metavar="ca", help="two letters; pr too; us: the whole nation")
    add(
        "--output",
        type=Path,
        metavar="FILE.zip",
        help="file to write; default data/psam_pSTATE_SURVEY_YEAR.zip",
    )
    add("--base-url", default=BASE_URL, metavar="URL", help="a mirror; default the Census Bureau")
    add("--sha256", default="", metavar="HEX", help="the checksum that the file must have")
    add(
        "--json",
        nargs="?",
        const="-",
        metavar="FILE",
        help="write a JSON report: to FILE, or alone on stdout",
    )
    return parser


def _command(arguments: Sequence[str]) -> None:
    options = _parser().parse(arguments)
    named = {name: getattr(options, name) for name in ("survey", "year", "state")}
    release = Release(**named, base_url=options.base_url)
    _check_base_url(options.base_url)
    if not re.fullmatch(r"([0-9a-fA-F]{64})?", options.sha256):
        raise UsageError(f"--sha256 must be 64 hexadecimal digits, got {options.sha256}")
    path = options.output or Path("data", "psam_p{state}_{survey}_{year}.zip".format(**named))
    if path.suffix != ".zip":
        raise UsageError(f"--output must end in .zip, got {path}")
    files = Files.beside(Path(os.path.realpath(path)))  # a link stays a link
    for file in files:
        is_there = file.exists() or files.target.exists()
        if (file.exists() and not file.is_file()) or not (is_there or cli.can_be_made(file)):
            raise UsageError(f"--output must be a writable file, got {file}")
    output.check_json(options.json, *files)

    started = time.monotonic()
    is_new = not files.target.exists()
    work = download if is_new else _known
    sha256, start = work(release, files, options.sha256.lower())
    found = {
        **named,
        "url": release.url,
        "file": str(path),
        "num_bytes": files.target.stat().st_size,
        "sha256": sha256,
        "is_new": is_new,
        "resumed_from_byte": start,
        "seconds": round(time.monotonic() - started, 3),
    }
    if options.json not in (None, "-"):
        output.write_json(options.json, found)  # before anything that nobody may be there to read
    output.say(_in_words(found), sys.stderr if options.json == "-" else sys.stdout)
    if options.json == "-":
        output.write_json(options.json, found)


def _in_words(found: Mapping[str, Any]) -> str:
    path = shlex.quote(found["file"])
    new = f"{found['num_bytes']:,} bytes of {found['url']} in {path}"
    return (
        f"{new if found['is_new'] else f'Nothing to do: {path} is there and whole'}\n"
        f"SHA-256 {found['sha256']}\n"
        f"Next: python -m preprocess --spec acs-person --input {path} --output DATASET"
    )


def _known(release: Release, files: Files, expected: str) -> tuple[str, int]:
    """The checksum of a file that an earlier call wrote, if it is that file and unchanged."""
    target, sums = files.target, files.sums
    text = sums.read_text(errors="replace") if sums.exists() else ""
    said = re.search(r"^([0-9a-f]{64}) ", text, re.MULTILINE)
    if not said:
        raise UsageError(
            f"--output must be a new file, got {target}: no {sums.name} says what it is; remove "
            "it, or give it to python -m preprocess --input as it is"
        )
    if text.startswith("# ") and not text.startswith(f"# {release}\n"):
        raise UsageError(f"--output must be another file, {target} is {text[2:].splitlines()[0]}")
    with target.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if sha256 != said[1]:
        raise DataError(
            f"{target} is damaged, {sums.name} has another SHA-256: remove both, then the same "
            "command downloads it again"
        )
    if expected not in ("", sha256):
        raise DataError(f"{target} has SHA-256 {sha256}, --sha256 says {expected}")
    return sha256, 0


def _check_base_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        (parts.hostname or "").encode("idna")  # ValueError, as for a port that is no number
        is_bare = parts.port != 0 and not (parts.query or parts.fragment or "@" in parts.netloc)
        is_right = bool(parts.hostname) and is_bare and is_safe(url, http_too=True)
    except ValueError:
        is_right = False
    if not is_right or not re.fullmatch("[!-~]+", url):
        raise UsageError(f"--base-url must be an https address, or http to this machine, got {url}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

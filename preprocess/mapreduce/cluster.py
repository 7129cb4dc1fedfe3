"""The two ends of a run on a Hadoop cluster: what to send there, and what to make of its output.

    plan      writes JOB.json and the code, preprocess.zip, into a folder, and prints the command
    collect   makes a data set of what the reducers wrote

    raw files --plan--> JOBDIR --hadoop jar hadoop-streaming.jar--> part-* --collect--> data set

`plan` reads the headers of the files, so they, or files of the same sizes and headers, must be
here; on the cluster they may lie anywhere under the same names. The nodes need Python 3.11 or newer
and nothing else.
"""

from __future__ import annotations

import shlex
import sys
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path

from preprocess import cli, specs
from preprocess.errors import DataError, UsageError
from preprocess.fitted import fitted_columns
from preprocess.mapreduce import PROG
from preprocess.mapreduce.job import describe_job, read_job
from preprocess.output import say
from preprocess.report import DEFAULT_MAX_BAD_FRACTION, check_found, tell
from preprocess.shards import MANIFEST
from preprocess.sources import find_sources
from preprocess.split import DEFAULT_SALT, DEFAULT_SHARDS, DEFAULT_TEST_FRACTION, Split
from preprocess.writer import origin

PACKAGES = ("preprocess", "launch")
JOB, CODE = "JOB.json", "preprocess.zip"
COMMAND = """\
hadoop jar "$HADOOP_HOME"/share/hadoop/tools/lib/hadoop-streaming-*.jar \\
    -D mapreduce.job.reduces=8 -files {files} -cmdenv PYTHONPATH={code} \\
    -mapper 'python3 -m {prog} map {job}' \\
    -reducer 'python3 -m {prog} reduce {job}' \\
    {inputs} -output cleaned
hadoop fs -get cleaned
python -m {prog} collect {folder} cleaned --output DATASET"""


def main(role: str, arguments: Sequence[str]) -> int:
    """The command; gives its exit code."""
    return cli.run(f"{PROG} {role}", _plan if role == "plan" else _collect, arguments)


def write_code(path: Path) -> None:
    """A zip that is enough on PYTHONPATH to map and reduce."""
    root = Path(__file__).parents[2]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for package in PACKAGES:
            for file in sorted((root / package).rglob("*")):
                if file.suffix in (".py", ".toml"):
                    archive.write(file, file.relative_to(root))


def _plan(arguments: Sequence[str]) -> None:
    options = _plan_parser().parse(arguments)
    from preprocess.engines.base import Job

    split = Split(
        salt=options.split_salt, test_fraction=options.test_fraction, shards=options.shards
    )
    document = specs.read_document(options.spec)
    if columns := fitted_columns(document):
        raise UsageError(
            f"spec must have all its numbers to run on a cluster, {', '.join(columns)} are to be "
            f"fitted"
        )
    spec = specs.as_spec(options.spec, document)
    if (spec.join is None) != (options.join is None):
        raise UsageError(f"--join must {'not ' * (spec.join is None)}be given for {spec.name}")
    sources = find_sources(options.input)
    joined = find_sources([options.join]) if options.join else []
    folder: Path = options.output
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise UsageError(f"output must be a new or empty folder, got {folder}")
    job = Job(spec=spec, split=split, sources=sources, joined=joined[0] if joined else None,
              scratch=lambda: folder)  # fmt: skip
    describe_job(job, folder / JOB, origin([*sources, *joined], document, split))
    write_code(folder / CODE)
    inputs = " ".join(f"-input {shlex.quote(str(one.path))}" for one in [*sources, *joined])
    files = shlex.quote(f"{folder / JOB},{folder / CODE}")
    say(
        COMMAND.format(files=files, code=CODE, prog=PROG, job=JOB, inputs=inputs,
                       folder=shlex.quote(str(folder))),
        sys.stdout,
    )  # fmt: skip


def _collect(arguments: Sequence[str]) -> None:
    options = _collect_parser().parse(arguments)
    from preprocess.making import make_dataset
    from preprocess.mapreduce.parts import batches, read_parts

    description = read_job(options.job / JOB)
    paths = _parts(options.parts)
    started = time.monotonic()
    replaced = (options.output / MANIFEST).is_file()
    names = ", ".join(one.name for one in description.inputs)
    found = make_dataset(
        description.spec,
        [one.as_source() for one in description.inputs],
        options.output,
        joined=description.joined.as_source() if description.joined else None,
        split=description.split,
        engine="mapreduce",
        clean=lambda job: batches(read_parts(paths, job), job),
        check=lambda found: check_found(names, found, options.max_bad_fraction),
        made_from=description.made_from,
    )
    facts = {"engine": "mapreduce", "split": (description.made_from or {}).get("split"),
             "replaced": replaced, "seconds": time.monotonic() - started}  # fmt: skip
    tell(PROG, found, description.spec, options.output, None, facts)


def _parts(given: Sequence[Path]) -> list[Path]:
    """Files, and of folders those that reducers wrote."""
    found = [
        path for one in given for path in (sorted(one.glob("part-*")) if one.is_dir() else [one])
    ]
    if not found:
        raise DataError(f"parts must be files or folders with part-*, got {given[0]}")
    for path in found:
        if not path.is_file():
            raise DataError(f"parts must be existing files, got {path}")
    return found


def _plan_parser() -> cli.Parser:
    parser = cli.Parser(f"{PROG} plan", "Prepare a run of Hadoop Streaming.")
    add = parser.add_argument
    add("--input", nargs="+", required=True, metavar="RAW", help="text files, not packed")
    add("--join", metavar="RAW", help="the second file, for a spec that joins two")
    add("--spec", default=specs.DEFAULT, metavar="SPEC", help="as for python -m preprocess")
    add("--output", type=Path, required=True, metavar="JOBDIR", help="folder to write")
    add("--split-salt", default=DEFAULT_SALT, metavar="TEXT", help="as for python -m preprocess")
    add("--test-fraction", type=float, default=DEFAULT_TEST_FRACTION, metavar="F", help="the same")
    add("--shards", type=int, default=DEFAULT_SHARDS, metavar="N", help="the same")
    return parser


def _collect_parser() -> cli.Parser:
    parser = cli.Parser(f"{PROG} collect", "Make a data set of what reducers wrote.")
    add = parser.add_argument
    add("job", type=Path, metavar="JOBDIR", help="what plan has written")
    add("parts", type=Path, nargs="+", metavar="PARTS", help="files, or folders of part-*")
    add("--output", type=Path, required=True, metavar="DATASET", help="folder to write")
    add("--max-bad-fraction", type=float, default=DEFAULT_MAX_BAD_FRACTION, metavar="F",
        help="as for python -m preprocess")  # fmt: skip
    return parser

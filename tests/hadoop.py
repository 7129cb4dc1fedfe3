"""A real Hadoop without an installation: the classes that come inside pyspark, in one JVM.

Its streaming jar is missing there; PipeJob.java does that part.
"""

from __future__ import annotations

import atexit
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

from helpers import clean_environment, finish
from preprocess.errors import UsageError
from preprocess.jvm import find_java

SOURCE = Path(__file__).with_name("PipeJob.java")

# A short job: no time for an optimising compiler, no second thread for the garbage. WARN, as
# LocalJobRunner says at that level why a task failed.
FLAGS = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Dlog4j2.level=WARN")

Counters = dict[tuple[str, str], int]


class JobFailed(Exception):
    """The text is what the job wrote to stderr."""


def run_pipe_job(
    mapper: list[str],
    reducer: list[str],
    inputs: list[Path],
    output: Path,
    *,
    reducers: int = 2,
    split_bytes: int = 1 << 25,
    settings: Mapping[str, str] | None = None,
) -> Counters:
    """Run unmodified commands as Hadoop Streaming would; the counters by (group, name).

    The output is the files `part-*` in a folder that must not exist yet. A command does not start
    in the caller's folder, and gets none of its DPSGD_ variables. `settings` are those of -D.
    """
    with tempfile.TemporaryDirectory(prefix="hadoop-") as folder:
        options = {
            "hadoop.tmp.dir": folder,
            "mapreduce.jobtracker.staging.root.dir": folder,
            "mapreduce.job.reduces": str(reducers),
            "mapreduce.job.maps": "1",  # a split is one block, and only that
            "fs.local.block.size": str(split_bytes),
            "mapreduce.client.progressmonitor.pollinterval": "20",
            **(settings or {}),
        }
        job = [
            *(word for name, value in options.items() for word in ("-D", f"{name}={value}")),
            *(shlex.join(mapper), shlex.join(reducer)),
            *(path.absolute() for path in (output, *inputs)),
        ]
        path = f"{_classes()}:{_jars()}"
        done = finish([_java(), *FLAGS, "-cp", path, "PipeJob", *job], Path(folder), _environment())
    if done.returncode != 0:
        raise JobFailed(done.stderr)
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    return {(group, name): int(value) for group, name, value in rows}


def _environment() -> dict[str, str]:
    return clean_environment(LC_ALL="C.UTF-8")  # else Java loses letters of commands and paths


@cache
def _java() -> Path:
    try:
        return find_java() / "bin/java"
    except UsageError as error:
        pytest.skip(str(error))


@cache
def _jars() -> str:
    spark = find_spec("pyspark")
    if spark is None or spark.origin is None:
        pytest.skip("the package pyspark, which has Hadoop's classes, is not installed")
    return ":".join(map(str, Path(spark.origin).with_name("jars").glob("*.jar")))


@cache
def _classes() -> Path:
    """A folder with the compiled PipeJob; the compiler is a module of most JVMs."""
    folder = Path(tempfile.mkdtemp(prefix="pipejob-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    command = [_java(), FLAGS[0], "-m", "jdk.compiler/com.sun.tools.javac.Main", "-proc:none",
               "-encoding", "UTF-8", "-d", folder, "-cp", _jars(), SOURCE]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, env=_environment(), timeout=120)
    if "Module jdk.compiler not found" in done.stdout + done.stderr:
        pytest.skip(f"PipeJob.java must be compiled, and {_java()} has no compiler")
    assert done.returncode == 0, done.stderr
    return folder

"""The Spark that does the work: one for a process, started here or by spark-submit.

A Spark that is already active, or that spark-submit has prepared, is used as it is, with settings
of its own for what we read and write. Otherwise one is started for this machine: quiet, without a
web page, and with all that it writes in a temporary folder (TMPDIR says where), which only the user
can enter and which vanishes when the process ends. Starting takes seconds, so it stays until then.

Executors get this package as a zip file. They need Python, and nothing but its standard library.
"""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from py4j.protocol import Py4JError  # type: ignore[import-untyped]
from pyspark import SparkContext
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession

from preprocess.engines.base import Job
from preprocess.errors import UsageError
from preprocess.jvm import find_java
from preprocess.output import TEMPORARY
from preprocess.spark.columns import SETTINGS
from preprocess.spark.files import file_uri

PACKAGES = ("launch", "preprocess")
MAX_DRIVER_GIB = 4
LOG_SETTINGS = """\
rootLogger.level = error
rootLogger.appenderRef.console.ref = console
appender.console.type = Console
appender.console.name = console
appender.console.target = SYSTEM_ERR
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = %c{1}: %m%n
# it would set the level of all to its own
logger.gateway.name = org.apache.spark.api.python.PythonGatewayServer
logger.gateway.level = error
"""
OPTIONS = {
    **SETTINGS,
    "spark.sql.files.ignoreCorruptFiles": "false",
    "spark.sql.files.ignoreMissingFiles": "false",
}


def session(job: Job) -> SparkSession:
    """A session with our settings; those of other users of the same Spark stay as they are."""
    if SparkContext._active_spark_context is None:
        _start(job)
    shared = SparkSession.builder.getOrCreate()
    context = shared.sparkContext
    _ship(context, _folder())
    spark = shared.newSession()
    # a file is cut in the same way whenever it is read, even if executors come and go
    spark.conf.set("spark.sql.files.minPartitionNum", str(context.defaultParallelism))
    for name, value in OPTIONS.items():
        spark.conf.set(name, value)
    return spark


@contextmanager
def settings_in(spark: SparkSession) -> Iterator[None]:
    """Within the block the session of somebody else has what a table needs to be made."""
    before = {name: spark.conf.get(name) for name in SETTINGS}
    for name, value in SETTINGS.items():
        spark.conf.set(name, value)
    try:
        yield
    finally:
        for name, old in before.items():
            spark.conf.set(name, old or "")


def _start(job: Job) -> None:
    folder = _folder()
    builder = SparkSession.builder.appName("preprocess")
    if "PYSPARK_GATEWAY_PORT" in os.environ:  # spark-submit has started the JVM
        settings = {} if job.master is None else {"spark.master": job.master}
        environment = {}
    else:
        settings = _settings(job.master or f"local[{job.processes}]", folder)
        environment = {"JAVA_HOME": str(find_java()), "PYSPARK_PYTHON": sys.executable}
        if not settings["spark.master"].startswith("local"):
            environment.pop("PYSPARK_PYTHON")  # other machines have their own
    with _environment(environment):
        try:
            spark = builder.config(map={**settings}).getOrCreate()
        except (Py4JError, PySparkException) as error:
            reason = str(error).strip().splitlines()[0]
            raise UsageError(
                f"Spark must start with master {settings.get('spark.master', 'of spark-submit')}: "
                f"{reason}"
            ) from error
    spark.sparkContext.setLogLevel("ERROR")


def _settings(master: str, folder: Path) -> dict[str, str]:
    """For a JVM that we start."""
    log = folder / "log4j2.properties"
    log.write_text(LOG_SETTINGS)
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 30
    settings = {
        "spark.master": master,
        "spark.driver.memory": f"{max(1, min(MAX_DRIVER_GIB, gib // 2))}g",
        "spark.driver.extraJavaOptions": (
            f'"-Dlog4j2.configurationFile={log}" "-Dderby.system.home={folder}"'
        ),
        "spark.local.dir": str(folder),
        "spark.sql.warehouse.dir": file_uri(folder / "warehouse"),
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
    }
    if master.startswith("local"):
        settings |= {
            "spark.driver.bindAddress": "127.0.0.1",
            "spark.driver.host": "127.0.0.1",
            "spark.sql.shuffle.partitions": "8",
        }
    return settings


@contextmanager
def _environment(more: dict[str, str]) -> Iterator[None]:
    """Variables that are there within the block; a PYSPARK_PYTHON of the user stays."""
    before = dict(os.environ)
    if "PYSPARK_PYTHON" in before:
        more = {name: value for name, value in more.items() if name != "PYSPARK_PYTHON"}
    os.environ.update(more)
    try:
        yield
    finally:
        for name in more:
            os.environ.pop(name)
            os.environ.update({name: before[name]} if name in before else {})


@cache
def _ship(context: SparkContext, folder: Path) -> None:
    """Give the executors this package."""
    root = Path(__file__).parents[2]
    path = folder / "packages.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for package in PACKAGES:
            for file in sorted((root / package).rglob("*.py")):
                archive.write(file, file.relative_to(root))
    context.addPyFile(str(path))


_made: list[Path] = []


def _folder() -> Path:
    """What Spark has on disk: with temporary files, since it outlives a data set."""
    if not _made:
        _made.append(Path(tempfile.mkdtemp(prefix=TEMPORARY)))
        atexit.register(_end)
    return _made[0]


def _end() -> None:
    context = SparkContext._active_spark_context
    if context is not None:
        context.stop()
    for folder in _made:
        shutil.rmtree(folder, ignore_errors=True)

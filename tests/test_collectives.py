"""The table of all-reduces over real MPI ranks."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import collectives
from helpers import Launch, ranks
from launch import mpi

pytestmark = pytest.mark.mpi
HERE = Path(__file__).parent
EXPECTED = {f"{name}/{way}" for name in collectives.ALGORITHMS for way in collectives.TRANSPORTS}
HALVES = {
    f"{name}/{way}/halves"
    for name in ("butterfly", "halving-doubling", "ring", "round-robin", "tree")
    for way in collectives.TRANSPORTS
}


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 5, 6, 7, 8])
def test_the_contract_holds_over_real_ranks(mpirun: Launch, world_size: int) -> None:
    """Exact sums, identical bits on all ranks and transports, whatever the timing; no leaks.

    So it is for all-reduces in two halves: what the owners add between them is in every result.
    """
    done = mpirun(world_size, HERE / "ranks_all_reduce.py")
    assert done.returncode == 0, done.stdout + done.stderr
    checked = set(done.stdout.split(": ")[1].split())
    assert checked >= EXPECTED | HALVES | {"mpi/auto"}
    assert done.stderr == ""  # MPICH complains about requests that were not freed


@pytest.mark.parametrize("world_size", [4, 5])
def test_shared_memory_and_messages_work_together(mpirun: Launch, world_size: int) -> None:
    """MPICH can take the even and the odd ranks for two nodes, of different sizes if need be."""
    if mpi.library().vendor != mpi.MPICH:
        pytest.skip("only MPICH can pretend that ranks are on two nodes")
    done = mpirun(
        world_size, HERE / "ranks_all_reduce.py", "0", "1", "7", "1000",
        MPIR_CVAR_ODD_EVEN_CLIQUES="1",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    checked = set(done.stdout.split(": ")[1].split())
    assert "hierarchical/shm" in checked and "ring/shm" not in checked


@pytest.fixture(scope="module")
def mistakes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What every rank of three said in each case of ranks_misuse."""
    done = ranks(3, tmp_path_factory.mktemp("misuse"), HERE / "ranks_misuse.py", "misuse")
    assert done.returncode == 0, done.stdout + done.stderr
    said: dict[str, list[str]] = {}
    for line_ in done.stdout.splitlines():
        case, _, error = line_.partition(": ")
        said.setdefault(case, []).append(error)
    return said


DIFFERENT = {
    "other_algorithm": "allreduce must be the same on all ranks, got 'ring' on rank 0 and 'tree' "
    "on rank 2",
    "other_length": "length must be the same on all ranks, got 10 on rank 0 and 11 on rank 2",
    "other_dtype": "dtype must be the same on all ranks, got 'int32' on rank 0 and 'int64' on "
    "rank 2",
    "other_transport": "transport must be the same on all ranks, got 'mpi' on rank 0 and 'shm' on "
    "rank 2",
    "unknown_on_one_rank": "got 'rnig' on rank 2",
    "too_many_degrees": "butterfly:2,2,2,2 needs at least 16 ranks, got 3",
    "strange_dtype": "dtype must be one of int32, int64, uint32, uint64, float32, float64, got "
    "'float16'",
    "negative_length": "length must be an integer of at least 0, got -1",
    "transport_of_a_vendor": "transport must be auto for mpi, which has its own, got 'shm'",
    "not_contiguous": "buffer must be contiguous, got strides of 8 bytes",
    "read_only": "buffer must be writable, got a read-only array on rank 2",
    "other_shape": "buffer must have shape (10,) and dtype int32, got (2, 5) and int32",
    "no_halves": "recursive-doubling cannot be run in two halves, as butterfly, halving-doubling, "
    "ring, round-robin, tree, auto can",
    "halves_of_a_vendor": "mpi cannot be run in two halves, as butterfly",
    "second_half_first": "all_gather was called on the all-reduce ring of 10 x int32, but it is "
    "not between its halves; call reduce_scatter first",
    "first_half_twice": "reduce_scatter was called on the all-reduce ring of 10 x int32, but it is "
    "between its halves; call all_gather first",
    "run_between_the_halves": "run was called on the all-reduce ring of 10 x int32, but it is "
    "between its halves; call all_gather first",
    "start_between_the_halves": "start was called on the all-reduce ring of 10 x int32, but it is "
    "between its halves; call all_gather first",
    "half_after_close": "reduce_scatter was called on the all-reduce ring of 10 x int32, but it is "
    "closed",
    "half_and_run": "is run of the all-reduce ring of 10 x int32 on rank 0 and reduce_scatter of "
    "the all-reduce ring of 10 x int32 on rank 2",
    "halves_on_one_rank": "halves must be the same on all ranks, got False on rank 0 and True on "
    "rank 2",
    "halves_while_another_is_started": "none: all is well",
    "automatic_halves": "none: all is well",
    "negative_timeout": "timeout must be 0 or more seconds, or None, got -1",
    "closed_instead_of_run": "is run of the all-reduce ring of 10 x int32 on rank 0 and close of "
    "the all-reduce ring of 10 x int32 on rank 2",
    "buffer_assigned": "property 'buffer' of 'Plan' object has no setter",
    "narrow_length": "none: all is well",
    "waited_in_another_order": "none: all is well",
    "complete_already": "none: all is well",
    "own_buffer_in_shared_memory": "transport shm sums in its own shared memory",
    "run_after_close": "run was called on the all-reduce ring of 10 x int32, but it is closed",
    "started_twice": "start was called on the all-reduce ring of 10 x int32, but it is started; "
    "wait for it first",
    "closed_while_running": "close was called on the all-reduce ring of 10 x int32, but it is "
    "started; wait for it first",
    "wait_without_start": "wait was called on the all-reduce ring of 10 x int32, but it is not "
    "started",
    "called_out_of_order": "call 1 is run of the all-reduce ring of 10 x int32 on rank 0 and run "
    "of the all-reduce tree of 7 x int32 on rank 2",
    "started_and_run": "is run of the all-reduce ring of 10 x int32 on rank 0 and start of the "
    "all-reduce ring of 10 x int32 on rank 2",
    "alike_out_of_order": "of 10 x int32 (plan 5 of this communicator) on rank 0 and run of the "
    "all-reduce ring of 10 x int32 (plan 6 of this communicator) on rank 2",
    "another_communicator": "none: all is well",
    "not_a_name": "allreduce must be a name, got None on rank 2",
}


@pytest.mark.parametrize("case", DIFFERENT)
def test_every_rank_says_what_does_not_fit(mistakes: dict[str, list[str]], case: str) -> None:
    assert len(mistakes[case]) == 3
    assert all(DIFFERENT[case] in said for said in mistakes[case]), mistakes[case]


@pytest.mark.parametrize("case", ["late_by_messages", "late_in_memory"])
def test_one_who_waits_too_long_names_the_late_rank(
    mistakes: dict[str, list[str]], case: str
) -> None:
    early = [said for said in mistakes[case] if "none: this rank" not in said]
    assert len(early) == 2
    for said in early:
        assert re.search(r"alltoall of 10 x int32 is not complete after 0.05 s: rank \d", said), (
            said
        )
        assert said.endswith("waits for rank 2"), said


def test_a_call_that_some_rank_does_not_make_is_noticed(mistakes: dict[str, list[str]]) -> None:
    """With the debug option; the late rank itself cannot know."""
    assert "some rank called nothing for 0.3 s" in mistakes["not_called_at_all"][0]


def test_a_rank_that_calls_too_late_does_not_hang_in_the_comparison(mpirun: Launch) -> None:
    """Under the debug option; the exception of the others ends it, here by mpi4py's runner."""
    done = mpirun(2, "-m", "mpi4py", HERE / "ranks_misuse.py", "late")
    assert done.returncode != 0
    assert "rank 0 called run of the all-reduce ring of 10 x int32, and some rank" in done.stderr


def test_plans_whose_buffers_are_still_in_a_variable_do_not_pile_up(mpirun: Launch) -> None:
    done = mpirun(2, HERE / "ranks_misuse.py", "aliases")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == "nothing is kept\n"


@pytest.mark.parametrize("world_size", [1, 2])
def test_nothing_grows_over_ten_thousand_calls(mpirun: Launch, world_size: int) -> None:
    done = mpirun(world_size, HERE / "ranks_misuse.py", "memory")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == "nothing grew\n"


def test_results_and_views_outlive_the_plan(mpirun: Launch, tmp_path: Path) -> None:
    """Memory that somebody still looks into is not taken away."""
    program = tmp_path / "outlive.py"
    program.write_text(
        "import collectives\n"
        "from collectives.transports.mpi import world\n"
        "plan = collectives.make_plan('ring', world(), 1000, 'int32', transport='shm')\n"
        "plan.buffer[:] = 1\n"
        "view = plan.buffer[3:5]\n"
        "plan.run()\n"
        "plan.close()\n"
        "assert (view == world().size).all() and (plan.buffer == world().size).all()\n"
        "view[:] = 7\n"
        "assert (plan.buffer == world().size).all()\n"
    )
    done = mpirun(2, program)
    assert (done.returncode, done.stderr) == (0, "")

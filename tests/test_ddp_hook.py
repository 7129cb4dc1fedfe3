"""Our all-reduces inside DistributedDataParallel, over real MPI ranks; and the example of it."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from collectives import ALGORITHMS, TRANSPORTS
from helpers import ROOT, Launch, ranks

pytestmark = [
    pytest.mark.mpi,
    pytest.mark.skipif(
        importlib.util.find_spec("torch") is None,
        reason="DistributedDataParallel needs the extra torch",
    ),
]
EXAMPLE = ROOT / "examples/ddp_with_our_collectives.py"
RANKS = Path(__file__).parent / "ranks_ddp_hook.py"


Said = dict[str, str]
"""What rank 0 prints, by what was asked of it."""


def output(world_size: int, folder: Path, *arguments: str | Path) -> str:
    """Of rank 0; a rank that fails ends the others."""
    done = ranks(world_size, folder, "-m", "mpi4py", *arguments, XDG_CACHE_HOME=str(folder))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "leak" not in done.stderr  # MPICH complains about requests that were not freed
    return done.stdout


@pytest.fixture(scope="module")
def said(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Said:
    """One start for all tests of a world size: torch takes seconds to load."""
    more = ("rebuilt_buckets", "refusals") if request.param == 2 else ()
    names = ("mean_of_gradients", "trained_models", *more)
    printed = output(request.param, tmp_path_factory.mktemp("ddp"), RANKS, *names)
    return dict(one.split("\n", 1) for one in printed.split("# ")[1:])


@pytest.mark.parametrize("said", [2, 3], indirect=True)
def test_gradients_are_the_mean_and_every_rank_has_the_same_bits(said: Said) -> None:
    num_cases = (len(ALGORITHMS) + 1) * len(TRANSPORTS)
    assert said["mean_of_gradients"] == f"{num_cases} checked\n"


@pytest.mark.parametrize("said", [2, 3], indirect=True)
def test_the_trained_model_equals_that_of_ddps_own_all_reduce(said: Said) -> None:
    assert said["trained_models"] == "equal: plain, views, unused, uneven, accumulated\n"


@pytest.mark.parametrize("said", [2], indirect=True)
def test_plans_follow_the_buckets_of_ddp(said: Said) -> None:
    first, second, third = map(int, said["rebuilt_buckets"].split(","))
    assert first == 1, "DDP used to begin with one bucket"
    assert second == third > 1


@pytest.mark.parametrize("said", [2], indirect=True)
def test_what_cannot_be_summed_is_refused_on_all_ranks_with_the_reason(said: Said) -> None:
    refused = dict(line.split(": ", 1) for line in said["refusals"].splitlines())
    worlds = (
        "ValueError: MPI and torch.distributed must have the same ranks in the same order: this "
        "process is rank 0 of 2 in MPI and rank "
    )
    expected = {
        "bfloat16": "ValueError: gradients must be float32 or float64, got bfloat16 of "
        "columns.0.weight: keep the parameters in float32, torch.autocast can still compute in "
        "bfloat16",
        "no model of DDP": "TypeError: model must be a DistributedDataParallel, got Columns",
        "another name": "ValueError: allreduce must be the same on all ranks, got 'tree' on rank 0 "
        "and 'ring' on rank 1",
        "reversed ranks": worlds + "1 of 2 in torch.distributed",
        "smaller world": worlds + "0 of 1 in torch.distributed",
        "sparse": "ValueError: gradients must be dense, got sparse ones in bucket 0: use "
        "sparse=False",
        "closed": "RuntimeError: backward was called on a model whose all-reduce hook is closed",
    }
    for what, why in expected.items():
        assert refused.pop(what) == why
    assert refused.pop("no such name").endswith("got 'rnig'")
    assert refused.pop("no such transport").endswith("got 'tcp'")
    assert not refused


def test_the_example_trains_equal_replicas_with_ours_and_with_ddps_own(tmp_path: Path) -> None:
    replicas = set()
    for arguments in (["--allreduce", "ddp"], []):
        *epochs, last = output(2, tmp_path, EXAMPLE, *arguments).splitlines()
        losses = [float(re.fullmatch(r"epoch \d: loss (\S+)", line)[1]) for line in epochs]
        assert len(losses) == 3 and losses[-1] < 0.6 * losses[0]
        replicas.add(last)
    (found,) = replicas  # two ranks: the same bits by everyone
    assert re.fullmatch(r"2 replicas, bit-identical: sha256 \w{16}", found)


@pytest.mark.parametrize("wrong", [["--allreduce", "rnig"], ["--ring"]])
def test_the_example_reports_wrong_arguments_once(mpirun: Launch, wrong: list[str]) -> None:
    done = mpirun(2, EXAMPLE, *wrong)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("ddp_with_our_collectives.py: error: ") and wrong[-1] in line

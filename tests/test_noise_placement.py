"""Where noise is added: what is calibrated, charged and claimed for each placement."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dpsgd import accounting, statement
from dpsgd.config import NOISES, Config
from dpsgd.errors import ConfigError, PrivacyError
from dpsgd.planning import Run, plan_run
from dpsgd.release import CAPACITY

NUM_PARAMS = 100
DELTA = 4e-13  # so small that accounting asks only RDP, which is quick
RANKS = 4
TARGET = 1.0
NEVER = Path("/nowhere/ledger.jsonl")  # no run is in it


def planned(world_size: int = RANKS, **options: Any) -> tuple[Config, Run]:
    config = Config(**({"steps": 20, "delta": DELTA, "ledger": NEVER} | options))
    dataset: Any = SimpleNamespace(
        num_examples=20_000, unit="record", path=Path("data"), statistics=None
    )
    model: Any = SimpleNamespace(num_params=NUM_PARAMS, name="mlp")
    return config, plan_run(config, dataset, model, 0.002, world_size)


@cache
def for_target(noise: str) -> tuple[Run, dict[str, Any]]:
    config, run = planned(noise=noise, epsilon=TARGET)
    return run, statement.report(config, run)


def epsilon(run: Run, noise_multiplier: float) -> float:
    one = accounting.Steps(
        sample_rate=run.sample_rate, noise_multiplier=noise_multiplier, count=run.steps
    )
    return accounting.epsilon([one], run.delta, run.imprecision)


@pytest.mark.parametrize("noise", NOISES)
def test_the_noise_on_the_wire_is_the_noise_that_is_accounted(noise: str) -> None:
    """The sum over all ranks has sigma times the sensitivity, and sigma is what accounting has."""
    run, privacy = for_target(noise)
    total = run.grid.noise_std * math.sqrt(1 if noise == "sharded" else RANKS)
    assert total == pytest.approx(run.accounted.noise_multiplier * run.grid.sensitivity)
    assert privacy["noise_std"] == pytest.approx(total)
    assert privacy["noise_multiplier"] == run.noise_multiplier
    assert privacy["epsilon"] <= run.epsilon
    assert privacy["epsilon"] == pytest.approx(epsilon(run, run.noise_multiplier), rel=1e-2)


def test_split_and_sharded_give_the_model_the_budget() -> None:
    for noise in ("split", "sharded"):
        run, privacy = for_target(noise)
        assert 0.998 * TARGET <= privacy["epsilon"] <= TARGET == run.epsilon


def test_a_sharded_sum_has_the_imprecision_of_one_rank() -> None:
    """One Gaussian for each parameter and step, where the others have one for each rank, too."""
    found = {noise: for_target(noise)[0].imprecision_per_step for noise in NOISES}
    assert found["sharded"] == NUM_PARAMS * 2.0**-62
    assert found["split"] == found["local"] == RANKS * found["sharded"]


def test_local_noise_gives_every_message_the_budget_and_the_model_less() -> None:
    run, privacy = for_target("local")
    split, _ = for_target("split")
    assert run.noise_multiplier == pytest.approx(split.noise_multiplier * math.sqrt(RANKS))
    assert run.grid.noise_std / run.grid.sensitivity == pytest.approx(split.noise_multiplier)
    assert 0.998 * TARGET <= privacy["epsilon_rank_or_link"] <= TARGET
    assert privacy["epsilon"] < 0.7 * TARGET


def test_local_noise_multiplier_is_that_of_a_message() -> None:
    config, run = planned(noise="local", noise_multiplier=3.0)
    assert run.noise_multiplier == 3.0 * math.sqrt(RANKS)
    assert run.grid.noise_std == pytest.approx(3.0 * run.grid.sensitivity)
    told = statement.report(config, run)["epsilon_rank_or_link"]
    assert told == pytest.approx(epsilon(run, 3.0), rel=1e-6)


def test_local_noise_too_small_for_a_message_is_refused_however_many_ranks_there_are() -> None:
    with pytest.raises(PrivacyError, match=r"noise_multiplier 0.001 gives no epsilon"):
        planned(noise="local", noise_multiplier=0.001, world_size=1000)


def test_with_one_rank_local_is_split() -> None:
    (_, one), (_, other) = (planned(1, noise=noise, epsilon=TARGET) for noise in ("split", "local"))
    assert (one.noise_multiplier, one.epsilon, one.grid) == (
        other.noise_multiplier, other.epsilon, other.grid,
    )  # fmt: skip


def test_one_share_is_what_hides_a_contribution_under_split_noise() -> None:
    run, privacy = for_target("split")
    share = epsilon(run, run.noise_multiplier / math.sqrt(RANKS))
    assert privacy["epsilon_rank_or_link"] == pytest.approx(share, rel=1e-6)
    assert "the network between them are trusted: for one who reads" in statement.paragraph(privacy)


def test_the_statement_says_that_ranks_are_trusted_entirely_under_sharded_noise() -> None:
    _, privacy = for_target("sharded")
    assert privacy["epsilon_rank_or_link"] == "inf"
    text = statement.paragraph(privacy)
    assert "Ranks and the network between them are trusted entirely" in text
    assert "sums travel without noise" in text
    assert "while it trains, no finite epsilon holds." in text


def test_the_statement_says_what_local_noise_promises() -> None:
    _, privacy = for_target("local")
    text = statement.paragraph(privacy)
    epsilon = statement.shown(privacy["epsilon_rank_or_link"])
    assert f"while it trains, epsilon is at most {epsilon} at the same delta. Of the ranks" in text
    assert f"The model is ({statement.shown(privacy['epsilon'])}, {DELTA:g})" in text


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("wire", CAPACITY)
def test_data_and_noise_of_all_ranks_fit_on_the_wire(noise: str, wire: str) -> None:
    _, run = planned(noise=noise, wire=wire, noise_multiplier=20.0)
    grid = run.grid
    largest_noise = 9.42 * grid.noise_std / grid.spacing + 0.5
    adding = 1 if noise == "sharded" else RANKS
    assert RANKS * grid.limit + adding * largest_noise <= CAPACITY[wire]


@pytest.mark.parametrize("noise", NOISES)
def test_floats_have_the_same_noise_but_are_never_called_private(noise: str) -> None:
    config, run = planned(noise=noise, wire="float32", noise_multiplier=3.0)
    _, private = planned(noise=noise, noise_multiplier=3.0)
    assert not config.private and not run.private and run.epsilon == math.inf
    assert run.noise_multiplier == private.noise_multiplier
    assert run.grid.total_noise_std == pytest.approx(private.grid.total_noise_std, rel=1e-3)
    privacy = statement.report(config, run)
    assert privacy["epsilon"] is privacy["epsilon_rank_or_link"] is privacy["grid_spacing"] is None
    text = statement.paragraph(privacy)
    assert text.startswith(
        "NOT PRIVATE: trained with --wire float32, on floating-point sums, whose"
    )
    assert "low bits can reveal" in text


def test_plain_floats_have_no_noise() -> None:
    config, run = planned(wire="float32", no_privacy=True)
    assert (run.grid.noise_std, run.grid.wire) == (0.0, "float32")
    assert "--no-privacy" in statement.paragraph(statement.report(config, run))


@pytest.mark.parametrize("name", ["mpi", "gloo", "recursive-doubling", "alltoall", "hierarchical"])
def test_sharded_noise_needs_an_all_reduce_with_halves(name: str) -> None:
    able = "butterfly, halving-doubling, ring, round-robin, tree, auto"
    with pytest.raises(ConfigError, match=f"{name} cannot be run in two halves, as {able} can"):
        Config(noise="sharded", allreduce=name)


@pytest.mark.parametrize("name", ["auto", "ring", "tree:3", "butterfly:2,2"])
def test_sharded_noise_takes_an_all_reduce_with_halves(name: str) -> None:
    assert Config(noise="sharded", allreduce=name).private


@pytest.mark.parametrize("name", ["mpi", "gloo"])
def test_floats_need_an_all_reduce_that_gives_the_same_bits(name: str) -> None:
    with pytest.raises(ConfigError, match=f"same bits, which {name} does not promise"):
        Config(wire="float32", allreduce=name)
    assert not Config(wire="float32", allreduce="butterfly:2,2").private

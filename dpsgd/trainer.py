"""The step and the loop: DP-SGD on every rank's own part of the data.

Abadi et al., "Deep learning with differential privacy" (2016), algorithm 1, distributed: each rank
samples from its own rows, clips and sums; sums go on a grid, get their share of the noise and are
added over the ranks as integers; every rank applies the same update to the same weights.

Guarantees:
    every rank makes the same calls in the same order, whatever its data: an empty batch takes part,
        is noised and is charged;
    all ranks have the same configuration, each its own part of one data set, and at the end the
        same parameters: training is refused, or fails, otherwise;
    the only denominator is the expected batch size, a public constant.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import collectives
from collectives.guard import agree, on_root, together
from dpsgd import engines, metrics, models, optimizers, statement, streams
from dpsgd.accounting import LiveEpsilon
from dpsgd.config import Config
from dpsgd.data import Dataset
from dpsgd.errors import ConfigError, DatasetError, UserError
from dpsgd.ledger import Ledger
from dpsgd.phases import PHASES, PhaseTimer
from dpsgd.planning import Run, plan_run
from dpsgd.release import Release
from dpsgd.sampling import PoissonSampler

if TYPE_CHECKING:
    from mpi4py import MPI


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What may be shown while training: public facts only, never what was drawn."""

    run: Run
    all_reduce: str
    step: int
    seconds: float
    epsilon: Callable[[], float | None]

    @property
    def examples_per_second(self) -> float:
        """Expected batch size times steps, divided by seconds."""
        return self.run.expected_batch_size * self.step / self.seconds


@dataclass(frozen=True, kw_only=True)
class Result:
    """A trained model and everything worth knowing about how it came about."""

    config: Config
    run: Run
    schema: dict[str, Any]
    params: NDArray[np.float32]
    allreduce: str
    transport: str
    seconds: float
    phases: dict[str, dict[str, float]]
    metrics: dict[str, float | None]
    privacy: dict[str, Any]

    @property
    def model_sha256(self) -> str:
        """Hash of the released parameters as little-endian float32."""
        return hashlib.sha256(self.params.astype("<f4").tobytes()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Everything but the parameters, as JSON types."""
        run = self.run
        return {
            "run": run.id,
            "config": self.config.to_json(),
            "world_size": run.world_size,
            "allreduce": self.allreduce,
            "transport": self.transport,
            "engine": self.config.engine,
            "model": run.model.describe(),
            "steps": run.steps,
            "seconds": self.seconds,
            "examples_per_second": run.expected_batch_size * run.steps / self.seconds,
            "phases": self.phases,
            "privacy": self.privacy,
            "metrics": self.metrics,
            "model_sha256": self.model_sha256,
        }


def train(
    config: Config,
    dataset: Dataset,
    comm: MPI.Intracomm,
    progress: Callable[[Progress], None] | None = None,
) -> Result:
    """Train on the ranks of `comm`, each with its own part of the data. All ranks must call it.

    `progress` is called on rank 0 after every step. Raises, on all ranks and before any data is
    touched, ConfigError for options that differ between ranks or do not fit the data, DatasetError
    if the ranks' parts are not those of one data set, and PrivacyError if the budget cannot be
    reached. After any other error the events reserved so far count as spent.
    """
    _check_agreement(config, dataset, comm)
    _check_world(config.allreduce, comm.size)
    model = models.build(config.model, dataset.num_features, config.hidden)
    clip = math.inf if config.no_privacy else config.max_grad_norm
    engine = together(comm, UserError, lambda: engines.build(config.engine, model, clip))
    run = on_root(comm, UserError, lambda: plan_run(config, dataset, model, engine.rho, comm.size))
    timer = PhaseTimer()
    with _all_reduce(config, comm, model.num_params, run.grid.wire) as all_reduce:
        ledger = Ledger(run.ledger, comm, run)
        params = comm.bcast(model.initial(run.seed))
        average = optimizers.Average(params, config.averaging)
        over = "" if all_reduce.transport == "vendor" else f" over {all_reduce.transport}"
        route = all_reduce.choice or f"{all_reduce.name}{over}"
        step = _Step(config, dataset, run, engine, all_reduce, comm.rank)
        spent = LiveEpsilon(run.accounted, run.epsilon, run.delta, run.imprecision)
        comm.Barrier()
        start = time.perf_counter()
        for count in range(1, run.steps + 1):
            step(ledger.next(), params, timer)
            average.update(params)
            if progress is not None and comm.rank == 0:
                seconds = time.perf_counter() - start
                progress(
                    Progress(
                        run=run,
                        all_reduce=route,
                        step=count,
                        seconds=seconds,
                        epsilon=partial(spent, count),
                    )
                )
        seconds = time.perf_counter() - start
    _check_same(params, comm)
    return Result(
        config=config,
        run=run,
        schema=dataset.schema,
        params=average.params,
        allreduce=all_reduce.name,
        transport=all_reduce.transport,
        seconds=seconds,
        phases=_over_ranks(timer, comm),
        metrics=_evaluate(model, average.params, dataset, comm),
        privacy=on_root(comm, UserError, lambda: statement.report(config, run)),
    )


class _Step:
    """One step of the algorithm, with everything that stays the same from step to step."""

    def __init__(
        self,
        config: Config,
        dataset: Dataset,
        run: Run,
        engine: engines.Engine,
        all_reduce: collectives.AllReduce,
        rank: int,
    ) -> None:
        seed = config.insecure_seed
        keys = streams.fresh() if seed is None else streams.insecure(seed, rank)
        num_params = run.model.num_params
        self._data = dataset.train
        self._sampler = PoissonSampler(keys.sampling, run.sample_rate, len(self._data.labels))
        self._engine = engine
        self._release = Release(run.grid, keys.noise)
        self._all_reduce = all_reduce
        self._optimizer = optimizers.build(
            config.optimizer, num_params, config.resolved_learning_rate()
        )
        self._expected_batch_size = run.expected_batch_size
        self._grad_sum = np.zeros(num_params)

    def __call__(self, event: int, params: NDArray[np.float32], phase: PhaseTimer) -> None:
        """Change `params` by what event number `event` releases."""
        data, grad_sum, all_reduce = self._data, self._grad_sum, self._all_reduce
        with phase("sample"):
            rows = self._sampler.rows(event)
            features, labels = data.features[rows], data.labels[rows]
        with phase("compute"):
            self._engine.clipped_sum(params, features, labels, out=grad_sum)
        with phase("noise"):
            self._release.encode(grad_sum, event, out=all_reduce.buffer)
        with phase("communicate"):
            all_reduce.run()
        with phase("update"):
            grad_mean = self._release.decode(all_reduce.buffer) / self._expected_batch_size
            self._optimizer.step(params, grad_mean.astype(np.float32))


def _check_agreement(config: Config, dataset: Dataset, comm: MPI.Intracomm) -> None:
    """Sensitivity and noise are those of the whole only if this holds. Every rank must call it."""
    try:
        agree(comm, config.to_json)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    facts = (dataset.content_sha256, dataset.num_examples, dataset.num_features, dataset.unit)
    parts = comm.allgather((dataset.part, len(dataset.train.labels), facts))
    whole = [part for part, _, _ in parts] == [(rank, comm.size) for rank in range(comm.size)]
    total = sum(count for _, count, _ in parts)
    if not whole or total != dataset.num_examples or len({facts for _, _, facts in parts}) > 1:
        raise DatasetError(
            f"the ranks must hold the {comm.size} parts of one data set with "
            f"{dataset.num_examples} training records, got {total} records; load it with the "
            f"communicator that trains, from the same files on every host"
        )


def _check_world(allreduce: str, world_size: int) -> None:
    """Raise ConfigError, before anything takes long, if a schedule is for more ranks."""
    if allreduce not in (collectives.AUTO, *collectives.VENDORS):
        try:
            collectives.find(allreduce).num_parts(world_size)
        except ValueError as error:
            raise ConfigError(str(error)) from None


def _all_reduce(
    config: Config, comm: MPI.Intracomm, length: int, dtype: str
) -> collectives.AllReduce:
    """The all-reduce of the gradients. Raises ConfigError if it does not fit these ranks."""
    try:
        return collectives.make_plan(
            config.allreduce, comm, length, dtype, transport=config.transport
        )
    except ValueError as error:  # the same one on all ranks
        raise ConfigError(str(error)) from None


def _check_same(params: NDArray[np.float32], comm: MPI.Intracomm) -> None:
    """Fail if the replicas drifted apart, which nothing but an error can cause."""
    digests = comm.allgather(hashlib.sha256(params.tobytes()).digest())
    if len(set(digests)) > 1:
        raise RuntimeError("the ranks ended with different parameters")


def _over_ranks(timer: PhaseTimer, comm: MPI.Intracomm) -> dict[str, dict[str, float]]:
    """Mean, min and max over ranks of the seconds of each phase."""
    seconds = comm.allgather(timer.seconds)
    return {
        name: {
            "mean": sum(one[name] for one in seconds) / comm.size,
            "min": min(one[name] for one in seconds),
            "max": max(one[name] for one in seconds),
        }
        for name in PHASES
    }


def _evaluate(
    model: models.Model, params: NDArray[np.float32], dataset: Dataset, comm: MPI.Intracomm
) -> dict[str, float | None]:
    """Each rank scores its part of the test split; rank 0 puts them together."""
    scores = models.logits(model, params, dataset.test.features)
    parts = comm.gather((scores, dataset.test.labels))
    if parts is None:
        return comm.bcast(None)  # type: ignore[no-any-return]
    logits, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return comm.bcast(metrics.evaluate(logits, labels))  # type: ignore[no-any-return]

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
from dpsgd.config import DDP, Config
from dpsgd.data import Dataset
from dpsgd.errors import ConfigError, DatasetError, UserError
from dpsgd.exchange import Exchange, make_exchange
from dpsgd.ledger import Ledger
from dpsgd.microbatch import UNLIMITED, Microbatched
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
    engine: str
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
    engine: str
    microbatch: int | None  # rows at once on rank 0; None for all
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
            "engine": self.engine,
            "microbatch": self.microbatch,
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
    timer: PhaseTimer | None = None,
) -> Result:
    """Train on the ranks of `comm`, each with its own part of the data. All ranks must call it.

    `progress` is called on rank 0 after every step; `timer` hears of every phase. Raises, on all
    ranks and before any data is touched, ConfigError for options that differ between ranks or do
    not fit the data, DatasetError if the ranks' parts are not those of one data set, and
    PrivacyError if the budget cannot be reached. After any other error the events reserved so far
    count as spent.
    """
    _check_agreement(config, dataset, comm)
    _check_world(config.allreduce, comm.size)
    model = together(comm, UserError, lambda: model_of(config, dataset))
    clip = math.inf if config.no_privacy else config.max_grad_norm
    name = _engine(config, model)
    inner = together(comm, UserError, lambda: engines.build(name, model, clip))
    engine: Any = inner if config.allreduce == DDP else Microbatched(inner, config.microbatch)
    run = on_root(comm, UserError, lambda: plan_run(config, dataset, model, engine.rho, comm.size))
    timer = timer or PhaseTimer()
    seed = config.insecure_seed
    keys = streams.fresh() if seed is None else streams.insecure(seed, comm.rank)
    rows = _sampler(config, run, keys, dataset, comm)
    params = comm.bcast(model.initial(run.seed))
    release = Release(run.grid, keys.noise)
    if config.allreduce == DDP:
        from dpsgd.ddp import make_ddp_exchange

        exchange: Exchange = make_ddp_exchange(comm, model, inner, release, timer)
    else:
        nothing = dataset.train.features[:0], dataset.train.labels[:0]
        parts = [*engine.stages(params, *nothing, np.empty(model.num_params))]
        exchange = make_exchange(config, comm, release, parts, timer)
    ledger = Ledger(run.ledger, comm, run)
    average = optimizers.Average(params, config.averaging)
    over = "" if exchange.transport == "vendor" else f" over {exchange.transport}"
    route = exchange.choice or f"{exchange.name}{over}"
    step = _Step(config, dataset, run, engine, exchange, rows, timer)
    spent = LiveEpsilon(run.accounted, run.epsilon, run.delta, run.imprecision)
    comm.Barrier()
    start = time.perf_counter()
    for count in range(1, run.steps + 1):
        step(ledger.next(), params, last=count == run.steps)
        average.update(params)
        if progress is not None and comm.rank == 0:
            seconds = time.perf_counter() - start
            progress(
                Progress(
                    run=run,
                    all_reduce=route,
                    engine=name,
                    step=count,
                    seconds=seconds,
                    epsilon=partial(spent, count),
                )
            )
    seconds = time.perf_counter() - start
    exchange.close()
    _check_same(params, comm)
    return Result(
        config=config,
        run=run,
        schema=dataset.schema,
        params=average.params,
        allreduce=exchange.name,
        transport=exchange.transport,
        engine=name,
        microbatch=_rows_at_once(engine),
        seconds=seconds,
        phases=_over_ranks(timer, comm),
        metrics=_evaluate(model, average.params, dataset, comm),
        privacy=on_root(comm, UserError, lambda: statement.report(config, run)),
    )


Rows = Callable[[int], NDArray[np.int64]]
"""The rows that an event draws."""


class _Step:
    """One step of the algorithm, with everything that stays the same from step to step."""

    def __init__(
        self,
        config: Config,
        dataset: Dataset,
        run: Run,
        engine: Any,
        exchange: Exchange,
        rows: Rows,
        timer: PhaseTimer,
    ) -> None:
        num_params = run.model.num_params
        self._data = dataset.train
        self._rows = rows
        self._engine = engine
        self._exchange = exchange
        self._phase = timer
        self._optimizer = optimizers.build(
            config.optimizer,
            num_params,
            config.resolved_learning_rate(),
            optimizers.schedule(config.schedule, config.warmup, run.steps),
            adam_bias_correction=config.adam_bias_correction,
            noise_std=run.noise_multiplier * run.grid.sensitivity / run.expected_batch_size,
        )
        self._expected_batch_size = run.expected_batch_size
        self._grad_mean = np.empty(num_params, np.float32)

    def __call__(self, event: int, params: NDArray[np.float32], last: bool) -> None:
        """Change `params` by what event number `event` releases."""
        phase, data, exchange = self._phase, self._data, self._exchange
        with phase("sample"):
            rows = self._rows(event)
            features, labels = data.features.take(rows, axis=0), data.labels.take(rows)
        exchange.begin(event)
        with phase("compute"):
            exchange.take(self._engine.stages(params, features, labels, exchange.sum))
        exchange.finish(None if last else event + 1)
        with phase("update"):
            exchange.decode(self._expected_batch_size, out=self._grad_mean)
            self._optimizer.step(params, self._grad_mean)


def _rows_at_once(engine: Any) -> int | None:
    size = getattr(engine, "size", UNLIMITED)
    return None if size >= UNLIMITED else size


def _sampler(
    config: Config, run: Run, keys: streams.Streams, dataset: Dataset, comm: MPI.Intracomm
) -> Rows:
    """What draws rows of this rank's part. Every rank must call it.

    Each rank has a secret stream of its own. With an insecure seed there is one public stream for
    the whole data set, so that any number of ranks draw the same records.
    """
    num_rows = len(dataset.train.labels)
    if config.insecure_seed is None:
        return PoissonSampler(keys.sampling, run.sample_rate, num_rows).rows
    first: int = comm.scan(num_rows) - num_rows
    public = streams.insecure(config.insecure_seed, 0).sampling
    whole = PoissonSampler(public, run.sample_rate, run.num_examples)

    def rows(event: int) -> NDArray[np.int64]:
        drawn = whole.rows(event)
        mine: NDArray[np.int64] = drawn[(first <= drawn) & (drawn < first + num_rows)]
        return np.subtract(mine, first, dtype=np.int64)

    return rows


def _engine(config: Config, model: models.Model) -> str:
    """The name of the engine that is taken."""
    if config.engine != engines.AUTO:
        return config.engine
    return "two-pass" if config.allreduce == DDP else engines.choose(model)


def model_of(config: Config, dataset: Dataset) -> models.Model:
    """The model of the configuration, for this data set."""
    wanted = models.inputs_of(config.model)
    if dataset.inputs != wanted:
        raise ConfigError(
            f"model {config.model} takes {wanted}, but the data set was loaded as "
            f"{dataset.inputs}: load_dataset(path, comm, inputs={wanted!r})"
        )
    return models.build(
        config.model,
        dataset.num_features,
        config.hidden,
        activation=config.activation,
        levels=dataset.levels,
    )


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
    if allreduce not in (collectives.AUTO, DDP, *collectives.VENDORS):
        try:
            collectives.find(allreduce).num_parts(world_size)
        except ValueError as error:
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
    scores = model.logits(params, dataset.test.features)
    parts = comm.gather((scores, dataset.test.labels))
    if parts is None:
        return comm.bcast(None)  # type: ignore[no-any-return]
    logits, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return comm.bcast(metrics.evaluate(logits, labels))  # type: ignore[no-any-return]

"""Where one private step goes, and what sampling and noise cost beside torch's.

Parts of a step, of the engine that `auto` takes; each the median of many real steps, in which the
clock is read where a part begins and ends:

    sample     rows drawn with Poisson probability B / N from N = 1.22 million, and their gathering
    forward    fused: up to the first use of the labels; bookkeeping: module and losses, recorded
    backward   fused: down to the gradient of the first layer; bookkeeping: autograd to the outputs
               of the layers, and the factors of the per-example gradients
    norms      norms and clipping factors
    clip+sum   the rest of the engine: bookkeeping's weighting, products, sums in float64
    noise      drawing, grid, encoding                     (phase of the trainer)
    update     decoding, mean, optimizer                   (phase of the trainer)
    other      calls between these
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dpsgd import engines, sampling, streams
from dpsgd.bench.engines import OurStep
from dpsgd.bench.measure import medians
from dpsgd.bench.workloads import Workload

if TYPE_CHECKING:
    from mpi4py import MPI

NUM_ROWS = 1_220_000
GATHERED_BYTES = 2**27  # of a table to gather from, at most: all rows of the MLPs
NOISE_ELEMENTS = 65_536
FEWEST_STEPS = 5
IN_ENGINE = ("forward", "backward", "norms", "clip+sum")
PARTS = ("sample", *IN_ENGINE, "noise", "update", "other")


def breakdown(workload: Workload, comm: MPI.Intracomm, seconds: float) -> dict[str, Any]:
    """A row, measured for about so many seconds; `us_per_step` is the whole without sampling."""
    model, inputs, labels = workload.batch()
    clock, engine = _Clock(), engines.choose(model)
    step = OurStep(engine, model, inputs, clock.labels(labels), comm, private=True)
    clock.watch(step.engine)
    found: dict[str, list[float]] = {part: [] for part in (*PARTS, "step")}
    end = time.perf_counter() + seconds
    step()
    clock.parts(0.0)
    while time.perf_counter() < end or len(found["step"]) < FEWEST_STEPS:
        before = dict(step.timer.seconds)
        start = time.perf_counter()
        step()
        whole = time.perf_counter() - start
        phases = {name: value - before[name] for name, value in step.timer.seconds.items()}
        parts = clock.parts(phases["compute"])
        parts |= {name: phases[name] for name in ("noise", "update")}
        parts["other"] = whole - sum(parts.values())
        for name, value in (parts | {"step": whole}).items():
            found[name].append(value)
    step.close()
    drawn = _Sampling(workload.batch_size, inputs)
    found["sample"] = medians([drawn], seconds / 4)
    us = {name: statistics.median(values) * 1e6 for name, values in found.items()}
    return {"engine": engine, "us_per_step": us.pop("step"), "us": us}


class _Clock:
    """Adds up the time inside an engine's methods, without changing what they do."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._part = ""
        self._since = 0.0

    def labels(self, labels: NDArray[np.float32]) -> NDArray[np.float32]:
        """The same labels; fused uses them for the first time where the forward pass ends."""
        marked = labels.view(_Marked)
        marked.mark = lambda: self._begin("backward") if self._part == "forward" else None
        return marked

    def watch(self, engine: Any) -> None:
        """Read the clock at both ends of the engine's methods."""
        if hasattr(engine, "_forward_backward"):
            engine._forward_backward = self._timed("forward", engine._forward_backward)
        else:
            engine.module.losses = self._timed("forward", engine.module.losses)
            engine._recorder.terms = self._timed("backward", engine._recorder.terms)
        engine._clipped = self._timed("norms", engine._clipped)

    def parts(self, compute: float) -> dict[str, float]:
        """Seconds of IN_ENGINE, of `compute` seconds, since it was called last."""
        found, self.seconds = self.seconds, {}
        return {**found, "clip+sum": compute - sum(found.values())}

    def _timed(self, part: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any) -> Any:
            self._begin(part)
            result = work(*arguments)
            self._begin("")
            return result

        return timed

    def _begin(self, part: str) -> None:
        """A part begins, so the one before is over."""
        now = time.perf_counter()
        if self._part:
            self.seconds[self._part] = self.seconds.get(self._part, 0.0) + now - self._since
        self._part, self._since = part, now


class _Marked(np.ndarray[Any, np.dtype[np.float32]]):
    """Calls `mark` before it, or a part of it, is used in arithmetic."""

    mark: Callable[[], None] = staticmethod(lambda: None)

    def __array_finalize__(self, source: Any) -> None:
        self.mark = getattr(source, "mark", self.mark)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        self.mark()
        plain = [x.view(np.ndarray) if isinstance(x, _Marked) else x for x in inputs]
        return getattr(ufunc, method)(*plain, **options)


class _Sampling:
    """Draws the rows of one event after the other, and gathers them."""

    def __init__(self, batch_size: int, inputs: NDArray[Any] | None = None) -> None:
        rate = batch_size / NUM_ROWS
        self._sampler = sampling.PoissonSampler(streams.fresh().sampling, rate, NUM_ROWS)
        self._table: NDArray[Any] | None = None
        self._event = 0
        if inputs is not None:
            num_rows = min(NUM_ROWS, GATHERED_BYTES // inputs[0].nbytes)
            self._table = inputs[np.arange(num_rows) % len(inputs)]

    def __call__(self) -> None:
        rows = self._sampler.rows(self._event)
        self._event += 1
        if self._table is not None:
            self._table.take(rows if len(self._table) == NUM_ROWS else rows % len(self._table), 0)


def figures(seconds: float) -> list[dict[str, Any]]:
    """Sampling, and secure noise beside torch's, each measured for about so many seconds."""
    import torch

    stream, out = streams.fresh().noise, np.empty(NOISE_ELEMENTS)
    mean = {
        kind: torch.zeros(NOISE_ELEMENTS, dtype=kind) for kind in (torch.float64, torch.float32)
    }
    drawn = {kind: torch.empty(NOISE_ELEMENTS, dtype=kind) for kind in mean}
    names = [
        f"sampling, {NUM_ROWS:,} rows, B = 256",
        f"noise, {NOISE_ELEMENTS:,} elements",
        *(f"torch.normal, {str(kind).removeprefix('torch.')}" for kind in mean),
    ]
    found = medians(
        [
            _Sampling(256),
            partial(stream.gaussians, 0, NOISE_ELEMENTS, out=out),
            *(partial(torch.normal, mean[kind], 1.0, out=drawn[kind]) for kind in mean),
        ],
        seconds,
    )
    noise = found[1]
    return [
        {"part": name, "us": one * 1e6, "noise_ratio": None if name is names[0] else noise / one}
        for name, one in zip(names, found, strict=True)
    ]

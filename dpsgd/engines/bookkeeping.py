"""Book-keeping: one forward and one backward pass for any module made of layers.

The backward pass goes to the outputs of the layers only. What went into a layer and the gradient of
what came out of it give both the norms of the per-example gradients and, weighted by the clipping
factors, their sum, layer by layer (Bu, Wang, Zha and Karypis, "Differentially private optimization
on large model at small cost", 2023). `dpsgd.layers` has the formulas.

Examples whose gradient is huge or not finite, or whose terms cancel so far that float32 does not
tell their norm, go to the engine `loop`, one by one in float64.

Rounding. The contribution of an example is c_i times what the recorded floats stand for, and c_i
norm_i <= C holds for these exactly, because norms are bounded from above. What is left is the
rounding of the float32 sums over blocks of rows: `rho`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpsgd.engines.loop import Loop
from dpsgd.errors import ConfigError
from dpsgd.flat_module import PROBES, TOLERANCE, FlatModule
from dpsgd.models import Model
from dpsgd.recorder import Recorder
from dpsgd.terms import MAX_SPREAD, RHO, UNIT, Term, combined

HUGE_NORM_SQUARED = 1e24


def build(model: Model, max_grad_norm: float) -> Bookkeeping:
    """The engine for one model.

    Raises ConfigError if a parameter is used outside the layer that owns it.
    """
    engine = Bookkeeping(model, max_grad_norm)
    engine.check(model)
    return engine


class Bookkeeping:
    """See the module and the guarantees of `dpsgd.engines`."""

    rho = RHO

    def __init__(self, model: Model, max_grad_norm: float) -> None:
        self.module = FlatModule(model)
        self._recorder = Recorder(self.module.module)
        self._reference = Loop(model, max_grad_norm)
        self._max_grad_norm = max_grad_norm
        terms = len(self.module.tensors)  # at most
        self._shrunk = max_grad_norm * (1 - (terms + 8) * UNIT)  # rounding of sums and roots
        self._places = {
            id(parameter): tensor.place
            for parameter, tensor in zip(self.module.parameters, self.module.tensors, strict=True)
        }
        self._backwards = [(place, key) for key, place in reversed(self._places.items())]

    def clipped_sum(
        self,
        params: NDArray[np.float32],
        features: NDArray[Any],
        labels: NDArray[np.float32],
        out: NDArray[np.float64],
    ) -> None:
        """Write the clipped sum of the batch to `out` [num_params]."""
        for _ in self.stages(params, features, labels, out):
            pass

    def stages(
        self,
        params: NDArray[np.float32],
        features: NDArray[Any],
        labels: NDArray[np.float32],
        out: NDArray[np.float64],
    ) -> Iterator[slice]:
        """The same, a tensor at a time, the last layer first."""
        out[:] = 0
        terms: list[Term] = []
        if len(labels):
            terms, weights, _ = self.norms(params, features, labels, out)
        of = {id(parameter): term for term in terms for parameter in term.parameters}
        sums = torch.from_numpy(out)
        for place, key in self._backwards:
            term = of.get(key)
            if term is not None:
                places = [self._places[id(parameter)] for parameter in term.parameters]
                with torch.no_grad():
                    term.add_sum(weights, [sums[one] for one in places])
                for parameter in term.parameters:
                    del of[id(parameter)]
            yield place

    def norms(
        self,
        params: NDArray[np.float32],
        features: NDArray[Any],
        labels: NDArray[np.float32],
        out: NDArray[np.float64],
        keep_graph: bool = False,
    ) -> tuple[list[Term], Tensor, Tensor]:
        """The terms of the gradients, and of every example its clipping factor and loss [batch].

        Examples that float32 cannot measure are added to `out` already, and have factor 0.
        """
        module = self.module
        module.load(params)
        with self._recorder.recording(len(labels)):
            losses = module.losses(module.inputs(features), module.labels(labels))
        terms = combined(self._recorder.terms(losses.sum(), keep_graph))
        terms, weights = self._clipped(terms, params, features, labels, out)
        return terms, weights, losses

    @torch.no_grad()
    def _clipped(
        self,
        terms: list[Term],
        params: NDArray[np.float32],
        features: NDArray[Any],
        labels: NDArray[np.float32],
        out: NDArray[np.float64],
    ) -> tuple[list[Term], Tensor]:
        bounds = [term.bounds() for term in terms]
        norms = sum((norm for norm, _ in bounds[1:]), bounds[0][0])
        spread = norms
        if any(norm is not spread for norm, spread in bounds):
            spread = sum((one for _, one in bounds[1:]), bounds[0][1])
        ordinary = (norms <= HUGE_NORM_SQUARED) & (spread <= MAX_SPREAD**2 * norms)
        if not ordinary.all():
            rest = (~ordinary).numpy()
            self._reference.add_sum(params, features[rest], labels[rest], out)
            terms = [term.blanked(ordinary) for term in terms]
            norms = torch.where(ordinary, norms, 0)
        if math.isinf(self._max_grad_norm):
            return terms, ordinary.float()
        weights = self._shrunk / norms.sqrt().clamp_min(self._shrunk)
        return terms, torch.where(ordinary, weights, 0)

    def check(self, model: Model) -> None:
        """Compare with plain autograd on a few random examples."""
        module, inputs = self.module, model.probe(PROBES)
        labels = np.ones(PROBES, np.float32)
        params = model.initial(1)
        module.load(params)
        module.module.eval()  # without dropout
        losses = module.losses(module.inputs(inputs), module.labels(labels))
        expected = torch.autograd.grad(
            losses.sum(), module.parameters, allow_unused=True, materialize_grads=True
        )
        clip, self._max_grad_norm = self._max_grad_norm, math.inf
        found = np.zeros(model.num_params)
        self.clipped_sum(params, inputs, labels, found)
        self._max_grad_norm = clip
        module.module.train()
        scale = max(float(gradient.norm()) for gradient in expected)
        for parameter, gradient in zip(module.parameters, expected, strict=True):
            ours = torch.from_numpy(found[self._places[id(parameter)]]).view(gradient.shape)
            if float((ours - gradient).norm()) > TOLERANCE * scale:
                raise ConfigError(
                    f"parameter {module.name_of(parameter)} of model {model.name} is used outside "
                    f"the layer that owns it, so that book-keeping misses a part of its gradient; "
                    f"use --engine vmap"
                )

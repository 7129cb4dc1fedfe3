"""Book-keeping: one forward and one backward pass for any module made of layers.

The backward pass goes to the outputs of the layers only. What went into a layer and the gradient of
what came out of it give both the norms of the per-example gradients and, weighted by the clipping
factors, their sum, layer by layer (Bu, Wang, Zha and Karypis, "Differentially private optimization
on large model at small cost", 2023). `dpsgd.layers` has the formulas.

Examples whose gradient is huge or not finite, or whose terms cancel so far that float32 does not
tell their norm, go to the engine `loop`, one by one in float64.

Rounding. The contribution of an example is c_i times what the recorded floats stand for, and c_i
norm_i <= C holds for these exactly, because norms are bounded from above. What is left is the
rounding of the float32 sums over blocks of rows: RHO for layers with one position an example, and
as much again for those with several. A model may have both, so `rho` is twice RHO.
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
from dpsgd.products import RHO, UNIT
from dpsgd.recorder import Recorder
from dpsgd.terms import FLOOR, HUGE_NORM_SQUARED, Term, combined

CHECK_NORM = 1e-6  # so small that every example is clipped
CHECK_TOLERANCE = 0.02
COPIES = 3  # of what autograd keeps: with gradients, and what is made of both


def build(model: Model, max_grad_norm: float) -> Bookkeeping:
    """The engine for one model.

    Raises ConfigError if a parameter is used outside the layer that owns it, or if a layer does not
    see one example after the other.
    """
    engine = Bookkeeping(model, max_grad_norm)
    engine.check(model)
    return engine


class Bookkeeping:
    """See the module and the guarantees of `dpsgd.engines`."""

    rho = 2 * RHO

    def __init__(self, model: Model, max_grad_norm: float) -> None:
        self.module = FlatModule(model)
        self._recorder = Recorder(self.module.module)
        self._reference = Loop(model, max_grad_norm)
        self.max_grad_norm = max_grad_norm
        self.bytes_per_example = 0
        self._places = {
            id(parameter): tensor.place
            for parameter, tensor in zip(self.module.parameters, self.module.tensors, strict=True)
        }
        self._backwards = list(reversed(self._layers()))

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
        """The same, a layer at a time, the last one first."""
        out[:] = 0
        terms: list[Term] = []
        if len(labels):
            terms, weights, _ = self.norms(params, features, labels, out)
        of = {id(parameter): term for term in terms for parameter in term.parameters}
        for part, keys in self._backwards:
            for key in keys:
                if key in of:
                    self._add(of[key], weights, out, of)
            yield part

    @np.errstate(over="ignore", invalid="ignore")  # of a plain run that diverged
    def _add(
        self,
        term: Term,
        weights: NDArray[np.float32],
        out: NDArray[np.float64],
        others: dict[int, Term],
    ) -> None:
        keys = [id(parameter) for parameter in term.parameters]
        term.add_sum(weights, [out[self._places[key]] for key in keys])
        for key in keys:
            others.pop(key, None)

    def _layers(self) -> list[tuple[slice, list[int]]]:
        """Neighbouring parameters of one module: where they are, and their ids."""
        owners = {
            id(parameter): module
            for module in self.module.module.modules()
            for parameter in module.parameters(recurse=False)
        }
        found: list[tuple[slice, list[int]]] = []
        last = None
        for key, place in self._places.items():
            if owners[key] is last:
                before, keys = found.pop()
                found.append((slice(before.start, place.stop), [*keys, key]))
            else:
                found.append((place, [key]))
            last = owners[key]
        return found

    def norms(
        self,
        params: NDArray[np.float32],
        features: NDArray[Any],
        labels: NDArray[np.float32],
        out: NDArray[np.float64],
        keep_graph: bool = False,
    ) -> tuple[list[Term], NDArray[np.float32], Tensor]:
        """The terms of the gradients, and of every example its clipping factor and loss [batch].

        Examples that float32 cannot measure are added to `out` already, and have factor 0.
        """
        module = self.module
        module.load(params)
        with self._recorder.recording(len(labels)):
            losses = module.losses(module.inputs(features), module.labels(labels))
        terms = combined(self._recorder.terms(losses, keep_graph))
        terms, weights = self._clipped(terms, params, features, labels, out)
        return terms, weights, losses

    def sums(self, terms: list[Term], weights: NDArray[np.float32]) -> NDArray[np.float64]:
        """What `stages` adds to the vector, all at once [num_params]."""
        found = np.zeros(self.module.tensors[-1].place.stop)
        others = {id(parameter): term for term in terms for parameter in term.parameters}
        for term in terms:
            self._add(term, weights, found, others)
        return found

    @torch.no_grad()
    @np.errstate(over="ignore", invalid="ignore")
    def _clipped(
        self,
        terms: list[Term],
        params: NDArray[np.float32],
        features: NDArray[Any],
        labels: NDArray[np.float32],
        out: NDArray[np.float64],
    ) -> tuple[list[Term], NDArray[np.float32]]:
        bounds = [term.bounds() for term in terms]
        norms = np.full(len(labels), FLOOR, np.float32)
        for norm, _ in bounds:
            norms += norm
        ordinary = norms <= HUGE_NORM_SQUARED
        spreads = [spread for _, spread in bounds if spread is not None]
        if spreads:
            ordinary &= np.add.reduce(spreads) <= norms
        all_are = bool(ordinary.all())
        if not all_are:
            rest = ~ordinary
            self._reference.add_sum(params, features[rest], labels[rest], out)
            terms = [term.blanked(ordinary) for term in terms]
            norms[rest] = 0
        if math.isinf(self.max_grad_norm):
            return terms, ordinary.astype(np.float32)
        rounding = (len(bounds) + 8) * UNIT  # of sums and roots
        shrunk = np.float32(self.max_grad_norm * (1 - rounding))
        np.sqrt(norms, out=norms)
        np.maximum(norms, shrunk, out=norms)
        weights = np.divide(shrunk, norms, out=norms)
        if not all_are:
            weights[rest] = 0
        return terms, weights

    def check(self, model: Model) -> None:
        """Try a few random examples: together against one by one, and against plain autograd."""
        batch, labels = model.probe(PROBES), np.ones(PROBES, np.float32)
        params = self.module.trial_params
        clip = self.max_grad_norm
        modules = self.module, self._reference.module
        with modules[0].without_dropout(batch), modules[1].without_dropout(batch):
            self.max_grad_norm = self._reference.max_grad_norm = math.inf
            self._check_sums(model, params, batch, labels)
            self.max_grad_norm = CHECK_NORM
            self._check_norms(model, params, batch, labels)
        self.max_grad_norm = self._reference.max_grad_norm = clip

    def _check_sums(
        self,
        model: Model,
        params: NDArray[np.float32],
        batch: NDArray[Any],
        labels: NDArray[np.float32],
    ) -> None:
        found = np.zeros(model.num_params)
        for rows in (slice(1), slice(None)):  # sizes differ, so what has no batch dimension shows
            self.clipped_sum(params, batch[rows], labels[rows], found)
        module = self.module
        kept = 0

        def keep(tensor: Tensor) -> Tensor:
            nonlocal kept
            if tensor.dim() and len(tensor) == PROBES:
                kept += tensor.numel() * tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            losses = module.losses(module.inputs(batch), module.labels(labels))
        self.bytes_per_example = COPIES * kept // PROBES
        expected = torch.autograd.grad(
            losses.sum(), module.parameters, allow_unused=True, materialize_grads=True
        )
        scale = max(float(gradient.norm()) for gradient in expected)
        for parameter, gradient in zip(module.parameters, expected, strict=True):
            ours = torch.from_numpy(found[self._places[id(parameter)]]).view(gradient.shape)
            if not float((ours - gradient).norm()) <= TOLERANCE * scale:
                raise ConfigError(
                    f"parameter {module.name_of(parameter)} of model {model.name} is used outside "
                    f"the layer that owns it, so that book-keeping misses a part of its gradient; "
                    f"use --engine vmap"
                )

    def _check_norms(
        self,
        model: Model,
        params: NDArray[np.float32],
        batch: NDArray[Any],
        labels: NDArray[np.float32],
    ) -> None:
        out = np.zeros(model.num_params)
        together = self.norms(params, batch, labels, out)[1]
        rows = [slice(row, row + 1) for row in range(PROBES)]
        alone = np.concatenate([self.norms(params, batch[r], labels[r], out)[1] for r in rows])
        if not np.allclose(together, alone, rtol=CHECK_TOLERANCE, atol=0):
            raise ConfigError(
                f"model {model.name} is refused: what a layer sees in one row is not from one "
                f"example; the batch must be the first dimension everywhere, in the order of the "
                f"examples; or use --engine vmap"
            )

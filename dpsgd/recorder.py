"""Remembers what goes into every layer and which gradients will be wanted, in one forward pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from dpsgd.errors import ConfigError
from dpsgd.layers import Terms, attention, terms_of
from dpsgd.terms import Term


@dataclass
class Call:
    """One call of a layer: what went in, and where the gradients of what came out will be."""

    terms: Terms
    module: nn.Module
    inputs: list[Tensor]
    edges: list[GradientEdge | None]  # None: does not depend on anything trained
    shapes: list[torch.Size]


class Recorder:
    """Watches all layers of a module that own trained parameters."""

    def __init__(self, module: nn.Module) -> None:
        self.calls: list[Call] = []
        self._recording = False
        self._batch = 0
        self._hidden: set[int] = set()
        for one in module.modules():
            whole = terms_of(one) is attention.terms  # its output projection is a child
            if any(p.requires_grad for p in one.parameters(recurse=whole)):
                self._watch(one)

    @contextmanager
    def recording(self, batch: int) -> Iterator[None]:
        """Forget all calls and record those inside."""
        self.calls.clear()
        self._recording, self._batch = True, batch
        try:
            yield
        finally:
            self._recording = False

    def terms(self, losses: Tensor, keep_graph: bool = False) -> list[Term]:
        """What every recorded call contributes to the gradients of the sum of losses [batch]."""
        edges = [edge for call in self.calls for edge in call.edges if edge is not None]
        gradients = iter(
            torch.autograd.grad(losses.sum(), edges, retain_graph=keep_graph, allow_unused=True)
            if edges
            else ()
        )
        found: list[Term] = []
        with torch.no_grad():
            for call in self.calls:
                mine = [None if edge is None else next(gradients) for edge in call.edges]
                if any(gradient is not None for gradient in mine):
                    filled = [
                        torch.zeros(shape, dtype=losses.dtype) if gradient is None else gradient
                        for gradient, shape in zip(mine, call.shapes, strict=True)
                    ]
                    found += call.terms(call.module, call.inputs, filled)
        self.calls.clear()
        return found

    def _watch(self, module: nn.Module) -> None:
        terms = terms_of(module)
        if terms is attention.terms:
            record = partial(self._record, terms)
            module.forward = attention.recorded(module, record)  # type: ignore[arg-type]
            return
        plain = module.forward
        is_embedding = isinstance(module, nn.Embedding)

        def forward(*arguments: Any, **named: Any) -> Any:  # hooks would take twice as long
            if not self._recording:
                return plain(*arguments, **named)
            if is_embedding:
                arguments = self._with_batch(module, arguments)
            output = plain(*arguments, **named)
            self._after(terms, module, arguments, named, output)
            return output

        module.forward = forward

    def _with_batch(self, module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        """Positions that are the same for all examples, [positions], as [batch, positions]."""
        if arguments and arguments[0].dim() == 1:
            ids = arguments[0]
            if len(ids) != self._batch or id(module) in self._hidden:
                self._hidden.add(id(module))
                return (ids.expand(self._batch, -1), *arguments[1:])
        return arguments

    def _after(
        self,
        terms: Terms,
        module: nn.Module,
        arguments: tuple[Any, ...],
        named: dict[str, Any],
        output: Any,
    ) -> None:
        inputs = [x for x in (*arguments, *named.values()) if x is not None]
        if not isinstance(output, Tensor) or not all(isinstance(x, Tensor) for x in inputs):
            raise ConfigError(
                f"layer {type(module).__name__} must take and give tensors, so that its "
                f"gradients are known example by example; use --engine vmap"
            )
        self._record(terms, module, inputs, [output])

    def _record(
        self, terms: Terms, module: nn.Module, inputs: Sequence[Tensor], outputs: Sequence[Tensor]
    ) -> None:
        if not self._recording:
            return
        for value in (*inputs, *outputs):
            if value.dim() == 0 or len(value) != self._batch:
                raise ConfigError(
                    f"layer {type(module).__name__} must have the batch as first dimension of what "
                    f"it takes and gives (batch_first=True), got shape {tuple(value.shape)} for "
                    f"{self._batch} examples; or use --engine vmap"
                )
        edges = [get_gradient_edge(one) if one.requires_grad else None for one in outputs]
        if any(edge is not None for edge in edges):
            shapes = [output.shape for output in outputs]
            self.calls.append(Call(terms, module, [x.detach() for x in inputs], edges, shapes))

"""Batches cut to pieces that fit into memory. The result is the same up to rounding.

A batch is drawn, and charged, as a whole; only the forward and backward passes see pieces of it.
`auto` takes what a quarter of the free memory holds. Where memory runs out all the same, the pieces
are halved and the sum of the same batch is begun again; nothing was released or charged meanwhile.
How a batch is cut, and so how its sum is rounded, follows from row counts and free memory, never
from what the rows hold. Pieces that are chosen here are whole groups of the rows that engines add
in float32, as far as there is memory for one.
"""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dpsgd.engines import Engine, stages
from dpsgd.products import BLOCK_ROWS, GROUP
from launch.world import ranks_on_this_node

if TYPE_CHECKING:
    from numpy.typing import NDArray

AUTO = "auto"
ROWS_OF_A_GROUP = BLOCK_ROWS * GROUP  # the most that engines add in float32
PART_OF_FREE_MEMORY = 0.25
UNLIMITED = 2**30  # rows


class Microbatched:
    """An engine that never sees more than `size` rows at once; an engine itself.

    `size` is the setting: a number or `auto`. The attribute is what it has become.
    """

    def __init__(self, engine: Engine, size: int | str = AUTO) -> None:
        self._engine = engine
        self.rho = engine.rho
        self.size = fitting(engine) if isinstance(size, str) else size
        self._parts: NDArray[np.float64] | None = None

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
        """See `dpsgd.engines.Staged`: parts are finished while the last piece is summed.

        Raises MemoryError if there is not enough for a single row, or for the end of a sum of which
        a part has been taken already.
        """
        taken = False
        while True:
            rows = min(self.size, max(1, len(labels)))
            try:
                for part in self._attempt(rows, params, features, labels, out):
                    taken = True
                    yield part
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                if taken or rows == 1:
                    raise MemoryError(f"out of memory with microbatches of {rows} rows") from error
                self.size = _whole(rows // 2)
                continue
            return

    def _attempt(
        self,
        rows: int,
        params: NDArray[np.float32],
        features: NDArray[Any],
        labels: NDArray[np.float32],
        out: NDArray[np.float64],
    ) -> Iterator[slice]:
        last = max(0, len(labels) - 1) // rows * rows
        if last == 0:
            yield from stages(self._engine, params, features, labels, out)
            return
        if self._parts is None:
            self._parts = np.empty_like(out)
        parts = self._parts
        parts[:] = 0
        for first in range(0, last, rows):
            piece = slice(first, first + rows)
            self._engine.clipped_sum(params, features[piece], labels[piece], out)
            parts += out
        for part in stages(self._engine, params, features[last:], labels[last:], out):
            out[part] += parts[part]
            yield part


def fitting(engine: Engine) -> int:
    """Rows that a quarter of this rank's share of the free memory holds."""
    bytes_per_example = getattr(engine, "bytes_per_example", 0)
    if not bytes_per_example:
        return UNLIMITED
    rows = int(PART_OF_FREE_MEMORY * free_bytes() / ranks_on_this_node() / bytes_per_example)
    return max(1, _whole(rows))


def _whole(rows: int) -> int:
    """As many whole groups as there are; less than one is left as it is."""
    return rows // ROWS_OF_A_GROUP * ROWS_OF_A_GROUP or rows


def free_bytes() -> int:
    """Memory that can still be had: of the machine, of the container, and of the process."""
    found = [2**62]
    memory = _numbers(Path("/proc/meminfo"))
    if "MemAvailable:" in memory:
        found.append(memory["MemAvailable:"] * 1024)
    group = Path("/sys/fs/cgroup")
    limit, used = (_number(group / f"memory.{name}") for name in ("max", "current"))
    if limit is not None and used is not None:
        found.append(limit - used)
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        found.append(soft - _numbers(Path("/proc/self/status")).get("VmSize:", 0) * 1024)
    return max(0, min(found))


def is_out_of_memory(error: Exception) -> bool:
    """Whether numpy, or torch on any device, says that memory has run out."""
    words = ("out of memory", "not enough memory", "can't allocate memory")
    return isinstance(error, MemoryError) or any(word in str(error).lower() for word in words)


def _numbers(path: Path) -> dict[str, int]:
    """`Name: number kB` of a file of the kernel; nothing where there is none."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    words = (line.split() for line in lines)
    return {word[0]: int(word[1]) for word in words if len(word) > 1 and word[1].isdecimal()}


def _number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None

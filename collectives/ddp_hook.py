"""Our all-reduces inside PyTorch's DistributedDataParallel: a training script stays as it is.

    from collectives.ddp_hook import register
    from collectives.transports.mpi import world

    model = DistributedDataParallel(net)                # as before
    hook = register(model, world(), allreduce="ring")   # instead of DDP's own all-reduce
    ...                                                 # train as before
    hook.close()

DDP collects gradients in buckets, and hands a bucket to the hook as soon as backward has filled it.
Each bucket has a plan, made when the bucket is first seen and made anew when DDP has found better
buckets, which it does after the first step; all ranks do so at the same time. The gradients are
copied into the buffer of the plan, summed, and divided by the number of ranks on their way back.

The sum is made in the thread of backward. A second thread that sums while backward goes on was
tried: it was not faster where every core computes. So the cost of a step is two copies and one
all-reduce of all gradients, and one more buffer of their size in memory.

Guarantees:
    - every rank has the same gradient bits, with each of our schedules (`mpi` and `gloo` do not
      promise it)
    - the gradients are the mean over the ranks, sum / world size
    - the trained model equals that of DDP's own all-reduce up to rounding
    - plans follow the buckets of DDP
    - what cannot be summed is refused on all ranks, with the reason
"""

# Not `from __future__ import annotations`: DDP compares the annotations of a hook with classes.

from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

import collectives
from collectives.all_reduce import AllReduce
from collectives.guard import agree
from collectives.vendor import named_interface, torch_store

if TYPE_CHECKING:
    from mpi4py import MPI

DTYPES = (torch.float32, torch.float64)


def register(
    model: DistributedDataParallel,
    comm: "MPI.Intracomm",
    allreduce: str = collectives.AUTO,
    transport: str = collectives.AUTO,
) -> "AllReduceHook":
    """Let plans of `make_plan(allreduce, ..., transport=transport)` add the gradients of `model`.

    Every rank must call it, before the first backward. The ranks of `comm` must be those of the
    model's process group, in the same order.

    Raises TypeError if `model` is something else, and ValueError, before any training, if the two
    worlds differ, if the parameters are not float32 or float64 on the CPU, or for what `make_plan`
    refuses.
    """
    if not isinstance(model, DistributedDataParallel):
        raise TypeError(f"model must be a DistributedDataParallel, got {type(model).__name__}")
    group = model.process_group
    here = comm.rank, comm.size
    there = distributed.get_rank(group), distributed.get_world_size(group)
    differ = (
        f"MPI and torch.distributed must have the same ranks in the same order: this process is "
        f"rank {here[0]} of {here[1]} in MPI and rank {there[0]} of {there[1]} in torch.distributed"
    )
    if here[1] != there[1]:  # so on every rank, and perhaps there is nobody to agree with
        raise ValueError(differ)

    def facts() -> dict[str, Any]:
        if here != there:
            raise ValueError(differ)
        for name, parameter in model.module.named_parameters():
            if parameter.requires_grad:
                _check(parameter, f"of {name}")
        return {"allreduce": allreduce, "transport": transport}

    agree(comm, facts)
    # What make_plan refuses is refused here, not in the middle of the first backward.
    collectives.make_plan(allreduce, comm, 1, "float32", transport=transport).close()
    hook = AllReduceHook(comm, allreduce, transport)
    model.register_comm_hook(hook, reduce_bucket)
    return hook


class AllReduceHook:
    """What `register` returns: the plans of the buckets of one model. Usable in a `with` statement.

    `plans` are those of the last backward, one for each bucket.
    """

    def __init__(self, comm: "MPI.Intracomm", allreduce: str, transport: str) -> None:
        self.plans: list[AllReduce] = []
        self._comm = comm
        self._allreduce = allreduce
        self._transport = transport
        self._closed = False

    def mean_(self, index: int, gradients: NDArray[Any]) -> None:
        """Replace the gradients of a bucket [elements] by their mean over the ranks."""
        if self._closed:
            raise RuntimeError("backward was called on a model whose all-reduce hook is closed")
        plan = self._plan(index, len(gradients), gradients.dtype)
        np.copyto(plan.buffer, gradients)
        plan.run()
        np.divide(plan.buffer, self._comm.size, out=gradients)

    def close(self) -> None:
        """Give the resources back; no backward can follow. Every rank must call it."""
        self._close_from(0)
        self._closed = True

    def _plan(self, index: int, length: int, dtype: np.dtype[Any]) -> AllReduce:
        """The plan of this bucket. DDP hands the buckets over in their order, on all ranks."""
        if index < len(self.plans):
            plan = self.plans[index]
            if (len(plan.buffer), plan.buffer.dtype) == (length, dtype):
                return plan
            self._close_from(index)  # the buckets are new ones, of the same size in sum
        made = collectives.make_plan(
            self._allreduce, self._comm, length, dtype, transport=self._transport
        )
        self.plans.append(made)
        return made

    def _close_from(self, index: int) -> None:
        while len(self.plans) > index:
            self.plans.pop().close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:  # after an error peers may never answer, and freeing may wait for them
            self.close()


def reduce_bucket(
    state: AllReduceHook,
    bucket: distributed.GradBucket,  # type: ignore[name-defined]
) -> torch.futures.Future[torch.Tensor]:
    """What DDP calls for each bucket; complete when it returns."""
    gradients = bucket.buffer()
    _check(gradients, f"in bucket {bucket.index()}")
    state.mean_(bucket.index(), gradients.numpy())
    future: torch.futures.Future[torch.Tensor] = torch.futures.Future()
    future.set_result(gradients)
    return future


def _check(tensor: torch.Tensor, where: str) -> None:
    """Raise ValueError unless we can sum this."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    if tensor.dtype not in DTYPES:
        raise ValueError(
            f"gradients must be float32 or float64, got {dtype} {where}: keep the parameters in "
            f"float32, torch.autocast can still compute in bfloat16"
        )
    if tensor.device.type != "cpu":
        raise ValueError(
            f"gradients must be on the CPU, got {tensor.device} {where}: leave them to DDP's own "
            f"all-reduce"
        )
    if tensor.layout is not torch.strided:
        raise ValueError(f"gradients must be dense, got sparse ones {where}: use sparse=False")


def init_process_group(comm: "MPI.Intracomm") -> None:
    """Start torch.distributed (gloo) with the ranks of `comm`; rank 0 is where they meet.

    For scripts that mpirun starts instead of torchrun. Every rank must call it.
    """
    store, local = torch_store(comm)
    with named_interface(local):
        distributed.init_process_group("gloo", store=store, rank=comm.rank, world_size=comm.size)

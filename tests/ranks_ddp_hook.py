"""Run under mpirun by test_ddp_hook: our all-reduces inside DistributedDataParallel.

The arguments name functions of this file; rank 0 prints what they return.
"""

from __future__ import annotations

import contextlib
import copy
import sys

import numpy as np
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from collectives import ALGORITHMS as NAMES
from collectives import TRANSPORTS
from collectives.ddp_hook import init_process_group, register
from collectives.transports.mpi import world

KILOBYTE = 1 / 1024  # DDP counts in megabytes
comm = world()


class Columns(nn.Module):
    """Layers side by side, called in a shuffled order, so that DDP rebuilds its buckets.

    Their sum has gradients that are small integers: sums of inputs. `branch` is used if asked for.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.columns = nn.ModuleList(nn.Linear(31, n, dtype=dtype) for n in (40, 3, 17, 60, 9))
        self.branch = nn.Linear(31, 8, dtype=dtype)

    def forward(self, x: torch.Tensor, branch: bool = True) -> torch.Tensor:
        total = sum(self.columns[i](x).sum() for i in (3, 0, 4, 1, 2))
        return total + self.branch(x).sum() if branch else total


def integers(step: int, dtype: torch.dtype) -> torch.Tensor:
    """Inputs of this rank [examples, 31]; another number of examples on each rank."""
    generator = np.random.default_rng([comm.rank, step])
    return torch.tensor(generator.integers(-9, 10, (4 + comm.rank, 31)), dtype=dtype)


def flat(tensors) -> np.ndarray:
    return np.concatenate([tensor.detach().numpy().ravel() for tensor in tensors])


def gradients(model: nn.Module) -> np.ndarray:
    return flat(parameter.grad for parameter in model.parameters())


def same_bits_everywhere(array: np.ndarray) -> bool:
    return len(set(comm.allgather(array.tobytes()))) == 1


def check_mean(name: str, transport: str, dtype: torch.dtype) -> None:
    """Exactly the mean, where that can be; and in any case the same bits on every rank."""
    torch.manual_seed(3)
    alone = Columns(dtype)
    model = DistributedDataParallel(copy.deepcopy(alone), bucket_cap_mb=2 * KILOBYTE)
    with register(model, comm, name, transport) as hook:
        for step in range(2):  # DDP rebuilds its buckets in between
            for module in (alone, model):
                module.zero_grad()
                module(integers(step, dtype)).backward()
            total = sum(comm.allgather(gradients(alone).astype(np.float64)))
            expected = (total / comm.size).astype(gradients(model).dtype)
            np.testing.assert_array_equal(gradients(model), expected)
        assert len(hook.plans) > 2, "one bucket is no test of several"
        model.zero_grad()
        model(integers(9, dtype) * (0.1 + comm.rank) ** 3).backward()
        assert same_bits_everywhere(gradients(model)), f"{name} over {transport}"


def mean_of_gradients() -> str:
    """Each schedule over each transport."""
    cases = [(name, transport, torch.float32) for name in NAMES for transport in TRANSPORTS]
    cases += [("auto", transport, torch.float64) for transport in TRANSPORTS]
    for case in cases:
        check_mean(*case)
    return f"{len(cases)} checked"


def train(allreduce: str | None, how: str) -> np.ndarray:
    """The parameters after some steps; without `allreduce`, by DDP's own."""
    torch.manual_seed(3)
    options = {"bucket_cap_mb": 4 * KILOBYTE}
    options["find_unused_parameters"] = how == "unused"
    options["gradient_as_bucket_view"] = how == "views"
    model = DistributedDataParallel(Columns(torch.float32), **options)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    steps = 4 + comm.rank if how == "uneven" else 6
    with (
        register(model, comm, allreduce) if allreduce else contextlib.nullcontext(),
        model.join() if how == "uneven" else contextlib.nullcontext(),
    ):
        for step in range(steps):
            branch = how != "unused" or (step + comm.rank) % 3 == 0
            quiet = how == "accumulated" and step % 3 < 2
            with model.no_sync() if quiet else contextlib.nullcontext():
                torch.tanh(model(integers(step, torch.float32) / 100, branch)).square().backward()
            if not quiet:
                optimizer.step()
                optimizer.zero_grad()
    return flat(model.parameters())


def trained_models() -> str:
    """DDP divides first, then adds; for two ranks that gives the same bits."""
    ways = ("plain", "views", "unused", "uneven", "accumulated")
    for how in ways:
        ours, theirs = train("ring", how), train(None, how)
        assert same_bits_everywhere(ours), how
        assert not np.array_equal(ours, flat(Columns(torch.float32).parameters())), how
        if comm.size == 2:
            np.testing.assert_array_equal(ours, theirs, err_msg=how)
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6, err_msg=how)
    return f"equal: {', '.join(ways)}"


def rebuilt_buckets() -> str:
    """How many buckets there are in each of three steps."""
    model = DistributedDataParallel(Columns(torch.float32), bucket_cap_mb=8 * KILOBYTE)
    lengths = []
    with register(model, comm, "tree") as hook:
        for step in range(3):
            model(integers(step, torch.float32)).backward()
            lengths.append([len(plan.buffer) for plan in hook.plans])
            assert comm.allgather(lengths[-1]) == [lengths[-1]] * comm.size
            assert sum(lengths[-1]) == sum(p.numel() for p in model.parameters())
    assert hook.plans == []
    assert lengths[1] == lengths[2]
    return ", ".join(str(len(one)) for one in lengths)


def model_of(dtype: torch.dtype = torch.float32, group=None) -> DistributedDataParallel:
    return DistributedDataParallel(Columns(dtype), process_group=group)


def smaller_world() -> None:
    groups = [distributed.new_group([rank]) for rank in range(comm.size)]
    register(model_of(group=groups[comm.rank]), comm)


def closed() -> None:
    model = model_of()
    with register(model, comm):
        model(integers(0, torch.float32)).backward()
    model(integers(1, torch.float32)).backward()


def sparse() -> None:
    model = DistributedDataParallel(nn.Embedding(10, 3, sparse=True))
    register(model, comm)
    model(torch.tensor([comm.rank])).sum().backward()


REFUSED = {
    "bfloat16": lambda: register(model_of(torch.bfloat16), comm),
    "no model of DDP": lambda: register(Columns(torch.float32), comm),
    "no such name": lambda: register(model_of(), comm, "rnig"),
    "no such transport": lambda: register(model_of(), comm, transport="tcp"),
    "another name": lambda: register(model_of(), comm, "ring" if comm.rank else "tree"),
    "reversed ranks": lambda: register(model_of(), comm.Split(0, -comm.rank)),
    "smaller world": smaller_world,
    "closed": closed,
    "sparse": sparse,
}


def refusals() -> str:
    """Each mistake, with the error of rank 0; every rank gets one."""
    lines = []
    for what, mistake in REFUSED.items():
        try:
            mistake()
        except (RuntimeError, TypeError, ValueError) as error:
            kinds = comm.allgather(type(error).__name__)
            assert set(kinds) == {kinds[0]}, kinds
            lines.append(f"{what}: {kinds[0]}: {error}")
        else:
            raise AssertionError(f"{what} was not refused on rank {comm.rank}")
    return "\n".join(lines)


torch.set_num_threads(1)
init_process_group(comm)
for name in sys.argv[1:]:
    said = globals()[name]()
    if comm.rank == 0:
        print(f"# {name}\n{said}")
distributed.destroy_process_group()

"""An ordinary DistributedDataParallel training, with three lines that are ours, marked as such.

    mpirun -np 2 python examples/ddp_with_our_collectives.py --allreduce ring
    mpirun -np 2 python examples/ddp_with_our_collectives.py --allreduce ddp     # without our hook

With `python -m mpi4py examples/...` a rank that fails ends the others too; else they would wait.
"""

import argparse
import contextlib
import hashlib
import sys

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from collectives.ddp_hook import init_process_group, register
from collectives.transports.mpi import world


def train(comm, allreduce: str, epochs: int) -> None:
    """Train a small MLP; rank 0 prints the loss of each epoch, then whether replicas are equal."""
    init_process_group(comm)  # OURS: torch.distributed gets the ranks of MPI
    torch.manual_seed(1)  # the same data and the same first parameters on all ranks
    features = torch.randn(4096, 20)
    labels = (features[:, :10].square().sum(1) > features[:, 10:].square().sum(1)).float()
    dataset = TensorDataset(features, labels)
    sampler = DistributedSampler(dataset, comm.size, comm.rank, seed=1)
    batches = DataLoader(dataset, batch_size=64 // comm.size, sampler=sampler)

    net = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 1), nn.Flatten(0))
    model = DistributedDataParallel(net)
    ours = contextlib.nullcontext()
    if allreduce != "ddp":
        ours = register(model, comm, allreduce=allreduce)  # OURS: who adds the gradients

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with ours:  # OURS: closes it at the end
        for epoch in range(epochs):
            sampler.set_epoch(epoch)
            total = torch.zeros(())
            for x, y in batches:
                loss = nn.functional.binary_cross_entropy_with_logits(model(x), y)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += loss.detach()
            distributed.all_reduce(total)  # the rest of the script talks as it always did
            if comm.rank == 0:
                print(f"epoch {epoch + 1}: loss {total / len(batches) / comm.size:.4f}")

    bits = b"".join(parameter.detach().numpy().tobytes() for parameter in net.parameters())
    digests = comm.allgather(hashlib.sha256(bits).hexdigest()[:16])
    if comm.rank == 0:
        verdict = "bit-identical" if len(set(digests)) == 1 else "DIFFERENT"
        print(f"{comm.size} replicas, {verdict}: sha256 {digests[0]}")
    distributed.destroy_process_group()


class Parser(argparse.ArgumentParser):
    """Leaves it to `main` to say what is wrong: once, not on every rank."""

    def error(self, message: str) -> None:
        raise ValueError(message)


def main() -> int:
    """Read the command line and train; wrong arguments are one line and exit code 2."""
    parser = Parser(description="DistributedDataParallel with our all-reduces")
    parser.add_argument("--allreduce", default="auto", help="ddp, or a name such as ring, or auto")
    parser.add_argument("--epochs", type=int, default=3)
    torch.set_num_threads(1)  # as torchrun does: the ranks share the cores
    comm = world()
    try:
        options = parser.parse_args()
        train(comm, options.allreduce, options.epochs)
    except ValueError as error:
        if comm.rank == 0:
            print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

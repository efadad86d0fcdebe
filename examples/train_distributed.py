"""The same loss on many processes as on one: DDP and FSDP2, with accumulation and uneven micro-batches.

    torchrun --nproc-per-node 2 examples/train_distributed.py

Every process also trains alone on all the data, in one batch per step, and the largest differences are printed.
docs/integrations.md explains the few lines that matter.
"""

import argparse
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from byte_lm import IGNORED, Batch, ByteLM, collate, load_samples
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from tensafe.config import load_config
from tensafe.distributed import count_items, gradient_scale
from tensafe.training.losses import ResolvedLoss, resolve_loss

STEPS = 4
ACCUMULATION = 3
ROWS = 2
IDLE = 1  # the step in which the last rank has nothing to learn
Counts = dict[str, Any]


def mean_of_means(loss_fn: ResolvedLoss, window: Sequence[Batch]) -> Counts:
    """Let each micro-batch divide by its own count, for comparison: the mistake that all this is about."""
    return {}


def train(
    wrap: Callable[[ByteLM], nn.Module],
    loss_fn: ResolvedLoss,
    steps: Sequence[Sequence[Batch]],
    count: Callable[[ResolvedLoss, Sequence[Batch]], Counts],
) -> tuple[list[Tensor], list[Tensor]]:
    """Train on a window of micro-batches per step; return the loss of each step, and the parameters at the end."""
    torch.manual_seed(0)
    model = wrap(ByteLM(width=32, layers=2, heads=2).double())
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses: list[Tensor] = []
    for window in steps:
        counts = count(loss_fn, window)
        # the average that DDP and FSDP take of the gradients is undone; a mean of means asks for another one
        scale = gradient_scale() if counts else 1 / len(window)
        total = torch.zeros((), dtype=torch.float64)
        for number, batch in enumerate(window, 1):
            with synchronised(model, number == len(window)):
                loss = loss_fn(model(batch["input_ids"]), batch, **counts)["loss"] * scale
                loss.backward()
            total += loss.detach()
        dist.all_reduce(total)
        losses.append(total / dist.get_world_size())
        optimizer.step()
        optimizer.zero_grad()
    return losses, [whole(parameter) for parameter in model.parameters()]


@contextmanager
def synchronised(model: nn.Module, last: bool) -> Iterator[None]:
    """Leave the exchange of gradients to the last micro-batch of a window."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last)
    idle: AbstractContextManager[Any] = nullcontext()
    if isinstance(model, DistributedDataParallel) and not last:
        idle = model.no_sync()
    with idle:
        yield


def whole(parameter: Tensor) -> Tensor:
    """Return a parameter, put together from its shards."""
    value = parameter.detach()
    return value.full_tensor() if isinstance(value, DTensor) else value


def sharded(model: ByteLM) -> nn.Module:
    """Shard a model over the processes, block by block."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def alone(loss_fn: ResolvedLoss, steps: Sequence[Batch]) -> tuple[list[Tensor], list[Tensor]]:
    """Train without any of this: one batch per step, and the loss's own mean."""
    torch.manual_seed(0)
    model = ByteLM(width=32, layers=2, heads=2).double()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses: list[Tensor] = []
    for batch in steps:
        loss = loss_fn(model(batch["input_ids"]), batch)["loss"]
        loss.backward()
        losses.append(loss.detach())
        optimizer.step()
        optimizer.zero_grad()
    return losses, [parameter.detach() for parameter in model.parameters()]


def micro_batches(world: int) -> tuple[list[Batch], list[list[list[Batch]]]]:
    """Return for each step the whole batch, and its micro-batches by rank."""
    samples, _ = load_samples(context=48, holdout=10)
    size = world * ACCUMULATION * ROWS
    steps: list[Batch] = []
    for step in range(STEPS):
        batch = collate(samples[step * size : (step + 1) * size])
        width = batch["labels"].shape[1]
        for row in range(size):  # completions of many lengths: the later the row, the fewer labels
            batch["labels"][row, width - row * (width - 4) // size :] = IGNORED
        if step == IDLE:
            batch["labels"][-ACCUMULATION * ROWS :] = IGNORED
        steps.append(batch)
    return steps, [split(batch, world) for batch in steps]


def split(batch: Batch, world: int) -> list[list[Batch]]:
    """Cut a batch into micro-batches, by rank."""
    pieces = [
        {name: tensor[start : start + ROWS] for name, tensor in batch.items()}
        for start in range(0, world * ACCUMULATION * ROWS, ROWS)
    ]
    return [pieces[rank * ACCUMULATION : (rank + 1) * ACCUMULATION] for rank in range(world)]


def largest_difference(left: Sequence[Tensor], right: Sequence[Tensor]) -> float:
    """Return the largest absolute difference of any two numbers."""
    return max(float((a - b).abs().max()) for a, b in zip(left, right, strict=True))


def compare(loss_fn: ResolvedLoss) -> None:
    """Train in every way, and print how far each is from training alone."""
    rank, world = dist.get_rank(), dist.get_world_size()
    steps, by_rank = micro_batches(world)
    mine = [ranks[rank] for ranks in by_rank]
    expected = alone(loss_fn, steps)
    labels = [
        [sum(int((b["labels"][:, 1:] != IGNORED).sum()) for b in window) for window in ranks] for ranks in by_rank
    ]
    say(f"loss: {loss_fn}")
    say(f"{world} processes, {STEPS} steps of {ACCUMULATION} micro-batches; labels of each process by step: {labels}")
    for name, wrap, counting in (
        ("DDP", DistributedDataParallel, count_items),
        ("FSDP2", sharded, count_items),
        ("DDP, mean of means", DistributedDataParallel, mean_of_means),
    ):
        started = time.perf_counter()
        losses, parameters = train(wrap, loss_fn, mine, counting)
        difference = largest_difference(losses, expected[0]), largest_difference(parameters, expected[1])
        say(
            f"{name:>18}: largest difference of the loss {difference[0]:.1e}, of the parameters {difference[1]:.1e}; "
            f"{time.perf_counter() - started:.1f} s"
        )


def say(text: str) -> None:
    if dist.get_rank() == 0:
        print(text, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare DDP and FSDP2 with a single process; run it with torchrun.")
    parser.add_argument("--config", type=Path, default=Path(__file__).parent.parent / "configs" / "train_sft.yaml")
    arguments = parser.parse_args()
    if "RANK" not in os.environ:
        parser.error("run it with: torchrun --nproc-per-node 2 examples/train_distributed.py")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    try:
        compare(resolve_loss(load_config(arguments.config).loss))
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()

"""What each of some ranks does in the tests of DDP: an optimizer step of its share of a batch."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tensafe.distributed import count_items, gradient_scale, sum_over_ranks
from tensafe.training.losses import LossInputError, resolve_loss

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

SAMPLES, SEQ, VOCAB = 9, 5, 6

Batch = dict[str, Tensor]
"""The inputs `x` of the model among what the loss wants."""


def tokens(scores: Tensor) -> dict[str, Tensor]:
    return {"logits": scores}


def pairs(scores: Tensor) -> dict[str, Tensor]:
    chosen, rejected = scores.flatten(1).log_softmax(-1)[:, :2].unbind(1)
    return {"chosen_logps": chosen, "rejected_logps": rejected}


def policy(scores: Tensor) -> dict[str, Tensor]:
    return {"logps": scores.log_softmax(-1)[..., 0]}


def regression(scores: Tensor) -> dict[str, Tensor]:
    return {"predictions": scores}


OUTPUTS: Mapping[str, Callable[[Tensor], dict[str, Tensor]]] = {
    "token_ce": tokens,
    "dpo": pairs,
    "grpo": policy,
    "mse": regression,
}
MODES = {"token_ce": ("mean", "sequence_mean"), "dpo": ("mean",), "grpo": ("sequence_mean", "mean"), "mse": ("mean",)}


def whole_batch() -> Batch:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    labels = torch.randint(0, VOCAB, (SAMPLES, SEQ), generator=generator)
    kept = torch.arange(SEQ) < torch.randint(0, SEQ + 1, (SAMPLES, 1), generator=generator)
    return {
        "x": normal(SAMPLES, SEQ, 3),
        "labels": torch.where(kept, labels, -100),
        "mask": kept,
        "advantages": normal(SAMPLES),
        "old_logps": -normal(SAMPLES, SEQ).abs(),
        "ref_chosen_logps": -normal(SAMPLES).abs(),
        "ref_rejected_logps": -normal(SAMPLES).abs(),
        "targets": normal(SAMPLES, SEQ, VOCAB),
    }


def parts_of(batch: Batch, sizes: tuple[tuple[int, ...], ...]) -> list[list[Batch]]:
    """Return the micro-batches of each rank."""
    lengths = [size for rank in sizes for size in rank]
    flat = iter(zip(*(torch.split(tensor, lengths) for tensor in batch.values()), strict=True))
    return [[dict(zip(batch, next(flat), strict=True)) for _ in rank] for rank in sizes]


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, VOCAB)).double()


def step(model: nn.Module, name: str, batches: list[Batch], mode: str) -> float:
    """Do the backward passes of one optimizer step, as docs/scaling.md says; return the loss of all ranks."""
    loss_fn = resolve_loss(name, reduction=mode)
    left_out = {"x", "mask"} if name == "mse" else {"x"}  # that mask has no axis for the classes
    given = [{key: value for key, value in batch.items() if key not in left_out} for batch in batches]
    counts = count_items(loss_fn, given)
    total = torch.zeros((), dtype=torch.float64)
    for index, (x, batch) in enumerate(zip([batch["x"] for batch in batches], given, strict=True)):
        last = index == len(given) - 1
        waiting = nullcontext() if last or not isinstance(model, DistributedDataParallel) else model.no_sync()
        with waiting:
            loss = loss_fn(OUTPUTS[name](model(x)), batch, **counts)["loss"]
            torch.autograd.backward(loss * gradient_scale())
        total += loss.detach()
    return float(sum_over_ranks(total))


def expected(name: str, mode: str) -> tuple[float, list[Tensor]]:
    """Return loss and gradients of the whole batch in one process, which knows nothing of counts."""
    model, batch = make_model(), whole_batch()
    x = batch.pop("x")
    if name == "mse":
        batch.pop("mask")
    loss = resolve_loss(name, reduction=mode)(OUTPUTS[name](model(x)), batch)["loss"]
    torch.autograd.backward(loss)
    return loss.item(), gradients(model)


def gradients(model: nn.Module) -> list[Tensor]:
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


CUTS_OF_2 = (((1, 3, 2), (3,)), ((4, 5), (0,)))
CUTS_OF_4 = (((2, 1), (3,), (2,), (1,)), ((4, 5), (0,), (0, 0), (0,)))


def averaged() -> None:
    """Take the step cut in several ways, with a rank that has nothing too."""
    batch = whole_batch()
    for name, modes in MODES.items():
        for mode in modes:
            loss, wanted = expected(name, mode)
            for sizes in CUTS_OF_2 if dist.get_world_size() == 2 else CUTS_OF_4:
                model = DistributedDataParallel(make_model())
                mine = parts_of(batch, sizes)[dist.get_rank()]
                found = step(model, name, mine, mode)
                assert abs(found - loss) < 1e-14, (name, mode, sizes, found, loss)
                for ours, theirs in zip(gradients(model), wanted, strict=True):
                    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-15)


def counted() -> None:
    """Count over ranks: of sums of losses, of heads that only one rank has seen, of a rank that fails."""
    rank = dist.get_rank()
    labels = {"labels": torch.tensor([[1, 2, 3, -100]] * (rank + 1))}
    loss_fn = resolve_loss(
        "weighted_sum", losses=[{"type": "token_ce"}, {"type": "mtp", "inputs": {"logits": "heads"}}]
    )
    both = count_items(loss_fn, [labels] if rank else [], sizes={"k": 2})["num_items_in_batch"]
    assert [count.tolist() for count in both] == [4.0, [4.0, 2.0]]
    assert count_items(resolve_loss("token_ce"), [labels, labels])["num_items_in_batch"].item() == 12
    alone = [dist.new_group([member]) for member in range(dist.get_world_size())][rank]
    assert count_items(resolve_loss("token_ce"), [labels], alone)["num_items_in_batch"].item() == 2 * (rank + 1)
    assert gradient_scale() == 2
    assert gradient_scale(alone) == 1
    wrong = {"labels": torch.tensor([[0.5]])} if rank else labels
    with pytest.raises(LossInputError, match="'labels' must be int" if rank else "another rank could not count"):
        count_items(resolve_loss("token_ce"), [wrong])

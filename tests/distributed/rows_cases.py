"""Losses whose samples depend on each other, cut over ranks; each function runs on every rank."""

from __future__ import annotations

from collections import UserDict
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.debug import CommDebugMode
from torch.nn.parallel import DistributedDataParallel

from tensafe.distributed import gather_rows, gradient_scale
from tensafe.training.losses import LossInputError, LossTypeError, resolve_loss

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

SAMPLES = 11
EXACT = 1e-12
CUTS_OF_2 = ([7, 4], [11, 0], [0, 11])
CUTS_OF_4 = ([5, 0, 4, 2], [0, 0, 11, 0], [3, 3, 3, 2])

Tensors = dict[str, Tensor]


class Model(nn.Module):
    """A linear layer, what makes outputs of it, and the numbers that some losses learn."""

    def __init__(self, outputs_of: Callable[[Tensor], Tensors], *learnt: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(3, 16).double()
        self.learnt = nn.ParameterDict({name: torch.tensor(1.5, dtype=torch.float64) for name in learnt})
        self._outputs_of = outputs_of

    def forward(self, x: Tensor) -> Tensors:
        return {**self._outputs_of(self.linear(x)), **{name: number * 2 for name, number in self.learnt.items()}}


def pair(y: Tensor) -> Tensors:
    return {"embeddings_a": y[:, :4], "embeddings_b": y[:, 4:8]}


def with_negatives(y: Tensor) -> Tensors:
    return {**pair(y), "embeddings_negative": y[:, 8:].reshape(-1, 2, 4)}


def classed(y: Tensor) -> Tensors:
    return {"embeddings": y[:, :4]}


def scored(y: Tensor) -> Tensors:
    return {"scores": y[:, 0]}


def judged(y: Tensor) -> Tensors:
    return {"logps": -F.softplus(y[:, 0]), "kl_logps": -F.softplus(y[:, 1])}


def compared(y: Tensor) -> Tensors:
    return {"chosen_logps": -F.softplus(y[:, 0]), "rejected_logps": -F.softplus(y[:, 1])}


TAKES: Mapping[str, tuple[Callable[[Tensor], Tensors], tuple[str, ...], tuple[str, ...]]] = {
    "aot": (compared, (), ("ref_chosen_logps", "ref_rejected_logps")),
    "aot_unpaired": (compared, (), ("ref_chosen_logps", "ref_rejected_logps")),
    "batch_hard_triplet": (classed, (), ("labels",)),
    "contrastive": (with_negatives, (), ()),
    "cosent": (scored, (), ("targets",)),
    "kto": (judged, (), ("ref_logps", "ref_kl_logps", "desirable")),
    "multiple_negatives": (with_negatives, (), ()),
    "nt_xent": (pair, (), ()),
    "siglip": (pair, ("logit_scale", "logit_bias"), ()),
    "supcon": (classed, (), ("labels",)),
}
"""What a model makes for each loss, what it learns besides, and what the loss takes of the batch."""


def whole_batch() -> Tensors:
    seeded = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=seeded, dtype=torch.float64)

    references = ("ref_chosen_logps", "ref_rejected_logps", "ref_logps")
    return {
        "x": normal(SAMPLES, 3),
        "labels": torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2, 3, 4]),
        "targets": normal(SAMPLES).round(decimals=1),
        "desirable": normal(SAMPLES) > 0,
        "ref_kl_logps": -4 - normal(SAMPLES).abs(),
        **{name: -normal(SAMPLES).abs() for name in references},
    }


def rows_of(batch: Tensors, cut: list[int]) -> Tensors:
    return {name: torch.split(tensor, cut)[dist.get_rank()] for name, tensor in batch.items()}


def gradients(model: nn.Module) -> list[Tensor]:
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def step(name: str, batch: Tensors, *, ddp: bool, gather: bool) -> tuple[float, list[Tensor]]:
    """Do the backward pass of one step; return its loss and the gradients."""
    outputs_of, learnt, taken = TAKES[name]
    model = Model(outputs_of, *learnt)
    given, loss_fn = {key: batch[key] for key in taken}, resolve_loss(name)
    averaged = DistributedDataParallel(model) if ddp else model
    outputs = averaged(batch["x"])
    if gather:
        loss: Any = loss_fn(gather_rows(outputs), gather_rows(given))["loss"] * gradient_scale()
    else:
        loss = loss_fn(outputs, given)["loss"]
    loss.backward()
    return loss.item() / (gradient_scale() if gather else 1), gradients(model)


def largest_difference(found: list[Tensor], expected: list[Tensor]) -> float:
    assert len(found) == len(expected) >= 2
    return max(float((ours - theirs).abs().max()) for ours, theirs in zip(found, expected, strict=True))


def every_loss() -> None:
    """Compare each loss, cut in several ways, with that of one process; and what negatives of one rank alone give."""
    batch, cuts = whole_batch(), CUTS_OF_2 if dist.get_world_size() == 2 else CUTS_OF_4
    for name in TAKES:
        loss, expected = step(name, batch, ddp=False, gather=False)
        for cut in cuts:
            found, made = step(name, rows_of(batch, cut), ddp=True, gather=True)
            assert abs(found - loss) < EXACT * max(1, loss), (name, cut, found, loss)
            assert largest_difference(made, expected) < EXACT, (name, cut)
        _, naive = step(name, rows_of(batch, cuts[0]), ddp=True, gather=False)
        assert largest_difference(naive, expected) > 1e-4, name


def what_comes_back() -> None:
    """Every dtype, uneven rows, other orders of names, and what is left as it is."""
    rank = dist.get_rank()
    for dtype in (torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.uint8, torch.bool):
        for counts in ([2, 2], [1, 3], [0, 2], [3, 0], [0, 0]):
            whole = (torch.arange(6 * sum(counts)) % 5).view(sum(counts), 3, 2).to(dtype).transpose(1, 2)
            everyone = gather_rows(torch.split(whole, counts)[rank])
            assert everyone.dtype is dtype
            assert torch.equal(everyone, whole), (dtype, counts)
    names = ["b", "a"] if rank else ["a", "b"]
    given = {**{name: torch.tensor([ord(name) + rank]) for name in names}, "texts": ["one"], "step": torch.tensor(rank)}
    made = gather_rows(given)
    assert list(made) == [*names, "texts", "step"]
    assert [made["a"].tolist(), made["b"].tolist()] == [[97, 98], [98, 99]]
    assert made["texts"] is given["texts"]
    assert made["step"] is given["step"]
    assert gather_rows(torch.zeros(1, 0)).shape == (2, 0)
    assert isinstance(gather_rows(UserDict(given)), dict)
    alone = [dist.new_group([member]) for member in range(2)][rank]
    assert gather_rows(given, alone) is given


def whose_gradient() -> None:
    """A rank gets the gradient of its rows, and its share of that of a number that all have; nothing is sent."""
    rank = dist.get_rank()
    rows: Any = torch.arange(3.0).add(10 * rank)[: 2 + rank].requires_grad_()
    number: Any = torch.tensor(3.0, requires_grad=True)
    counting: Any = CommDebugMode
    with counting() as forwards:
        made = gather_rows({"rows": rows, "number": number, "flags": rows.detach() > 0})
    assert forwards.get_total_counts() == 3  # what rows there are, then two tensors
    assert not made["flags"].requires_grad
    with counting() as backwards:
        (made["rows"] * torch.arange(1.0, 6.0) * made["number"]).sum().backward()
    assert backwards.get_total_counts() == 0
    assert rows.grad.tolist() == ([9.0, 12.0, 15.0] if rank else [3.0, 6.0])
    assert number.grad.item() == (0 + 2 + 30 + 44 + 60) / 2
    with torch.no_grad():
        assert not gather_rows(rows).requires_grad
    (gradient,) = torch.autograd.grad(gather_rows(rows).square().sum(), rows, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def refusals() -> None:
    """All ranks raise, whichever is wrong, and can go on."""
    rank, fine = dist.get_rank(), torch.zeros(2, 3)
    failed = "another rank could not gather; see its error"
    mesh = init_device_mesh("cpu", (2,))
    wrong: tuple[tuple[Any, type[Exception], str], ...] = (
        ([fine], LossTypeError, r"takes a tensor, or a mapping of named ones; got list\. Name what the loss needs"),
        ({"a": fine, "b": fine[:1]}, LossInputError, "'b' has 1 rows and 'a' 2; expected as many"),
        (fine.to_sparse(), LossInputError, "the tensor is sparse or quantized"),
        ({"a": DTensor.from_local(fine, mesh, [Shard(0)])}, LossInputError, r"'a' is a DTensor.*to_local\(\)"),
    )
    for given, kind, message in wrong:
        for culprit in (0, 1):
            with pytest.raises(
                kind if rank == culprit else LossInputError, match=message if rank == culprit else failed
            ):
                gather_rows(given if rank == culprit else {"a": fine})
    unlike: tuple[tuple[Any, str], ...] = (
        ({"a": fine.double()}, r"'a' is float32\[rows 3\] on rank 0 and float64\[rows 3\] on rank 1"),
        ({"a": fine[:, :2]}, r"'a' is float32\[rows 3\] on rank 0 and float32\[rows 2\] on rank 1.*pad the rest"),
        ({"a": fine[0, 0]}, r"'a' is float32\[rows 3\] on rank 0 and float32\[\] on rank 1"),
        ({"a": fine, "b": fine}, r"'b' is missing on rank 0 and float32\[rows 3\] on rank 1"),
        (fine, "the tensor is missing on rank 0"),
    )
    for given, message in unlike:
        with pytest.raises(LossInputError, match=message):
            gather_rows(given if rank else {"a": fine})
    assert gather_rows(fine).shape == (4, 3)


def all_of_it() -> None:
    for case in CASES:
        case()


CASES = (every_loss, what_comes_back, whose_gradient, refusals)

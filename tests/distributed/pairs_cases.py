"""Contrastive losses of pairs that are spread over ranks against the same on whole ones; each runs on every rank."""

from __future__ import annotations

from itertools import product
from typing import Any, cast
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.nn.parallel import DistributedDataParallel

from distributed.spread_cases import close, laid_out, line
from tensafe.distributed import gradient_scale
from tensafe.training.losses import LossInputError, resolve_loss
from tensafe.training.losses.ops import lean

HIDDEN = 4
LOSSES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("contrastive", {}),
    ("contrastive", {"margin": 0.2, "reduction": "none"}),
    ("contrastive", {"temperature": 0.5, "reduction": "sum"}),
    ("multiple_negatives", {}),
    ("multiple_negatives", {"reduction": "none"}),
    ("multiple_negatives", {"symmetric": True, "similarity": "dot", "scale": 1.0}),
)


def embeddings(rows: int, *, negatives: bool = True) -> dict[str, Tensor]:
    seeded = torch.Generator().manual_seed(rows)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=seeded)

    made = {name: draw(rows, HIDDEN) for name in ("embeddings_a", "embeddings_b")}
    return {**made, "embeddings_negative": draw(rows, 2, HIDDEN)} if negatives else made


def compare(
    name: str, kwargs: dict[str, Any], outputs: dict[str, Tensor], layout: tuple[DeviceMesh, Any], **counts: Any
) -> None:
    """Compare value, metrics and gradients with those of whole embeddings."""
    loss_fn: Any = resolve_loss(name, **kwargs)
    leaves: dict[str, Any] = {key: tensor.clone().requires_grad_() for key, tensor in outputs.items()}
    expected = loss_fn(leaves, {}, **counts)
    (expected["loss"] * 0.7).sum().backward()
    spread: dict[str, Any] = {key: laid_out(tensor, layout).requires_grad_() for key, tensor in outputs.items()}
    found = loss_fn(spread, {}, **counts)
    (found["loss"] * 0.7).sum().backward()
    assert isinstance(found["loss"], DTensor)
    close(found["loss"], expected["loss"])
    close(found["metrics"]["positive_similarity"], expected["metrics"]["positive_similarity"])
    for key, leaf in leaves.items():
        assert spread[key].grad.placements == layout[1]
        close(spread[key].grad, leaf.grad)


def every_kwarg() -> None:
    """Even and uneven rows, ranks without one, in one chunk and in many."""
    mesh = line()
    for (name, kwargs), (rows, chunk) in product(LOSSES, ((8, 2**19), (7, 8), (1, 8))):
        with patch.object(lean, "CHUNK_ON_CPU", chunk):
            compare(name, kwargs, embeddings(rows, negatives=rows != 8), (mesh, (Shard(0),)))
    for rows, negatives in product((0, 3), (True, False)):
        compare("contrastive", {}, embeddings(rows, negatives=negatives), (mesh, (Shard(0),)))
    for count in (40, torch.tensor(40.0)):
        compare("contrastive", {}, embeddings(7), (mesh, (Shard(0),)), num_items_in_batch=count)
    compare("contrastive", {}, embeddings(7, negatives=False), (mesh, (Replicate(),)))  # by torch's own operations


def other_ways() -> None:
    """The gradient of one side, none at all, a second backward pass, and half precision."""
    mesh, loss_fn = line(), resolve_loss("contrastive")
    outputs = embeddings(7)
    for key in outputs:
        leaf: Any = outputs[key].clone().requires_grad_()
        expected: Any = loss_fn({**outputs, key: leaf}, {})["loss"]
        expected.backward()
        spread: dict[str, Any] = {name: laid_out(tensor, (mesh, (Shard(0),))) for name, tensor in outputs.items()}
        spread[key].requires_grad_()
        loss: Any = loss_fn(spread, {})["loss"]
        loss.backward(retain_graph=True)
        loss.backward()
        close(spread[key].grad, 2 * leaf.grad)
        with torch.no_grad():
            close(loss_fn(spread, {})["loss"], expected)
    half = {key: tensor.bfloat16() for key, tensor in outputs.items()}
    spread = {key: laid_out(tensor, (mesh, (Shard(0),))) for key, tensor in half.items()}
    assert loss_fn(spread, {})["loss"].dtype is torch.float32
    close(loss_fn(spread, {})["loss"], loss_fn(half, {})["loss"], 1e-5)


def collectives() -> None:
    """Candidates travel once, and their gradients; with both directions two numbers per pair, and what comes down."""
    mesh, counting = line(), cast("Any", CommDebugMode)
    for name, gathers, reductions in (("contrastive", 3, 2), ("multiple_negatives", 2, 2)):
        loss_fn: Any = resolve_loss(name, metrics=False)
        spread: dict[str, Any] = {
            key: laid_out(tensor, (mesh, (Shard(0),))).requires_grad_() for key, tensor in embeddings(8).items()
        }
        with counting() as mode:
            loss_fn(spread, {})["loss"].backward()
        sent = {str(key).rpartition(".")[2]: count for key, count in mode.get_comm_counts().items()}
        assert sent["all_gather_into_tensor"] == gathers
        assert sent["reduce_scatter_tensor"] == reductions


def averaged() -> None:
    """The gradient of parameters under DDP, each rank giving the embeddings of its own rows."""
    x = torch.randn(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mesh, loss_fn = line(), resolve_loss("contrastive")

    def model() -> nn.Module:
        torch.manual_seed(0)
        return nn.Linear(3, 2 * HIDDEN).double()

    alone, together = model(), DistributedDataParallel(model())
    a, b = alone(x).chunk(2, 1)
    expected: Any = loss_fn({"embeddings_a": a, "embeddings_b": b}, {})["loss"]
    expected.backward()
    sides = together(whole_rows(x)).chunk(2, 1)
    shape, stride = torch.Size((7, HIDDEN)), (HIDDEN, 1)
    a, b = (DTensor.from_local(side, mesh, [Shard(0)], shape=shape, stride=stride) for side in sides)
    loss: Any = loss_fn({"embeddings_a": a, "embeddings_b": b}, {})["loss"]
    (loss * gradient_scale()).backward()
    close(loss, expected)
    for ours, theirs in zip(together.parameters(), alone.parameters(), strict=True):
        close(ours.grad, theirs.grad)


def whole_rows(x: Tensor) -> Tensor:
    """Return the rows of this rank, as DTensor cuts them."""
    return distribute_tensor(x, line(), [Shard(0)], src_data_rank=None).to_local()


def refusals() -> None:
    mesh, loss_fn = line(), resolve_loss("contrastive")
    rank = dist.get_rank()
    local = torch.zeros(3 - (rank > 0), HIDDEN, dtype=torch.float64)  # each thinks that the others have as many
    sides = {name: DTensor.from_local(local, mesh, [Shard(0)]) for name in ("embeddings_a", "embeddings_b")}
    with pytest.raises(LossInputError, match=r"different ideas of how many rows.*gather_rows"):
        loss_fn(sides, {})
    total = 2 * dist.get_world_size()
    local = torch.zeros(2 + (rank == 0) - (rank == 1), HIDDEN)
    shape, stride = torch.Size((total, HIDDEN)), (HIDDEN, 1)
    sides = {
        name: DTensor.from_local(local, mesh, [Shard(0)], shape=shape, stride=stride)
        for name in ("embeddings_a", "embeddings_b")
    }
    wrong = rf"{len(local)} of {total} rows are on this rank, where DTensor puts 2" if rank < 2 else "different ideas"
    with pytest.raises(LossInputError, match=wrong):
        loss_fn(sides, {})
    spread: dict[str, Any] = {
        key: laid_out(tensor, (mesh, (Shard(0),))).requires_grad_() for key, tensor in embeddings(7).items()
    }
    loss: Any = loss_fn(spread, {})["loss"]
    with pytest.raises(LossInputError, match=r"create_graph.*full_tensor"):
        torch.autograd.grad(loss, spread["embeddings_a"], create_graph=True)


def square() -> None:
    """Four ranks, two by two: rows over one dimension of the mesh, and the same again over the other."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    for (name, kwargs), rows in product(LOSSES, (7, 1)):
        for placements in ((Shard(0), Replicate()), (Replicate(), Shard(0))):
            compare(name, kwargs, embeddings(rows), (mesh, placements))


def all_of_it() -> None:
    for case in CASES:
        case()


CASES = (every_kwarg, other_ways, collectives, averaged, refusals)

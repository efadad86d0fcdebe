"""Losses of logits that are spread over ranks against the same on whole ones; each function runs on every rank."""

from __future__ import annotations

from contextlib import nullcontext
from itertools import product
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import loss_parallel
from torch.utils._python_dispatch import TorchDispatchMode

from tensafe.training.losses import LossInputError, resolve_loss
from tensafe.training.losses.ops import lean
from tensafe.training.losses.ops.logps import logps

BATCH, SEQ, VOCAB, HIDDEN = 4, 5, 7, 3  # 7 classes: 4 and 3 on two ranks, 2, 2, 2 and 1 on four
EXACT = 1e-12

KWARGS: tuple[dict[str, Any], ...] = (
    {},
    {"label_smoothing": 0.1},
    {"label_smoothing": 0.3, "smoothing_formula": "megatron"},
    {"class_weights": [0.5, 1.0, 2.0, 0.0, 1.0, 3.0, 1.0], "label_smoothing": 0.2},
    {"z_loss": 0.1},
    {"softcap": 2.0},
    {"logit_scale": 0.3, "shift": False},
    {"ignore_index": 3},
    {"label_smoothing": 0.1, "z_loss": 0.1, "softcap": 2.0, "logit_scale": 3.0},
)
REDUCTIONS: tuple[dict[str, Any], ...] = (
    {"reduction": "mean"},
    {"reduction": "sum"},
    {"reduction": "none"},
    {"reduction": "sequence_mean"},
    {"reduction": "sequence_sum"},
    {"reduction": "sequence_sum_norm", "max_length": 9},
)


class Sample:
    """A batch, the same on every rank."""

    def __init__(self, dtype: torch.dtype = torch.float64, vocab: int = VOCAB) -> None:
        seeded = torch.Generator().manual_seed(1)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, dtype=torch.float64, generator=seeded).to(dtype)

        self.logits = 5 * draw(BATCH, SEQ, vocab)
        self.hidden, self.weight, self.bias = draw(BATCH, SEQ, HIDDEN), draw(vocab, HIDDEN), draw(vocab)
        self.labels = torch.randint(0, vocab, (BATCH, SEQ), generator=seeded)
        self.labels[0, 1:3], self.labels[1] = -100, -100
        self.logits[0, 1] = torch.nan  # it is scored against a label that is ignored, shifted or not
        self.token_weights = torch.rand((BATCH, SEQ), generator=seeded).round(decimals=1)
        self.token_weights[3, 1] = 0
        self.sample_weights = torch.rand(BATCH, generator=seeded)

    def batch(self, weights: bool = False, ignore_index: int = -100) -> dict[str, Tensor]:
        batch = {"labels": torch.where(self.labels == -100, ignore_index, self.labels)}
        return (
            {**batch, "token_weights": self.token_weights, "sample_weights": self.sample_weights} if weights else batch
        )


def batch_of(sample: Sample, kwargs: dict[str, Any], weights: bool = False) -> dict[str, Tensor]:
    return sample.batch(weights, kwargs.get("ignore_index", -100))


def line() -> DeviceMesh:
    return init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("tensor",))


def leaf_over(mesh: DeviceMesh, logits: Tensor) -> Any:
    """Return logits whose vocabulary is spread over the mesh."""
    return distribute_tensor(logits, mesh, [Shard(2)], src_data_rank=None).requires_grad_()


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def close(found: Any, expected: Any, tolerance: float = EXACT) -> None:
    torch.testing.assert_close(whole(found.detach()), expected.detach(), rtol=tolerance, atol=tolerance)


def compare(
    name: str,
    kwargs: dict[str, Any],
    outputs: dict[str, Tensor],
    batch: dict[str, Tensor],
    layout: dict[str, tuple[DeviceMesh, tuple[Any, ...]]],
    tolerance: float = EXACT,
    **counts: Any,
) -> None:
    """Compare a loss of tensors that are laid out as said with that of whole ones: value, metrics and gradients."""
    loss_fn = resolve_loss(name, **kwargs)
    leaves = {key: tensor.clone().requires_grad_() for key, tensor in outputs.items()}
    upstream = 0.7
    expected: Any = loss_fn(leaves, batch, **counts)
    (expected["loss"] * upstream).sum().backward()
    spread = {key: laid_out(tensor, layout.get(key)).requires_grad_() for key, tensor in outputs.items()}
    before = {key: tensor.detach().clone() for key, tensor in spread.items()}
    found: Any = loss_fn(spread, {key: laid_out(tensor, layout.get(key)) for key, tensor in batch.items()}, **counts)
    (found["loss"] * upstream).sum().backward()
    assert isinstance(found["loss"], DTensor) == ("labels" in layout)
    close(found["loss"], expected["loss"], tolerance)
    for key, metric in expected["metrics"].items():
        close(found["metrics"][key], metric, tolerance)
    for key, leaf in leaves.items():
        gradient = spread[key].grad
        assert gradient is not None
        assert leaf.grad is not None
        close(gradient, leaf.grad, tolerance)
        if key in layout:
            assert isinstance(gradient, DTensor)
            assert gradient.placements == layout[key][1]
        torch.testing.assert_close(whole(spread[key].detach()), whole(before[key]), rtol=0, atol=0, equal_nan=True)


def laid_out(tensor: Tensor, layout: tuple[DeviceMesh, tuple[Any, ...]] | None) -> Tensor:
    return tensor.clone() if layout is None else distribute_tensor(tensor, *layout, src_data_rank=None)


def every_kwarg() -> None:
    sample, mesh = Sample(), line()
    logits, labels = (mesh, (Shard(2),)), (mesh, (Replicate(),))
    pairs = [*product(KWARGS, REDUCTIONS[:3:2]), *product(KWARGS[:4:3], REDUCTIONS)]
    for kwargs, reduction in pairs:
        batch = batch_of(sample, kwargs, weights=True)
        compare("token_ce", kwargs | reduction, {"logits": sample.logits}, batch, {"logits": logits})
    for kwargs in KWARGS:
        both = {"logits": logits, "labels": labels}
        compare("token_ce", kwargs, {"logits": sample.logits}, batch_of(sample, kwargs), both)
    for reduction in REDUCTIONS:
        both = {"logits": logits, "labels": labels}
        compare("token_ce", reduction, {"logits": sample.logits}, sample.batch(True), both)
    compare("token_ce", {}, {"logits": sample.logits}, sample.batch(), {"logits": logits}, num_items_in_batch=40)


def every_layout() -> None:
    """All placements of one mesh dimension, few and many classes, masked classes, inside torch's own context."""
    sample, mesh = Sample(), line()
    kwargs = {"label_smoothing": 0.1, "z_loss": 0.1}
    for placement, reduction in product((Shard(0), Shard(1), Shard(2), Replicate()), ("mean", "none")):
        for labels in (None, (mesh, (Replicate(),)), (mesh, (Shard(0),))):
            layout: dict[str, Any] = {"logits": (mesh, (placement,))} | ({"labels": labels} if labels else {})
            options = kwargs | {"reduction": reduction}
            compare("token_ce", options, {"logits": sample.logits}, sample.batch(labels is None), layout)
    for vocab in (1, 3, 8):
        small = Sample(vocab=vocab)
        with patch.object(lean, "CHUNK_ON_CPU", 8):  # a few rows at a time
            compare("token_ce", kwargs, {"logits": small.logits}, small.batch(), {"logits": (mesh, (Shard(2),))})
    sample.logits[..., 4:] = -torch.inf  # all that the last rank has, as where a vocabulary is padded
    sample.labels.clamp_(max=3)
    compare("token_ce", {}, {"logits": sample.logits}, sample.batch(), {"logits": (mesh, (Shard(2),))})


def linear() -> None:
    sample, mesh = Sample(), line()
    sample.hidden[0, 1] = torch.nan
    outputs = {"hidden_states": sample.hidden, "lm_head_weight": sample.weight, "lm_head_bias": sample.bias}
    cut, everywhere, by_seq = (mesh, (Shard(0),)), (mesh, (Replicate(),)), (mesh, (Shard(1),))
    layout: dict[str, Any] = {"lm_head_weight": cut, "lm_head_bias": cut}
    for kwargs, reduction in product(KWARGS, ("mean", "none")):
        options = kwargs | {"reduction": reduction, "chunk_size": 6}
        compare("linear_ce", options, outputs, batch_of(sample, kwargs, True), layout)
    for hidden, weight in product((None, everywhere, by_seq, cut), (cut, everywhere)):
        layout = {"lm_head_weight": weight} | ({"hidden_states": hidden} if hidden else {})
        compare("linear_ce", {}, outputs, sample.batch(), layout)
        compare("linear_ce", {"metrics": False}, outputs, sample.batch(), layout | {"labels": everywhere})


def log_probabilities() -> None:
    sample, mesh = Sample(), line()
    chosen, rejected = sample.logits.nan_to_num(), sample.logits.nan_to_num().flip(0)
    outputs = {"chosen_logits": chosen, "rejected_logits": rejected}
    reference = {f"ref_{side}_logps": torch.linspace(-9, -3, BATCH) for side in ("chosen", "rejected")}
    batch = {"chosen_labels": sample.labels, "rejected_labels": sample.labels.roll(1, 1), **reference}
    compare("dpo", {}, outputs, batch, {key: (mesh, (Shard(2),)) for key in outputs})
    for name in ("dft", "focal"):
        compare(name, {}, {"logits": chosen}, sample.batch(), {"logits": (mesh, (Shard(2),))})
    leaf: Any = sample.logits.clone().requires_grad_()
    expected: Any = logps(leaf, sample.labels.roll(-1, 1), temperature=0.5)
    expected.sum().backward()
    spread = leaf_over(mesh, sample.logits)
    found: Any = logps(spread, sample.labels.roll(-1, 1), temperature=0.5)
    found.sum().backward()
    assert type(found) is Tensor
    close(spread.grad, leaf.grad)


def half_precision() -> None:
    mesh = line()
    for dtype in (torch.float16, torch.bfloat16):
        sample = Sample(dtype)
        tolerance = 2 * torch.finfo(dtype).eps
        loss_fn = resolve_loss("token_ce", label_smoothing=0.1)
        loss = loss_fn({"logits": leaf_over(mesh, sample.logits)}, sample.batch())["loss"]
        assert isinstance(loss, Tensor)
        assert loss.dtype is torch.float32
        compare("token_ce", {}, {"logits": sample.logits}, sample.batch(), {"logits": (mesh, (Shard(2),))}, tolerance)
        outputs = {"hidden_states": sample.hidden, "lm_head_weight": sample.weight}
        compare("linear_ce", {}, outputs, sample.batch(), {"lm_head_weight": (mesh, (Shard(0),))}, tolerance)


def in_context() -> None:
    """Inside torch's own context too, backward inside or outside, and a second time."""
    sample, mesh = Sample(), line()
    loss_fn: Any = resolve_loss("token_ce", label_smoothing=0.1, overwrite_logits=True)
    leaf: Any = sample.logits.clone().requires_grad_()
    loss_fn({"logits": leaf}, sample.batch())["loss"].backward()
    contexts: tuple[Any, ...] = (nullcontext, loss_parallel)
    for forward, backward in product(contexts, repeat=2):
        spread = leaf_over(mesh, sample.logits)
        with forward():
            loss = loss_fn({"logits": spread}, sample.batch())["loss"]
        with backward():
            loss.backward(retain_graph=True)
            loss.backward()
        close(spread.grad, 2 * leaf.grad)
    with torch.no_grad():
        parts = DTensor.from_local(sample.logits / dist.get_world_size(), mesh, [Partial()])
        scattered = parts.redistribute(placements=[Shard(2)])  # on its way still, when the loss gets it
        close(loss_fn({"logits": scattered}, sample.batch())["loss"], loss_fn({"logits": leaf}, sample.batch())["loss"])


def refusals() -> None:
    sample, mesh = Sample(), line()
    loss_fn = resolve_loss("token_ce")
    spread = leaf_over(mesh, sample.logits)
    partial = DTensor.from_local(sample.logits, mesh, [Partial()])
    with pytest.raises(LossInputError, match=r"'logits' is Partial\(sum\) on mesh dimension 'tensor'.*redistribute"):
        loss_fn({"logits": partial}, sample.batch())
    # 4 and 3 classes, each rank thinking that the other has as many; then 3 and 4, which is not how DTensor cuts
    uneven = DTensor.from_local(torch.zeros(BATCH, SEQ, 4 - dist.get_rank()), mesh, [Shard(2)])
    with pytest.raises(LossInputError, match=r"ideas of its size.*from_local"):
        loss_fn({"logits": uneven}, {"labels": sample.labels.clamp(max=1)})
    local = torch.zeros(BATCH, SEQ, 3 + dist.get_rank())
    shape, stride = sample.logits.shape, sample.logits.stride()
    uneven = DTensor.from_local(local, mesh, [Shard(2)], shape=shape, stride=stride)
    with pytest.raises(LossInputError, match="classes on this rank, where DTensor puts"):
        loss_fn({"logits": uneven}, sample.batch())
    other = sample.labels.clone()
    other[2, 2] = dist.get_rank()
    with pytest.raises(LossInputError, match="different labels"):
        loss_fn({"logits": spread}, {"labels": other})
    outside = sample.labels.clone()
    outside[2, 2] = VOCAB
    with pytest.raises(LossInputError, match="labels"):
        loss_fn({"logits": spread}, {"labels": outside})
    loss: Any = loss_fn({"logits": spread}, sample.batch())["loss"]
    with pytest.raises(LossInputError, match=r"create_graph.*full_tensor"):
        torch.autograd.grad(loss, spread, create_graph=True)
    weight = distribute_tensor(sample.weight, mesh, [Shard(1)], src_data_rank=None)
    with pytest.raises(LossInputError, match="expected Shard"):
        resolve_loss("linear_ce")({"hidden_states": sample.hidden, "lm_head_weight": weight}, sample.batch())


def bytes_sent() -> None:
    """Two all-reduces, of rows + 2 and of 2 or 3 numbers per row, and nothing in the backward pass."""
    sample, mesh = Sample(torch.float32), line()
    counting: Any = CommDebugMode
    given: tuple[dict[str, Any], ...] = ({}, {"label_smoothing": 0.1, "z_loss": 0.1, "softcap": 9.0})
    reducing: Any = Reduced
    for kwargs, numbers in zip(given, (2, 3), strict=True):
        spread = leaf_over(mesh, sample.logits)
        loss_fn: Any = resolve_loss("token_ce", **kwargs)
        with counting() as mode, reducing() as reduced:
            loss_fn({"logits": spread}, sample.batch())["loss"].backward()
        assert mode.get_total_counts() == 2
        rows = BATCH * SEQ
        assert reduced.sizes == [4 * (rows + 2), 4 * rows * numbers]


class Reduced(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's __init_subclass__ is untyped
    """Notes how many bytes go into each all-reduce."""

    def __enter__(self) -> Reduced:
        self.sizes: list[int] = []
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "allreduce" in func.__name__:
            self.sizes.append(sum(tensor.nbytes for tensor in args[0]))
        return func(*args, **(kwargs or {}))


def square() -> None:
    """Four ranks, two by two: rows over one dimension of the mesh and the vocabulary over the other."""
    sample = Sample()
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    for logits, kwargs, reduction in product(
        ((Shard(0), Shard(2)), (Shard(2), Shard(0)), (Replicate(), Shard(2)), (Shard(1), Shard(2))), KWARGS, REDUCTIONS
    ):
        layout = {"logits": (mesh, logits)}
        compare("token_ce", kwargs | reduction, {"logits": sample.logits}, batch_of(sample, kwargs, True), layout)
    for labels in ((Replicate(), Replicate()), (Shard(0), Replicate())):
        layout = {"logits": (mesh, (Shard(0), Shard(2))), "labels": (mesh, labels)}
        for kwargs, reduction in product(KWARGS, REDUCTIONS):
            compare("token_ce", kwargs | reduction, {"logits": sample.logits}, batch_of(sample, kwargs), layout)
    outputs = {"hidden_states": sample.hidden, "lm_head_weight": sample.weight, "lm_head_bias": sample.bias}
    for hidden in ((Shard(0), Replicate()), (Shard(0), Shard(1)), (Replicate(), Replicate())):
        layout = {"lm_head_weight": (mesh, (Replicate(), Shard(0))), "hidden_states": (mesh, hidden)}
        for kwargs in KWARGS:
            compare("linear_ce", kwargs, outputs, batch_of(sample, kwargs, True), layout)


def all_of_it() -> None:
    for case in CASES:
        case()


CASES = (every_kwarg, every_layout, linear, log_probabilities, half_precision, in_context, refusals, bytes_sent)

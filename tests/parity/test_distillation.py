"""The distillation losses against those of other libraries: values and gradients, and where they differ by design."""

from __future__ import annotations

import importlib
import warnings
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import pytest
import torch

from tensafe.training.losses import resolve_loss

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

LABELS = torch.tensor([[-100, -100, 3, 1, 4], [-100, 5, 2, -100, -100], [1, 2, 3, 4, 5]])
COUNTS = LABELS != -100


def logits(seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return 2 * torch.randn(3, 5, 11, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def peer(library: str, module: str, record: Callable[[str, object], None]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what it warns of on import is its own affair
        pytest.importorskip(library)
        record("peer", f"{library} {version(library.replace('_', '-'))}")
        return importlib.import_module(module)


def value_and_gradient(loss: Callable[[Tensor], Tensor], dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    leaf = logits(0, dtype).requires_grad_()
    value = loss(leaf)
    (gradient,) = torch.autograd.grad(value, leaf)
    return value.detach(), gradient


def ours(name: str, dtype: torch.dtype = torch.float64, **kwargs: Any) -> tuple[Tensor, Tensor]:
    batch = {"teacher_logits": logits(1, dtype), "labels": LABELS}
    loss_fn = resolve_loss(name, shift=False, **kwargs)
    return value_and_gradient(lambda student: loss_fn({"logits": student}, batch)["loss"], dtype)


def assert_same(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    tolerance: dict[str, Any] = (
        {"rtol": 1e-10, "atol": 1e-12} if found[0].dtype is torch.float64 else {"rtol": 1e-5, "atol": 1e-6}
    )
    torch.testing.assert_close(found, expected, **tolerance)


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("trainer", ["gkd.gkd_trainer.GKDTrainer", "gold.gold_trainer.GOLDTrainer"])
def test_jsd_of_trl(
    trainer: str, beta: float, temperature: float, record_property: Callable[[str, object], None]
) -> None:
    module, _, name = trainer.rpartition(".")
    theirs = getattr(peer("trl", f"trl.experimental.{module}", record_property), name).generalized_jsd_loss
    kwargs: dict[str, Any] = {"beta": beta, "temperature": temperature}
    expected = value_and_gradient(lambda student: theirs(student, logits(1), LABELS, **kwargs))
    assert_same(ours("jsd", **kwargs), expected)
    end = {0.0: "forward_kl", 1.0: "reverse_kl"}.get(beta)
    if end is not None:
        assert_same(ours(end, temperature=temperature), expected)


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 1.0])
def test_jsd_of_liger(beta: float, record_property: Callable[[str, object], None]) -> None:
    module = peer("liger_kernel", "liger_kernel.chunked_loss.jsd_loss", record_property)
    theirs = module.LigerFusedLinearJSDFunction.distillation_loss_fn

    def total(student: Tensor) -> Tensor:
        flat = [each.flatten(0, 1) for each in (student, logits(1))]
        result: Tensor = theirs(*flat, beta=beta, target=LABELS.flatten())
        return result

    assert_same(ours("jsd", beta=beta, reduction="sum"), value_and_gradient(total))


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_hard_and_soft_loss_of_liger(
    alpha: float, temperature: float, record_property: Callable[[str, object], None]
) -> None:
    """Liger's distillation with beta 0, of hidden states and an output layer that are the logits themselves."""
    module = peer("liger_kernel", "liger_kernel.chunked_loss.jsd_loss", record_property)
    layer = torch.eye(11)
    theirs = module.LigerFusedLinearJSDLoss(
        weight_hard_loss=1 - alpha, weight_soft_loss=alpha, beta=0.0, temperature=temperature, compiled=False
    )

    def loss(student: Tensor) -> Tensor:
        flat = [each.flatten(0, 1) for each in (student, logits(1, torch.float32))]
        result: Tensor = theirs(flat[0], layer, flat[1], layer, LABELS.flatten())
        return result

    expected = value_and_gradient(loss, torch.float32)
    assert_same(ours("ce_kd", torch.float32, alpha=alpha, temperature=temperature), expected)


def entropy_of_teacher() -> Tensor:
    log_p = logits(1, torch.float32).log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1)[COUNTS].mean()


@pytest.mark.parametrize(
    ("name", "theirs", "share", "kwargs"),
    [
        ("forward_kl", "ForwardKLLoss", 1.0, {}),
        ("reverse_kl", "ReverseKLLoss", 0.0, {}),
        ("symmetric_kl", "SymmetricKLLoss", 0.5, {}),
        ("symmetric_kl", "SymmetricKLLoss", 0.2, {"ratio": 0.2}),
        ("symmetric_kl", "SymmetricKLLoss", 1.0, {"ratio": 1.0}),
    ],
)
def test_kl_of_torchtune(
    name: str, theirs: str, share: float, kwargs: Any, record_property: Callable[[str, object], None]
) -> None:
    """Its forward term is a cross-entropy: larger by the entropy of the teacher, with the same gradient."""
    module = peer("torchtune", "torchtune.modules.loss", record_property)
    loss_fn = getattr(module, theirs)(**({"sym_kd_ratio": kwargs["ratio"]} if kwargs else {}))
    teacher = logits(1, torch.float32).flatten(0, 1)
    value, gradient = value_and_gradient(
        lambda student: loss_fn(student.flatten(0, 1), teacher, LABELS.flatten()), torch.float32
    )
    assert_same(ours(name, torch.float32, **kwargs), (value - share * entropy_of_teacher(), gradient))


@pytest.mark.parametrize(("tail", "add_tail"), [("bucket", True), ("renormalise_both", False)])
@pytest.mark.parametrize("k", [1, 4])
def test_top_k_of_trl(tail: Any, add_tail: bool, k: int, record_property: Callable[[str, object], None]) -> None:
    module = peer("trl", "trl.experimental.iw_opd.iw_opd_trainer", record_property)
    theirs = module.IWOPDTrainer.generalized_jsd_loss
    teacher = logits(1).log_softmax(-1).topk(k, -1)
    batch = {"teacher_ids": teacher.indices, "teacher_logps": teacher.values, "labels": LABELS}
    for temperature in (1.0, 2.0) if tail == "renormalise_both" else (1.0,):
        options = {"beta": 0.0, "temperature": temperature, "top_k": k, "add_tail": add_tail}
        loss_fn = resolve_loss("topk_kl", shift=False, tail=tail, temperature=temperature)
        leaves = [logits(0).requires_grad_() for _ in range(2)]
        values = theirs(leaves[0], logits(1), LABELS, **options), loss_fn({"logits": leaves[1]}, batch)["loss"]
        expected, found = (
            (value.detach(), *torch.autograd.grad(value, leaf)) for value, leaf in zip(values, leaves, strict=True)
        )
        assert_same(found, expected)


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl"])
def test_kl_div_of_torch(name: str) -> None:
    def mean(student: Tensor) -> Tensor:
        pair = [each[COUNTS].log_softmax(-1) for each in (student, logits(1))]
        target, scored = pair if name == "reverse_kl" else pair[::-1]
        return torch.nn.functional.kl_div(scored, target, log_target=True, reduction="batchmean")

    assert_same(ours(name), value_and_gradient(mean))

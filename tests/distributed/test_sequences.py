"""Labels that are shifted before a sequence is cut."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from tensafe.distributed import shifted_labels, shifted_weights
from tensafe.training.losses import LossInputError, resolve_loss

BATCH, SEQ, VOCAB = 2, 8, 5


@pytest.fixture
def logits() -> Tensor:
    return torch.randn(BATCH, SEQ, VOCAB, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


LABELS = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2], [3, -100, 4, 0, 1, -100, -100, 2]])
WEIGHTS = torch.arange(1.0, 17.0, dtype=torch.float64).reshape(BATCH, SEQ) / 8
SEGMENTS = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1], [4, 4, 4, 4, 4, 4, 7, 7]])


def in_order(tensor: Tensor, parts: int) -> list[Tensor]:
    return list(tensor.chunk(parts, 1))


def load_balanced(tensor: Tensor, parts: int) -> list[Tensor]:
    """Give each rank an early and a late piece, as ring attention does with a causal mask."""
    pieces = tensor.chunk(2 * parts, 1)
    return [torch.cat([pieces[part], pieces[-1 - part]], 1) for part in range(parts)]


@pytest.mark.parametrize("cut", [in_order, load_balanced])
@pytest.mark.parametrize("parts", [2, 4])
@pytest.mark.parametrize("segments", [None, SEGMENTS], ids=["rows", "packed"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_parts_add_up_to_the_whole(
    logits: Tensor, cut: Any, parts: int, segments: Tensor | None, reduction: str
) -> None:
    aligned, weights = shifted_labels(LABELS, segment_ids=segments), shifted_weights(WEIGHTS)
    kwargs: dict[str, Any] = {"reduction": reduction, "label_smoothing": 0.1}
    loss_fn = resolve_loss("token_ce", **kwargs)
    leaf = logits.clone().requires_grad_()
    whole: Any = loss_fn({"logits": leaf}, {"shift_labels": aligned, "token_weights": weights})["loss"]
    whole.backward()
    if segments is None:
        same = loss_fn({"logits": logits}, {"labels": LABELS, "token_weights": WEIGHTS})["loss"]
        torch.testing.assert_close(whole.detach(), same, rtol=1e-14, atol=0)
    counts: dict[str, Any] = {}
    if reduction == "mean":
        counts["num_items_in_batch"] = weights[aligned != -100].sum()
    total = torch.zeros((), dtype=torch.float64)
    again = logits.clone().requires_grad_()
    for piece in zip(*(cut(tensor, parts) for tensor in (again, aligned, weights)), strict=True):
        batch = dict(zip(("shift_labels", "token_weights"), piece[1:], strict=True))
        part: Any = loss_fn({"logits": piece[0]}, batch, **counts)["loss"]
        part.backward()
        total += part.detach()
    torch.testing.assert_close(total, whole.detach(), rtol=1e-14, atol=0)
    torch.testing.assert_close(again.grad, leaf.grad, rtol=1e-14, atol=1e-16)


@pytest.mark.parametrize("parts", [2, 4])
def test_shifting_after_the_cut_loses_a_target_per_piece(logits: Tensor, parts: int) -> None:
    labels = LABELS.clamp(min=0)
    loss_fn = resolve_loss("token_ce", reduction="sum")
    counted = [
        int(loss_fn({"logits": some}, {"labels": ids})["metrics"]["num_tokens"])
        for some, ids in zip(logits.chunk(parts, 1), labels.chunk(parts, 1), strict=True)
    ]
    assert sum(counted) == BATCH * (SEQ - parts)
    assert int((shifted_labels(labels) != -100).sum()) == BATCH * (SEQ - 1)


def test_the_last_position_of_a_document_predicts_nothing() -> None:
    assert shifted_labels(LABELS, -1, SEGMENTS).tolist() == [
        [1, 2, -1, 4, 0, 1, 2, -1],
        [-100, 4, 0, 1, -100, -1, 2, -1],
    ]
    assert shifted_labels(torch.tensor([3, 4], dtype=torch.uint8)).tolist() == [4, -100]
    assert shifted_labels(LABELS[:, :0]).shape == (BATCH, 0)
    assert shifted_labels(LABELS[:, :1], segment_ids=SEGMENTS[:, :1]).tolist() == [[-100], [-100]]


@pytest.mark.parametrize(
    ("labels", "segments", "message"),
    [
        (LABELS.float(), None, "'labels' must be integers; got float32"),
        (LABELS, SEGMENTS[:, 1:], "'segment_ids' must be shaped like the labels, [2, 8]; got [2, 7]"),
        (LABELS, SEGMENTS > 0, "'segment_ids' must be integers; got bool"),
        (torch.tensor(3), None, "'labels' must have an axis of positions"),
    ],
)
def test_what_is_no_labels_is_refused(labels: Tensor, segments: Tensor | None, message: str) -> None:
    with pytest.raises(LossInputError, match=re.escape(message)):
        shifted_labels(labels, segment_ids=segments)

"""A loss as torchtune's recipes call it; test_torchtune_recipe.py runs one of them."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tensafe.integrations.torchtune import RecipeLoss
from tensafe.training.losses import LossConfigError, LossInputError, resolve_loss

VOCAB = 7


class Batch(NamedTuple):
    tokens: Tensor
    labels: Tensor


def whole() -> Batch:
    """Return 8 rows with 0, 0, 1, ... 6 labels."""
    tokens = torch.randint(0, VOCAB, (8, 9), generator=torch.Generator().manual_seed(3))
    counted = torch.arange(9) > 9 - torch.arange(8).unsqueeze(1)
    return Batch(tokens, torch.where(counted, tokens, -100))


def bigram() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(VOCAB, 8), nn.Linear(8, VOCAB)).double()


def gradients_of_a_step(loss_fn: Any, model: nn.Module, accumulation: int) -> list[Tensor]:
    """Do what a recipe does between two steps of its optimizer."""
    batch = whole()
    num_tokens = torch.tensor(0)
    for tokens, labels in zip(batch.tokens.chunk(accumulation), batch.labels.chunk(accumulation), strict=True):
        counted = (labels != loss_fn.ignore_index).sum()
        num_tokens = num_tokens + counted
        shifted = F.pad(labels[:, 1:], (0, 1), value=loss_fn.ignore_index)
        loss = loss_fn(model(tokens).flatten(0, 1), shifted.flatten()) * counted
        loss.backward()
    return [parameter.grad / num_tokens for parameter in model.parameters() if parameter.grad is not None]


def by_hand(
    outputs: dict[str, Tensor], batch: dict[str, Tensor], ignore_index: int = -100, num_items_in_batch: Any = None
) -> dict[str, Any]:
    """Be a loss as README shows one: it shifts."""
    logits, labels = outputs["logits"][:, :-1], batch["labels"][:, 1:]
    total = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=ignore_index, reduction="sum")
    count = (labels != ignore_index).sum() if num_items_in_batch is None else num_items_in_batch
    return {"loss": total / torch.clamp(torch.as_tensor(count), min=1), "metrics": {}}


def without_a_count(outputs: Any, batch: Any) -> dict[str, Any]:
    return by_hand(outputs, batch)


SPECS = {
    "token_ce": {"type": "token_ce", "kwargs": {"label_smoothing": 0.1, "z_loss": 0.01}},
    "focal": {"type": "focal"},
    "weighted_sum": {
        "type": "weighted_sum",
        "kwargs": {"losses": [{"type": "token_ce"}, {"type": "entropy", "weight": 0.1}]},
    },
    "a function": {"type": f"{__name__}:by_hand"},
}


@pytest.mark.parametrize("accumulation", [1, 2, 8])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_a_step_is_that_of_all_rows_at_once(spec: dict[str, Any], accumulation: int) -> None:
    model = bigram()
    batch = whole()
    loss = resolve_loss(spec)({"logits": model(batch.tokens)}, {"labels": batch.labels})["loss"]
    expected = torch.autograd.grad(loss, list(model.parameters()))
    found = gradients_of_a_step(RecipeLoss(**spec), model, accumulation)
    torch.testing.assert_close(found, list(expected), rtol=1e-12, atol=1e-15)


def test_class_weights_are_divided_by_the_number_of_labels() -> None:
    weights = [1.0, 2.0, 0.0, 3.0, 0.5, 1.0, 4.0]
    model, batch = bigram(), whole()
    flat = model(batch.tokens)[:, :-1].flatten(0, 1), batch.labels[:, 1:].flatten()
    total = F.cross_entropy(*flat, weight=torch.tensor(weights).double(), reduction="sum") / 21
    expected = torch.autograd.grad(total, list(model.parameters()))
    loss_fn = RecipeLoss(type="token_ce", kwargs={"class_weights": weights})
    for accumulation in (1, 8):
        model.zero_grad()
        torch.testing.assert_close(gradients_of_a_step(loss_fn, model, accumulation), list(expected))


def test_labels_that_a_pack_cuts_off_count() -> None:
    logits = torch.randn(4, VOCAB, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([1, -100, 2, 3])  # torchtune's next version shifts before it packs, so the last may count
    found = RecipeLoss(type="token_ce")(logits, labels)
    torch.testing.assert_close(found, F.cross_entropy(logits, labels))


def test_a_micro_batch_without_labels_gives_no_nan() -> None:
    logits = torch.randn(3, VOCAB, requires_grad=True)
    loss = RecipeLoss(type="token_ce")(logits, torch.full((3,), -100))
    loss.backward()
    assert loss.item() == 0.0
    assert logits.grad is not None
    assert not logits.grad.any()


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ({"type": "token_ce", "kwargs": {"label_smothing": 0.1}}, ["label_smothing", "did you mean label_smoothing?"]),
        ({"type": "token_ce", "kwarg": {}}, ["kwarg: unknown key; did you mean kwargs?"]),
        ({}, ["type: required key is missing"]),
        ({"type": "token_ce", "kwargs": {"reduction": "sequence_mean"}}, ["mean over labels", "sequence_mean"]),
        ({"type": "token_ce", "kwargs": {"reduction": "sum"}}, ["mean over labels", "reduction sum"]),
        ({"type": "token_ce", "kwargs": {"shift": False}}, ["shift false", "a recipe shifts"]),
        ({"type": "prm_ce"}, ["shift false"]),
        ({"type": "dpo"}, ["dpo: takes chosen_logps", "only logits and labels"]),
        ({"type": "forward_kl"}, ["forward_kl: takes teacher_logits;"]),
        ({"type": "linear_ce"}, ["takes hidden_states, lm_head_weight;"]),
        ({"type": "mse", "inputs": {"predictions": "logits"}}, ["takes targets;"]),
        ({"type": "mtp"}, ["logits float[batch seq k vocab]", "[batch seq vocab]"]),
        ({"type": "grpo"}, ["takes logps, advantages, mask;"]),
        (
            {"type": "weighted_sum", "kwargs": {"losses": ["token_ce", {"type": "focal", "kwargs": {"gama": 1}}]}},
            ["losses.1.kwargs.gama"],
        ),
        (
            {
                "type": "weighted_sum",
                "kwargs": {"losses": ["focal", {"type": "token_ce", "kwargs": {"reduction": "sum"}}]},
            },
            ["token_ce: a recipe multiplies", "reduction sum"],
        ),
        (
            {
                "type": "weighted_sum",
                "kwargs": {"losses": ["focal", {"type": "token_ce", "kwargs": {"ignore_index": 0}}]},
            },
            ["ignore different labels, -100, 0"],
        ),
        (
            {
                "type": "weighted_sum",
                "kwargs": {"losses": [{"type": "token_ce", "weight": {"schedule": "constant", "start": 1}}]},
            },
            ["tells no step"],
        ),
        ({"type": f"{__name__}:without_a_count"}, ["does not declare num_items_in_batch"]),
        (
            {"type": "weighted_sum", "kwargs": {"losses": ["token_ce", {"type": f"{__name__}:without_a_count"}]}},
            ["without_a_count: does not declare num_items_in_batch"],
        ),
    ],
)
def test_what_a_recipe_cannot_serve_is_refused_at_once(spec: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(LossConfigError) as caught:
        RecipeLoss(**spec)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("logits", "labels", "part"),
    [
        ([torch.zeros(1, 2, VOCAB)], torch.zeros(2).long(), "not in chunks"),
        (torch.zeros(3, 2), torch.ones(2), "labels"),
    ],
)
def test_what_does_not_fit_is_refused(logits: Any, labels: Tensor, part: str) -> None:
    with pytest.raises(LossInputError, match=part):
        RecipeLoss(type="token_ce")(logits, labels)


def test_metrics_wait_for_a_recipe_that_logs_them() -> None:
    loss_fn = RecipeLoss(type="token_ce")
    logits = torch.zeros(3, VOCAB)
    loss_fn(logits, torch.tensor([1, 2, -100]))
    loss_fn(logits, torch.tensor([1, -100, -100]))
    with torch.no_grad():  # a validation
        loss_fn(logits, torch.tensor([-100, -100, -100]))
    assert loss_fn.metrics.read() == {"num_tokens": 1.5}


@pytest.mark.parametrize("spec", [SPECS["token_ce"], SPECS["weighted_sum"]], ids=["token_ce", "weighted_sum"])
def test_it_compiles_in_one_piece(spec: dict[str, Any]) -> None:
    loss_fn = RecipeLoss(**spec)
    compiled: Any = torch.compile(loss_fn, backend="aot_eager", fullgraph=True)
    logits = torch.randn(5, VOCAB, generator=torch.Generator().manual_seed(0))
    for labels in (torch.tensor([1, -100, 2, 3, -100]), torch.tensor([1, -100, -100, 3, -100])):
        torch.testing.assert_close(compiled(logits, labels), loss_fn(logits, labels))
    assert compiled.ignore_index == -100

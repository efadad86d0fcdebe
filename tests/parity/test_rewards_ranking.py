"""Losses of reward models and of ranking beside those of TRL and sentence-transformers, where these are installed.

Their own functions are run, on logits and scores that a stand-in for the model returns.
"""

from collections import defaultdict
from collections.abc import Callable
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from reference import loss_and_gradients
from tensafe.training.losses import resolve_loss

pytestmark = pytest.mark.filterwarnings("ignore")  # whatever the imports of these libraries warn of

Record = Callable[[str, object], None]


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def compare(ours: tuple[Tensor, Tensor], theirs: Tensor, leaf: Tensor, record: Record, *, gradient: float) -> None:
    """Compare values and gradients, and record how far apart they are; `gradient` bounds the latter."""
    (slope,) = torch.autograd.grad(theirs, leaf)
    loss, gradients = ours
    record("value_difference", abs(loss.item() - theirs.item()))
    record("gradient_difference", (gradients - slope).abs().max().item())
    torch.testing.assert_close(loss, theirs.detach().to(loss.dtype), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(gradients, slope, rtol=gradient, atol=gradient)


@pytest.mark.parametrize("center_rewards", [None, 0.01, 0.5])
@pytest.mark.parametrize("with_margins", [False, True])
def test_bradley_terry_is_the_loss_of_trl(
    with_margins: bool, center_rewards: float | None, record_property: Record
) -> None:
    trl = pytest.importorskip("trl")
    record_property("trl", version("trl"))
    logits = (3 * normal(16, 1)).requires_grad_()
    margins = normal(8, seed=1).abs()
    inputs = {"attention_mask": torch.ones(16, 2), **({"margin": margins} if with_margins else {})}
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True),
        args=SimpleNamespace(center_rewards_coefficient=center_rewards),
        accelerator=SimpleNamespace(gather=lambda tensor: tensor, gather_for_metrics=lambda tensor: tensor),
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
        _tp_size=1,
    )
    theirs = trl.RewardTrainer.compute_loss(trainer, lambda **_: SimpleNamespace(logits=logits), inputs)

    loss_fn = resolve_loss("bradley_terry", center_rewards=center_rewards)
    chosen, rejected = logits.detach().squeeze(-1).chunk(2)
    outputs = {"chosen_rewards": chosen, "rejected_rewards": rejected}
    batch = {"margins": margins} if with_margins else {}
    loss, gradients = loss_and_gradients(loss_fn, outputs, batch)
    joined = torch.cat([gradients["chosen_rewards"], gradients["rejected_rewards"]]).unsqueeze(-1)
    compare((loss, joined), theirs, logits, record_property, gradient=1e-12)
    metrics = loss_fn(outputs, batch)["metrics"]
    logged = trainer._metrics["train"]
    assert float(metrics["reward_accuracy"]) == pytest.approx(logged["accuracy"][0])
    assert float(metrics["reward_margin"]) == pytest.approx(logged["margin"][0])


class CrossEncoder(torch.nn.Module):
    """Stands in for a cross-encoder: whatever it is asked, these are its scores."""

    num_labels = 1
    device = torch.device("cpu")

    def __init__(self, scores: Tensor) -> None:
        super().__init__()
        self.scores = scores

    def preprocess(self, pairs: Any, **_: Any) -> dict[str, Tensor]:
        return {"at": torch.tensor([int(document) for _, document in pairs])}

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"scores": self.scores[inputs["at"]]}


LENGTHS = [4, 2, 5, 1]


@pytest.mark.parametrize("name", ["plackett_luce", "listmle"])
def test_listwise_losses_are_those_of_sentence_transformers(name: str, record_property: Record) -> None:
    losses = pytest.importorskip("sentence_transformers.cross_encoder.losses")
    record_property("sentence_transformers", version("sentence-transformers"))
    scores = normal(sum(LENGTHS), dtype=torch.float32).requires_grad_()  # theirs has float32 only
    relevance = normal(sum(LENGTHS), seed=1, dtype=torch.float32)
    documents = [[str(place) for place in part.tolist()] for part in torch.split(torch.arange(sum(LENGTHS)), LENGTHS)]
    peer = losses.ListMLELoss(CrossEncoder(scores), respect_input_order=name == "plackett_luce")
    theirs = peer([["?"] * len(LENGTHS), documents], list(torch.split(relevance, LENGTHS)))

    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS).unsqueeze(1)
    padded, ranks = (torch.zeros(mask.shape).masked_scatter(mask, side.detach()) for side in (scores, relevance))
    loss, gradients = loss_and_gradients(resolve_loss(name), {"scores": padded}, {"relevance": ranks, "mask": mask})
    compare((loss, gradients["scores"][mask]), theirs, scores, record_property, gradient=1e-6)


@pytest.mark.parametrize("negatives", [1, 3])
def test_margin_mse_is_the_loss_of_sentence_transformers(negatives: int, record_property: Record) -> None:
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    record_property("sentence_transformers", version("sentence-transformers"))
    query, positive, *others = [normal(6, 8, seed=seed) for seed in range(2 + negatives)]
    positive.requires_grad_()
    teacher = normal(6, 1 + negatives, seed=9)
    theirs = losses.MarginMSELoss(torch.nn.Identity()).compute_loss_from_embeddings([query, positive, *others], teacher)

    leaf = positive.detach().clone().requires_grad_()
    outputs = {
        "positive_scores": (query * leaf).sum(1, keepdim=True).expand(-1, negatives),
        "negative_scores": torch.stack([(query * other).sum(1) for other in others], 1),
    }
    batch = {
        "teacher_positive_scores": teacher[:, :1].expand(-1, negatives),
        "teacher_negative_scores": teacher[:, 1:],
    }
    loss = resolve_loss("margin_mse")(outputs, batch)["loss"]
    (gradient,) = torch.autograd.grad(loss, leaf)
    compare((loss.detach(), gradient), theirs, positive, record_property, gradient=1e-12)


@pytest.mark.parametrize("scale", [1.0, 20.0])
@pytest.mark.parametrize("tied", [False, True])
def test_cosent_is_the_loss_of_sentence_transformers(tied: bool, scale: float, record_property: Record) -> None:
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    record_property("sentence_transformers", version("sentence-transformers"))
    a, b = normal(12, 5).requires_grad_(), normal(12, 5, seed=1)
    targets = torch.rand(12, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    targets = (4 * targets).floor() / 4 if tied else targets
    theirs = losses.CoSENTLoss(torch.nn.Identity(), scale=scale).compute_loss_from_embeddings([a, b], targets)

    leaf = a.detach().clone().requires_grad_()
    outputs = {"scores": torch.cosine_similarity(leaf, b)}
    loss = resolve_loss("cosent", scale=scale)(outputs, {"targets": targets})["loss"]
    (gradient,) = torch.autograd.grad(loss, leaf)
    compare((loss.detach(), gradient), theirs, a, record_property, gradient=1e-10)

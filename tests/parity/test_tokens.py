"""Losses of tokens against the functions of other libraries, value and gradient."""

from collections.abc import Callable
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from reference import loss_and_gradients
from tensafe.training.losses import resolve_loss

VOCAB = 11
GENERATOR = torch.Generator().manual_seed(0)
LOGITS = torch.randn(3, 8, VOCAB, generator=GENERATOR)
LABELS = torch.randint(VOCAB, (3, 8), generator=GENERATOR)
LABELS[0, :5] = LABELS[2, 6:] = -100


def compare(
    record: Callable[[str, object], None], peer: str, name: str, theirs: Callable[[Tensor], Tensor], **options: Any
) -> None:
    """Compare with `theirs(logits)`; options are kwargs of ours, and a count."""
    pytest.importorskip(peer)
    record("peer", f"{peer} {version(peer)}")
    counts = {key: options.pop(key) for key in ("num_items_in_batch",) if key in options}
    ours, gradients = loss_and_gradients(
        resolve_loss(name, **options), {"logits": LOGITS}, {"labels": LABELS, **counts}
    )
    leaf = LOGITS.clone().requires_grad_()
    expected = theirs(leaf)
    (gradient,) = torch.autograd.grad(expected, leaf)
    record("difference", float((ours - expected.detach()).abs()))
    record("gradient difference", float((gradients["logits"] - gradient).abs().max()))
    torch.testing.assert_close(ours, expected.detach(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradients["logits"], gradient, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("count", [None, 40])
def test_token_ce_is_the_causal_loss_of_transformers(count: int | None, record_property: Any) -> None:
    peer = pytest.importorskip("transformers.loss.loss_utils")
    given = {} if count is None else {"num_items_in_batch": count}
    compare(
        record_property,
        "transformers",
        "token_ce",
        lambda logits: peer.ForCausalLMLoss(logits, LABELS, VOCAB, **given),
        **given,
    )


def test_label_smoothing_is_that_of_transformers(record_property: Any) -> None:
    peer = pytest.importorskip("transformers.trainer_pt_utils")
    smoother = peer.LabelSmoother(epsilon=0.1)
    compare(
        record_property,
        "transformers",
        "token_ce",
        lambda logits: smoother({"logits": logits}, LABELS, shift_labels=True),
        label_smoothing=0.1,
    )


def test_prm_ce_is_token_classification_of_transformers(record_property: Any) -> None:
    """What TRL's PRMTrainer trains with."""
    peer = pytest.importorskip("transformers.loss.loss_utils")
    config = SimpleNamespace(num_labels=VOCAB)
    compare(
        record_property, "transformers", "prm_ce", lambda logits: peer.ForTokenClassification(logits, LABELS, config)
    )


def test_token_ce_is_the_chunked_loss_of_torchtune(record_property: Any) -> None:
    peer = pytest.importorskip("torchtune.modules.loss", exc_type=ImportError)
    loss = peer.CEWithChunkedOutputLoss(num_output_chunks=4)
    compare(
        record_property,
        "torchtune",
        "token_ce",
        lambda logits: loss(list(logits.chunk(4, 1)), LABELS),
        shift=False,
    )


def trl_scores(logits: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies `[batch seq-1]` by TRL's own head, whose hidden states are the logits here."""
    utils = pytest.importorskip("trl.trainer.utils")
    function = getattr(utils, "_ChunkedLogProbFunction", None)
    if function is None:
        pytest.skip("this TRL has no fused head")
    mask = LABELS[:, 1:] != -100
    hidden, labels = logits[:, :-1].reshape(-1, VOCAB), LABELS[:, 1:].clamp(min=0).reshape(-1)
    temperature = kwargs.get("temperature", 1.0)
    outputs = ("log_probs", "entropy")
    made = function.apply(hidden, torch.eye(VOCAB), None, labels, temperature, 8, None, 1.0, outputs)
    log_probs, entropy = (each.view(mask.shape).masked_fill(~mask, 0) for each in made[:2])
    return log_probs, entropy


@pytest.mark.parametrize("count", [None, 40])
def test_dft_is_trls(count: int | None, record_property: Any) -> None:
    def theirs(logits: Tensor) -> Tensor:
        log_probs, _ = trl_scores(logits)
        values = -log_probs * log_probs.exp().detach()  # SFTTrainer.compute_loss
        return values.sum() / ((LABELS[:, 1:] != -100).sum() if count is None else count)

    compare(record_property, "trl", "dft", theirs, **({} if count is None else {"num_items_in_batch": count}))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_entropy_is_trls(temperature: float, record_property: Any) -> None:
    def entropy(logits: Tensor) -> Tensor:
        return trl_scores(logits, temperature=temperature)[1].sum() / (LABELS[:, 1:] != -100).sum()

    ours = resolve_loss("entropy", coef=1.0, temperature=temperature)({"logits": LOGITS}, {"labels": LABELS})
    theirs = entropy(LOGITS)
    record_property("peer", f"trl {version('trl')}")
    record_property("difference", float((ours["loss"] + theirs).abs()))
    torch.testing.assert_close(-ours["loss"], theirs, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ours["metrics"]["entropy"], theirs, rtol=1e-6, atol=1e-6)

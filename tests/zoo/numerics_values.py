"""Losses of another value: against the wrong label, over too many positions, or of parts that do not add up."""

import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from references.conformance import INFOS
from tensafe.training.losses import Elements, LossReturn
from tensafe.training.losses.builtin.contrastive import Contrastive
from tensafe.training.losses.testing import LossInfo
from zoo.alike import Mode, Side, Smoothing, told_alike
from zoo.healthy import CarefulCE, checked, reduced, token_losses
from zoo.mutant import Mutant

CE = INFOS["token_ce"]
"""What the right value is."""


class _Misaligned(CarefulCE):
    _places: ClassVar[int]

    def compute(self, logits: Float[Tensor, "batch seq vocab"], labels: Int[Tensor, "batch seq"]) -> Elements:
        """Move the labels to the right, past the end if need be."""
        known = labels.masked_fill(labels < 0, self.ignore_index)
        moved = F.pad(known, (self._places, 1 - self._places), value=self.ignore_index)
        longer = F.pad(logits, (0, 0, 0, 1))
        values, counts = token_losses(longer, moved, self.ignore_index, self.label_smoothing)
        return Elements(values[:, :-1], counts[:, :-1])


class Unshifted(_Misaligned):
    """No shift: each position is scored against its own label, which the model has seen."""

    _places = 1


class ShiftedBack(_Misaligned):
    """The shift in the wrong direction: a position is scored against the label before it."""

    _places = 2


class InBits(CarefulCE):
    """Bits where nats are meant."""

    def compute(self, logits: Float[Tensor, "batch seq vocab"], labels: Int[Tensor, "batch seq"]) -> Elements:
        """Divide by the logarithm of 2."""
        values, counts = token_losses(logits, labels, self.ignore_index, self.label_smoothing)
        return Elements(values / math.log(2), counts)


class SmoothedOverOthers(CarefulCE):
    """Label smoothing that is uniform over the classes that are not the target."""

    def compute(self, logits: Float[Tensor, "batch seq vocab"], labels: Int[Tensor, "batch seq"]) -> Elements:
        """Share smoothing among one class less."""
        vocab = logits.shape[-1]
        smoothing = min(self.label_smoothing * vocab / max(vocab - 1, 1), 1.0)
        values, counts = token_losses(logits, labels, self.ignore_index, smoothing)
        return Elements(values, counts)


@told_alike
def per_sample(
    outputs: Side,
    batch: Side,
    *,
    ignore_index: int = -100,
    label_smoothing: Smoothing = 0.0,
    reduction: Mode = "mean",
    num_items_in_batch: Any = None,
) -> LossReturn:
    """Divide by the samples, rather than by the tokens."""
    logits, labels = checked(outputs, batch)
    values, counts = token_losses(logits, labels, ignore_index, label_smoothing)
    samples = counts.any(1).sum().clamp(min=1)
    if reduction == "mean" and num_items_in_batch is None:
        return {"loss": values.sum() / samples, "metrics": {"num_tokens": counts.sum()}}
    loss = reduced(values, counts, reduction, num_items_in_batch)
    return {"loss": loss, "metrics": {"num_tokens": counts.sum()}}


@told_alike
def anything_is_a_mean(
    outputs: Side,
    batch: Side,
    *,
    ignore_index: int = -100,
    label_smoothing: Smoothing = 0.0,
    reduction: str = "mean",
    num_items_in_batch: Any = None,
) -> LossReturn:
    """Take every reduction that it does not know for the mean."""
    logits, labels = checked(outputs, batch)
    values, counts = token_losses(logits, labels, ignore_index, label_smoothing)
    known = reduction if reduction in {"none", "sum"} else "mean"
    loss = reduced(values, counts, known, num_items_in_batch)
    return {"loss": loss, "metrics": {"num_tokens": counts.sum()}}


class _InParts(CarefulCE):
    def _rows_of_parts(self, logits: Tensor) -> int:
        """Return how many samples make a part; all of them, where the logits are few."""
        return len(logits) if logits.numel() < 2**20 else 3


class LosesTheRest(_InParts):
    """Large logits go in parts, and what is left after the last whole part is lost."""

    def compute(self, logits: Float[Tensor, "batch seq vocab"], labels: Int[Tensor, "batch seq"]) -> Elements:
        """Go over whole parts."""
        size = self._rows_of_parts(logits)
        if size == len(logits):
            return super().compute(logits, labels)
        whole = len(logits) // size * size
        parts = [slice(start, start + size) for start in range(0, whole, size)]
        done = [token_losses(logits[at], labels[at], self.ignore_index, self.label_smoothing) for at in parts]
        rest = len(logits) - whole
        values, counts = (F.pad(torch.cat(each), (0, 0, 0, rest)) for each in zip(*done, strict=True))
        return Elements(values, counts)


class DividesByLiveParts(_InParts):
    """Large logits go in parts, each scaled by the share of it that counts."""

    def compute(self, logits: Float[Tensor, "batch seq vocab"], labels: Int[Tensor, "batch seq"]) -> Elements:
        """Scale each part."""
        values, counts = token_losses(logits, labels, self.ignore_index, self.label_smoothing)
        size = self._rows_of_parts(logits)
        if size == len(logits):
            return Elements(values, counts)
        shares = [part.float().mean() for part in torch.split(counts, size)]
        scaled = [part * share for part, share in zip(torch.split(values, size), shares, strict=True)]
        return Elements(torch.cat(scaled), counts)


class Multiplied(Contrastive):
    __doc__ = Contrastive.__doc__  # but the temperature is multiplied with: the higher, the sharper

    def compute(
        self,
        embeddings_a: Float[Tensor, "batch hidden"],
        embeddings_b: Float[Tensor, "batch hidden"],
        embeddings_negative: Float[Tensor, "batch k hidden"] | None = None,
    ) -> Elements:
        turned = Contrastive(temperature=1 / self.temperature, margin=self.margin, metrics=self.metrics)
        return turned.compute(embeddings_a, embeddings_b, embeddings_negative)


MUTANTS = [
    Mutant("no shift", Unshifted, frozenset({"check_matches_reference"}), CE),
    Mutant(
        "reversed shift",
        ShiftedBack,
        frozenset({"check_matches_reference", "check_masked_items_have_no_effect", "check_padding_invariance"}),
        CE,
    ),
    Mutant("bits for nats", InBits, frozenset({"check_matches_reference"}), CE),
    Mutant(
        "smoothing over non-targets",
        SmoothedOverOthers,
        frozenset({"check_matches_reference"}),
        LossInfo(kwargs={"label_smoothing": 0.2}, reference=CE.reference),
    ),
    Mutant("temperature multiplied", Multiplied, frozenset({"check_matches_reference"}), INFOS["contrastive"]),
    Mutant("mean over samples", per_sample, frozenset({"check_reductions_consistent"})),
    Mutant("any word is a reduction", anything_is_a_mean, frozenset({"check_reductions_consistent"})),
    Mutant("the last part is lost", LosesTheRest, frozenset({"check_chunked_equals_dense"})),
    Mutant("parts are scaled", DividesByLiveParts, frozenset({"check_chunked_equals_dense"})),
]

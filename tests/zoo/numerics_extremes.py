"""Losses that overflow, or that hide what has."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tensafe.training.losses import Elements
from zoo.healthy import CarefulCE, token_losses
from zoo.mutant import Mutant


class ExpFirst(CarefulCE):
    """Softmax by hand: exponentials first, then the logarithm."""

    def compute(self, logits: Float[Tensor, "batch seq vocab"], labels: Int[Tensor, "batch seq"]) -> Elements:
        """Normalise by hand."""
        _, counts = token_losses(logits, labels, self.ignore_index)
        odds = logits.masked_fill(~counts.unsqueeze(-1), 0.0).exp()
        logps = (odds / odds.sum(-1, keepdim=True)).log()
        values, counts = token_losses(logps, labels, self.ignore_index, self.label_smoothing)
        return Elements(values, counts)


class EpsilonInLog(CarefulCE):
    """A small number inside of the logarithm, which bounds the loss by what fits the dtype."""

    def compute(self, logits: Float[Tensor, "batch seq vocab"], labels: Int[Tensor, "batch seq"]) -> Elements:
        """Take the probability, and its logarithm."""
        values, counts = token_losses(logits, labels, self.ignore_index, self.label_smoothing)
        return Elements(-(torch.exp(-values) + torch.finfo(values.dtype).tiny).log(), counts)


class NaNToZero(CarefulCE):
    """NaN and infinity are taken for 0, so that training never stops."""

    def compute(self, logits: Float[Tensor, "batch seq vocab"], labels: Int[Tensor, "batch seq"]) -> Elements:
        """Clean the values."""
        values, counts = token_losses(logits, labels, self.ignore_index, self.label_smoothing)
        return Elements(values.nan_to_num(0.0, 0.0, 0.0), counts)


class PositiveOnly(CarefulCE):
    """A comparison drops what is not above 0, and NaN is not."""

    def compute(self, logits: Float[Tensor, "batch seq vocab"], labels: Int[Tensor, "batch seq"]) -> Elements:
        """Keep what is positive."""
        values, counts = token_losses(logits, labels, self.ignore_index, self.label_smoothing)
        return Elements(torch.where(values > 0, values, 0.0), counts)


class SkipsTheBroken(CarefulCE):
    """Positions whose logits are not finite are skipped, as if they were padding."""

    def compute(self, logits: Float[Tensor, "batch seq vocab"], labels: Int[Tensor, "batch seq"]) -> Elements:
        """Count finite rows alone."""
        finite = logits.isfinite().all(-1)
        values, counts = token_losses(
            torch.where(finite.unsqueeze(-1), logits, 0.0), labels, self.ignore_index, self.label_smoothing
        )
        return Elements(values, counts & finite)


MUTANTS = [
    Mutant("exp before log", ExpFirst, frozenset({"check_extreme_values"})),
    Mutant("an epsilon in the logarithm", EpsilonInLog, frozenset({"check_extreme_values"})),
    Mutant("nan_to_num", NaNToZero, frozenset({"check_non_finite_propagates"})),
    Mutant("what is not positive", PositiveOnly, frozenset({"check_non_finite_propagates"})),
    Mutant("broken rows are skipped", SkipsTheBroken, frozenset({"check_non_finite_propagates"})),
]

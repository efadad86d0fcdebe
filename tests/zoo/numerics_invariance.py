"""Losses that look at padding or at the order of a batch, and claims that do not hold."""

from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tensafe.training.losses import Elements
from tensafe.training.losses.builtin.contrastive import Contrastive
from tensafe.training.losses.builtin.l1 import L1
from tensafe.training.losses.testing import LossInfo, Traits
from zoo.healthy import CarefulCE, token_losses
from zoo.mutant import Mutant


class MeanOverPadding(CarefulCE):
    """Mean over all positions, those of the padding too."""

    def compute(self, logits: Float[Tensor, "batch seq vocab"], labels: Int[Tensor, "batch seq"]) -> Elements:
        """Let every position count."""
        values, _ = token_losses(logits, labels, self.ignore_index, self.label_smoothing)
        return Elements(values)


class MetricOverPadding(CarefulCE):
    """A metric that is divided by all positions."""

    def compute(self, logits: Float[Tensor, "batch seq vocab"], labels: Int[Tensor, "batch seq"]) -> Elements:
        """Divide by the size of the tensor."""
        values, counts = token_losses(logits, labels, self.ignore_index, self.label_smoothing)
        return Elements(values, counts, metrics={"nll": values.detach().sum() / max(values.numel(), 1)})


class WeighedByPlace(CarefulCE):
    """The first samples of a batch weigh more than the last: a curriculum that nobody sorted for."""

    def compute(self, logits: Float[Tensor, "batch seq vocab"], labels: Int[Tensor, "batch seq"]) -> Elements:
        """Weigh the values by their row."""
        values, counts = token_losses(logits, labels, self.ignore_index, self.label_smoothing)
        places = torch.arange(len(values), dtype=values.dtype, device=values.device).unsqueeze(1)
        return Elements(values / (1 + places), counts)


class MetricOfTheFirst(CarefulCE):
    """The loss of the first sample is logged as that of any."""

    def compute(self, logits: Float[Tensor, "batch seq vocab"], labels: Int[Tensor, "batch seq"]) -> Elements:
        """Log the first row."""
        values, counts = token_losses(logits, labels, self.ignore_index, self.label_smoothing)
        return Elements(values, counts, metrics={"sample_loss": values.detach()[:1].sum()})


class PenalisedCE(CarefulCE):
    """A z-loss holds the logits where they are, and the claim of the plain loss was kept."""

    _traits: ClassVar[Traits] = Traits(shift_invariant=("logits",))

    def compute(self, logits: Float[Tensor, "batch seq vocab"], labels: Int[Tensor, "batch seq"]) -> Elements:
        """Add the square of the log-partition function."""
        values, counts = token_losses(logits, labels, self.ignore_index, self.label_smoothing)
        z = torch.where(counts.unsqueeze(-1), logits, 0.0).logsumexp(-1)
        return Elements(values + torch.where(counts, 1e-2 * z.square(), 0.0), counts)


class OneSided(Contrastive):
    """InfoNCE that only looks for the partner of each `a`, and claims to do the same for each `b`."""

    def compute(
        self,
        embeddings_a: Float[Tensor, "batch hidden"],
        embeddings_b: Float[Tensor, "batch hidden"],
        embeddings_negative: Float[Tensor, "batch k hidden"] | None = None,
    ) -> Elements:
        """Return one direction."""
        from tensafe.training.losses.ops.similarity import unit

        negatives = None if embeddings_negative is None else unit(embeddings_negative)
        a, b = unit(embeddings_a), unit(embeddings_b)
        return self._info_nce(a, b, negatives, temperature=self.temperature, margin=self.margin, symmetric=False)


class FlippedSign(CarefulCE):
    """The log-likelihood, which is to be raised, where its negative was claimed."""

    _traits: ClassVar[Traits] = Traits(non_negative=True)

    def compute(self, logits: Float[Tensor, "batch seq vocab"], labels: Int[Tensor, "batch seq"]) -> Elements:
        """Forget the minus."""
        values, counts = token_losses(logits, labels, self.ignore_index, self.label_smoothing)
        return Elements(-values, counts)


class CharbonnierL1(L1):
    """An absolute value that was smoothed, and no longer is 0 where nothing is wrong."""

    def compute(
        self,
        predictions: Float[Tensor, "*shape"],
        targets: Float[Tensor, "*shape"],
        mask: Bool[Tensor, "*shape"] | None = None,
    ) -> Elements:
        """Return the root of a sum of squares."""
        wrong = predictions - targets if mask is None else torch.where(mask, predictions - targets, 0.0)
        return Elements(torch.hypot(wrong, torch.full_like(wrong, 1e-2)), mask)


MUTANTS = [
    Mutant(
        "mean over padding", MeanOverPadding, frozenset({"check_padding_invariance", "check_reductions_consistent"})
    ),
    Mutant("a metric over padding", MetricOverPadding, frozenset({"check_padding_invariance"})),
    Mutant(
        "weighed by place",
        WeighedByPlace,
        frozenset({"check_batch_permutation_invariance", "check_microbatch_equivalence"}),
    ),
    Mutant("a metric of the first sample", MetricOfTheFirst, frozenset({"check_batch_permutation_invariance"})),
    Mutant(
        "claims that order matters",
        CarefulCE,
        frozenset({"check_batch_permutation_invariance"}),
        LossInfo(traits=Traits(permutation_invariant=False)),
    ),
    Mutant("a z-loss that claims shift invariance", PenalisedCE, frozenset({"check_shift_invariance"})),
    Mutant(
        "claims shift invariance of what it does not take",
        CarefulCE,
        frozenset({"check_shift_invariance"}),
        LossInfo(traits=Traits(shift_invariant=("scores",))),
    ),
    Mutant("one-sided InfoNCE", OneSided, frozenset({"check_symmetry"})),
    Mutant(
        "claims symmetry in what it does not take",
        L1,
        frozenset({"check_symmetry"}),
        LossInfo(traits=Traits(symmetric_in=(("predictions", "labels"),))),
    ),
    Mutant("flipped sign", FlippedSign, frozenset({"check_non_negative"})),
    Mutant("smoothed at its optimum", CharbonnierL1, frozenset({"check_zero_at_optimum"})),
]

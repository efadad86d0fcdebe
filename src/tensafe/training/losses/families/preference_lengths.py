"""Losses of pairs that look at the number of tokens, or at the likelihood of the chosen completion."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tensafe.training.losses.families.preference import PairwiseLoss, ReferencedLoss

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

    from tensafe.training.losses.types import Elements

__all__ = ["AnchoredLoss", "AveragedLoss", "ReferencedAnchoredLoss", "ReferencedAveragedLoss"]


class ReferencedAveragedLoss(ReferencedLoss):
    """Base of losses of pairs that compare the model with a reference model, per token."""

    def compute(
        self,
        chosen_logps: Float[Tensor, " batch"] | None = None,
        rejected_logps: Float[Tensor, " batch"] | None = None,
        ref_chosen_logps: Float[Tensor, " batch"] | None = None,
        ref_rejected_logps: Float[Tensor, " batch"] | None = None,
        chosen_lengths: Int[Tensor, " batch"] | None = None,
        rejected_lengths: Int[Tensor, " batch"] | None = None,
        chosen_logits: Float[Tensor, "batch chosen_seq vocab"] | None = None,
        chosen_labels: Int[Tensor, "batch chosen_seq"] | None = None,
        rejected_logits: Float[Tensor, "batch rejected_seq vocab"] | None = None,
        rejected_labels: Int[Tensor, "batch rejected_seq"] | None = None,
    ) -> Elements:
        """Return the loss of each pair; see the class."""
        chosen = self._completions("chosen", chosen_logps, chosen_logits, chosen_labels, chosen_lengths)
        rejected = self._completions("rejected", rejected_logps, rejected_logits, rejected_labels, rejected_lengths)
        return self._elements(
            self._referenced(chosen, ref_chosen_logps), self._referenced(rejected, ref_rejected_logps)
        )


class ReferencedAnchoredLoss(ReferencedLoss):
    """Base of losses of pairs with a reference model that also keep the chosen completion likely."""

    def compute(
        self,
        chosen_logps: Float[Tensor, " batch"] | None = None,
        rejected_logps: Float[Tensor, " batch"] | None = None,
        ref_chosen_logps: Float[Tensor, " batch"] | None = None,
        ref_rejected_logps: Float[Tensor, " batch"] | None = None,
        chosen_nll: Float[Tensor, " batch"] | None = None,
        chosen_lengths: Int[Tensor, " batch"] | None = None,
        chosen_logits: Float[Tensor, "batch chosen_seq vocab"] | None = None,
        chosen_labels: Int[Tensor, "batch chosen_seq"] | None = None,
        rejected_logits: Float[Tensor, "batch rejected_seq vocab"] | None = None,
        rejected_labels: Int[Tensor, "batch rejected_seq"] | None = None,
    ) -> Elements:
        """Return the loss of each pair; see the class."""
        chosen = self._completions("chosen", chosen_logps, chosen_logits, chosen_labels, chosen_lengths)
        rejected = self._completions("rejected", rejected_logps, rejected_logits, rejected_labels)
        return self._elements(
            self._referenced(chosen, ref_chosen_logps), self._referenced(rejected, ref_rejected_logps), chosen_nll
        )


class AveragedLoss(PairwiseLoss):
    """Base of losses of pairs without a reference model, of log-probabilities per token."""

    def compute(
        self,
        chosen_logps: Float[Tensor, " batch"] | None = None,
        rejected_logps: Float[Tensor, " batch"] | None = None,
        chosen_lengths: Int[Tensor, " batch"] | None = None,
        rejected_lengths: Int[Tensor, " batch"] | None = None,
        chosen_logits: Float[Tensor, "batch chosen_seq vocab"] | None = None,
        chosen_labels: Int[Tensor, "batch chosen_seq"] | None = None,
        rejected_logits: Float[Tensor, "batch rejected_seq vocab"] | None = None,
        rejected_labels: Int[Tensor, "batch rejected_seq"] | None = None,
    ) -> Elements:
        """Return the loss of each pair; see the class."""
        chosen = self._completions("chosen", chosen_logps, chosen_logits, chosen_labels, chosen_lengths)
        rejected = self._completions("rejected", rejected_logps, rejected_logits, rejected_labels, rejected_lengths)
        return self._elements(chosen, rejected)


class AnchoredLoss(PairwiseLoss):
    """Base of losses of pairs without a reference model that also keep the chosen completion likely."""

    def compute(
        self,
        chosen_logps: Float[Tensor, " batch"] | None = None,
        rejected_logps: Float[Tensor, " batch"] | None = None,
        chosen_nll: Float[Tensor, " batch"] | None = None,
        chosen_lengths: Int[Tensor, " batch"] | None = None,
        rejected_lengths: Int[Tensor, " batch"] | None = None,
        chosen_logits: Float[Tensor, "batch chosen_seq vocab"] | None = None,
        chosen_labels: Int[Tensor, "batch chosen_seq"] | None = None,
        rejected_logits: Float[Tensor, "batch rejected_seq vocab"] | None = None,
        rejected_labels: Int[Tensor, "batch rejected_seq"] | None = None,
    ) -> Elements:
        """Return the loss of each pair; see the class."""
        chosen = self._completions("chosen", chosen_logps, chosen_logits, chosen_labels, chosen_lengths)
        rejected = self._completions("rejected", rejected_logps, rejected_logits, rejected_labels, rejected_lengths)
        return self._elements(chosen, rejected, chosen_nll)

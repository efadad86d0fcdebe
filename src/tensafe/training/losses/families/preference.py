"""Preferences between two completions of one prompt: what the losses of pairs share."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from tensafe._lazy import torch
from tensafe.training.losses.contract import read_contract
from tensafe.training.losses.errors import LossInputError, make_error, missing_tensor
from tensafe.training.losses.families.ids import wrong_ids
from tensafe.training.losses.families.pairs import Completions, Pairs
from tensafe.training.losses.loss import ElementLoss
from tensafe.training.losses.traits import Traits
from tensafe.training.losses.types import Elements

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

__all__ = ["GainLoss", "PairwiseLoss", "ReferencedLoss"]


class PairwiseLoss(ElementLoss):
    """Base of losses of pairs: log-probabilities, taken as given or made from logits, and the metrics.

    A subclass says in `compute` which tensors there are, in `pair_loss` what a pair costs, and in `scores` what it is
    that beta scales to a reward.
    """

    _family: ClassVar[str] = "preference"
    _upcast: ClassVar[bool] = False
    _traits: ClassVar[Traits] = Traits(
        sample_independent=True,
        non_negative=True,
        shift_invariant=("chosen_logits", "rejected_logits"),
    )

    beta: float = Field(default=0.1, gt=0, description="Scale of the implicit reward.")
    ignore_index: int = Field(default=-100, description="Label of a position that does not count, such as the prompt.")
    shift: bool = Field(
        default=True, description="Score position t against label t + 1; false: labels are aligned with logits already."
    )

    @abstractmethod
    def pair_loss(self, pairs: Pairs) -> Tensor:
        """Return the loss of each pair, `[batch]`."""

    def scores(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """Return the scores of the chosen and of the rejected completions, `[batch]`."""
        return pairs.chosen.ratio, pairs.rejected.ratio

    def rewards(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """Return the implicit rewards, beta times the scores."""
        chosen, rejected = self.scores(pairs)
        return self.beta * chosen, self.beta * rejected

    def margin(self, pairs: Pairs) -> Tensor:
        """Return by how much the reward of the chosen completion is the higher one."""
        chosen, rejected = self.scores(pairs)
        return self.beta * (chosen - rejected)

    def _completions(
        self,
        side: str,
        logps: Tensor | None,
        logits: Tensor | None,
        labels: Tensor | None,
        lengths: Tensor | None = None,
    ) -> Completions:
        if logits is not None:
            for name, other in (("logps", logps), ("lengths", lengths)):
                if other is not None:
                    raise _given_twice(f"{side}_{name}", f"{side}_logits")
            if labels is None:
                raise missing_tensor(f"{side}_labels")
            return self._scored(side, logits, labels)
        if logps is None:
            raise missing_tensor(f"{side}_logps", f"{side}_logits")
        logps = _wide(logps)
        if lengths is None:
            return Completions(side, logps)
        return Completions(side, logps, None, lengths.clamp(min=1).to(logps.dtype), lengths > 0)

    def _scored(self, side: str, logits: Tensor, labels: Tensor) -> Completions:
        from tensafe.training.losses.ops.logps import sequence_logps

        targets = self._aligned(labels)
        logps = sequence_logps(logits, targets, ignore_index=self.ignore_index)
        lengths = (targets != self.ignore_index).sum(-1)
        return Completions(side, logps, None, lengths.clamp(min=1).to(logps.dtype), lengths > 0)

    def _aligned(self, labels: Tensor) -> Tensor:
        from tensafe.training.losses.ops.cross_entropy import shift_left

        return shift_left(labels, self.ignore_index) if self.shift else labels

    def _elements(self, chosen: Completions, rejected: Completions, nll: Tensor | None = None) -> Elements:
        known = [side.counts for side in (chosen, rejected) if side.counts is not None]
        counts = known[0] & known[-1] if known else None
        if counts is not None:
            chosen, rejected = chosen.where(counts), rejected.where(counts)
        pairs = Pairs(chosen, rejected, None if nll is None else _wide(nll), counts)
        return Elements(self.pair_loss(pairs), counts, self._metrics(pairs) if self.metrics else None)

    def _metrics(self, pairs: Pairs) -> dict[str, Tensor]:
        chosen, rejected = (reward.detach() for reward in self.rewards(pairs))
        return {
            "chosen_reward": chosen,
            "rejected_reward": rejected,
            "reward_margin": chosen - rejected,
            "reward_accuracy": chosen > rejected,
        }

    def explain(self, *tensors: Tensor | None) -> str | None:
        """Say which labels are out of range."""
        given = {spec.name: tensor for spec, tensor in zip(read_contract(type(self)).tensors, tensors, strict=True)}
        for side in ("chosen", "rejected"):
            logits, labels = given[f"{side}_logits"], given[f"{side}_labels"]
            if logits is None or labels is None:
                continue
            ids, vocab = self._aligned(labels), logits.shape[-1]
            wrong = wrong_ids(f"{side}_labels", ids, vocab, ignore_index=self.ignore_index)
            if wrong is not None:
                return wrong
        return None


class ReferencedLoss(PairwiseLoss):
    """Base of losses of pairs that compare the model with a reference model."""

    reference_free: bool = Field(
        default=False, description="Do without a reference model, as if it found everything equally likely."
    )

    def _referenced(self, completions: Completions, ref_logps: Tensor | None) -> Completions:
        name = f"ref_{completions.side}_logps"
        if self.reference_free:
            if ref_logps is not None:
                message = f"{name!r} is given, and reference_free says that there is no reference: drop one of them."
                raise make_error(LossInputError, message, code="unused-tensor", loc=(name,))
            return completions
        if ref_logps is None:
            raise missing_tensor(name)
        return completions._replace(ref_logps=_wide(ref_logps).detach())


class GainLoss(ReferencedLoss):
    """Base of losses of pairs that look at log-probabilities of whole completions, the model's and the reference's."""

    def compute(
        self,
        chosen_logps: Float[Tensor, " batch"] | None = None,
        rejected_logps: Float[Tensor, " batch"] | None = None,
        ref_chosen_logps: Float[Tensor, " batch"] | None = None,
        ref_rejected_logps: Float[Tensor, " batch"] | None = None,
        chosen_logits: Float[Tensor, "batch chosen_seq vocab"] | None = None,
        chosen_labels: Int[Tensor, "batch chosen_seq"] | None = None,
        rejected_logits: Float[Tensor, "batch rejected_seq vocab"] | None = None,
        rejected_labels: Int[Tensor, "batch rejected_seq"] | None = None,
    ) -> Elements:
        """Return the loss of each pair; see the class."""
        chosen = self._completions("chosen", chosen_logps, chosen_logits, chosen_labels)
        rejected = self._completions("rejected", rejected_logps, rejected_logits, rejected_labels)
        return self._elements(
            self._referenced(chosen, ref_chosen_logps), self._referenced(rejected, ref_rejected_logps)
        )


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _given_twice(name: str, other: str) -> LossInputError:
    message = f"{name!r} and {other!r} are both given, and each says it all: drop one."
    return make_error(LossInputError, message, code="ambiguous-tensor", loc=(name,))

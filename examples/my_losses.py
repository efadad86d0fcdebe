"""A loss of one's own, written both ways: as a function and as a class. A config names either by its path.

Cross-entropy less a bonus for the entropy of the prediction, which keeps a model from becoming certain too early.
"""

from typing import Annotated, Any

import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from tensafe.training.losses import Elements, LossReturn, TokenLoss


def entropy_regularized(
    outputs: dict[str, Tensor],
    batch: dict[str, Tensor],
    entropy_weight: Annotated[float, Field(ge=0)] = 0.1,
    ignore_index: int = -100,
    num_items_in_batch: Any = None,
) -> LossReturn:
    """Return the loss, all of it by hand: shifting, masking, dividing.

    There is no `**kwargs`, so a misspelt argument is refused; the annotations are checked when the loss is resolved.
    `num_items_in_batch` belongs to a call: under gradient accumulation the mean is over more than this batch.
    """
    logits = outputs["logits"][:, :-1]
    labels = batch["labels"][:, 1:]
    counts = labels != ignore_index
    log_probs = logits.log_softmax(-1)
    entropy = -(log_probs.exp() * log_probs).sum(-1)[counts]
    cross_entropy = F.cross_entropy(logits[counts], labels[counts], reduction="none")
    divisor = max(entropy.numel(), 1) if num_items_in_batch is None else num_items_in_batch
    return {
        "loss": (cross_entropy - entropy_weight * entropy).sum() / divisor,
        "metrics": {"entropy": entropy.sum() / max(entropy.numel(), 1)},
    }


class EntropyRegularized(TokenLoss):
    """The same loss, one value per token; reductions, denominators, checks and precision come with the base class."""

    entropy_weight: float = Field(default=0.1, ge=0, description="Weight of the entropy bonus.")
    ignore_index: int = Field(default=-100, description="Label of a position that does not count.")

    def compute(self, logits: Float[Tensor, "batch seq vocab"], labels: Int[Tensor, "batch seq"]) -> Elements:
        """Return the loss of each position against the label that follows it."""
        targets = F.pad(labels[:, 1:], (0, 1), value=self.ignore_index)
        log_probs = logits.log_softmax(-1)
        entropy = -(log_probs.exp() * log_probs).sum(-1)
        cross_entropy = F.nll_loss(
            log_probs.flatten(0, 1), targets.flatten(), ignore_index=self.ignore_index, reduction="none"
        ).view_as(entropy)
        values = cross_entropy - self.entropy_weight * entropy
        return Elements(values, weights=targets != self.ignore_index, metrics={"entropy": entropy})

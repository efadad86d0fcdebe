"""Losses whose micro-batches do not add up, and samples that depend on each other."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from tensafe.training.losses import LossReturn
from tensafe.training.losses.builtin.reinforce import Reinforce
from tensafe.training.losses.families.policy import Surrogate, Tokens
from tensafe.training.losses.testing import LossInfo, Traits
from zoo.healthy import CarefulCE, careful_ce, checked, reduced, token_losses
from zoo.mutant import Mutant

Side = Mapping[str, Any]
Smoothing = Annotated[float, Field(ge=0, le=1)]
Mode = Literal["none", "sum", "mean"]


def deaf_ce(
    outputs: Side,
    batch: Side,
    *,
    ignore_index: int = -100,
    label_smoothing: Smoothing = 0.0,
    reduction: Mode = "mean",
    num_items_in_batch: Any = None,
) -> LossReturn:
    """Take num_items_in_batch, and divide by the tokens of the micro-batch all the same."""
    return careful_ce(outputs, batch, ignore_index=ignore_index, label_smoothing=label_smoothing, reduction=reduction)


def mean_of_means(
    outputs: Side,
    batch: Side,
    *,
    ignore_index: int = -100,
    label_smoothing: Smoothing = 0.0,
    num_items_in_batch: Any = None,
) -> LossReturn:
    """Scale the mean of a micro-batch by how many of its samples there are, so that short ones weigh as much."""
    logits, labels = checked(outputs, batch)
    values, counts = token_losses(logits, labels, ignore_index, label_smoothing)
    share = 1.0 if num_items_in_batch is None else len(values) / num_items_in_batch
    return {"loss": reduced(values, counts) * share, "metrics": {"num_tokens": counts.sum()}}


def never_zero(
    outputs: Side,
    batch: Side,
    *,
    ignore_index: int = -100,
    label_smoothing: Smoothing = 0.0,
    reduction: Mode = "mean",
    num_items_in_batch: Any = None,
) -> LossReturn:
    """Add a trifle to each call where there is anything to learn, so that the logarithm of the loss is finite."""
    logits, labels = checked(outputs, batch)
    values, counts = token_losses(logits, labels, ignore_index, label_smoothing)
    trifle = torch.where(counts.any(), 64 * torch.finfo(values.dtype).eps, 0.0)
    if reduction != "none":
        flat = values.flatten()
        values = torch.cat([flat[:1] + trifle, flat[1:]])
    loss = reduced(values, counts, reduction, num_items_in_batch)
    return {"loss": loss, "metrics": {"num_tokens": counts.sum()}}


for _loss in (deaf_ce, mean_of_means, never_zero):
    _loss.__doc__ = f"{_loss.__doc__}\n\n{(careful_ce.__doc__ or '').partition(chr(10))[2]}"


class Whitened(Reinforce):
    """Advantages that are whitened over the batch inside of the loss, which claims independent samples."""

    def _surrogate(self, tokens: Tokens) -> Surrogate:
        spread = tokens.advantages.square().sum() / tokens.mask.sum().clamp(min=1)
        whitened = tokens.advantages / (1 + spread)
        return super()._surrogate(tokens._replace(advantages=whitened))


MUTANTS = [
    Mutant(
        "deaf to num_items_in_batch",
        deaf_ce,
        frozenset({"check_microbatch_equivalence", "check_reductions_consistent"}),
    ),
    Mutant("a mean of means", mean_of_means, frozenset({"check_microbatch_equivalence"})),
    Mutant("a trifle per call", never_zero, frozenset({"check_microbatch_equivalence"})),
    Mutant("whitened over the batch", Whitened, frozenset({"check_sample_independence"})),
    Mutant(
        "claims coupled samples",
        CarefulCE,
        frozenset({"check_sample_independence"}),
        LossInfo(traits=Traits(sample_independent=False)),
    ),
]

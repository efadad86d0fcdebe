"""Losses under differential privacy, for Opacus and whatever else clips the gradient of each sample.

What clipping bounds is a sum over samples in which no sample has a say in another's term. A loss that couples samples,
and a mean over the tokens of a whole batch, are no such sums: the noise would be too small for what they leak, and
nothing would tell. This module imports nothing of Opacus.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tensafe.training.losses import LossConfigError, ResolvedLoss, TokenLoss, resolve_loss
from tensafe.training.losses.adapter import TypedLoss
from tensafe.training.losses.errors import make_error

if TYPE_CHECKING:
    from torch import Tensor

    from tensafe.training.losses.resolve import Spec

__all__ = ["PrivateLoss"]

_SEQUENCES = "num_sequences_in_batch"


class PrivateLoss:
    """A loss that is a sum over samples: `private(outputs, batch)` is the number to call `backward()` on.

    It fits `PrivacyEngine.make_private(..., loss_reduction="sum")`; divide the learning rate by the expected batch
    size. Or, for Opacus's default `loss_reduction="mean"`, divide the loss by the number of rows that this batch
    happens to have. A Poisson sample without any row gives 0.0, attached to the graph: the step still adds its noise.

    Args:
        loss: What `resolve_loss` takes, such as `load_config("train.yaml").loss`.
        **kwargs: Arguments of the loss.

    Attributes:
        loss_fn: The loss.

    Raises:
        LossConfigError: The loss couples samples, or does not claim that it leaves them independent; or its reduction
            is a mean over tokens, whose number depends on the other samples.

    Example:
        >>> import torch
        >>> from tensafe.integrations.opacus import PrivateLoss
        >>> private = PrivateLoss("mse")
        >>> private({"predictions": torch.tensor([1.0, 3.0])}, {"targets": torch.tensor([0.0, 0.0])})
        tensor(10.)
    """

    def __init__(self, loss: Spec, **kwargs: Any) -> None:
        self.loss_fn = resolve_loss(loss, **kwargs)
        _check_independent(self.loss_fn)
        self._counts = _divide_by_nothing(self.loss_fn)

    def __call__(self, outputs: Any, batch: Any) -> Tensor:
        """Return the sum of the losses of the samples.

        Raises:
            LossInputError: A tensor that the loss takes is missing or does not fit.
        """
        return self.loss_fn(outputs, batch, **self._counts)["loss"]


def _check_independent(loss: ResolvedLoss) -> None:
    claim = type(loss.loss)._traits.sample_independent if isinstance(loss, TypedLoss) else None
    if claim:
        return
    said = "couples the samples of a batch" if claim is False else "does not claim to leave samples independent"
    hint = (
        "Choose one that treats each sample by itself."
        if claim is False
        else "If it does, write it as a Loss with _traits = Traits(sample_independent=True)."
    )
    message = f"{said}, so clipping the gradient of each sample does not bound what a sample can change."
    raise make_error(LossConfigError, message, code="coupled-samples", loss=loss.name, hint=hint)


def _divide_by_nothing(loss: ResolvedLoss) -> dict[str, int]:
    """Return the counts that turn the mean of a loss into its sum."""
    reduction = loss.kwargs.get("reduction", "mean")
    if reduction.startswith("sequence_"):
        return {_SEQUENCES: 1}
    if reduction == "sum":
        return {}
    assert isinstance(loss, TypedLoss)
    if reduction == "none" or isinstance(loss.loss, TokenLoss):
        message = f"reduction {reduction} of tokens is no sum over samples."
        hint = "Use sequence_mean, where each sample counts the same, or sequence_sum."
        raise make_error(
            LossConfigError, message, code="coupled-samples", loss=loss.name, loc=("reduction",), hint=hint
        )
    return {"num_items_in_batch": 1}

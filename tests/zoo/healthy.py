"""Two losses that do everything right, the one as a function and the other as a class: the zoo's mutants break them."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from tensafe.training.losses import ElementLoss, Elements, LossConfigError, LossInputError, LossReturn


def careful_ce(
    outputs: Mapping[str, Any],
    batch: Mapping[str, Any],
    *,
    ignore_index: int = -100,
    label_smoothing: Annotated[float, Field(ge=0, le=1)] = 0.0,
    reduction: Literal["none", "sum", "mean"] = "mean",
    num_items_in_batch: Any = None,
) -> LossReturn:
    r"""Cross-entropy of each token's logits against the label that follows it.

    .. math:: \ell_t = (1 - \epsilon)(-\log p_t[y_{t+1}]) - \frac{\epsilon}{V} \sum_v \log p_t[v]

    Args:
        outputs: `logits`, float `[batch seq vocab]`.
        batch: `labels`, integers `[batch seq]`, in [0, vocab) or `ignore_index`.
        ignore_index: Label of a position that does not count, default -100; any integer.
        label_smoothing: :math:`\epsilon` in [0, 1], default 0.0: 1 is uniform targets.
        reduction: `none`, `sum`, or `mean` over the labels that count; default `mean`.
        num_items_in_batch: What `mean` divides by, a number >= 0; default None, the labels that count.

    Returns:
        The loss in nats, float32 at least, and the metric `num_tokens`. Where nothing counts it is 0.

    Raises:
        LossInputError: A tensor is missing, or has the wrong kind, shape or device.
        LossConfigError: `num_items_in_batch` is given to another reduction than `mean`.

    Example:
        >>> import torch
        >>> from zoo.healthy import careful_ce
        >>> result = careful_ce({"logits": torch.zeros(1, 2, 4)}, {"labels": torch.tensor([[0, 3]])})
        >>> round(result["loss"].item(), 4)  # ln 4
        1.3863
    """
    logits, labels = checked(outputs, batch)
    values, counts = token_losses(logits, labels, ignore_index, label_smoothing)
    loss = reduced(values, counts, reduction, num_items_in_batch)
    return {"loss": loss, "metrics": {"num_tokens": counts.sum()}}


class CarefulCE(ElementLoss):
    r"""Cross-entropy of each token's logits against the label that follows it.

    .. math:: \ell_t = (1 - \epsilon)(-\log p_t[y_{t+1}]) - \frac{\epsilon}{V} \sum_v \log p_t[v]

    Args:
        logits: Scores, float `[batch seq vocab]`.
        labels: Target ids, integers `[batch seq]`, in [0, vocab) or `ignore_index`.
        ignore_index: Label of a position that does not count, default -100; any integer.
        label_smoothing: :math:`\epsilon` in [0, 1], default 0.0: 1 is uniform targets.
        reduction: `none`, `sum`, or `mean` over the labels that count; default `mean`.
        metrics: Whether the result carries `num_tokens`; default True.

    Returns:
        The loss in nats, float32 at least. Where nothing counts it is 0.

    Raises:
        LossInputError: A tensor is missing, or has the wrong kind, shape or device.
        LossConfigError: A kwarg is unknown or out of range.

    Example:
        >>> import torch
        >>> from tensafe.training.losses import resolve_loss
        >>> from zoo.healthy import CarefulCE
        >>> loss_fn = resolve_loss(CarefulCE)
        >>> result = loss_fn({"logits": torch.zeros(1, 2, 4)}, {"labels": torch.tensor([[0, 3]])})
        >>> round(result["loss"].item(), 4)  # ln 4
        1.3863
    """

    ignore_index: int = Field(default=-100, description="Label of a position that does not count.")
    label_smoothing: float = Field(default=0.0, ge=0, le=1, description="Share of uniform targets.")

    def compute(self, logits: Float[Tensor, "batch seq vocab"], labels: Int[Tensor, "batch seq"]) -> Elements:
        """Return the cross-entropy of each label; see the class."""
        values, counts = token_losses(logits, labels, self.ignore_index, self.label_smoothing)
        return Elements(values, counts, metrics={"num_tokens": counts.sum()})


def token_losses(
    logits: Tensor, labels: Tensor, ignore_index: int = -100, label_smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Return the loss of each position, 0 where it does not count, and whether it does."""
    targets = F.pad(labels.long(), (0, 1), value=ignore_index)[:, 1:]
    counts = targets != ignore_index
    wide = logits.float() if logits.dtype in {torch.float16, torch.bfloat16} else logits
    # what does not count may hold NaN, which must not reach the softmax: 0 * NaN is NaN in its gradient
    logps = F.log_softmax(wide.masked_fill(~counts.unsqueeze(-1), 0.0), -1)
    values = -logps.gather(-1, targets.masked_fill(~counts, 0).unsqueeze(-1)).squeeze(-1)
    if label_smoothing:  # a class of probability 0 would make 0 * inf
        values = (1 - label_smoothing) * values - label_smoothing * logps.mean(-1)
    return torch.where(counts, values, 0.0), counts


def reduced(values: Tensor, counts: Tensor, reduction: str = "mean", num_items: Any = None) -> Tensor:
    """Return the values as one number, or as they are for `none`."""
    if reduction != "mean":
        if num_items is not None:
            raise LossConfigError(f"num_items_in_batch divides a mean; got it with reduction {reduction}.")
        return values if reduction == "none" else values.sum()
    if num_items is None:
        return values.sum() / counts.sum().clamp(min=1)
    if isinstance(num_items, Tensor):
        return values.sum() * torch.where(num_items == 0, 0.0, 1 / num_items)
    return values.sum() * (1 / num_items if num_items else 0.0)


def checked(outputs: Mapping[str, Any], batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Return the tensors, if they are what the loss takes."""
    logits = taken("logits", "float[batch seq vocab]", "outputs", outputs)
    labels = taken("labels", "int[batch seq]", "batch", batch)
    if not logits.is_floating_point():
        raise LossInputError(f"'logits' must be float[batch seq vocab]; got {told(logits)}. Convert it: x.float().")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype is torch.bool:
        raise LossInputError(f"'labels' must be int[batch seq]; got {told(labels)}. These are ids: x.long().")
    if logits.ndim != 3 or logits.shape[:2] != labels.shape or not logits.shape[-1]:
        raise LossInputError(
            "'logits' must be float[batch seq vocab] and 'labels' int[batch seq], of the same batch and seq; "
            f"got {told(logits)} and {told(labels)}."
        )
    if logits.device != labels.device:
        raise LossInputError(f"'labels' is on {labels.device}, but 'logits' is on {logits.device}. Move one of them.")
    return logits, labels


def taken(key: str, expected: str, where: str, side: Mapping[str, Any]) -> Tensor:
    found = side.get(key)
    if found is None:
        there = ", ".join(f"{name}=None" if side[name] is None else str(name) for name in side) or "nothing"
        raise LossInputError(f"{key!r} ({expected}) must be in {where}; {where} has {there}.")
    if not isinstance(found, Tensor):
        raise LossInputError(f"{key!r} must be a tensor, {expected}; got {type(found).__name__}.")
    return found


def told(tensor: Tensor) -> str:
    """Return what a message may say of a tensor: dtype and shape, never values."""
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"

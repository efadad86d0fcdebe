"""Cross-entropy of tokens against target ids."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["cross_entropy", "shift_left"]


def cross_entropy(
    logits: Float[Tensor, "*rows vocab"], labels: Int[Tensor, "*rows"], *, ignore_index: int, label_smoothing: float
) -> tuple[Float[Tensor, "*rows"], Bool[Tensor, "*rows"]]:
    r"""Return the cross-entropy of each row, and which rows count.

    .. math:: \ell = (1 - \epsilon)\,(-\log p_y) + \frac{\epsilon}{V} \sum_v -\log p_v, \quad p = \mathrm{softmax}(z)

    Args:
        logits: Unnormalised scores :math:`z`, float32 or float64.
        labels: Target ids :math:`y` in [0, vocab), int64, or `ignore_index`.
        ignore_index: Label of a row that does not count.
        label_smoothing: :math:`\epsilon` in [0, 1], torch's definition.

    Returns:
        Values in nats, 0 where a row does not count, and the bool tensor of what counts. The gradient of a row that
        does not count is exactly zero, whatever its logits hold (NaN too).

    Raises:
        IndexError: On CPU, a label is outside [0, vocab) and is not `ignore_index`.
    """
    labels = _as_peer(labels, logits)
    counts = labels != ignore_index
    # 0 * NaN is NaN: the backward pass of log-softmax must not see an ignored row.
    clean = logits.masked_fill(~counts.unsqueeze(-1), 0.0)
    values = F.cross_entropy(
        clean.reshape(-1, clean.shape[-1]),
        labels.reshape(-1),
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        reduction="none",
    )
    return values.reshape(labels.shape), counts


def shift_left(labels: Int[Tensor, "*batch seq"], fill: int) -> Int[Tensor, "*batch seq"]:
    """Return the labels moved one position to the left, so that position t holds the label of t + 1.

    Shifting the labels rather than the logits leaves the large tensor as it is; the last position gets `fill`.
    """
    return F.pad(labels, (0, 1), value=fill)[..., 1:]


def _as_peer(labels: Tensor, logits: Tensor) -> Tensor:
    """Return labels that may meet the logits in one operation: beside a DTensor, plain ones are whole on every rank."""
    mesh: Any = getattr(logits, "device_mesh", None)
    if mesh is None or hasattr(labels, "device_mesh"):
        return labels
    from torch.distributed.tensor import DTensor, Replicate

    return DTensor.from_local(labels, mesh, [Replicate()] * mesh.ndim, run_check=False)

"""Token-level cross-entropy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from tensafe.training.losses.errors import missing_tensor
from tensafe.training.losses.loss import TokenLoss
from tensafe.training.losses.types import Elements

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor


class TokenCE(TokenLoss, name="token_ce"):
    r"""Cross-entropy of each token's logits against the label that follows it: the loss of language modelling and SFT.

    .. math:: \ell_t = (1 - \epsilon)\,(-\log p_t[y_t]) + \frac{\epsilon}{V} \sum_v -\log p_t[v],
        \quad p_t = \mathrm{softmax}(z_t)

    Args:
        logits: Scores :math:`z`, float `[batch seq vocab]`, or `[N vocab]`. 16-bit floats are computed in float32.
        labels: Target ids :math:`y`, integers `[batch seq]`, or `[N]`, in [0, vocab) or `ignore_index`. With
            `[batch seq vocab]` logits, position t is scored against label t + 1, as in Hugging Face models; the last
            position then has nothing to predict and does not count. `[N vocab]` logits are never shifted.
        shift_labels: Labels that are aligned with the logits already; used instead of `labels` and never shifted.
        ignore_index: Label of a position that does not count.
        label_smoothing: :math:`\epsilon` in [0, 1], torch's definition: 0 is plain cross-entropy, 1 is uniform targets.
        shift: Whether `labels` are shifted; false says that they are aligned with the logits already.
        reduction: See `TokenLoss`; `none` gives one value per label, 0 where it does not count.
        max_length: See `TokenLoss`.
        metrics: Whether the result carries `num_tokens`, the number of labels that count (0-d int64).

    Returns:
        The loss in nats, 0-d float32 (float64 for float64 logits). A batch in which nothing counts gives 0.0, attached
        to the graph; the gradient of a position that does not count is exactly zero, even where its logits are NaN.

    Raises:
        LossInputError: A tensor is missing or does not fit; on CPU, a label is outside [0, vocab) and is not
            `ignore_index`. On CUDA such a label trips torch's device-side assertion.
        LossConfigError: A kwarg is unknown or out of range.

    Note:
        A logit of -inf (a vocabulary mask) is fine unless `label_smoothing` > 0: the smoothed loss is then infinite.
        uint8 labels are widened; they cannot hold -100, so give another `ignore_index`.

    Example:
        >>> import torch
        >>> from tensafe.training.losses import resolve_loss
        >>> loss_fn = resolve_loss("token_ce", shift=False)
        >>> result = loss_fn({"logits": torch.zeros(1, 2, 4)}, {"labels": torch.tensor([[3, -100]])})
        >>> round(result["loss"].item(), 4), result["metrics"]["num_tokens"].item()  # ln 4, one label counts
        (1.3863, 1)

    References:
        Label smoothing: Szegedy et al., Rethinking the Inception Architecture for Computer Vision, 2015,
        arXiv:1512.00567, section 7. Equal to torch.nn.functional.cross_entropy on shifted logits and labels, but for
        batches in which nothing counts, where torch gives NaN.
    """

    ignore_index: int = Field(default=-100, description="Label of a position that does not count.")
    label_smoothing: float = Field(
        default=0.0, ge=0, le=1, description="Weight of the uniform distribution in the target, torch's definition."
    )
    shift: bool = Field(
        default=True, description="Score position t against label t + 1; false: labels are aligned with logits already."
    )

    def compute(
        self,
        logits: Float[Tensor, "*rows vocab"],
        labels: Int[Tensor, "*rows"] | None = None,
        shift_labels: Int[Tensor, "*rows"] | None = None,
    ) -> Elements:
        """Return the cross-entropy of each label; see the class."""
        from tensafe.training.losses.ops.cross_entropy import cross_entropy

        values, counts = cross_entropy(
            logits,
            self._aligned(logits, labels, shift_labels),
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
        )
        return Elements(values, counts, metrics={"num_tokens": counts.sum()} if self.metrics else None)

    def explain(
        self,
        logits: Float[Tensor, "*rows vocab"],
        labels: Int[Tensor, "*rows"] | None = None,
        shift_labels: Int[Tensor, "*rows"] | None = None,
    ) -> str | None:
        """Say which labels are out of range."""
        given = labels if shift_labels is None else shift_labels
        used = self._aligned(logits, labels, shift_labels)
        vocab = logits.shape[-1]
        wrong = (used != self.ignore_index) & ((used < 0) | (used >= vocab))
        count = int(wrong.sum())
        if given is None or not count:
            return None
        name = "labels" if shift_labels is None else "shift_labels"
        return (
            f"{name!r} must lie in [0, {vocab}) (vocab={vocab}) or be ignore_index={self.ignore_index}; "
            f"{count} of {used.numel()} do not."
        )

    def _aligned(
        self, logits: Float[Tensor, "*rows vocab"], labels: Tensor | None, shift_labels: Tensor | None
    ) -> Int[Tensor, "*rows"]:
        from tensafe.training.losses.ops.cross_entropy import shift_left

        if shift_labels is not None:
            return shift_labels
        if labels is None:
            raise missing_tensor("labels", "shift_labels")
        return shift_left(labels, self.ignore_index) if self.shift and logits.ndim > 2 else labels

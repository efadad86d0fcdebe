"""Focal loss of tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from tensafe._lazy import torch
from tensafe.training.losses.families.tokens import TokenTargetLoss
from tensafe.training.losses.traits import Traits
from tensafe.training.losses.types import Elements

if TYPE_CHECKING:
    from jaxtyping import Float, Int, Num
    from torch import Tensor


class Focal(TokenTargetLoss, name="focal"):
    r"""Cross-entropy of each token that fades as the token becomes likely, so that hard ones have the say.

    .. math:: \ell_t = -\alpha\,(1 - p_t[y_t])^\gamma \log p_t[y_t], \quad p_t = \mathrm{softmax}(x_t)

    Args:
        logits: Scores :math:`x`, float `[batch seq vocab]`, or `[N vocab]`. 16-bit floats are computed in float32.
        labels: Target ids :math:`y`, integers `[batch seq]`, or `[N]`, in [0, vocab) or `ignore_index`. With
            `[batch seq vocab]` logits, position t is scored against label t + 1.
        shift_labels: Labels that are aligned with the logits already; used instead of `labels` and never shifted.
        token_weights: What the loss of each label is multiplied by, floats or integers >= 0 shaped like the labels;
            aligned with the labels in use, and shifted with them. A label of weight 0 does not count.
        sample_weights: What all labels of a sequence are multiplied by, `[batch]`; on top of `token_weights`.
        segment_ids: Which sequence of a packed row each position belongs to, integers shaped like the labels: equal
            numbers are one sequence. Nothing is predicted across two, and reductions by sequence take each for one.
            `shift_labels` are used as they are.
        gamma: :math:`\gamma` >= 0, how fast likely tokens fade; 0 is plain cross-entropy.
        alpha: :math:`\alpha` in [0, 1], a factor of every token; None is 1.
        ignore_index: Label of a position that does not count.
        shift: Whether `labels` are shifted; false says that they are aligned with the logits already.
        reduction: See `TokenLoss`; `none` gives one value per label, 0 where it does not count.
        max_length: See `TokenLoss`.
        metrics: Whether the result carries `num_tokens`, the number of labels that count (0-d int64), `nll`, their
            cross-entropy in nats, and `probability`, what the model gives them, in [0, 1].

    Returns:
        The loss in nats, 0-d float32 (float64 for float64 logits). A batch in which nothing counts gives 0.0, attached
        to the graph; the gradient of a position that does not count is exactly zero, even where its logits are NaN.

    Raises:
        LossInputError: A tensor is missing or does not fit; on CPU, a label is outside [0, vocab) and is not
            `ignore_index`.
        LossConfigError: A kwarg is unknown or out of range.

    Note:
        The gradient goes through the factor too, as in the paper. In the paper, and in torchvision's
        `sigmoid_focal_loss`, :math:`\alpha` weighs positives against negatives; here there are no negatives.

    Example:
        >>> import torch
        >>> from tensafe.training.losses import resolve_loss
        >>> loss_fn = resolve_loss("focal", gamma=2.0, shift=False)
        >>> result = loss_fn({"logits": torch.zeros(1, 2, 2)}, {"labels": torch.tensor([[1, -100]])})
        >>> round(result["loss"].item(), 4)  # (1 - 1/2)^2 ln 2
        0.1733

    References:
        Lin et al., Focal Loss for Dense Object Detection, 2017, arXiv:1708.02002, equation 5.
    """

    _traits: ClassVar[Traits] = Traits(sample_independent=True, non_negative=True, shift_invariant=("logits",))

    gamma: float = Field(default=2.0, ge=0, description="How fast the loss of likely tokens fades; 0 is cross-entropy.")
    alpha: float | None = Field(default=None, ge=0, le=1, description="Factor of every token; 1 by default.")

    def compute(
        self,
        logits: Float[Tensor, "*rows vocab"],
        labels: Int[Tensor, "*rows"] | None = None,
        shift_labels: Int[Tensor, "*rows"] | None = None,
        token_weights: Num[Tensor, "*rows"] | None = None,
        sample_weights: Num[Tensor, " batch"] | None = None,
        segment_ids: Int[Tensor, "*rows"] | None = None,
    ) -> Elements:
        """Return the value of each label; see the class."""
        from tensafe.training.losses.ops.logps import logps

        used, weights, _ = self._targets(logits, labels, shift_labels, token_weights, sample_weights, segment_ids)
        log_p = logps(logits, used, ignore_index=self.ignore_index)
        # of 0 ** gamma there is no gradient where gamma < 1
        rest = (-torch.expm1(log_p)).clamp(min=torch.finfo(log_p.dtype).tiny)
        values = -(rest**self.gamma) * log_p
        metrics = {**self._count(weights), "nll": -log_p, "probability": log_p.exp()} if self.metrics else None
        return Elements(
            values if self.alpha is None else self.alpha * values, weights, metrics, segment_ids=segment_ids
        )

    def explain(
        self,
        logits: Float[Tensor, "*rows vocab"],
        labels: Int[Tensor, "*rows"] | None = None,
        shift_labels: Int[Tensor, "*rows"] | None = None,
        token_weights: Num[Tensor, "*rows"] | None = None,
        sample_weights: Num[Tensor, " batch"] | None = None,
        segment_ids: Int[Tensor, "*rows"] | None = None,
    ) -> str | None:
        """Say which labels are out of range."""
        return self._wrong_labels(logits, labels, shift_labels, segment_ids, logits.shape[-1])

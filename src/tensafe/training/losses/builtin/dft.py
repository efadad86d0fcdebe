"""Dynamic fine-tuning: cross-entropy that counts what the model already finds likely."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from tensafe.training.losses.families.tokens import TokenTargetLoss
from tensafe.training.losses.traits import Traits
from tensafe.training.losses.types import Elements

if TYPE_CHECKING:
    from jaxtyping import Float, Int, Num
    from torch import Tensor


class DFT(TokenTargetLoss, name="dft"):
    r"""Cross-entropy of each token times its own probability, held constant: unlikely tokens pull less.

    .. math:: \ell_t = -\mathrm{sg}(p_t[y_t]) \log p_t[y_t], \quad p_t = \mathrm{softmax}(x_t), \quad
        \mathrm{sg}: \text{no gradient}

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
        ignore_index: Label of a position that does not count.
        shift: Whether `labels` are shifted; false says that they are aligned with the logits already.
        reduction: See `TokenLoss`; `none` gives one value per label, 0 where it does not count.
        max_length: See `TokenLoss`.
        metrics: Whether the result carries `num_tokens`, the number of labels that count (0-d int64), `nll`, their
            cross-entropy in nats, and `probability`, what the model gives them, in [0, 1].

    Returns:
        The loss, 0-d float32 (float64 for float64 logits), each value in [0, 1/e]. A batch in which nothing counts
        gives 0.0, attached to the graph; the gradient of a position that does not count is exactly zero, even where its
        logits are NaN.

    Raises:
        LossInputError: A tensor is missing or does not fit; on CPU, a label is outside [0, vocab) and is not
            `ignore_index`.
        LossConfigError: A kwarg is unknown or out of range.

    Note:
        The value falls as p tends to 0, but the gradient still raises p: :math:`-p\,\nabla \log p = -\nabla p`. Watch
        `nll` instead.

    Example:
        >>> import torch
        >>> from tensafe.training.losses import resolve_loss
        >>> loss_fn = resolve_loss("dft", shift=False)
        >>> result = loss_fn({"logits": torch.zeros(1, 2, 4)}, {"labels": torch.tensor([[3, -100]])})
        >>> round(result["loss"].item(), 4)  # 1/4 of ln 4
        0.3466

    References:
        Wu et al., On the Generalization of SFT: A Reinforcement Learning Perspective with Reward Rectification, 2025,
        arXiv:2508.05629. Equal to the `dft` loss of TRL's SFTTrainer, whose denominator is `num_items_in_batch`, or the
        number of labels that count.
    """

    _traits: ClassVar[Traits] = Traits(
        sample_independent=True,
        non_negative=True,
        shift_invariant=("logits",),
        surrogate=True,
    )

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
        p = log_p.detach().exp()
        metrics = {**self._count(weights), "nll": -log_p, "probability": p} if self.metrics else None
        return Elements(-p * log_p, weights, metrics, segment_ids=segment_ids)

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

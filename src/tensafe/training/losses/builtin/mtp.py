"""Multi-token prediction."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from tensafe._lazy import torch
from tensafe.training.losses.families.tokens import NonNegativeNumbers, Targets, TokenTargetLoss, check_length
from tensafe.training.losses.traits import Traits
from tensafe.training.losses.types import Elements

if TYPE_CHECKING:
    from jaxtyping import Float, Int, Num
    from torch import Tensor


class MTP(TokenTargetLoss, name="mtp"):
    r"""Cross-entropy of several heads, each of which looks one token further ahead: a weighted sum of their means.

    .. math:: L = \sum_k w_k\, \frac{1}{n_k} \sum_t -\log p_{tk}[y_{t + 1 + k}], \quad
        p_{tk} = \mathrm{softmax}(x_{tk}), \quad k = 0, 1, \dots

    Args:
        logits: Scores :math:`x` of each head, float `[batch seq k vocab]`: head 0 predicts the next token, as any
            language model does. 16-bit floats are computed in float32.
        labels: Target ids :math:`y`, integers `[batch seq]`, in [0, vocab) or `ignore_index`. The last 1 + k positions
            of a sequence have nothing for head k to predict, and do not count.
        shift_labels: Labels that are aligned with head 0 already: head k at position t predicts number t + k of them;
            used instead of `labels`.
        token_weights: What the loss of each label is multiplied by, floats or integers >= 0 shaped like the labels and
            shifted with them. A label of weight 0 does not count.
        sample_weights: What all labels of a sequence are multiplied by, `[batch]`; on top of `token_weights`.
        segment_ids: Which sequence of a packed row each position belongs to, integers shaped like the labels: equal
            numbers are one sequence. Nothing is predicted across two, and reductions by sequence take each for one.
            `shift_labels` are used as they are.
        weights: :math:`w`, a number >= 0 for each head; None is 1 for all.
        ignore_index: Label of a position that does not count.
        shift: Whether `labels` are shifted for head 0; false says that they are aligned with it already.
        reduction: `mean` is the formula, where :math:`n_k` is what counts for head k (the sum of its weights), and
            `sequence_mean` the mean over sequences of the formula for each. The others take the weighted loss of every
            head at every position as a token's: `none` gives `[batch seq k]`.
        max_length: See `TokenLoss`.
        metrics: Whether the result carries `num_tokens`, the number of labels that count for head 0 (0-d int64), and
            `loss_head_0`, `loss_head_1`, ..., the mean of each head in nats, without its weight.

    Returns:
        The loss in nats, 0-d float32 (float64 for float64 logits). A head for which nothing counts adds 0. A batch in
        which nothing counts gives 0.0, attached to the graph; the gradient of a position that does not count is exactly
        zero, even where its logits are NaN.

    Raises:
        LossInputError: A tensor is missing or does not fit, or `weights` does not hold one number per head; on CPU, a
            label is outside [0, vocab) and is not `ignore_index`.
        LossConfigError: A kwarg is unknown or out of range.

    Note:
        `num_items_in_batch` is a list or tensor of one count per head, :math:`n_0, n_1, \dots` of the whole step, as
        `tensafe.distributed.count_items` gives it: what heads have to predict differs. One number divides the sums of
        all heads, which is DeepSeek-V3's equation 24 where it is the count of head 0. Without
        `segment_ids`, head k looks past the end of a sequence that is packed with others.

    Example:
        >>> import torch
        >>> from tensafe.training.losses import resolve_loss
        >>> loss_fn = resolve_loss("mtp", weights=[1.0, 0.5])
        >>> result = loss_fn({"logits": torch.zeros(1, 4, 2, 8)}, {"labels": torch.tensor([[1, 2, 3, 4]])})
        >>> round(result["loss"].item(), 4)  # 1.5 ln 8
        3.1192

    References:
        Gloeckle et al., Better & Faster Large Language Models via Multi-token Prediction, 2024, arXiv:2404.19737,
        section 2; with weights as in DeepSeek-AI, DeepSeek-V3 Technical Report, 2024, arXiv:2412.19437, section 2.2,
        where the heads after the first share one weight divided by their number, and all divide by the same length.
    """

    _apart: ClassVar[bool] = True
    _traits: ClassVar[Traits] = Traits(sample_independent=True, non_negative=True, shift_invariant=("logits",))

    weights: NonNegativeNumbers | None = Field(
        default=None, description="What the loss of each head is multiplied by, numbers >= 0; 1 by default."
    )

    def compute(
        self,
        logits: Float[Tensor, "batch seq k vocab"],
        labels: Int[Tensor, "batch seq"] | None = None,
        shift_labels: Int[Tensor, "batch seq"] | None = None,
        token_weights: Num[Tensor, "batch seq"] | None = None,
        sample_weights: Num[Tensor, " batch"] | None = None,
        segment_ids: Int[Tensor, "batch seq"] | None = None,
    ) -> Elements:
        """Return the cross-entropy of each head at each position; see the class."""
        from tensafe.training.losses.ops.cross_entropy import cross_entropy
        from tensafe.training.losses.ops.row_scores import Formula

        used, counts, _ = self._ahead(
            logits, self._targets(logits[:, :, 0], labels, shift_labels, token_weights, sample_weights, segment_ids)
        )
        values = cross_entropy(logits, used, Formula(self.ignore_index))
        metrics = _by_head(values.detach(), counts) if self.metrics else None
        of_head = self._weight_of_heads(counts)
        return Elements(values * of_head, torch.where(of_head != 0, counts, 0.0), metrics, segment_ids=segment_ids)

    def explain(
        self,
        logits: Float[Tensor, "batch seq k vocab"],
        labels: Int[Tensor, "batch seq"] | None = None,
        shift_labels: Int[Tensor, "batch seq"] | None = None,
        token_weights: Num[Tensor, "batch seq"] | None = None,
        sample_weights: Num[Tensor, " batch"] | None = None,
        segment_ids: Int[Tensor, "batch seq"] | None = None,
    ) -> str | None:
        """Say which labels are out of range."""
        return self._wrong_labels(logits[:, :, 0], labels, shift_labels, segment_ids, logits.shape[-1])

    def _ahead(self, logits: Tensor, targets: Targets) -> Targets:
        """Return labels and weights of each head, `[batch seq k]`, from those of head 0."""
        from tensafe.training.losses.ops.cross_entropy import shift_left
        from tensafe.training.losses.ops.lean import compute_dtype

        heads, segment_ids = range(logits.shape[2]), targets.segment_ids
        weights = targets.weights.to(compute_dtype(logits.dtype))
        return Targets(
            torch.stack([shift_left(targets.labels, self.ignore_index, head, segment_ids) for head in heads], -1),
            torch.stack([shift_left(weights, 0, head, segment_ids) for head in heads], -1),
            segment_ids,
        )

    def _weight_of_heads(self, counts: Tensor) -> Tensor:
        heads = counts.shape[-1]
        if self.weights is None:
            return counts.new_ones(heads)
        check_length("weights", self.weights, "head", heads)
        return torch.tensor(self.weights, dtype=counts.dtype, device=counts.device)


def _by_head(values: Tensor, counts: Tensor) -> dict[str, Tensor]:
    total = counts.sum((0, 1))
    means = (values * counts).sum((0, 1)) / torch.where(total == 0, 1.0, total)
    return {
        "num_tokens": (counts[..., 0] != 0).sum(),
        **{f"loss_head_{head}": mean for head, mean in enumerate(means.unbind())},
    }

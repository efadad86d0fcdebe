"""Unlikelihood training."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from tensafe.training.losses.families.ids import wrong_ids
from tensafe.training.losses.families.tokens import TokenTargetLoss
from tensafe.training.losses.traits import Traits
from tensafe.training.losses.types import Elements

if TYPE_CHECKING:
    from jaxtyping import Float, Int, Num
    from torch import Tensor


class Unlikelihood(TokenTargetLoss, name="unlikelihood"):
    r"""Cross-entropy of each token, plus a cost for tokens that must not stand in its place, such as repetitions.

    .. math:: \ell_t = -\log p_t[y_t] - \alpha \sum_{c \in C_t} \log(1 - p_t[c]), \quad p_t = \mathrm{softmax}(x_t)

    Args:
        logits: Scores :math:`x`, float `[batch seq vocab]`, or `[N vocab]`. 16-bit floats are computed in float32.
        negative_labels: Ids :math:`C` of the tokens that must not come, integers `[batch seq k]`, or `[N k]`, in
            [0, vocab); `ignore_index` fills up. They are aligned with the labels in use and shifted with them. One that
            is the label itself does not count; one that stands there twice counts twice.
        labels: Target ids :math:`y`, integers `[batch seq]`, or `[N]`, in [0, vocab) or `ignore_index`. With
            `[batch seq vocab]` logits, position t is scored against label t + 1. Where it is ignored, so are its
            negatives.
        shift_labels: Labels that are aligned with the logits already; used instead of `labels` and never shifted.
        token_weights: What the loss of each label is multiplied by, floats or integers >= 0 shaped like the labels;
            aligned with the labels in use, and shifted with them. A label of weight 0 does not count.
        sample_weights: What all labels of a sequence are multiplied by, `[batch]`; on top of `token_weights`.
        segment_ids: Which sequence of a packed row each position belongs to, integers shaped like the labels: equal
            numbers are one sequence. Nothing is predicted across two, and reductions by sequence take each for one.
            `shift_labels` are used as they are.
        alpha: :math:`\alpha` >= 0, weight of the negatives; 0 is plain cross-entropy.
        over_negatives: `sum`, as in the formula, or `mean` over those that count.
        ignore_index: Label of a position that does not count.
        shift: Whether `labels` and `negative_labels` are shifted; false says that they are aligned with the logits.
        reduction: See `TokenLoss`; `none` gives one value per label, 0 where it does not count.
        max_length: See `TokenLoss`.
        metrics: Whether the result carries `num_tokens`, the number of labels that count (0-d int64), `nll`, their
            cross-entropy, and `unlikelihood`, the cost of their negatives, both in nats, without :math:`\alpha`.

    Returns:
        The loss in nats, 0-d float32 (float64 for float64 logits). A batch in which nothing counts gives 0.0, attached
        to the graph; the gradient of a position that does not count is exactly zero, even where its logits are NaN.

    Raises:
        LossInputError: A tensor is missing or does not fit; on CPU, an id is outside [0, vocab) and is not
            `ignore_index`.
        LossConfigError: A kwarg is unknown or out of range.

    Note:
        A negative that has nearly all of the probability is computed from what the others have, so neither value nor
        gradient is lost in rounding; in float32 it costs at most 73 nats.

    Example:
        >>> import torch
        >>> from tensafe.training.losses import resolve_loss
        >>> batch = {"labels": torch.tensor([0]), "negative_labels": torch.tensor([[1, 2]])}
        >>> result = resolve_loss("unlikelihood")({"logits": torch.zeros(1, 4)}, batch)
        >>> round(result["loss"].item(), 4)  # ln 4 - 2 ln(3/4)
        1.9617

    References:
        Welleck et al., Neural Text Generation with Unlikelihood Training, 2019, arXiv:1908.04319, section 5, where the
        negatives of a token are those that came before it.
    """

    _traits: ClassVar[Traits] = Traits(sample_independent=True, non_negative=True, shift_invariant=("logits",))

    alpha: float = Field(default=1.0, ge=0, description="Weight of the negatives; 0 is cross-entropy.")
    over_negatives: Literal["sum", "mean"] = Field(
        default="sum", description="Whether the negatives of a position are added up or averaged."
    )

    def compute(
        self,
        logits: Float[Tensor, "*rows vocab"],
        negative_labels: Int[Tensor, "*rows k"],
        labels: Int[Tensor, "*rows"] | None = None,
        shift_labels: Int[Tensor, "*rows"] | None = None,
        token_weights: Num[Tensor, "*rows"] | None = None,
        sample_weights: Num[Tensor, " batch"] | None = None,
        segment_ids: Int[Tensor, "*rows"] | None = None,
    ) -> Elements:
        """Return the value of each label; see the class."""
        from tensafe.training.losses.ops.unlikelihood import logps_and_unlikelihood

        used, weights, _ = self._targets(logits, labels, shift_labels, token_weights, sample_weights, segment_ids)
        negatives = self._aligned_negatives(logits, negative_labels, shift_labels)
        log_p, costs = logps_and_unlikelihood(
            logits, used, negatives, ignore_index=self.ignore_index, mean=self.over_negatives == "mean"
        )
        metrics = {**self._count(weights), "nll": -log_p, "unlikelihood": costs} if self.metrics else None
        return Elements(self.alpha * costs - log_p, weights, metrics, segment_ids=segment_ids)

    def explain(
        self,
        logits: Float[Tensor, "*rows vocab"],
        negative_labels: Int[Tensor, "*rows k"],
        labels: Int[Tensor, "*rows"] | None = None,
        shift_labels: Int[Tensor, "*rows"] | None = None,
        token_weights: Num[Tensor, "*rows"] | None = None,
        sample_weights: Num[Tensor, " batch"] | None = None,
        segment_ids: Int[Tensor, "*rows"] | None = None,
    ) -> str | None:
        """Say which ids are out of range."""
        vocab = logits.shape[-1]
        wrong = self._wrong_labels(logits, labels, shift_labels, segment_ids, vocab)
        negatives = self._aligned_negatives(logits, negative_labels, shift_labels)
        return wrong or wrong_ids("negative_labels", negatives, vocab, ignore_index=self.ignore_index)

    def _aligned_negatives(self, logits: Tensor, negatives: Tensor, shift_labels: Tensor | None) -> Tensor:
        from tensafe.training.losses.ops.cross_entropy import shift_left

        if not self._shifts(logits, shift_labels):
            return negatives
        return shift_left(negatives.transpose(-1, -2), self.ignore_index).transpose(-1, -2)

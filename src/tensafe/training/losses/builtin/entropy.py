"""Entropy bonus."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from tensafe._lazy import torch
from tensafe.training.losses.families.tokens import TokenTargetLoss
from tensafe.training.losses.traits import Traits
from tensafe.training.losses.types import Elements

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int, Num
    from torch import Tensor


class Entropy(TokenTargetLoss, name="entropy"):
    r"""Bonus for an undecided model: minus the entropy of each token's distribution, a term to add to another loss.

    .. math:: \ell_t = -c\,H(p_t), \quad H(p) = -\sum_v p[v] \log p[v], \quad p_t = \mathrm{softmax}(x_t / T)

    Args:
        logits: Scores :math:`x`, float `[batch seq vocab]`, or `[N vocab]`. 16-bit floats are computed in float32.
        labels: Integers `[batch seq]`, or `[N]`: where they are `ignore_index` a position does not count, and nothing
            else is read from them. With `[batch seq vocab]` logits, position t counts if label t + 1 does. None counts
            everything.
        shift_labels: Labels that are aligned with the logits already; used instead of `labels` and never shifted.
        mask: Bool, shaped like the labels and aligned with the logits: true where a position counts. Beside labels,
            both must say so.
        token_weights: What the value of each position is multiplied by, floats or integers >= 0 shaped like the labels
            and shifted with `labels`; without these they are aligned with the logits.
        sample_weights: What all positions of a sequence are multiplied by, `[batch]`; on top of `token_weights`.
        segment_ids: Which sequence of a packed row each position belongs to, integers shaped like the labels: equal
            numbers are one sequence. Nothing is predicted across two, and reductions by sequence take each for one.
            `shift_labels` are used as they are.
        coef: :math:`c` >= 0; at 0 the term is there for its metric alone.
        temperature: :math:`T` > 0, of the softmax.
        ignore_index: Label of a position that does not count.
        shift: Whether `labels` are shifted; false says that they are aligned with the logits already.
        reduction: See `TokenLoss`; `none` gives one value per position, 0 where it does not count.
        max_length: See `TokenLoss`.
        metrics: Whether the result carries `num_tokens`, the number of positions that count (0-d int64), and `entropy`
            in nats, without the coefficient.

    Returns:
        The loss in nats, 0-d float32 (float64 for float64 logits), in [-c ln V, 0]. A batch in which nothing counts
        gives 0.0, attached to the graph; the gradient of a position that does not count is exactly zero, even where its
        logits are NaN. A class of probability 0 (a logit of -inf) adds nothing.

    Raises:
        LossInputError: A tensor is missing or does not fit.
        LossConfigError: A kwarg is unknown or out of range.

    Note:
        As a term of `weighted_sum`, a negative weight turns the bonus into a penalty on entropy.

    Example:
        >>> import torch
        >>> from tensafe.training.losses import resolve_loss
        >>> result = resolve_loss("entropy", coef=0.5)({"logits": torch.zeros(1, 1, 4)}, {})
        >>> round(result["loss"].item(), 4)  # -0.5 ln 4
        -0.6931

    References:
        Williams and Peng, Function Optimization Using Connectionist Reinforcement Learning Algorithms, 1991; in policy
        gradients Mnih et al., Asynchronous Methods for Deep Reinforcement Learning, 2016, arXiv:1602.01783, section 4.
    """

    _traits: ClassVar[Traits] = Traits(sample_independent=True, shift_invariant=("logits",))

    coef: float = Field(default=0.01, ge=0, description="What the entropy is multiplied by.")
    temperature: float = Field(default=1.0, gt=0, description="What the logits are divided by before the softmax.")

    def compute(
        self,
        logits: Float[Tensor, "*rows vocab"],
        labels: Int[Tensor, "*rows"] | None = None,
        shift_labels: Int[Tensor, "*rows"] | None = None,
        mask: Bool[Tensor, "*rows"] | None = None,
        token_weights: Num[Tensor, "*rows"] | None = None,
        sample_weights: Num[Tensor, " batch"] | None = None,
        segment_ids: Int[Tensor, "*rows"] | None = None,
    ) -> Elements:
        """Return the value of each position; see the class."""
        from tensafe.training.losses.ops.logps import logps_and_entropy

        weights = self._weights_by_position(
            logits, labels, shift_labels, mask, token_weights, sample_weights, segment_ids
        )
        anything = torch.where(weights != 0, 0, -1)  # the entropy is that of every class
        _, entropy = logps_and_entropy(logits, anything, temperature=self.temperature, ignore_index=-1)
        metrics = {**self._count(weights), "entropy": entropy} if self.metrics else None
        return Elements(-self.coef * entropy, weights, metrics, segment_ids=segment_ids)

"""Cross-entropy against distributions."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from tensafe._lazy import torch
from tensafe.training.losses.errors import LossInputError, make_error
from tensafe.training.losses.families.tokens import TokenTargetLoss
from tensafe.training.losses.traits import Traits
from tensafe.training.losses.types import Elements

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int, Num
    from torch import Tensor

_TOLERANCE = 1e-2
"""How far from 1 probabilities may add up: far more than 16 bits lose, far less than logits or log-probs are off."""


class SoftTargetCE(TokenTargetLoss, name="soft_target_ce"):
    r"""Cross-entropy of each token's logits against a distribution, as mixing, smoothing or a teacher makes it.

    .. math:: \ell_t = -\sum_v q_t[v] \log p_t[v], \quad p_t = \mathrm{softmax}(x_t)

    Args:
        logits: Scores :math:`x`, float `[batch seq vocab]`, or `[N vocab]`. 16-bit floats are computed in float32.
        target_probs: Probabilities :math:`q` in [0, 1], same shape, that add up to 1: row t is what the logits of
            position t should say. Nothing is shifted. They get a gradient if they want one.
        labels: Integers `[batch seq]`, or `[N]`: where they are `ignore_index` a position does not count, and nothing
            else is read from them. None counts everything.
        shift_labels: As `labels`, never shifted; used instead of them.
        mask: Bool, shaped like the labels and aligned with the logits: true where a position counts. Beside labels,
            both must say so.
        token_weights: What the value of each position is multiplied by, floats or integers >= 0 shaped like the labels
            and shifted with `labels`; without these they are aligned with the logits.
        sample_weights: What all positions of a sequence are multiplied by, `[batch]`; on top of `token_weights`.
        segment_ids: Which sequence of a packed row each position belongs to, integers shaped like the labels: equal
            numbers are one sequence. Nothing is predicted across two, and reductions by sequence take each for one.
            `shift_labels` are used as they are.
        renormalise: Whether each row of `target_probs` is divided by its sum first, which must be above 0; a row of
            zeros then does not count.
        check_targets: Whether rows that count and do not add up to 1 (within 0.01) are refused; only on a CPU in eager
            mode, since elsewhere nobody looks at values. `target_mass` tells everywhere.
        ignore_index: Label of a position that does not count.
        shift: Whether `labels` are shifted: true where labels are those of `token_ce`, of which position t predicts
            t + 1.
        reduction: See `TokenLoss`; `none` gives one value per position, 0 where it does not count.
        max_length: See `TokenLoss`.
        metrics: Whether the result carries `num_tokens`, the number of positions that count (0-d int64), and
            `target_mass`, what a row of `target_probs` adds up to.

    Returns:
        The loss in nats, 0-d float32 (float64 for float64 logits). A batch in which nothing counts gives 0.0, attached
        to the graph; the gradient of a position that does not count is exactly zero, even where its logits are NaN. A
        class of target 0 adds nothing, even where its logit is -inf.

    Raises:
        LossInputError: A tensor is missing or does not fit, or targets do not add up to 1; see `check_targets`.
        LossConfigError: A kwarg is unknown or out of range.

    Example:
        >>> import torch
        >>> from tensafe.training.losses import resolve_loss
        >>> outputs = {"logits": torch.tensor([[0.0, 3.0]]).log1p()}  # probabilities 1/5 and 4/5
        >>> result = resolve_loss("soft_target_ce")(outputs, {"target_probs": torch.tensor([[0.5, 0.5]])})
        >>> round(result["loss"].item(), 4)  # (ln 5 + ln 5/4) / 2
        0.9163

    References:
        Equal to torch.nn.functional.cross_entropy with class probabilities as targets, over the positions that count.
        The gradient of the logits is that of the KL divergence from q to p, whose value is less by the entropy of q.
    """

    _traits: ClassVar[Traits] = Traits(
        sample_independent=True,
        non_negative=True,
        shift_invariant=("logits",),
        passes_gradient_to=("target_probs",),
    )

    shift: bool = Field(
        default=False, description="Whether position t counts if label t + 1 does; false: if label t does."
    )
    renormalise: bool = Field(default=False, description="Divide each row of the targets by its sum.")
    check_targets: bool = Field(default=True, description="Refuse targets that do not add up to 1, on a CPU.")

    def compute(
        self,
        logits: Float[Tensor, "*rows vocab"],
        target_probs: Float[Tensor, "*rows vocab"],
        labels: Int[Tensor, "*rows"] | None = None,
        shift_labels: Int[Tensor, "*rows"] | None = None,
        mask: Bool[Tensor, "*rows"] | None = None,
        token_weights: Num[Tensor, "*rows"] | None = None,
        sample_weights: Num[Tensor, " batch"] | None = None,
        segment_ids: Int[Tensor, "*rows"] | None = None,
    ) -> Elements:
        """Return the value of each position; see the class."""
        from tensafe.training.losses.ops.lean import is_plain
        from tensafe.training.losses.ops.soft_cross_entropy import soft_cross_entropy

        weights = self._weights_by_position(
            logits, labels, shift_labels, mask, token_weights, sample_weights, segment_ids
        )
        values, mass = soft_cross_entropy(logits, target_probs, counts=weights != 0)
        if self.renormalise:
            has_mass = mass > 0
            values = values / torch.where(has_mass, mass, 1.0)
            weights = weights * has_mass
        elif self.check_targets and not is_plain(mass) and mass.is_cpu:
            _check_mass(mass, weights)
        metrics = {**self._count(weights), "target_mass": mass} if self.metrics else None
        return Elements(values, weights, metrics, segment_ids=segment_ids)


def _check_mass(mass: Tensor, weights: Tensor) -> None:
    off = ((mass - 1).abs() > _TOLERANCE) & (weights != 0)
    count = int(off.sum())
    if count:
        raise make_error(
            LossInputError,
            f"each row of 'target_probs' must add up to 1; {count} of {off.numel()} do not.",
            code="invalid-values",
            loc=("target_probs",),
            hint="Pass probabilities, not logits or log-probabilities, or set renormalise: true.",
        )

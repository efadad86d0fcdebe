"""Group sequence policy optimisation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from tensafe.training.losses.families.policy import ClippedPolicyLoss
from tensafe.training.losses.packing import sequence_totals

if TYPE_CHECKING:
    from tensafe.training.losses.families.policy import Surrogate, Tokens


class GSPO(ClippedPolicyLoss, name="gspo"):
    r"""Clipped policy gradient whose ratio is that of the whole sequence: the geometric mean of its tokens' ratios.

    .. math:: \ell_t = -w_t \min\big(\min(s, c)\,A_t,\; \mathrm{clip}(s, 1 - \epsilon_l, 1 + \epsilon_h)\,A_t\big)
        + \beta\,k(D_t), \quad s = \exp\Big(\frac{1}{n} \sum_u \log \frac{\pi_u}{\pi^{old}_u}\Big), \quad
        w_t = \min(\pi^{old}_t / \pi^{roll}_t,\, C)

    Args:
        logps: Log-probabilities :math:`\log \pi_t` of the taken tokens under the policy that learns, float
            `[batch seq]`, in nats, <= 0, aligned with the other tensors: nothing is shifted.
        advantages: :math:`A_t`, float `[batch seq]`; or `[batch]`, one for all tokens of a sequence. It gets no
            gradient.
        mask: Which tokens count, bool `[batch seq]`. The others (prompt, padding) may hold anything, NaN too.
        old_logps: :math:`\log \pi^{old}_t` under the policy that the tokens were drawn from, same shape. None takes
            `logps` without its gradient: on-policy, every ratio is 1.
        ref_logps: :math:`\log \pi^{ref}_t` under the reference policy, same shape; needed if `kl_coef` > 0, else not
            used.
        rollout_logps: :math:`\log \pi^{roll}_t` as the engine that sampled saw them, same shape; needed with
            `rollout_ratio_max`, else not used.
        entropies: Entropy of the policy at each token, float `[batch seq]`, in nats; for the metric alone.
        segment_ids: Which sequence of a packed row each token belongs to, integers `[batch seq]`: equal numbers are one
            sequence. Each has a ratio of its own; advantages must be per token.
        epsilon_low: :math:`\epsilon_l` in [0, 1); where A < 0, a sequence whose ratio is below 1 - epsilon_low has no
            gradient.
        epsilon_high: :math:`\epsilon_h` >= 0; where A > 0, one above 1 + epsilon_high has no gradient.
        dual_clip: :math:`c` > 1 + epsilon_high; where A < 0, a ratio above it has no gradient either. None is no such
            bound, :math:`c = \infty`.
        kl_coef: :math:`\beta` >= 0; 0 leaves the divergence out.
        kl_estimator: :math:`k`, of :math:`D = \log \pi - \log \pi^{ref}`: see `kl_penalty`. `k1` warns where `kl_coef`
            > 0.
        rollout_ratio_max: :math:`C` > 0, the cap of the importance weight :math:`w`; None leaves :math:`w = 1`.
        kl_rollout_weighted: Whether :math:`w` multiplies the divergence too; refused unless there are both
            (`rollout_ratio_max`, and `kl_coef` > 0).
        reduction: See `TokenLoss`; the default is `sequence_mean`, the paper's objective; `none` gives one value per
            token.
        max_length: See `TokenLoss`.
        metrics: Whether the result carries `approx_kl` (k3 of the old policy from the new one, in nats), `ratio_max`
            and `ratio_min` (extremes of the ratios of sequences; 1 if nothing counts), `clip_fraction` (share of tokens
            held back by a bound), `kl` (the estimate, if `kl_coef` > 0) and `entropy` (if `entropies` are given).

    Returns:
        The loss, 0-d float32 (float64 for float64 tensors). A batch in which nothing counts gives 0.0, attached to the
        graph. Only `logps` get a gradient.

    Raises:
        LossInputError: A tensor is missing (`ref_logps` with `kl_coef` > 0, `rollout_logps` with `rollout_ratio_max`),
            or does not fit; `advantages` are neither `[batch]` nor `[batch seq]`.
        LossConfigError: A kwarg is unknown or out of range; `dual_clip` does not lie above 1 + epsilon_high.

    Note:
        Every token that counts has the value of its sequence (with advantages per token: the ratio of its sequence and
        an advantage of its own), so `mean` weights a sequence by its length, and `sequence_sum` multiplies it by that
        (TRL's luspo). Equal to TRL's and Liger's grpo with importance_sampling_level sequence, but that those count a
        sequence without tokens as one. `dual_clip` is TRL's and INTELLECT-2's delta, and verl's clip_ratio_c, which
        verl sets to 3. A ratio of more than e^20 is taken for e^20, without a gradient (as in verl), so that no clipped
        one can overflow.

    Example:
        >>> import torch
        >>> from tensafe.training.losses import resolve_loss
        >>> outputs = {"logps": torch.tensor([[0.5, 0.5]]).log()}
        >>> batch = {"old_logps": torch.tensor([[0.25, 1.0]]).log(), "mask": torch.tensor([[True, True]])}
        >>> batch["advantages"] = torch.tensor([1.0])
        >>> resolve_loss("gspo")(outputs, batch)["loss"]  # the square root of 2 * 1/2
        tensor(-1.)

    References:
        Zheng et al., Group Sequence Policy Optimization, 2025, arXiv:2507.18071, section 4.1.
    """

    reduction: Literal["none", "sum", "mean", "sequence_mean", "sequence_sum", "sequence_sum_norm"] = Field(
        default="sequence_mean",
        description="How token losses become one number; by default the mean over sequences of each one's mean.",
    )
    epsilon_low: float = Field(
        default=3e-4, ge=0, lt=1, description="How far below 1 a sequence's ratio may fall before its gradient stops."
    )
    epsilon_high: float = Field(
        default=4e-4, ge=0, description="How far above 1 a sequence's ratio may rise before its gradient stops."
    )

    def _surrogate(self, tokens: Tokens) -> Surrogate:
        counts = tokens.mask.to(tokens.log_ratio.dtype)
        lengths = sequence_totals(counts, tokens.segment_ids).clamp(min=1)
        log_ratio = sequence_totals(tokens.log_ratio, tokens.segment_ids) / lengths
        return super()._surrogate(tokens._replace(log_ratio=log_ratio.expand_as(tokens.log_ratio)))

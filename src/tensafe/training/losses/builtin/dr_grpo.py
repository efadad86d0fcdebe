"""GRPO done right."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import ConfigDict, Field, model_validator

from tensafe.training.losses.families.policy import ClippedPolicyLoss

if TYPE_CHECKING:
    from typing import Self


class DrGRPO(ClippedPolicyLoss, name="dr_grpo"):
    r"""GRPO without its bias towards long wrong answers: each sequence's sum is divided by a constant.

    .. math:: \ell_t = -w_t \min\big(\min(r_t, c)\,A_t,\; \mathrm{clip}(r_t, 1 - \epsilon_l, 1 + \epsilon_h)\,A_t\big)
        + \beta\,k(D_t), \quad r_t = \pi_t / \pi^{old}_t, \quad w_t = \min(\pi^{old}_t / \pi^{roll}_t,\, C)

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
            sequence. Reductions by sequence take each for one, and advantages must be per token.
        epsilon_low: :math:`\epsilon_l` in [0, 1); where A < 0, a ratio below 1 - epsilon_low has no gradient.
        epsilon_high: :math:`\epsilon_h` >= 0; where A > 0, a ratio above 1 + epsilon_high has no gradient.
        dual_clip: :math:`c` > 1 + epsilon_high; where A < 0, a ratio above it has no gradient either. None is no such
            bound, :math:`c = \infty`.
        kl_coef: :math:`\beta` >= 0; 0 leaves the divergence out.
        kl_estimator: :math:`k`, of :math:`D = \log \pi - \log \pi^{ref}`: see `kl_penalty`. `k1` warns where `kl_coef`
            > 0.
        rollout_ratio_max: :math:`C` > 0, the cap of the importance weight :math:`w`; None leaves :math:`w = 1`.
        kl_rollout_weighted: Whether :math:`w` multiplies the divergence too; refused unless there are both
            (`rollout_ratio_max`, and `kl_coef` > 0).
        reduction: See `TokenLoss`; the default is `sequence_sum_norm`; `none` gives one value per token.
        max_length: The constant, >= 1, in tokens: the longest completion that is sampled. Required; the other
            reductions do not use it.
        metrics: Whether the result carries `approx_kl` (k3 of the old policy from the new one, in nats), `ratio_max`
            and `ratio_min` (extremes of the ratio; 1 if nothing counts), `clip_fraction` (share of tokens held back by
            a bound), `kl` (the estimate, if `kl_coef` > 0) and `entropy` (if `entropies` are given).

    Returns:
        The loss, 0-d float32 (float64 for float64 tensors). A batch in which nothing counts gives 0.0, attached to the
        graph. Only `logps` get a gradient.

    Raises:
        LossInputError: A tensor is missing (`ref_logps` with `kl_coef` > 0, `rollout_logps` with `rollout_ratio_max`),
            or does not fit; `advantages` are neither `[batch]` nor `[batch seq]`.
        LossConfigError: A kwarg is unknown or out of range, or `max_length` is missing; `dual_clip` does not lie above
            1 + epsilon_high.

    Note:
        Equal to TRL's and Liger's loss_type dr_grpo, whose constant is max_completion_length, but that those count a
        sequence without tokens as one. The advantages of the paper are not divided by the standard deviation:
        `group_advantages(..., normalise="none")`. `dual_clip` is TRL's and INTELLECT-2's delta, and verl's
        clip_ratio_c, which verl sets to 3. A ratio of more than e^20 is taken for e^20, without a gradient (as in
        verl), so that no clipped one can overflow.

    Example:
        >>> import torch
        >>> from tensafe.training.losses import resolve_loss
        >>> outputs = {"logps": torch.tensor([[0.5, 0.0]]).log()}
        >>> batch = {"old_logps": torch.tensor([[0.25, 1.0]]).log(), "mask": torch.tensor([[True, False]])}
        >>> batch["advantages"] = torch.tensor([1.0])
        >>> resolve_loss("dr_grpo", max_length=4)(outputs, batch)["loss"]  # -1.2 / 4
        tensor(-0.3000)

    References:
        Liu et al., Understanding R1-Zero-Like Training: A Critical Perspective, 2025, arXiv:2503.20783.
    """

    model_config = ConfigDict(json_schema_extra={})  # what TokenLoss says of `max_length` holds for its own default

    reduction: Literal["none", "sum", "mean", "sequence_mean", "sequence_sum", "sequence_sum_norm"] = Field(
        default="sequence_sum_norm",
        description="How token losses become one number; by default the mean over sequences of sum / max_length.",
    )
    max_length: int = Field(  # pyright: ignore[reportIncompatibleVariableOverride]  # fields are frozen
        ge=1, examples=[512], description="Tokens that each sequence's sum is divided by: the longest completion."
    )

    @model_validator(mode="after")
    def _max_length_goes_with_its_reduction(self) -> Self:
        """Let `max_length` stand with every reduction: it belongs to the loss."""
        return self

"""The plain policy gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from tensafe.training.losses.families.policy import PolicyLoss, Surrogate

if TYPE_CHECKING:
    from tensafe.training.losses.families.policy import Tokens


class Reinforce(PolicyLoss, name="reinforce"):
    r"""Plain policy gradient: the log-probability of each token, weighted by its advantage.

    .. math:: \ell_t = -w_t A_t \log \pi_t + \beta\,k(D_t), \quad w_t = \min(\pi^{old}_t / \pi^{roll}_t,\, C)

    Args:
        logps: Log-probabilities :math:`\log \pi_t` of the taken tokens under the policy that learns, float
            `[batch seq]`, in nats, <= 0, aligned with the other tensors: nothing is shifted.
        advantages: :math:`A_t`, float `[batch seq]`; or `[batch]`, one for all tokens of a sequence. It gets no
            gradient.
        mask: Which tokens count, bool `[batch seq]`. The others (prompt, padding) may hold anything, NaN too.
        old_logps: Log-probabilities under the policy that the tokens were drawn from, same shape; for the metrics and
            :math:`w`. None takes `logps` without its gradient.
        ref_logps: :math:`\log \pi^{ref}_t` under the reference policy, same shape; needed if `kl_coef` > 0, else not
            used.
        rollout_logps: :math:`\log \pi^{roll}_t` as the engine that sampled saw them, same shape; needed with
            `rollout_ratio_max`, else not used.
        entropies: Entropy of the policy at each token, float `[batch seq]`, in nats; for the metric alone.
        segment_ids: Which sequence of a packed row each token belongs to, integers `[batch seq]`: equal numbers are one
            sequence. Reductions by sequence take each for one, and advantages must be per token.
        kl_coef: :math:`\beta` >= 0; 0 leaves the divergence out.
        kl_estimator: :math:`k`, of :math:`D = \log \pi - \log \pi^{ref}`: see `kl_penalty`. `k1` warns where `kl_coef`
            > 0.
        rollout_ratio_max: :math:`C` > 0, the cap of the importance weight :math:`w`; None leaves :math:`w = 1`.
        kl_rollout_weighted: Whether :math:`w` multiplies the divergence too; refused unless there are both
            (`rollout_ratio_max`, and `kl_coef` > 0).
        reduction: See `TokenLoss`; the default is `sequence_sum`, whose gradient is that of the expected reward; `none`
            gives one value per token.
        max_length: See `TokenLoss`.
        metrics: Whether the result carries `approx_kl` (k3 of the old policy from the new one, in nats), `ratio_max`
            and `ratio_min` (extremes of the ratio to the old policy; 1 if nothing counts), `kl` (the estimate, if
            `kl_coef` > 0) and `entropy` (if `entropies` are given).

    Returns:
        The loss, 0-d float32 (float64 for float64 tensors). A batch in which nothing counts gives 0.0, attached to the
        graph. Only `logps` get a gradient.

    Raises:
        LossInputError: A tensor is missing (`ref_logps` with `kl_coef` > 0, `rollout_logps` with `rollout_ratio_max`),
            or does not fit; `advantages` are neither `[batch]` nor `[batch seq]`.
        LossConfigError: A kwarg is unknown or out of range.

    Note:
        With `leave_one_out_advantages` of `tensafe.training.losses.advantages` it has the gradient of TRL's RLOO while
        the policy is the one that sampled; with `reduction: mean` it is verl's gpg. Its value says nothing: at the
        policy that sampled only the gradient has a meaning. Correct for an older policy by passing its
        log-probabilities as `rollout_logps`, without `old_logps`.

    Example:
        >>> import torch
        >>> from tensafe.training.losses import resolve_loss
        >>> batch = {"advantages": torch.tensor([2.0]), "mask": torch.tensor([[True, True, False]])}
        >>> outputs = {"logps": torch.tensor([[-0.5, -1.0, -9.0]])}
        >>> resolve_loss("reinforce")(outputs, batch)["loss"]  # 2 * (0.5 + 1)
        tensor(3.)

    References:
        Williams, Simple Statistical Gradient-Following Algorithms for Connectionist Reinforcement Learning, 1992,
        Machine Learning 8. For language models: Ahmadian et al., Back to Basics, 2024, arXiv:2402.14740; Chu et al.,
        GPG, 2025, arXiv:2504.02546.
    """

    reduction: Literal["none", "sum", "mean", "sequence_mean", "sequence_sum", "sequence_sum_norm"] = Field(
        default="sequence_sum",
        description="How token losses become one number; by default the mean over sequences of each one's sum.",
    )

    def _surrogate(self, tokens: Tokens) -> Surrogate:
        return Surrogate(-tokens.advantages * tokens.logps, tokens.ratio.detach())

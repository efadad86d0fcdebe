"""Soft adaptive policy optimisation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from tensafe._lazy import torch
from tensafe.training.losses.families.policy import PolicyLoss, Surrogate

if TYPE_CHECKING:
    from tensafe.training.losses.families.policy import Tokens


class SAPO(PolicyLoss, name="sapo"):
    r"""Policy gradient with a smooth gate in place of a clip: the further a ratio has moved, the less it still moves.

    .. math:: \ell_t = -w_t A_t\,\frac{4}{\tau}\,\sigma\big(\tau (r_t - 1)\big) + \beta\,k(D_t), \quad
        r_t = \pi_t / \pi^{old}_t, \quad \tau = \tau_{pos} \text{ if } A_t > 0 \text{ else } \tau_{neg}, \quad
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
            sequence. Reductions by sequence take each for one, and advantages must be per token.
        temperature_positive: :math:`\tau_{pos}` > 0; the larger, the sooner the gradient fades. At r = 1 it is that of
            the plain ratio, whatever the temperature.
        temperature_negative: :math:`\tau_{neg}` > 0, of advantages that are not positive.
        kl_coef: :math:`\beta` >= 0; 0 leaves the divergence out.
        kl_estimator: :math:`k`, of :math:`D = \log \pi - \log \pi^{ref}`: see `kl_penalty`. `k1` warns where `kl_coef`
            > 0.
        rollout_ratio_max: :math:`C` > 0, the cap of the importance weight :math:`w`; None leaves :math:`w = 1`.
        kl_rollout_weighted: Whether :math:`w` multiplies the divergence too; refused unless there are both
            (`rollout_ratio_max`, and `kl_coef` > 0).
        reduction: See `TokenLoss`; the default is `sequence_mean`; `none` gives one value per token.
        max_length: See `TokenLoss`.
        metrics: Whether the result carries `approx_kl` (k3 of the old policy from the new one, in nats), `ratio_max`
            and `ratio_min` (extremes of the ratio; 1 if nothing counts), `kl` (the estimate, if `kl_coef` > 0) and
            `entropy` (if `entropies` are given).

    Returns:
        The loss, 0-d float32 (float64 for float64 tensors). A batch in which nothing counts gives 0.0, attached to the
        graph. Only `logps` get a gradient.

    Raises:
        LossInputError: A tensor is missing (`ref_logps` with `kl_coef` > 0, `rollout_logps` with `rollout_ratio_max`),
            or does not fit; `advantages` are neither `[batch]` nor `[batch seq]`.
        LossConfigError: A kwarg is unknown or out of range.

    Note:
        Equal to TRL's and Liger's loss_type sapo, but that those count a sequence without tokens as one; their names
        are sapo_temperature_pos and sapo_temperature_neg. A ratio of more than e^20 is taken for e^20.

    Example:
        >>> import torch
        >>> from tensafe.training.losses import resolve_loss
        >>> batch = {"advantages": torch.tensor([1.0]), "mask": torch.tensor([[True]])}
        >>> resolve_loss("sapo")({"logps": torch.tensor([[-1.0]])}, batch)["loss"]  # at r = 1: 4 * sigmoid(0)
        tensor(-2.)

    References:
        Gao et al., Soft Adaptive Policy Optimization, 2025, arXiv:2511.20347.
    """

    reduction: Literal["none", "sum", "mean", "sequence_mean", "sequence_sum", "sequence_sum_norm"] = Field(
        default="sequence_mean",
        description="How token losses become one number; by default the mean over sequences of each one's mean.",
    )
    temperature_positive: float = Field(
        default=1.0, gt=0, description="How fast the gate closes where the advantage is positive."
    )
    temperature_negative: float = Field(default=1.05, gt=0, description="How fast it closes elsewhere.")

    def _surrogate(self, tokens: Tokens) -> Surrogate:
        ratio = tokens.ratio
        # full_like, since of two numbers torch.where makes float32
        positive = torch.full_like(ratio, self.temperature_positive)
        tau = torch.where(tokens.advantages > 0, positive, self.temperature_negative)
        gate = torch.sigmoid(tau * (ratio - 1)) * (4 / tau)
        return Surrogate(-tokens.advantages * gate, ratio)

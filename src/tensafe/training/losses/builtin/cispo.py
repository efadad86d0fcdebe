"""Clipped importance sampling policy optimisation."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, model_validator

from tensafe.training.losses.errors import Problem, config_error
from tensafe.training.losses.families.policy import PolicyLoss, Surrogate
from tensafe.training.losses.traits import Traits

if TYPE_CHECKING:
    from typing import Self

    from tensafe.training.losses.families.policy import Tokens


class CISPO(PolicyLoss, name="cispo"):
    r"""Policy gradient that clips the importance weight instead of the update, so that every token keeps a gradient.

    .. math:: \ell_t = -w_t\,\mathrm{sg}\big[\mathrm{clip}(r_t, r_{min}, r_{max})\big] A_t \log \pi_t + \beta\,k(D_t),
        \quad r_t = \pi_t / \pi^{old}_t, \quad w_t = \min(\pi^{old}_t / \pi^{roll}_t,\, C), \quad
        \mathrm{sg} \text{: no gradient}

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
        ratio_max: :math:`r_{max}` > 0, the largest weight itself, not its distance from 1.
        ratio_min: :math:`r_{min}` in [0, ratio_max], the smallest; 0 is no bound.
        kl_coef: :math:`\beta` >= 0; 0 leaves the divergence out.
        kl_estimator: :math:`k`, of :math:`D = \log \pi - \log \pi^{ref}`: see `kl_penalty`. `k1` warns where `kl_coef`
            > 0.
        rollout_ratio_max: :math:`C` > 0, the cap of the importance weight :math:`w`; None leaves :math:`w = 1`.
        kl_rollout_weighted: Whether :math:`w` multiplies the divergence too; refused unless there are both
            (`rollout_ratio_max`, and `kl_coef` > 0).
        reduction: See `TokenLoss`; the default is `mean`, over all tokens of the batch; `none` gives one value per
            token.
        max_length: See `TokenLoss`.
        metrics: Whether the result carries `approx_kl` (k3 of the old policy from the new one, in nats), `ratio_max`
            and `ratio_min` (extremes of the ratio; 1 if nothing counts), `clip_fraction` (share of tokens whose weight
            is clipped, whatever the sign of A), `kl` (the estimate, if `kl_coef` > 0) and `entropy` (if `entropies` are
            given).

    Returns:
        The loss, 0-d float32 (float64 for float64 tensors). A batch in which nothing counts gives 0.0, attached to the
        graph. Only `logps` get a gradient.

    Raises:
        LossInputError: A tensor is missing (`ref_logps` with `kl_coef` > 0, `rollout_logps` with `rollout_ratio_max`),
            or does not fit; `advantages` are neither `[batch]` nor `[batch seq]`.
        LossConfigError: A kwarg is unknown or out of range; `ratio_min` lies above `ratio_max`.

    Note:
        Equal to TRL's and Liger's loss_type cispo with epsilon_high = ratio_max (theirs is absolute too, and falls back
        to 0.2 where it is not given). verl's bounds are 1 - clip_ratio_low and 1 + clip_ratio_high. A ratio of more
        than e^20 is taken for e^20.

    Example:
        >>> import torch
        >>> from tensafe.training.losses import resolve_loss
        >>> outputs = {"logps": torch.tensor([[-1.0]])}
        >>> batch = {"advantages": torch.ones(1), "mask": torch.tensor([[True]]), "old_logps": torch.tensor([[-4.0]])}
        >>> resolve_loss("cispo")(outputs, batch)["loss"]  # the weight e^3 is held at 5
        tensor(5.)

    References:
        MiniMax, MiniMax-M1: Scaling Test-Time Compute Efficiently with Lightning Attention, 2025, arXiv:2506.13585.
    """

    _traits: ClassVar[Traits] = Traits(sample_independent=True, surrogate=True, sampled_with=("old_logps",))

    ratio_max: float = Field(default=5.0, gt=0, description="Largest importance weight, absolute.")
    ratio_min: float = Field(default=0.0, ge=0, description="Smallest importance weight, absolute; 0 is no bound.")

    @model_validator(mode="after")
    def _bounds_are_in_order(self) -> Self:
        if self.ratio_min > self.ratio_max:
            message = f"must be at most ratio_max = {self.ratio_max:g}; got {self.ratio_min:g}"
            raise config_error([Problem("bounds-out-of-order", ("ratio_min",), message)], loss=None)
        return self

    def _surrogate(self, tokens: Tokens) -> Surrogate:
        ratio = tokens.ratio.detach()
        weight = ratio.clamp(self.ratio_min, self.ratio_max)
        return Surrogate(-weight * tokens.advantages * tokens.logps, ratio, weight != ratio)

"""Divergence from a reference policy."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from tensafe._lazy import torch
from tensafe.training.losses.families.policy import KLTerm
from tensafe.training.losses.traits import Traits
from tensafe.training.losses.types import Elements

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor


class KLPenalty(KLTerm, name="kl_penalty"):
    r"""Divergence of the policy from a reference, estimated on the sampled tokens; a term beside a policy loss.

    .. math:: k_1 = D_t, \quad k_2 = \tfrac12 D_t^2, \quad k_3 = e^{-D_t} - 1 + D_t, \quad
        D_t = \log \pi_t - \log \pi^{ref}_t

    Args:
        logps: Log-probabilities :math:`\log \pi_t` of the taken tokens under the policy that learns, float
            `[batch seq]`, in nats, <= 0, aligned with the other tensors: nothing is shifted.
        ref_logps: :math:`\log \pi^{ref}_t` under the reference policy, same shape. It gets no gradient.
        mask: Which tokens count, bool `[batch seq]`. The others (prompt, padding) may hold anything, NaN too.
        segment_ids: Which sequence of a packed row each token belongs to, integers `[batch seq]`: equal numbers are one
            sequence. Reductions by sequence take each for one.
        kl_estimator: `k1`, unbiased, of either sign; `k2`, biased, >= 0, with the gradient of the divergence; `k3`,
            unbiased, >= 0, with the gradient of the divergence the other way round; `k3+`, the value of k3 with the
            gradient of k2; `abs`, :math:`|D|`. The gradients are those of the mean over tokens that the policy itself
            has sampled.
        reduction: See `TokenLoss`; `none` gives one value per token.
        max_length: See `TokenLoss`.
        metrics: Whether the result carries `kl`, the mean of the estimates over the tokens that count, in nats.

    Returns:
        The loss, 0-d float32 (float64 for float64 tensors), in nats. A batch in which nothing counts gives 0.0,
        attached to the graph.

    Raises:
        LossInputError: A tensor is missing or does not fit.
        LossConfigError: A kwarg is unknown or out of range.
        UserWarning: `k1` is asked for, whose gradient is zero on average; it belongs among the rewards.

    Note:
        Equal to verl's kl_penalty of the same names (its low_var_kl is k3, its mse k2), which also keeps k3 within
        [-10, 10]. TRL's and Liger's estimate is k3. Where D < -20, k3 stays at its value at -20 and has no gradient. A
        divergence over the whole vocabulary is `reverse_kl`.

    Example:
        >>> import torch
        >>> from tensafe.training.losses import resolve_loss
        >>> batch = {"ref_logps": torch.tensor([[0.25]]).log(), "mask": torch.tensor([[True]])}
        >>> resolve_loss("kl_penalty")({"logps": torch.tensor([[0.5]]).log()}, batch)["loss"]  # 1/2 - 1 + ln 2
        tensor(0.1931)

    References:
        Schulman, Approximating KL Divergence, 2020, http://joschu.net/blog/kl-approx.html; k3 as in Shao et al.,
        DeepSeekMath, 2024, arXiv:2402.03300, equation 4.
    """

    _traits: ClassVar[Traits] = Traits(
        sample_independent=True,
        non_negative=True,
        zero_where_equal=("logps", "ref_logps"),
    )

    def compute(
        self,
        logps: Float[Tensor, "batch seq"],
        ref_logps: Float[Tensor, "batch seq"],
        mask: Bool[Tensor, "batch seq"],
        segment_ids: Int[Tensor, "batch seq"] | None = None,
    ) -> Elements:
        """Return the estimate of each token; see the class."""
        from tensafe.training.losses.ops.kl_estimators import kl_estimate

        # what does not count becomes 0 before anything that could make an infinity of it
        difference = torch.where(mask, logps - ref_logps.detach(), 0.0)
        kl = kl_estimate(difference, torch.zeros_like(difference), self.kl_estimator)
        return Elements(kl, mask, {"kl": kl} if self.metrics else None, segment_ids=segment_ids)

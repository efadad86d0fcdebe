"""Policy gradients: what the losses of sampled tokens share."""

from __future__ import annotations

import operator
import warnings
from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

from pydantic import Field, model_validator

from tensafe._lazy import F, torch
from tensafe.training.losses.errors import LossInputError, Problem, config_error, make_error, missing_tensor
from tensafe.training.losses.loss import TokenLoss
from tensafe.training.losses.traits import Traits
from tensafe.training.losses.types import Elements

if TYPE_CHECKING:
    from typing import Self

    from jaxtyping import Bool, Float, Int
    from torch import Tensor

__all__ = ["ClippedPolicyLoss", "KLTerm", "PolicyLoss", "PolicyTerm", "Surrogate", "Tokens"]


class Tokens(NamedTuple):
    """The sampled tokens of a batch; each tensor is `[batch seq]`, with 0 where a token does not count.

    Attributes:
        logps: Log-probabilities under the current policy.
        log_ratio: How far they lie above those under the old policy.
        advantages: Advantage of each token.
        mask: Which tokens count.
        segment_ids: Which sequence of a packed row each belongs to; None where each row is one.
    """

    logps: Tensor
    log_ratio: Tensor
    advantages: Tensor
    mask: Tensor
    segment_ids: Tensor | None

    @property
    def ratio(self) -> Tensor:
        """Probability over that under the old policy, at most e^20."""
        from tensafe.training.losses.ops.kl_estimators import bounded_exp

        return bounded_exp(self.log_ratio)


class Surrogate(NamedTuple):
    """What a policy loss makes of the tokens; each tensor is `[batch seq]`.

    Attributes:
        values: Loss of each token.
        ratio: Probability of each token, or of its sequence, over that under the old policy.
        clipped: Where a bound holds the ratio back; None if there is no bound.
    """

    values: Tensor
    ratio: Tensor
    clipped: Tensor | None = None


class PolicyTerm(TokenLoss):
    """Base of what is learnt from sampled tokens, `[batch seq]`."""

    _family: ClassVar[str] = "policy gradient"
    _traits: ClassVar[Traits] = Traits(sample_independent=True)


class KLTerm(PolicyTerm):
    """Base of losses in which a divergence from a reference policy is estimated."""

    kl_estimator: Literal["k1", "k2", "k3", "k3+", "abs"] = Field(
        default="k3",
        description="Estimate of the divergence from the reference: D, D^2 / 2, exp(-D) - 1 + D, that with the "
        "gradient of k2, or |D|, where D = logps - ref_logps.",
    )

    def _kl_weight(self) -> float:
        """Return what the estimate is multiplied by."""
        return 1.0

    @model_validator(mode="after")
    def _k1_teaches_nothing(self) -> Self:
        if self.kl_estimator == "k1" and self._kl_weight() > 0:
            warnings.warn(
                "the gradient of k1 in a loss is zero on average, so it adds noise and keeps the policy nowhere: "
                "use kl_estimator k3, or k2, or take k1 off the rewards before the advantages are made.",
                UserWarning,
                stacklevel=4,
            )
        return self


class PolicyLoss(KLTerm):
    """Base of policy gradients: what the advantages say, a rollout correction and a divergence from a reference."""

    _traits: ClassVar[Traits] = Traits(sample_independent=True, sampled_with=("old_logps",))

    kl_coef: float = Field(
        default=0.0, ge=0, description="Weight of the divergence from the reference policy; 0 leaves it out."
    )
    rollout_ratio_max: float | None = Field(
        default=None,
        gt=0,
        description="Cap of the importance weight exp(old_logps - rollout_logps), which corrects for an engine that "
        "samples from slightly other probabilities; none by default.",
    )
    kl_rollout_weighted: bool = Field(
        default=False, description="Whether that importance weight multiplies the divergence too."
    )

    def _kl_weight(self) -> float:
        return self.kl_coef

    @model_validator(mode="after")
    def _there_is_what_is_weighted(self) -> Self:
        if self.kl_rollout_weighted and (self.rollout_ratio_max is None or self.kl_coef == 0):
            message = "has no effect without rollout_ratio_max and a kl_coef above 0"
            raise config_error([Problem("no-effect", ("kl_rollout_weighted",), message, on_key=True)], loss=None)
        return self

    @abstractmethod
    def _surrogate(self, tokens: Tokens) -> Surrogate:
        """Return the loss of each token, without correction and divergence."""

    def compute(
        self,
        logps: Float[Tensor, "batch seq"],
        advantages: Float[Tensor, " batch *seq"],
        mask: Bool[Tensor, "batch seq"],
        old_logps: Float[Tensor, "batch seq"] | None = None,
        ref_logps: Float[Tensor, "batch seq"] | None = None,
        rollout_logps: Float[Tensor, "batch seq"] | None = None,
        entropies: Float[Tensor, "batch seq"] | None = None,
        segment_ids: Int[Tensor, "batch seq"] | None = None,
    ) -> Elements:
        """Return the loss of each token; see the class."""
        old = (logps if old_logps is None else old_logps).detach()
        tokens = Tokens(
            torch.where(mask, logps, 0.0),
            torch.where(mask, logps - old, 0.0),
            torch.where(mask, _per_token(advantages, logps, segment_ids).detach(), 0.0),
            mask,
            segment_ids,
        )
        surrogate = self._surrogate(tokens)
        values, kl = surrogate.values, self._divergence(tokens, ref_logps)
        if self.rollout_ratio_max is not None:
            weight = self._rollout_weight(old, rollout_logps, mask)
            values = values * weight
            kl = kl * weight if kl is not None and self.kl_rollout_weighted else kl
        metrics = _metrics(tokens, surrogate, kl, entropies) if self.metrics else None
        total = values if kl is None else values + self.kl_coef * kl
        return Elements(total, mask, metrics, segment_ids=segment_ids)

    def _divergence(self, tokens: Tokens, ref_logps: Tensor | None) -> Tensor | None:
        from tensafe.training.losses.ops.kl_estimators import kl_estimate

        if self.kl_coef == 0:
            return None
        if ref_logps is None:
            raise missing_tensor("ref_logps")
        return kl_estimate(tokens.logps, torch.where(tokens.mask, ref_logps.detach(), 0.0), self.kl_estimator)

    def _rollout_weight(self, old_logps: Tensor, rollout_logps: Tensor | None, mask: Tensor) -> Tensor:
        if rollout_logps is None:
            raise missing_tensor("rollout_logps")
        return torch.where(mask, old_logps - rollout_logps.detach(), 0.0).exp().clamp(max=self.rollout_ratio_max)


class ClippedPolicyLoss(PolicyLoss):
    """Base of policy gradients that stop where the ratio has moved far enough."""

    epsilon_low: float = Field(
        default=0.2, ge=0, lt=1, description="How far below 1 a ratio may fall before its gradient stops."
    )
    epsilon_high: float = Field(
        default=0.2, ge=0, description="How far above 1 a ratio may rise before its gradient stops."
    )
    dual_clip: float | None = Field(
        default=None,
        gt=1,
        description="Bound of the ratio of negative advantages, above 1 + epsilon_high; none by default.",
    )

    @model_validator(mode="after")
    def _dual_clip_lies_above(self) -> Self:
        if self.dual_clip is not None and self.dual_clip <= 1 + self.epsilon_high:
            message = f"must be greater than 1 + epsilon_high = {1 + self.epsilon_high:g}; got {self.dual_clip:g}"
            raise config_error([Problem("dual-clip-too-low", ("dual_clip",), message)], loss=None)
        return self

    def _surrogate(self, tokens: Tokens) -> Surrogate:
        ratio, advantages = tokens.ratio, tokens.advantages
        low, high = 1 - self.epsilon_low, 1 + self.epsilon_high
        kept = ratio if self.dual_clip is None else ratio.clamp(max=self.dual_clip)
        values = -torch.minimum(kept * advantages, ratio.clamp(low, high) * advantages)
        clipped = ((ratio > high) & (advantages > 0)) | ((ratio < low) & (advantages < 0))
        if self.dual_clip is not None:
            clipped = clipped | ((ratio > self.dual_clip) & (advantages < 0))
        return Surrogate(values, ratio, clipped)


def _per_token(advantages: Tensor, logps: Tensor, segment_ids: Tensor | None) -> Tensor:
    """Return the advantage of each token; that of a sequence is shared by all its tokens."""
    if advantages.ndim == 1:
        if segment_ids is not None:
            raise make_error(
                LossInputError,
                "'advantages' are one per row, and rows with 'segment_ids' hold several sequences.",
                code="packed-rows",
                loc=("advantages",),
                hint="Pass one per token.",
            )
        return advantages.unsqueeze(1).expand_as(logps)
    if advantages.shape != logps.shape:
        batch, seq = (operator.index(size) for size in logps.shape)
        raise make_error(
            LossInputError,
            f"'advantages' must be float[batch] or float[batch seq], that is [{batch}] or [{batch}, {seq}] "
            f"(set by 'logps'); got {[operator.index(size) for size in advantages.shape]}.",
            code="shape-mismatch",
            loc=("advantages",),
            hint="Pass one per sequence or one per token; nothing is broadcast.",
        )
    return advantages


def _metrics(
    tokens: Tokens, surrogate: Surrogate, kl: Tensor | None, entropies: Tensor | None
) -> dict[str, Tensor | float]:
    from tensafe.training.losses.ops.kl_estimators import kl_estimate

    log_ratio, ratio = tokens.log_ratio.detach(), surrogate.ratio.detach()
    metrics: dict[str, Tensor | float] = {
        # the tokens are the old policy's, so its divergence from the new one is what can be estimated
        "approx_kl": kl_estimate(-log_ratio, torch.zeros_like(log_ratio), "k3"),
        "ratio_max": _largest(ratio, tokens.mask),
        "ratio_min": -_largest(-ratio, tokens.mask, of_nothing=-1.0),
    }
    further = {"clip_fraction": surrogate.clipped, "kl": kl, "entropy": entropies}
    return metrics | {name: metric for name, metric in further.items() if metric is not None}


def _largest(ratio: Tensor, mask: Tensor, of_nothing: float = 1.0) -> Tensor:
    """Return the largest of what counts; one more element than there are, so that there is one."""
    counted = F.pad(torch.where(mask, ratio, -torch.inf).flatten(), (0, 1), value=-torch.inf)
    return torch.where(mask.any(), counted.amax(), of_nothing)

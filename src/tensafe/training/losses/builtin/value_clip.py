"""The critic's loss in PPO."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from tensafe._lazy import torch
from tensafe.training.losses.errors import missing_tensor
from tensafe.training.losses.families.policy import PolicyTerm
from tensafe.training.losses.traits import Traits
from tensafe.training.losses.types import Elements

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor


class ValueClip(PolicyTerm, name="value_clip"):
    r"""Squared error of a critic, which gains nothing by moving far from its old estimates at once.

    .. math:: \ell_t = \tfrac12 \max\big((v_t - R_t)^2,\;
        (\mathrm{clip}(v_t, v^{old}_t - \epsilon, v^{old}_t + \epsilon) - R_t)^2\big)

    Args:
        values: Estimates :math:`v` of the critic that learns, float `[batch seq]`, in units of the returns.
        returns: What they should have been, :math:`R`, float `[batch seq]`. They get no gradient.
        mask: Which tokens count, bool `[batch seq]`. The others (prompt, padding) may hold anything, NaN too.
        old_values: Estimates :math:`v^{old}` at the time of sampling, same shape; needed unless `epsilon` is None. They
            get no gradient.
        segment_ids: Which sequence of a packed row each token belongs to, integers `[batch seq]`: equal numbers are one
            sequence. Reductions by sequence take each for one.
        epsilon: :math:`\epsilon` > 0, in units of the returns; None is no clip, half the squared error.
        reduction: See `TokenLoss`; `none` gives one value per token.
        max_length: See `TokenLoss`.
        metrics: Whether the result carries `value_mean`, `return_mean` and, with `epsilon`, `clip_fraction`, the share
            of tokens whose estimate has left the clip range and would gain by going on.

    Returns:
        The loss, 0-d float32 (float64 for float64 tensors), >= 0, in squared units of the returns. A batch in which
        nothing counts gives 0.0, attached to the graph.

    Raises:
        LossInputError: A tensor is missing (`old_values`, unless `epsilon` is None), or does not fit.
        LossConfigError: A kwarg is unknown or out of range.

    Note:
        Equal to the value loss of torchtune's PPOLoss, and to verl's; others leave out the factor 1/2.

    Example:
        >>> import torch
        >>> from tensafe.training.losses import resolve_loss
        >>> batch = {"returns": torch.ones(1, 1), "old_values": torch.zeros(1, 1), "mask": torch.tensor([[True]])}
        >>> resolve_loss("value_clip")({"values": torch.tensor([[1.0]])}, batch)["loss"]  # as if at 0.2: 0.8^2 / 2
        tensor(0.3200)

    References:
        As in OpenAI's baselines of Schulman et al., Proximal Policy Optimization Algorithms, 2017, arXiv:1707.06347,
        whose text does not clip values.
    """

    _traits: ClassVar[Traits] = Traits(sample_independent=True, non_negative=True)

    epsilon: float | None = Field(
        default=0.2, gt=0, description="How far from its old estimate a value may gain by moving; none is no clip."
    )

    def compute(
        self,
        values: Float[Tensor, "batch seq"],
        returns: Float[Tensor, "batch seq"],
        mask: Bool[Tensor, "batch seq"],
        old_values: Float[Tensor, "batch seq"] | None = None,
        segment_ids: Int[Tensor, "batch seq"] | None = None,
    ) -> Elements:
        """Return the loss of each token; see the class."""
        returns = returns.detach()
        error = torch.where(mask, values - returns, 0.0)
        metrics = {"value_mean": values, "return_mean": returns} if self.metrics else {}
        if self.epsilon is None:
            return Elements(0.5 * error.square(), mask, metrics or None, segment_ids=segment_ids)
        if old_values is None:
            raise missing_tensor("old_values")
        old = torch.where(mask, old_values.detach(), 0.0)
        clipped = torch.where(mask, values, 0.0).clamp(old - self.epsilon, old + self.epsilon)
        clipped_error = torch.where(mask, clipped - returns, 0.0)
        if self.metrics:
            metrics["clip_fraction"] = clipped_error.square() > error.square()
        larger = torch.maximum(error.square(), clipped_error.square())
        return Elements(0.5 * larger, mask, metrics or None, segment_ids=segment_ids)

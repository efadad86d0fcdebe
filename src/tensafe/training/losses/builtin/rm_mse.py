"""Regression of rewards."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from tensafe.training.losses.families.regression import where_counted
from tensafe.training.losses.loss import ElementLoss
from tensafe.training.losses.traits import Traits
from tensafe.training.losses.types import Elements

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor


class RMMSE(ElementLoss, name="rm_mse"):
    r"""Squared difference between predicted rewards and annotated ones: a reward model by regression.

    .. math:: \ell_i = (r_i - y_i)^2

    Args:
        rewards: Predicted rewards :math:`r`, float `[*shape]`: one per completion, or one per completion and attribute.
        targets: Annotated rewards :math:`y`, float, same shape.
        mask: True where an annotation counts, bool, same shape; all count where there is none.
        ignore_value: Target that stands for a missing annotation, e.g. -100; None, the default, takes every number for
            a reward. Compared exactly, as the target's dtype has it, and beside the mask, if there is one.
        reduction: See `ElementLoss`; `none` gives one value per element, 0 where it does not count.
        metrics: Whether the result carries `reward`, the mean predicted reward of what counts.

    Returns:
        The loss, 0-d, >= 0, in squared units of the rewards. A batch in which nothing counts gives 0.0, attached to the
        graph; the gradient of a reward that does not count is exactly zero, even where it is NaN.

    Raises:
        LossInputError: A tensor is missing, or the shapes differ; nothing is broadcast.
        LossConfigError: A kwarg is unknown or no finite number.

    Note:
        With `ignore_value: -100` the loss of NeMo-Aligner's regression reward model, which skips -100 by default.

    Example:
        >>> import torch
        >>> from tensafe.training.losses import resolve_loss
        >>> outputs, batch = {"rewards": torch.tensor([1.0, 4.0])}, {"targets": torch.tensor([3.0, -100.0])}
        >>> resolve_loss("rm_mse", ignore_value=-100)(outputs, batch)["loss"]  # (1 - 3) ** 2, and one is missing
        tensor(4.)

    References:
        Wang et al., HelpSteer: Multi-attribute Helpfulness Dataset for SteerLM, 2023, arXiv:2311.09528.
    """

    _family: ClassVar[str] = "reward model"
    _traits: ClassVar[Traits] = Traits(
        sample_independent=True,
        non_negative=True,
        zero_where_equal=("rewards", "targets"),
        symmetric_in=(("rewards", "targets"),),
    )

    ignore_value: float | None = Field(
        default=None, description="Target that stands for a missing annotation, such as -100; none by default."
    )

    def compute(
        self,
        rewards: Float[Tensor, "*shape"],
        targets: Float[Tensor, "*shape"],
        mask: Bool[Tensor, "*shape"] | None = None,
    ) -> Elements:
        """Return the squared differences; see the class."""
        if self.ignore_value is not None:
            annotated = targets != self.ignore_value
            mask = annotated if mask is None else annotated & mask
        r, y = where_counted(mask, rewards, targets)
        return Elements((r - y).square(), mask, {"reward": r} if self.metrics else None)

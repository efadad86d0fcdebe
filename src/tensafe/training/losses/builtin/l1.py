"""Mean absolute error."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from tensafe.training.losses.families.regression import where_counted
from tensafe.training.losses.loss import ElementLoss
from tensafe.training.losses.traits import Traits
from tensafe.training.losses.types import Elements

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor


class L1(ElementLoss, name="l1"):
    r"""Absolute difference between predictions and targets of the same shape.

    .. math:: \ell_i = |p_i - y_i|

    Args:
        predictions: Predicted values :math:`p`, float `[*shape]`.
        targets: True values :math:`y`, float, same shape.
        mask: True where an element counts, bool, same shape; all count where there is none.
        reduction: See `ElementLoss`; `none` gives one value per element, 0 where it does not count.
        metrics: Accepted like everywhere; this loss has none.

    Returns:
        The loss, 0-d, >= 0, in units of the targets. A batch in which nothing counts gives 0.0, attached to the graph.
        The gradient of a prediction is the sign of its difference, 0 where there is none.

    Raises:
        LossInputError: A tensor is missing, or the shapes differ: `[N 1]` against `[N]` is refused, not broadcast.
        LossConfigError: A kwarg is unknown.

    Example:
        >>> import torch
        >>> from tensafe.training.losses import resolve_loss
        >>> outputs, batch = {"predictions": torch.tensor([1.0, 4.0])}, {"targets": torch.tensor([2.0, 2.0])}
        >>> resolve_loss("l1")(outputs, batch)["loss"]  # (1 + 2) / 2
        tensor(1.5000)

    References:
        Equal to torch.nn.functional.l1_loss, which broadcasts with a warning.
    """

    _family: ClassVar[str] = "regression"
    _traits: ClassVar[Traits] = Traits(
        sample_independent=True,
        non_negative=True,
        zero_where_equal=("predictions", "targets"),
        symmetric_in=(("predictions", "targets"),),
    )

    def compute(
        self,
        predictions: Float[Tensor, "*shape"],
        targets: Float[Tensor, "*shape"],
        mask: Bool[Tensor, "*shape"] | None = None,
    ) -> Elements:
        """Return the absolute differences; see the class."""
        p, y = where_counted(mask, predictions, targets)
        return Elements((p - y).abs(), mask)

"""Mean squared error."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from tensafe.training.losses.contract import Alias
from tensafe.training.losses.families.regression import where_counted
from tensafe.training.losses.loss import ElementLoss
from tensafe.training.losses.traits import Traits
from tensafe.training.losses.types import Elements

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor


class MSE(ElementLoss, name="mse"):
    r"""Squared difference between predictions and targets of the same shape.

    .. math:: \ell_i = (p_i - y_i)^2

    Args:
        predictions: Predicted values :math:`p`, float `[*shape]`; found as `logits` or
            `output` where there is none of that name.
        targets: True values :math:`y`, float, same shape; found as `labels` where there is none.
        mask: True where an element counts, bool, same shape; all count where there is none.
        reduction: See `ElementLoss`; `none` gives one value per element, 0 where it does not count.
        metrics: Accepted like everywhere; this loss has none.

    Returns:
        The loss, 0-d, >= 0, in squared units of the targets. A batch in which nothing counts gives 0.0, attached to
        the graph.

    Raises:
        LossInputError: A tensor is missing, or the shapes differ: `[N 1]` against `[N]` is refused, not broadcast.
        LossConfigError: A kwarg is unknown.

    Example:
        >>> import torch
        >>> from tensafe.training.losses import resolve_loss
        >>> outputs, batch = {"predictions": torch.tensor([1.0, 4.0])}, {"targets": torch.tensor([1.0, 2.0])}
        >>> resolve_loss("mse")(outputs, batch)["loss"]  # (0 + 4) / 2
        tensor(2.)

    References:
        Equal to torch.nn.functional.mse_loss, which broadcasts with a warning.
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
        predictions: Annotated[Float[Tensor, "*shape"], Alias("logits"), Alias("output")],
        targets: Annotated[Float[Tensor, "*shape"], Alias("labels")],
        mask: Bool[Tensor, "*shape"] | None = None,
    ) -> Elements:
        """Return the squared differences; see the class."""
        p, y = where_counted(mask, predictions, targets)
        return Elements((p - y).square(), mask)

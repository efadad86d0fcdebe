"""Huber loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from tensafe._lazy import F
from tensafe.training.losses.families.regression import where_counted
from tensafe.training.losses.loss import ElementLoss
from tensafe.training.losses.traits import Traits
from tensafe.training.losses.types import Elements

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor


class Huber(ElementLoss, name="huber"):
    r"""Squared difference where it is small, absolute difference beyond, so that outliers pull no harder than the rest.

    .. math:: \ell_i = \begin{cases} \tfrac12 d_i^2 & |d_i| \le \delta \\
        \delta\,(|d_i| - \tfrac12 \delta) & |d_i| > \delta \end{cases}, \quad d_i = p_i - y_i

    Args:
        predictions: Predicted values :math:`p`, float `[*shape]`.
        targets: True values :math:`y`, float, same shape.
        mask: True where an element counts, bool, same shape; all count where there is none.
        delta: :math:`\delta` > 0, in units of the targets: the difference at which it turns from a parabola into a
            line, and the largest gradient. A large one gives half of `mse`; divided by a small one it nears `l1`.
        reduction: See `ElementLoss`; `none` gives one value per element, 0 where it does not count.
        metrics: Accepted like everywhere; this loss has none.

    Returns:
        The loss, 0-d, >= 0, in squared units of the targets. A batch in which nothing counts gives 0.0, attached to
        the graph.

    Raises:
        LossInputError: A tensor is missing, or the shapes differ: `[N 1]` against `[N]` is refused, not broadcast.
        LossConfigError: A kwarg is unknown or out of range.

    Example:
        >>> import torch
        >>> from tensafe.training.losses import resolve_loss
        >>> outputs, batch = {"predictions": torch.tensor([1.0, 3.0])}, {"targets": torch.tensor([0.0, 0.0])}
        >>> resolve_loss("huber", delta=2.0)(outputs, batch)["loss"]  # (1 / 2 + 2 * (3 - 1)) / 2
        tensor(2.2500)

    References:
        Huber, Robust Estimation of a Location Parameter, 1964. Equal to torch.nn.functional.huber_loss, which
        broadcasts with a warning; its smooth_l1_loss is this divided by delta.
    """

    _family: ClassVar[str] = "regression"
    _traits: ClassVar[Traits] = Traits(
        sample_independent=True,
        non_negative=True,
        zero_where_equal=("predictions", "targets"),
        symmetric_in=(("predictions", "targets"),),
    )

    delta: float = Field(default=1.0, gt=0, description="Difference at which the parabola turns into a line.")

    def compute(
        self,
        predictions: Float[Tensor, "*shape"],
        targets: Float[Tensor, "*shape"],
        mask: Bool[Tensor, "*shape"] | None = None,
    ) -> Elements:
        """Return the Huber loss of each difference; see the class."""
        p, y = where_counted(mask, predictions, targets)
        return Elements(F.huber_loss(p, y, reduction="none", delta=self.delta), mask)

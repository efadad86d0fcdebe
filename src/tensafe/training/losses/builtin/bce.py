"""Binary cross-entropy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from tensafe._lazy import F
from tensafe.training.losses.contract import Values
from tensafe.training.losses.families.regression import where_counted
from tensafe.training.losses.loss import ElementLoss
from tensafe.training.losses.traits import Traits
from tensafe.training.losses.types import Elements

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor


class BCE(ElementLoss, name="bce"):
    r"""Binary cross-entropy of logits: each element is a yes-or-no question of its own.

    .. math:: \ell_i = -w\, y'_i \log \sigma(x_i) - (1 - y'_i) \log \sigma(-x_i), \quad
        y'_i = (1 - \epsilon)\, y_i + \epsilon / 2

    Args:
        logits: Log-odds :math:`x` of yes, float `[*shape]`; not probabilities.
        targets: Probability :math:`y` of yes, float in [0, 1], same shape: 1 is yes, 0 is no, anything between is a
            soft label. A value outside is not noticed, for that would wait for the device: its loss may be negative.
        mask: True where an element counts, bool, same shape; all count where there is none.
        pos_weight: :math:`w` > 0: how much more a yes weighs than a no; the ratio of noes to yeses balances both.
        label_smoothing: :math:`\epsilon` in [0, 1]: 0 leaves targets as they are, 1 makes each 1/2.
        reduction: See `ElementLoss`; `none` gives one value per element, 0 where it does not count. `mean` divides by
            the number of elements, whatever `pos_weight` is.
        metrics: Whether the result carries `accuracy`, the share of elements on the right side: logit > 0 where the
            target is > 1/2, and not elsewhere.

    Returns:
        The loss in nats, 0-d, >= 0. A batch in which nothing counts gives 0.0, attached to the graph.

    Raises:
        LossInputError: A tensor is missing or holds integers, or the shapes differ; nothing is broadcast.
        LossConfigError: A kwarg is unknown or out of range.

    Example:
        >>> import torch
        >>> from tensafe.training.losses import resolve_loss
        >>> outputs, batch = {"logits": torch.tensor([0.0, 0.0])}, {"targets": torch.tensor([1.0, 0.0])}
        >>> round(resolve_loss("bce", pos_weight=3.0)(outputs, batch)["loss"].item(), 4)  # (3 ln 2 + ln 2) / 2
        1.3863

    References:
        Equal to torch.nn.functional.binary_cross_entropy_with_logits, whose pos_weight may also differ by class and
        which has no label smoothing.
    """

    _family: ClassVar[str] = "classification"
    _traits: ClassVar[Traits] = Traits(sample_independent=True, non_negative=True)

    pos_weight: float = Field(default=1.0, gt=0, description="How much more a yes weighs than a no.")
    label_smoothing: float = Field(default=0.0, ge=0, le=1, description="How far each target is moved towards 1/2.")

    def compute(
        self,
        logits: Float[Tensor, "*shape"],
        targets: Annotated[Float[Tensor, "*shape"], Values(0, 1)],
        mask: Bool[Tensor, "*shape"] | None = None,
    ) -> Elements:
        """Return the cross-entropy of each element; see the class."""
        x, y = where_counted(mask, logits, targets)
        metrics = {"accuracy": (x > 0) == (y > 0.5)} if self.metrics else None
        if self.label_smoothing:
            y = (1 - self.label_smoothing) * y + self.label_smoothing / 2
        weight = None if self.pos_weight == 1 else x.new_full((), self.pos_weight)
        values = F.binary_cross_entropy_with_logits(x, y, pos_weight=weight, reduction="none")
        return Elements(values, mask, metrics)

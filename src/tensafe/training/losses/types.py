"""What a loss takes and gives back.

Annotations are quoted one by one: under `from __future__ import annotations` a TypedDict forgets what it requires.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Required, SupportsFloat, TypedDict, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

__all__ = ["Elements", "Leaner", "LossFn", "LossOutput", "LossReturn", "Returned"]


class LossReturn(TypedDict, total=False):
    """What every resolved loss returns.

    Attributes:
        loss: 0-d tensor to call `backward()` on (unreduced when the reduction is `none`).
        metrics: Named scalars for the log: numbers or detached 0-d tensors.
        auxiliary: Anything else worth looking at, detached.
    """

    loss: Required["Tensor"]
    metrics: "dict[str, float | Tensor]"
    auxiliary: dict[str, Any]


@runtime_checkable
class LossFn(Protocol):
    """A loss written as a plain callable: a function, an instance or a module."""

    def __call__(self, outputs: Any, batch: Any, **kwargs: Any) -> LossReturn:
        """Compute the loss of model `outputs` against a `batch`."""
        ...


@dataclass
class LossOutput:
    """The fields of `LossReturn` as a dataclass, for code that prefers attributes."""

    loss: Any
    metrics: dict[str, Any] = field(default_factory=dict[str, Any])
    auxiliary: dict[str, Any] = field(default_factory=dict[str, Any])

    def to_dict(self) -> LossReturn:
        """Return the same fields as a `LossReturn`."""
        return {"loss": self.loss, "metrics": self.metrics, "auxiliary": self.auxiliary}


Returned = Mapping[str, Any] | LossOutput | SupportsFloat
"""What a plain callable may return: a `LossReturn`, a mapping like it, its fields as a dataclass, or a bare scalar."""


class Elements(NamedTuple):
    """Unreduced result of `Loss.compute`; the reduction turns it into one number.

    Attributes:
        values: Loss of each element, any shape whose leading axes are what the reductions speak of (`batch`, `seq`).
            A fused loss gives a function that makes them, and `dot`.
        weights: Bool or float tensor of the same shape: what counts, and how much. None counts everything once.
        metrics: Unreduced tensors shaped like `values` (averaged with the same weights); 0-d tensors and numbers are
            passed on. `metrics={...} if self.metrics else None` saves making what is not wanted.
        dot: For a fused loss: `dot(c)` is `(c * values).sum()` without making `values`.
        segment_ids: Where rows may hold several sequences: which of them each value belongs to, integers shaped like
            `values`; the reductions by sequence take each for one. None takes each row for one.
    """

    values: "Tensor | Callable[[], Tensor]"
    weights: "Tensor | None" = None
    metrics: "Mapping[str, Tensor | float] | None" = None
    dot: "Callable[[Tensor], Tensor] | None" = None
    segment_ids: "Tensor | None" = None


class Leaner(NamedTuple):
    """A loss that does the same as another in less memory, from tensors of the model that come earlier.

    Attributes:
        loss: Its registered name. The kwargs that both have mean the same.
        makes: Makes, of the outputs that it takes, those that the other takes and that it never makes itself.
    """

    loss: str
    makes: "Callable[[Mapping[str, Tensor]], dict[str, Tensor]]"

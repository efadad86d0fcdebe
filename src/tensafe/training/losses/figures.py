"""What a picture of a loss shows; drawing it is the command's business."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Figure"]


class Figure(NamedTuple):
    """Value and gradient of a loss against one element of a tensor, one line for each value of a kwarg.

    Whatever is left at its default is chosen by `tensafe plot`. A class, or the base class of a family, sets it as
    `_figure: ClassVar[Figure | None] = Figure("chosen_logps", -40, 0, fixed={"rejected_logps": -20.0})`.

    Attributes:
        tensor: The tensor of which one element moves.
        low: Where it starts; given together with `high`.
        high: Where it ends.
        kwarg: The kwarg that differs from line to line.
        values: Its values; given together with `kwarg`.
        fixed: Numbers that fill other tensors, and the rest of this one, in place of random ones.
        given: Other kwargs of all lines.
        label: What stands at the axis; its name and unit.
    """

    tensor: str | None = None
    low: float | None = None
    high: float | None = None
    kwarg: str | None = None
    values: tuple[Any, ...] = ()
    fixed: Mapping[str, float] = {}
    given: Mapping[str, Any] = {}
    label: str | None = None

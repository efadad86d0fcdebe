"""What functions that are `careful_ce` but for one mistake have in common with it."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from tensafe.training.losses import LossReturn
from zoo.healthy import careful_ce

Side = Mapping[str, Any]
Smoothing = Annotated[float, Field(ge=0, le=1)]
Mode = Literal["none", "sum", "mean"]


def told_alike(fn: Callable[..., LossReturn]) -> Callable[..., LossReturn]:
    """Give a function the docstring of `careful_ce` below its own first line."""
    fn.__doc__ = f"{fn.__doc__}\n\n{(careful_ce.__doc__ or '').partition(chr(10))[2]}"
    return fn

"""Kwargs that a loss accepts, and kwargs with one mistake."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, Any, NamedTuple

from hypothesis import strategies as st

from .drawer import Drawer
from .mutations import KINDS, Mistakes, mutate
from .shapes import Shape, read_shape

if TYPE_CHECKING:
    from hypothesis.strategies import DrawFn, SearchStrategy

    from tensafe.training.losses.errors import Loc
    from tensafe.training.losses.resolve import Spec

    from .mistakes import Kind

__all__ = ["InvalidKwargs", "invalid_loss_kwargs", "loss_kwargs"]


class InvalidKwargs(NamedTuple):
    """Kwargs with one mistake.

    Attributes:
        kwargs: The kwargs.
        path: Where the mistake is: a kwarg, or a place inside one; `problems` of the error has it as a `loc`.
        kind: What kind of mistake it is, such as `misspelt`.
    """

    kwargs: dict[str, Any]
    path: Loc
    kind: Kind


def loss_kwargs(loss: Spec, *, depth: int = 2, extreme: bool = False) -> SearchStrategy[dict[str, Any]]:
    """Return a strategy of kwargs with which `resolve_loss(loss, **kwargs)` succeeds.

    Required kwargs are always there, others in some draws. Types, ranges, choices and the insides of lists and models
    are those that the loss declares; a nested loss is a spec with kwargs of its own, and a number that may have a
    schedule sometimes has one. Where two kwargs do not go together, which only the loss knows, the one that it objects
    to is left out. A kwarg without an annotation is anything plain.

    Shrinks to the required kwargs alone, at the simplest values: 0 or 1, the first choice, lists of one item.

    Args:
        loss: What `resolve_loss` takes.
        depth: How deep losses are nested inside it at most, from 1.
        extreme: Whether numbers come from the whole range that they may have. By default they are near its ends, where
            most losses of moderate tensors are finite.
    """
    return Drawer(depth, extreme).kwargs(read_shape(loss))


def invalid_loss_kwargs(loss: Spec, *, depth: int = 2) -> SearchStrategy[InvalidKwargs]:
    """Return a strategy of kwargs with one mistake: `resolve_loss` raises a `LossConfigError` that names its place.

    The mistake is one of `Kind`: a misspelt name, a value of a wrong type, a bool for a number, NaN, an infinity, a
    number out of range, an unknown choice or a missing kwarg; here or in a nested loss. All else is as `loss_kwargs`
    draws it. There is nothing to draw for a callable that takes just anything.

    Shrinks to the first kind of mistake that there is, in kwargs as few and simple as possible.

    Args:
        loss: What `resolve_loss` takes.
        depth: How deep losses are nested inside it at most, from 1.
    """
    shape = read_shape(loss)
    return _spoilt(shape, Drawer(depth).kwargs(shape))


@st.composite
def _spoilt(draw: DrawFn, shape: Shape, good: SearchStrategy[dict[str, Any]]) -> InvalidKwargs:
    wanted = draw(st.sampled_from(KINDS))
    kwargs = deepcopy(draw(good))
    mistake = mutate(draw, wanted, kwargs, list(Mistakes(shape.definitions).of_kwargs(shape, kwargs, ())))
    return InvalidKwargs(kwargs, mistake.path, mistake.kind)

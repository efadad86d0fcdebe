"""What a loss knows of its kwargs beyond the range of each: which losses fit where, and what goes together."""

from __future__ import annotations

import warnings
from collections.abc import Hashable
from copy import deepcopy
from functools import cache
from typing import TYPE_CHECKING, Any

from hypothesis import reject
from hypothesis import strategies as st

from tensafe.training.losses.errors import LossConfigError
from tensafe.training.losses.guards import is_class, is_list, is_mapping
from tensafe.training.losses.registry import get_registered_losses, lookup
from tensafe.training.losses.resolve import problems_in, resolve_loss
from tensafe.training.losses.samples import sample_kwargs

from .shapes import Shape, read_shape

if TYPE_CHECKING:
    from collections.abc import Callable

    from hypothesis.strategies import DrawFn, SearchStrategy

    from tensafe.training.losses.errors import Loc, Problem

__all__ = ["consistent", "fitting_names", "nestable_names", "problems_with"]

_MOST_REPAIRS = 8


def problems_with(loss: Any, kwargs: dict[str, Any]) -> list[Problem]:
    """Return what is wrong with kwargs of a loss, if anything."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a choice that is allowed, but poor
        try:
            resolve_loss(loss, **kwargs)
        except LossConfigError as error:
            return problems_in(error)
    return []


@st.composite
def consistent(
    draw: DrawFn, shape: Shape, drawn: SearchStrategy[dict[str, Any]], kwarg: Callable[[str], SearchStrategy[Any]]
) -> dict[str, Any]:
    """Draw kwargs that go together: of those that do not, what the loss objects to is taken back, or added."""
    kwargs = deepcopy(draw(drawn))
    for _ in range(_MOST_REPAIRS):
        problems = problems_with(shape.loss, kwargs)
        if not problems:
            return kwargs
        for problem in reversed(problems):  # the last of a list first
            if len(problem.loc) == 1 and problem.loc[0] in shape.properties and problem.loc[0] not in kwargs:
                name = str(problem.loc[0])
                kwargs[name] = draw(kwarg(name).filter(lambda value: value is not None))
            else:
                _take_back(kwargs, problem.loc)
    return reject()


def _take_back(kwargs: Any, loc: Loc) -> None:
    """Remove what stands at a place."""
    if not loc:
        reject()
    for part in loc[:-1]:
        kwargs = kwargs[part]
    if is_list(kwargs) or (is_mapping(kwargs) and loc[-1] in kwargs):
        del kwargs[loc[-1]]  # type: ignore[union-attr,arg-type]  # a list or dict, since all of this was drawn


def nestable_names(depth: int, among: frozenset[str] | None) -> tuple[str, ...]:
    """Return the registered losses, or some among them, that are nested no deeper than that."""
    losses = get_registered_losses()
    if among is not None:
        losses = {name: lookup(name) for name in sorted(among)}
    return tuple(name for name, found in losses.items() if depth > 0 or not _holds_losses(name, found))


def fitting_names(shape: Shape, kwarg: str, names: tuple[str, ...]) -> tuple[str, ...]:
    """Return those losses that a loss accepts in a kwarg, each with the kwargs of its examples."""
    return tuple(name for name in names if _accepts(shape.found, kwarg, name, lookup(name)))


def _accepts(holder: Any, kwarg: str, name: str, found: Any) -> bool:
    hashable = isinstance(holder, Hashable) and isinstance(found, Hashable)
    return (_fits if hashable else _fits.__wrapped__)(holder, kwarg, name, found)


@cache
def _holds_losses(name: str, found: Any) -> bool:
    try:
        return read_shape(name).holds_losses()
    except LossConfigError:  # it could not be called as a loss
        return True


@cache
def _fits(holder: Any, kwarg: str, name: str, found: Any) -> bool:
    return not problems_with(holder, {**_examples(holder), kwarg: {"type": name, "kwargs": _examples(found)}})


def _examples(found: Any) -> dict[str, Any]:
    try:
        return sample_kwargs(found) if is_class(found) else {}
    except LossConfigError:  # what is required has no example
        return {}

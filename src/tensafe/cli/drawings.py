"""What is in the picture of a loss: which element moves, and which lines there are."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

from tensafe.training.losses.errors import LossConfigError, Problem, TensafeError, config_error
from tensafe.training.losses.figures import Figure
from tensafe.training.losses.registry import lookup
from tensafe.training.losses.resolve import problems_in, resolve_loss

from .curves import Curve, Moved, draw_curve, find_moved
from .facts import example_kwargs, read_facts, source_of
from .sweeps import Sweep, candidates

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tensafe.training.losses.adapter import ResolvedLoss

    from .facts import Facts

__all__ = ["Drawing", "make_drawing"]

_COARSE = 20


class Drawing(NamedTuple):
    """What is in a picture.

    Attributes:
        facts: The loss.
        kwargs: The kwargs that were asked for, of all lines.
        moved: The element along the horizontal axis.
        label: What stands at that axis.
        kwarg: The kwarg that differs from line to line; None if there is one line only.
        curves: The lines, each with the value of that kwarg.
    """

    facts: Facts
    kwargs: Mapping[str, Any]
    moved: Moved
    label: str | None
    kwarg: str | None
    curves: tuple[tuple[Any, Curve], ...]


def make_drawing(name: str, kwargs: Mapping[str, Any], sweep: Sweep | None, tensor: str | None) -> Drawing:
    """Compute what is in the picture of a registered loss.

    Raises:
        LossConfigError: A kwarg or a value of the sweep is wrong; every mistake is listed.
        LossInputError: There is no such tensor, or no sample of the loss could be made.
    """
    facts, found = read_facts(name), lookup(name)
    figure = _figure(found)
    given = {**example_kwargs(found), **figure.given, **kwargs}
    if sweep is None and figure.kwarg is not None and figure.kwarg not in kwargs:
        sweep = Sweep(figure.kwarg, figure.values)
    tensor = figure.tensor if tensor is None else tensor
    if sweep is not None:
        losses = _resolve_all(name, given, sweep)
        middle = len(losses) // 2  # the first may be an end of the range, where nothing is left
        ordered = [loss for _, loss in (*losses[middle:], *losses[:middle])]
        moved = find_moved(ordered, tensor, figure)
    else:
        loss = _resolve_all(name, given, None)[0][1]
        moved = find_moved([loss], tensor, figure)
        sweep, losses = _choose(facts, given, kwargs, moved) or (None, [(None, loss)])
    curves = tuple((value, draw_curve(loss, moved)) for value, loss in losses)
    label = figure.label if figure.tensor in {None, moved.tensor} else None
    return Drawing(facts, kwargs, moved, label, None if sweep is None else sweep.kwarg, curves)


def _figure(found: Any) -> Figure:
    figure = getattr(source_of(found), "_figure", None)
    return figure if isinstance(figure, Figure) else Figure()


def _resolve_all(name: str, given: Mapping[str, Any], sweep: Sweep | None) -> list[tuple[Any, ResolvedLoss]]:
    """Resolve the loss of each line; what is wrong with any is told together."""
    if sweep is not None and sweep.kwarg in given and given[sweep.kwarg] is not None:
        given = {kwarg: value for kwarg, value in given.items() if kwarg != sweep.kwarg}
    lines: list[dict[str, Any]] = [{}] if sweep is None else [{sweep.kwarg: value} for value in sweep.values]
    losses: list[tuple[Any, ResolvedLoss]] = []
    problems: dict[Problem, None] = {}
    for line in lines:
        try:
            losses.append((next(iter(line.values()), None), resolve_loss(name, **{**given, **line})))
        except LossConfigError as error:
            problems.update(dict.fromkeys(problems_in(error)))
    if problems:
        raise config_error(list(problems), loss=name)
    return losses


def _choose(
    facts: Facts, given: Mapping[str, Any], asked: Mapping[str, Any], moved: Moved
) -> tuple[Sweep, list[tuple[Any, ResolvedLoss]]] | None:
    """Return the first sweep whose lines can be told apart."""
    coarse = moved._replace(positions=moved.positions[::_COARSE])
    for sweep in candidates(facts):
        if sweep.kwarg in asked:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about values that nobody has asked for
            losses = _resolvable(facts.name, given, sweep)
        if len(losses) < 2:
            continue
        try:
            curves = [draw_curve(loss, coarse) for _, loss in losses]
        except TensafeError:  # it needs a tensor that the loss without it does not
            continue
        if any(curve.differs_from(curves[0]) for curve in curves[1:]):
            return sweep, losses
    return None


def _resolvable(name: str, given: Mapping[str, Any], sweep: Sweep) -> list[tuple[Any, ResolvedLoss]]:
    losses: list[tuple[Any, ResolvedLoss]] = []
    for value in sweep.values:
        try:
            losses.append((value, resolve_loss(name, **{**given, sweep.kwarg: value})))
        except LossConfigError:  # it may not go with the others
            continue
    return losses

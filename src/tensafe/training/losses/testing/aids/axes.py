"""Which tensors must agree in which axes: as declared or, where nothing is, as their shapes suggest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

from tensafe.training.losses.adapter import TypedLoss
from tensafe.training.losses.contract import TensorSpec, is_variadic, lookup_keys
from tensafe.training.losses.nested import innermost

from .refusals import uses

if TYPE_CHECKING:
    from torch import Tensor

    from tensafe.training.losses.testing.subject import Subject
    from tensafe.training.losses.testing.trial import Trial

__all__ = ["SharedAxis", "groups_of", "names_of", "one_optional_each", "shared_axes"]

Group = Mapping[str, TensorSpec]
"""Tensors that are looked at together, by key."""


class SharedAxis(NamedTuple):
    """An axis of a tensor that others have too.

    Attributes:
        key: Of the tensor.
        axis: Its number.
        partners: The keys of the others.
    """

    key: str
    axis: int
    partners: tuple[str, ...]


def one_optional_each(subject: Subject) -> Iterator[tuple[Trial, set[str]]]:
    """Yield the plainest call and, for each optional tensor, one with it; with the tensors that are new in each."""
    seen: set[str] = set()
    for _, trial in subject.trials():
        new = set(trial.tensors) - seen
        seen |= new
        if new:
            yield trial, new


def groups_of(subject: Subject, trial: Trial) -> list[Group]:
    """Return the tensors that each part of a loss takes together; those of a plain function that matter to it."""
    tensors = trial.tensors
    typed = [loss for loss in innermost(trial.loss) if isinstance(loss, TypedLoss)]
    if not typed:
        return [{key: trial.specs[key] for key in tensors if uses(trial, key)}]
    groups = [{lookup_keys(spec, loss.inputs)[1][0]: spec for spec in loss.contract.tensors} for loss in typed]
    return [{key: spec for key, spec in group.items() if key in tensors} for group in groups]


def names_of(trial: Trial, *keys: str) -> list[str]:
    """Return what errors may call some tensors: their keys, or what the loss calls them where `inputs` renames."""
    return [*keys, *(trial.specs[key].name for key in keys if key in trial.specs)]


def shared_axes(group: Group, trial: Trial, *, guess: bool) -> Iterator[SharedAxis]:
    """Yield the axes that tensors of a group have in common.

    Args:
        group: The tensors.
        trial: The call that they are in.
        guess: Whether an axis of which nothing is declared is taken for that of another tensor which is as long, and
            is as long in all axes before it.
    """
    names = {key: _names(spec, trial.tensors[key]) for key, spec in group.items()}
    for key in group:
        for axis in range(len(names[key])):
            partners = tuple(
                other
                for other in group
                if any(
                    (key, axis) != (other, place) and _is_same(trial, names, (key, axis), (other, place), guess=guess)
                    for place in range(len(names[other]))
                )
            )
            if partners:
                yield SharedAxis(key, axis, partners)


_Place = tuple[str, int]


def _is_same(trial: Trial, names: Mapping[str, list[str | None]], one: _Place, other: _Place, *, guess: bool) -> bool:
    left, right = names[one[0]][one[1]], names[other[0]][other[1]]
    if left is not None and right is not None:
        return left == right
    if not guess or one[0] == other[0] or one[1] != other[1]:
        return False
    end = one[1] + 1
    return trial.tensors[one[0]].shape[:end] == trial.tensors[other[0]].shape[:end]


def _names(spec: TensorSpec, tensor: Tensor) -> list[str | None]:
    """Return the name of each axis of a tensor; None where nothing is declared."""
    width = tensor.ndim - len(spec.dims) + 1
    names: list[str | None] = []
    for dim in spec.dims:
        if is_variadic(dim):
            names += [None if dim == "..." else f"{dim}.{index}" for index in range(width)]
        else:
            names.append(dim if isinstance(dim, str) and dim != "_" else None)
    return names if len(names) == tensor.ndim else [None] * tensor.ndim

"""Tests of what strangers hand over, for static checkers too: its parts are `Any`, where `isinstance` says unknown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import TypeIs

__all__ = ["definition", "is_class", "is_list", "is_mapping", "is_partial", "is_sequence", "misread"]


def is_mapping(value: object) -> TypeIs[Mapping[Any, Any]]:
    """Whether a value is a mapping of any kind."""
    return isinstance(value, Mapping)


def is_list(value: object) -> TypeIs[list[Any] | tuple[Any, ...]]:
    """Whether a value is a list or a tuple."""
    return isinstance(value, list | tuple)


def is_sequence(value: object) -> TypeIs[Sequence[Any]]:
    """Whether a value is a sequence of any kind; a string is one too."""
    return isinstance(value, Sequence)


def is_class(value: object) -> TypeIs[type[Any]]:
    """Whether a value is a class."""
    return isinstance(value, type)


def is_partial(value: object) -> TypeIs[partial[Any]]:
    """Whether a value is a `functools.partial`."""
    return isinstance(value, partial)


def misread(value: object, validated: object) -> str | None:
    """Return the type of what pydantic took for a number by its `__float__`, as its strict float does with tensors."""
    if validated is value:
        return None
    if isinstance(validated, int | float):
        is_number = isinstance(value, int | float) or not hasattr(value, "__float__")
        return None if is_number else type(value).__name__
    pairs: list[tuple[object, object]] = []
    if is_mapping(value) and is_mapping(validated):
        pairs = [(value[key], item) for key, item in validated.items() if key in value]
    elif is_list(value) and is_list(validated):
        pairs = list(zip(value, validated, strict=False))
    return next((found for pair in pairs if (found := misread(*pair)) is not None), None)


def definition(value: object) -> Any:
    """Return what a source file defines under a name: a function or class itself, of any other object its class."""
    return value if hasattr(value, "__qualname__") else type(value)

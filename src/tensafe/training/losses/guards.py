"""Tests of what strangers hand over, for static checkers too: its parts are `Any`, where `isinstance` says unknown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import TypeIs

__all__ = ["definition", "is_class", "is_list", "is_mapping", "is_partial", "is_sequence"]


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


def definition(value: object) -> Any:
    """Return what a source file defines under a name: a function or class itself, of any other object its class."""
    return value if hasattr(value, "__qualname__") else type(value)

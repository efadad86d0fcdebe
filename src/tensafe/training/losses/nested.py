"""A loss inside a loss: the field type for combinators."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Annotated, Any

from pydantic import PlainSerializer, PlainValidator, WithJsonSchema

from .adapter import ResolvedLoss
from .errors import LossTypeError, Problem, config_error
from .resolve import resolve_loss
from .spec import split_spec

__all__ = ["NESTED_SCHEMA", "TERM_SCHEMA", "NestedLoss"]

NESTED_SCHEMA = {"x-tensafe": "loss"}
"""What stands for a nested loss in a model's JSON Schema, until `schema` puts the shape of a spec in its place."""

TERM_SCHEMA: dict[str, Any] = {"x-tensafe": "term"}
"""`json_schema_extra` of a model whose field `loss` is written flat: the keys of the spec beside its other fields."""


_DEEPEST = 30
_depth: ContextVar[int] = ContextVar("tensafe_nesting", default=0)


def _resolve(value: Any) -> ResolvedLoss:
    depth = _depth.get()
    if depth >= _DEEPEST:
        raise config_error([Problem("too-deep", (), f"losses are nested more than {_DEEPEST} deep")], loss=None)
    token = _depth.set(depth + 1)
    try:
        return resolve_loss(value)
    except LossTypeError:  # no ValueError, so it would leave the validation of everything else unfinished
        raise config_error(split_spec(value).problems, loss=None) from None
    finally:
        _depth.reset(token)


def _to_config(loss: ResolvedLoss) -> dict[str, Any]:
    return loss.to_config()


NestedLoss = Annotated[
    ResolvedLoss, PlainValidator(_resolve), PlainSerializer(_to_config), WithJsonSchema(NESTED_SCHEMA)
]
"""Field type of a nested loss: whatever `resolve_loss` takes, resolved under the same rules about imports.

What is wrong inside it is reported at its own path, such as `losses.1.kwargs.margn`.
"""

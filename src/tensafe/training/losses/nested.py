"""A loss inside a loss: the field type for combinators."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import PlainSerializer, PlainValidator, WithJsonSchema

from .adapter import ResolvedLoss
from .errors import LossTypeError, config_error
from .resolve import resolve_loss
from .spec import split_spec

__all__ = ["NESTED_SCHEMA", "NestedLoss"]

NESTED_SCHEMA = {"x-tensafe": "loss"}
"""What stands for a nested loss in a model's JSON Schema, until `schema` puts the shape of a spec in its place."""


def _resolve(value: Any) -> ResolvedLoss:
    try:
        return resolve_loss(value)
    except LossTypeError:  # no ValueError, so it would leave the validation of everything else unfinished
        raise config_error(split_spec(value).problems, loss=None) from None


def _to_config(loss: ResolvedLoss) -> Mapping[str, Any]:
    return loss.to_config()


NestedLoss = Annotated[
    ResolvedLoss, PlainValidator(_resolve), PlainSerializer(_to_config), WithJsonSchema(NESTED_SCHEMA)
]
"""Field type of a nested loss: whatever `resolve_loss` takes, resolved under the same rules about imports.

What is wrong inside it is reported at its own path, such as `losses.1.kwargs.margn`.
"""

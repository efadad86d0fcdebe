"""A loss inside a loss: the field type for combinators."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, PlainSerializer, PlainValidator, WithJsonSchema

from tensafe._lazy import torch

from .adapter import CombinedLoss, ResolvedLoss
from .errors import LossTypeError, Problem, config_error
from .explain import make_reader
from .guards import is_list
from .resolve import resolve_loss, resolving_part
from .spec import split_spec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

__all__ = [
    "FROM_BATCH",
    "NESTED_SCHEMA",
    "TERM_SCHEMA",
    "NestedLoss",
    "count_of",
    "innermost",
    "scaled",
    "takes_step",
    "unfit_part",
]

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
        with resolving_part():
            return _resolve_data(value)
    finally:
        _depth.reset(token)


def _resolve_data(value: Any) -> ResolvedLoss:
    try:
        return resolve_loss(value)
    except LossTypeError:  # no ValueError, so it would leave the validation of everything else unfinished
        raise config_error(split_spec(value).problems, loss=None) from None


def _to_config(loss: ResolvedLoss) -> dict[str, Any]:
    return loss.to_config()


NestedLoss = Annotated[
    ResolvedLoss, PlainValidator(_resolve), PlainSerializer(_to_config), WithJsonSchema(NESTED_SCHEMA)
]
"""Field type of a nested loss: whatever `resolve_loss` takes, resolved under the same rules about imports.

What is wrong inside it is reported at its own path, such as `losses.1.kwargs.margn`.
"""

FROM_BATCH: Any = object()
"""Default of a count of a call: it was not given, so the batch may have it; None says that there is none."""


def count_of(name: str, given: Any, batch: Any) -> Any:
    """Return a count that was given, None included, else that of the batch."""
    return make_reader(batch)(name) if given is FROM_BATCH else given


def innermost(held: Any) -> Iterator[ResolvedLoss]:
    """Yield the losses that do the work: a loss itself, or those that a combinator holds in its fields."""
    if isinstance(held, CombinedLoss):
        held = held.loss
    if isinstance(held, ResolvedLoss):
        yield held
    elif isinstance(held, BaseModel):
        for name in type(held).model_fields:
            yield from innermost(getattr(held, name))
    elif is_list(held):
        for each in held:
            yield from innermost(each)


def takes_step(loss: ResolvedLoss) -> bool:
    """Whether a number inside a loss has a schedule, so that it must be told the step."""
    return isinstance(loss, CombinedLoss) and bool(getattr(loss.loss, "takes_step", False))


def unfit_part(loss: ResolvedLoss, whole: str) -> Problem | None:
    """Say why a loss cannot be part of `whole`, at the path relative to its spec; None if it can."""
    if loss.kwargs.get("reduction") == "none":
        message = f"{whole} must be one number; choose another reduction than none"
        return Problem("unfit-part", ("kwargs", "reduction"), message)
    if loss.kwargs.get("overwrite_logits"):
        message = f"{whole} cannot overwrite the logits: another may need them"
        return Problem("unfit-part", ("kwargs", "overwrite_logits"), message)
    return None


def scaled(loss: Tensor, weight: float | Tensor) -> Tensor:
    """Return weight times loss; 0 for weight 0 even where the loss is infinite, and attached all the same."""
    if isinstance(weight, torch.Tensor):  # whose value is not to be looked at
        return weight * torch.where(weight == 0, 0.0, loss)
    if weight == 0:
        return torch.where(torch.zeros_like(loss, dtype=torch.bool), loss, 0.0)
    return weight * loss

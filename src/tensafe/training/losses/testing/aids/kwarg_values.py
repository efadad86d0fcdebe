"""The kwargs of a loss with other values that they may have, and with values that they may not."""

from __future__ import annotations

import inspect
import math
from typing import TYPE_CHECKING, Any, NamedTuple

from tensafe.training.losses.adapter import ProtocolLoss
from tensafe.training.losses.protocol import read_signature

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tensafe.training.losses.adapter import ResolvedLoss
    from tensafe.training.losses.loss import Loss
    from tensafe.training.losses.problems import JsonSchema

__all__ = ["Kwarg", "read_kwargs", "takes_any"]

_OF_TYPE: dict[str, Any] = {"string": "0.5", "boolean": True, "null": None, "number": 1.5, "array": [], "object": {}}
"""A value of each type of JSON."""

_NUMBERS = (0.25, 0.5, 2, 0.75, 1, 3, 1.5, 0, -0.5, -1, 10)


class Kwarg(NamedTuple):
    """A kwarg of a loss.

    Attributes:
        name: What it is called.
        value: What it is at present.
        branches: JSON Schemas, each of one type, that together say what it may be; that of no type, anything.
        annotated: Whether it has an annotation that says so.
    """

    name: str
    value: Any
    branches: tuple[JsonSchema, ...]
    annotated: bool = True

    def others(self) -> Iterator[Any]:
        """Yield other values that it may have, likely ones first; none where they cannot be guessed."""
        for branch in self.branches:
            if "enum" in branch:
                yield from (choice for choice in branch["enum"] if choice != self.value)
            elif branch.get("type") == "boolean":
                yield not self.value
            elif branch.get("type") in {"number", "integer"}:
                yield from (number for number in _numbers_within(branch) if number != self.value)

    def wrong(self) -> Iterator[Any]:
        """Yield values that it may not have: of other types, not finite, out of range, no choice."""
        types = {_type_of(branch) for branch in self.branches}
        if "" in types:  # nothing is known but that it is something
            yield object()
            return
        numeric = [branch for branch in self.branches if _type_of(branch) in {"number", "integer"}]
        yield from (value for kind, value in _OF_TYPE.items() if kind not in types)
        if numeric:
            yield from (math.nan, math.inf, -math.inf)
        if len(numeric) == 1:
            yield from _beyond(numeric[0])
        if any("enum" in branch or "const" in branch for branch in self.branches):
            yield "no such choice"
        if any(branch.get("minItems") for branch in self.branches):
            yield []


def read_kwargs(loss: ResolvedLoss) -> list[Kwarg]:
    """Return the kwargs of a loss, but for what a callable collects with `**kwargs`."""
    if isinstance(loss, ProtocolLoss):
        return list(_of_callable(loss))
    model: Loss = vars(loss)["loss"]
    schema = type(model).model_json_schema()
    return [
        Kwarg(name, loss.kwargs[name], tuple(_branches(each, schema))) for name, each in schema["properties"].items()
    ]


def takes_any(loss: ResolvedLoss) -> bool:
    """Whether a callable takes keywords that it does not name, or does not let its signature be read."""
    return isinstance(loss, ProtocolLoss) and read_signature(loss.fn, loss.name).takes_any


def _of_callable(loss: ProtocolLoss) -> Iterator[Kwarg]:
    target = getattr(loss.fn, "forward", loss.fn) if hasattr(loss.fn, "register_forward_hook") else loss.fn
    for name, parameter in read_signature(loss.fn, loss.name).parameters.items():
        if parameter.validator is not None:
            schema = parameter.schema()
            yield Kwarg(name, loss.kwargs[name], tuple(_branches(schema, schema)))
        elif not _says_anything(inspect.signature(target).parameters[name].annotation):
            yield Kwarg(name, loss.kwargs[name], (_schema_of(loss.kwargs[name]),), annotated=False)


def _says_anything(annotation: Any) -> bool:
    """Whether it is annotated, and with what says that anything will do."""
    return annotation is Any or annotation is object or annotation in {"Any", "typing.Any", "object"}


def _schema_of(value: Any) -> JsonSchema:
    """Return what a value suggests about its like."""
    kinds = {bool: "boolean", int: "number", float: "number", str: "string"}
    return {"type": kinds[type(value)]} if type(value) in kinds else {}


def _branches(schema: JsonSchema, root: JsonSchema) -> Iterator[JsonSchema]:
    while "$ref" in schema:
        schema = root["$defs"][schema["$ref"].rpartition("/")[2]]
    for key in ("anyOf", "oneOf"):
        if key in schema:
            for branch in schema[key]:
                yield from _branches(branch, root)
            return
    yield schema


def _type_of(schema: JsonSchema) -> str:
    """Return the JSON type of what a schema accepts; empty if it does not say."""
    kind = schema.get("type", "")
    return kind if isinstance(kind, str) and kind else "string" if "enum" in schema or "const" in schema else ""


def _numbers_within(schema: JsonSchema) -> list[float]:
    whole = schema["type"] == "integer"
    low, high = schema.get("minimum", -math.inf), schema.get("maximum", math.inf)
    ends = {schema.get("exclusiveMinimum", -math.inf), schema.get("exclusiveMaximum", math.inf)}
    low, high = max(low, schema.get("exclusiveMinimum", low)), min(high, schema.get("exclusiveMaximum", high))
    middle = [(low + high) / 2] if math.isfinite(low + high) and not whole else []
    candidates = [*middle, *(number for number in _NUMBERS if not whole or isinstance(number, int))]
    return [number for number in candidates if low <= number <= high and number not in ends]


def _beyond(schema: JsonSchema) -> Iterator[float]:
    """Yield numbers just out of the range of a schema."""
    if "minimum" in schema:
        yield schema["minimum"] - 1
    if "maximum" in schema:
        yield schema["maximum"] + 1
    yield from (schema[end] for end in ("exclusiveMinimum", "exclusiveMaximum") if end in schema)

"""What a loss takes as kwargs: read from its fields or annotations as pydantic describes them.

Pydantic's JSON Schema is the one description that fields, annotated parameters and the models inside them have in
common. A nested loss is marked in it, and so is a term that is written flat; see `nested`.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from tensafe.training.losses.contract import read_contract
from tensafe.training.losses.guards import is_class, is_mapping
from tensafe.training.losses.kwargs_schema import pydantic_schema, unbound
from tensafe.training.losses.loss import Loss
from tensafe.training.losses.nested import NESTED_SCHEMA, TERM_SCHEMA
from tensafe.training.losses.resolve import find_loss
from tensafe.training.losses.spec import LossSpec

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tensafe.training.losses.problems import JsonSchema

__all__ = [
    "Shape",
    "as_branches",
    "follow",
    "is_loss",
    "is_term",
    "read_shape",
    "variants",
]

_MARK = "x-tensafe"


class Shape(NamedTuple):
    """What a loss takes as kwargs.

    Attributes:
        loss: What `resolve_loss` takes.
        found: The class or callable behind it.
        properties: JSON Schema of each kwarg.
        required: The kwargs that must be given.
        definitions: What the schemas refer to.
        takes_any: Whether it also takes kwargs of any other name.
    """

    loss: Any
    found: Any
    properties: Mapping[str, JsonSchema]
    required: tuple[str, ...]
    definitions: Mapping[str, JsonSchema]
    takes_any: bool

    def holds_losses(self) -> bool:
        """Whether any kwarg holds losses."""
        return f"'{_MARK}': 'loss'" in str((self.properties, self.definitions))

    @property
    def tensors(self) -> tuple[str, ...]:
        """The tensors that it takes by name, which a config may rename."""
        if not is_class(self.found) or not issubclass(self.found, Loss) or self.found.is_combinator():
            return ()
        return tuple(spec.name for spec in read_contract(self.found).tensors)


def read_shape(loss: Any) -> Shape:
    """Return what a loss takes as kwargs: a name, a path, a class, a callable, a resolved loss, a spec.

    Raises:
        LossConfigError: Nothing has this name, or what has it could not be called as a loss.
    """
    found, bound = _unbound(loss)
    # mypy takes no class for hashable
    schema = _schema_of_class(found) if is_class(found) else pydantic_schema(found)  # type: ignore[arg-type]
    required = tuple(name for name in schema.get("required", ()) if name not in bound)
    takes_any = schema.get("additionalProperties") is True
    properties = {name: each for name, each in schema.get("properties", {}).items() if each is not False}
    return Shape(loss, found, properties, required, schema.get("$defs", {}), takes_any)


def _unbound(loss: Any) -> tuple[Any, Mapping[str, Any]]:
    """Return the class or callable behind a loss, and the kwargs that it was given already."""
    if isinstance(loss, str):
        return _unbound(find_loss(loss))
    if isinstance(loss, LossSpec):
        return _unbound(loss.type)[0], loss.kwargs
    if is_mapping(loss):
        return _unbound(loss["type"])[0], loss.get("kwargs") or {}
    return unbound(loss)


@cache
def _schema_of_class(loss: type[Loss]) -> JsonSchema:
    return pydantic_schema(loss)


def is_loss(schema: JsonSchema) -> bool:
    """Whether a value is a spec of a loss."""
    return bool(schema.get(_MARK) == NESTED_SCHEMA[_MARK])


def is_term(schema: JsonSchema) -> bool:
    """Whether a value is a spec of a loss with further keys beside it."""
    return bool(schema.get(_MARK) == TERM_SCHEMA[_MARK])


def follow(schema: JsonSchema, definitions: Mapping[str, JsonSchema]) -> JsonSchema:
    """Return what a reference refers to."""
    while "$ref" in schema:
        schema = definitions[schema["$ref"].rpartition("/")[2]]
    return schema


def as_branches(schema: JsonSchema, definitions: Mapping[str, JsonSchema]) -> Iterator[JsonSchema]:
    """Yield schemas of one type each that together accept the same; one without a type accepts anything."""
    schema = follow(schema, definitions)
    if _MARK in schema:
        yield schema
    elif "anyOf" in schema or "oneOf" in schema:
        for branch in schema.get("anyOf") or schema["oneOf"]:
            yield from as_branches(branch, definitions)
    elif isinstance(schema.get("type"), list):
        for kind in schema["type"]:
            yield {**schema, "type": kind}
    else:
        yield schema


def variants(schema: JsonSchema) -> list[JsonSchema]:
    """Return the forms of an object of which one key says what the others are, as `if` and `then` have it."""
    rules = [rule for rule in schema.get("allOf", ()) if "then" in rule and "else" not in rule]
    return [_variant(schema, rule) for rule in rules] or [schema]


def _variant(schema: JsonSchema, rule: JsonSchema) -> JsonSchema:
    then = rule["then"]
    absent = {key for key, each in then.get("properties", {}).items() if each is False}
    properties = {key: each for key, each in schema["properties"].items() if key not in absent}
    required = [*schema.get("required", ()), *then.get("required", ())]
    return {**schema, "allOf": [], "properties": properties | rule["if"]["properties"], "required": required}

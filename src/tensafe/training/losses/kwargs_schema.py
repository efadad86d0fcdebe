"""JSON Schema, draft 7, of the kwargs of one loss, from its fields or its signature."""

from __future__ import annotations

import inspect
import json
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic.json_schema import DEFAULT_REF_TEMPLATE, GenerateJsonSchema

from .adapter import ResolvedLoss
from .contract import TensorSpec, read_contract
from .guards import definition, is_class
from .loss import Loss
from .nested import NESTED_SCHEMA, TERM_SCHEMA
from .protocol import COUNTS, Parameter, read_signature
from .registry import lookup

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from .problems import JsonSchema

__all__ = ["SPEC", "LossSchema", "pydantic_schema", "read_loss", "reference", "spec_shape", "unbound"]

SPEC = "loss-spec"
"""Name of the definition that a nested loss refers to. It has a hyphen, so no loss can have it."""

_INT64 = {"minimum": -(2**63), "maximum": 2**63 - 1}


class LossSchema(NamedTuple):
    """What there is to know about a loss.

    Attributes:
        kwargs: JSON Schema of its kwargs, or of null; `required` says whether that will do.
        definitions: What `kwargs` refers to.
        tensors: The tensors that it takes by name.
    """

    kwargs: JsonSchema
    definitions: dict[str, JsonSchema]
    tensors: tuple[TensorSpec, ...]

    @property
    def required(self) -> list[str]:
        """The kwargs that have no default."""
        required: list[str] = self.kwargs.get("required", [])
        return required

    @property
    def properties(self) -> dict[str, JsonSchema]:
        """The schemas of the kwargs."""
        properties = self.kwargs.get("properties", {})
        return {name: schema for name, schema in properties.items() if isinstance(schema, dict)}


def read_loss(name: str) -> LossSchema:
    """Describe what is registered under a name.

    Raises:
        UnknownLossError: Nothing has this name.
        LossConfigError: What has it could not be called as a loss.
    """
    found, bound = unbound(lookup(name))
    loss = found if isinstance(found, type) and issubclass(found, Loss) else None
    schema = pydantic_schema(found, name, f"#/definitions/{name}.{{model}}")
    definitions = {f"{name}.{key}": _definition(model) for key, model in schema.pop("$defs", {}).items()}
    schema = _clean(_with_defaults(schema, bound))
    required = schema.pop("required", [])
    schema.update(title=name, description=_summary(found), type=["object", "null"])
    order = ["title", "description", "type", "properties"]
    kwargs = {key: schema.pop(key) for key in order if key in schema}
    kwargs.update({"required": required} if required else {}, **schema)
    tensors = () if loss is None or loss.is_combinator() else read_contract(loss).tensors
    return LossSchema(kwargs, definitions, tensors)


def reference(definition: str) -> JsonSchema:
    """Return a reference to a definition."""
    return {"$ref": f"#/definitions/{definition}"}


def spec_shape(own: Mapping[str, Any], required: Iterable[str] = (), **more: Any) -> JsonSchema:
    """Return the shape of a spec, a bare name or an object with `type`; `own` are further properties of the object."""
    return {
        "title": "loss",
        "description": "A loss: its name, or a mapping with its name as type, its kwargs and its inputs.",
        **more,
        "required": ["type", *required],
        "properties": {"type": reference("loss-type"), "kwargs": True, "inputs": True, **own},
        "additionalProperties": False,
        "allOf": [reference("loss-form"), reference("loss-rules"), *more.get("allOf", [])],
    }


class _Generator(GenerateJsonSchema):
    """Makes up no titles, and lets through what JSON Schema cannot describe."""

    ignored_warning_kinds = {"skipped-choice", "non-serializable-default"}  # noqa: RUF012  # pydantic's annotation

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def handle_invalid_for_json_schema(self, schema: Any, error_info: str) -> JsonSchema:
        return {}


def unbound(found: Any) -> tuple[Any, Mapping[str, Any]]:
    """Return the class or callable behind what is registered, and the kwargs that it was given already."""
    if isinstance(found, ResolvedLoss):
        inner = vars(found)
        return unbound(inner["loss"] if "loss" in inner else inner["fn"])[0], found.kwargs
    return (type(found), dict(found)) if isinstance(found, Loss) else (found, {})


def _with_defaults(schema: JsonSchema, bound: Mapping[str, Any]) -> JsonSchema:
    properties = schema.get("properties", {})
    rebound = {name: {**properties[name], "default": value} for name, value in bound.items() if name in properties}
    required = [name for name in schema.get("required", []) if name not in bound]
    return {**schema, "properties": {**properties, **rebound}, "required": required}


def pydantic_schema(found: Any, owner: str = "", references: str = DEFAULT_REF_TEMPLATE) -> JsonSchema:
    """Return the JSON Schema that pydantic makes of the kwargs of a class or a callable.

    Args:
        found: The class or callable.
        owner: Its name, for messages.
        references: How a reference to a model is written.
    """
    options: Any = {"ref_template": references, "schema_generator": _Generator}
    if not is_class(found) or not issubclass(found, Loss):
        return _callable_schema(found, owner, options)
    schema: JsonSchema = found.model_json_schema(**options)
    return schema


def _callable_schema(fn: Any, name: str, options: Any) -> JsonSchema:
    signature = read_signature(fn, name)
    parameters = signature.parameters
    properties = {parameter.name: _parameter_schema(parameter, options) for parameter in parameters.values()}
    definitions = {key: model for schema in properties.values() for key, model in schema.pop("$defs", {}).items()}
    reserved = dict.fromkeys(COUNTS, False) if signature.takes_any else {}
    return {
        "properties": {**properties, **reserved},
        "required": [parameter.name for parameter in parameters.values() if parameter.required],
        "additionalProperties": signature.takes_any,
        "$defs": definitions,
    }


def _parameter_schema(parameter: Parameter, options: Any) -> JsonSchema:
    schema = {} if parameter.validator is None else parameter.validator.json_schema(**options)
    return schema if parameter.required else {**schema, "default": parameter.default}


def _summary(found: Any) -> str:
    while isinstance(found, partial):
        found = found.func
    text: str | None = getattr(definition(found), "__doc__", None)
    return _first_line(text or "")


def _first_line(text: str) -> str:
    return inspect.cleandoc(text).partition("\n")[0]


def _definition(model: JsonSchema) -> JsonSchema:
    """Return a model's schema, without the name of its class and all but one line of its docstring."""
    model = {key: value for key, value in model.items() if key != "title"}
    if "description" in model:
        model["description"] = _first_line(model["description"])
    return _clean(model)


def _clean(node: JsonSchema) -> JsonSchema:
    """Turn what pydantic writes into draft 7, with the shape of a spec for nested losses, and integers of 64 bits."""
    node = {key: _clean_under(key, value) for key, value in node.items() if key != "default" or _is_json(value)}
    if "prefixItems" in node:
        node["items"] = node.pop("prefixItems")
    if node.get("type") == "integer":
        node.update(
            {key: node.get(key, limit) for key, limit in _INT64.items() if f"exclusive{key.title()}" not in node}
        )
    mark = node.pop("x-tensafe", None)
    if mark == TERM_SCHEMA["x-tensafe"]:
        return _term(node)
    if mark == NESTED_SCHEMA["x-tensafe"]:
        node.update(reference(SPEC))
    # draft 7 looks at nothing beside $ref
    return {"allOf": [{"$ref": node.pop("$ref")}], **node} if "$ref" in node and len(node) > 1 else node


def _clean_under(key: str, value: Any) -> Any:
    if key in {"properties", "patternProperties"}:
        return {name: _clean_one(schema) for name, schema in value.items()}
    if key in {"allOf", "anyOf", "oneOf", "prefixItems"}:
        return [_clean_one(schema) for schema in value]
    return _clean_one(value) if key in {"items", "additionalProperties", "not", "if", "then", "else"} else value


def _clean_one(schema: Any) -> Any:
    return schema if isinstance(schema, bool) else _clean(schema)


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True


def _term(model: JsonSchema) -> JsonSchema:
    """Turn a model with a nested loss into a spec with the model's other fields beside its keys."""
    own = {name: schema for name, schema in model["properties"].items() if name != "loss"}
    required = [name for name in model["required"] if name != "loss"]
    rest = {key: value for key, value in model.items() if key in {"description", "allOf"}}
    return spec_shape(own, required, **rest, **({"type": "object"} if required else {}))

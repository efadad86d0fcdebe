"""JSON Schema of the losses and of a training config, for editors and CI: generated from whatever is registered.

The shape was chosen in front of yaml-language-server. Where JSON Schema can say a thing in two ways, this is the one
that gives a single message, on the right line, and that completes:

- Names are an `anyOf` of `const`, not an `enum`, so that each comes with its own documentation.
- What a loss takes hangs on `if` the type is its name, `then`, never on `anyOf`: of an `anyOf` that fails, a client
  shows the branch it thinks nearest, often another loss.
- A type is at first any text; then, what has a dot or a colon must be a well-formed path, what is one slip away from a
  name must be that name, and all else one of the names. So the message is about one of them, not a list of all.

A schema cannot say all that `check_spec` does, which has the last word. To JSON Schema `5.0` is an integer, and `.inf`
and `.nan` are numbers; it does not know that any integer fits 64 bits where a number is due, that no two terms of a sum
share a name, which values of a loss do not go together (one that must lie above another, lists of one length, a loss
that does not fit into another, what a backend does not have), that weights must not all be 0, that a spec may also
stand under `loss` in a term (which is for Python), or which letters beyond ASCII Python has in names.
"""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

from .errors import LossConfigError
from .kwargs_schema import SPEC, LossSchema, read_loss, reference, spec_shape
from .protocol import COUNTS
from .registry import builtin_names, get_registered_losses
from .typos import slips

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from .problems import JsonSchema

__all__ = ["loss_schema", "schema_files", "training_config_schema"]

_logger = logging.getLogger(__name__)

_DRAFT = "http://json-schema.org/draft-07/schema#"
_END = r"$(?!\n)"  # Python's $ also stands before a last line break
# The identifiers of Python and the regular expressions of JavaScript agree on ASCII only; the rest is let through.
_WORD = r"[^\x00-@\[-^`{-\x7f][^\x00-/:-@\[-^`{-\x7f]*"
_STRICT_PATH = rf"^{_WORD}(\.{_WORD})*[.:]{_WORD}{_END}"
_ANY: JsonSchema = {}
_LOOSE_PATH = {"type": "string", "pattern": "[.:]"}
_STRICT = {"pattern": _STRICT_PATH, "patternErrorMessage": "Expected package.module:name."}
_DOTTED = {"title": "dotted path", "description": "A loss of your own, package.module:name.", **_LOOSE_PATH}
_UNTYPED = {"type": "object", "not": {"required": ["type"]}}
_KEY = {"type": "string", "minLength": 1}
_INPUTS = {
    "description": "Renames of the tensors of the loss, {tensor: key}; a key may say outputs.key or batch.key.",
    "type": ["object", "null"],
}


def loss_schema(name: str, nested: Iterable[str] | None = None) -> JsonSchema:
    """Return the JSON Schema (draft 7) of the kwargs of a registered loss.

    Args:
        name: Registered name.
        nested: The losses that one made of others may hold; by default all that are registered.

    Raises:
        UnknownLossError: Nothing has this name.
        LossConfigError: What has it could not be called as a loss.
    """
    return _of_one(read_loss(name), lambda: _definitions(nested))


def training_config_schema(names: Iterable[str] | None = None) -> JsonSchema:
    """Return the JSON Schema (draft 7) of a training config: its section `loss`; all others are free.

    Args:
        names: The losses that it may name, beside dotted paths; by default all that are registered, but for those that
            would fail to resolve, which are logged.
    """
    return _of_config(_definitions(names))


def schema_files(names: Iterable[str] | None = None) -> dict[str, str]:
    """Return the files that editors and CI read, relative path to text: the training config and each loss.

    Args:
        names: The losses; by default those that are built in.
    """
    losses = _read(builtin_names() if names is None else names)
    definitions = _defined(losses)
    schemas = {"training_config.json": _of_config(definitions)}
    schemas.update({f"losses/{name}.json": _of_one(loss, lambda: definitions) for name, loss in losses.items()})
    return {path: json.dumps(schema, indent=2, allow_nan=False) + "\n" for path, schema in schemas.items()}


def _of_one(loss: LossSchema, others: Callable[[], dict[str, JsonSchema]]) -> JsonSchema:
    """Return the schema of a loss's kwargs; `others` defines the losses that it may hold."""
    holds_others = '"#/definitions/loss-' in json.dumps(loss)
    definitions = others() if holds_others else loss.definitions
    schema = {"$schema": _DRAFT, **loss.kwargs, "type": "object"}
    return {**schema, "definitions": definitions} if definitions else schema


def _of_config(definitions: dict[str, JsonSchema]) -> JsonSchema:
    return {
        "$schema": _DRAFT,
        "title": "training config",
        "type": "object",
        "required": ["loss"],
        "properties": {"loss": reference(SPEC)},
        "additionalProperties": True,
        "definitions": definitions,
    }


def _read(names: Iterable[str]) -> dict[str, LossSchema]:
    return {name: read_loss(name) for name in sorted(set(names))}


def _read_registered() -> dict[str, LossSchema]:
    losses: dict[str, LossSchema] = {}
    for name in get_registered_losses():
        try:
            losses[name] = read_loss(name)
        except LossConfigError as error:
            _logger.warning("loss %r is left out: %s", name, error)
    return losses


def _definitions(names: Iterable[str] | None) -> dict[str, JsonSchema]:
    return _defined(_read_registered() if names is None else _read(names))


def _defined(losses: Mapping[str, LossSchema]) -> dict[str, JsonSchema]:
    """Return the kwargs of each loss, and the shape of a spec that may name any of them."""
    definitions: dict[str, JsonSchema] = {}
    for name, loss in losses.items():
        definitions.update({name: loss.kwargs, **loss.definitions})
    return {
        **definitions,
        SPEC: spec_shape({}),
        "loss-name": _name(losses),
        "loss-type": _type(losses),
        "loss-form": _form(losses),
        "loss-rules": {"allOf": _rules(losses)},
    }


def _type(losses: Mapping[str, LossSchema]) -> JsonSchema:
    constants = [_constant(name, loss) for name, loss in losses.items()]
    return {
        "description": "Registered name of the loss, or package.module:name.",
        "type": "string",
        "allOf": [{"anyOf": [*constants, _DOTTED, _ANY]}, reference("loss-name")],
    }


def _constant(name: str, loss: LossSchema) -> JsonSchema:
    return {"const": name, "title": name, "description": loss.kwargs["description"]}


def _form(losses: Mapping[str, LossSchema]) -> JsonSchema:
    """Tell bare names from objects, and objects without a type, which get snippets, from those that have one."""
    short = [_constant(name, loss) for name, loss in losses.items() if not loss.required]
    untyped = {**_UNTYPED, "defaultSnippets": [_snippet(name, loss) for name, loss in losses.items()]}
    forms = [*short, _DOTTED, _ANY, {"type": "object", "required": ["type"]}, untyped]
    return {"type": ["string", "object"], "anyOf": forms}


def _name(losses: Mapping[str, LossSchema]) -> JsonSchema:
    """Say of a text that is no name why it is no path either, or which name was meant."""
    rules: list[JsonSchema] = [{"if": _LOOSE_PATH, "then": _STRICT}]
    known: list[JsonSchema] = [_LOOSE_PATH]
    for name in losses:
        if typos := slips(name):
            typo = {"pattern": f"^({'|'.join(typos)}){_END}"}
            rules.append({"if": typo, "then": {"const": name, "errorMessage": f"Unknown loss; did you mean {name}?"}})
            known.append(typo)
    message = "No loss has this name. One of your own is package.module:name."
    rules.append({"if": {"not": {"anyOf": known}}, "then": {"enum": list(losses), "errorMessage": message}})
    return {"if": {"type": "string", "not": {"enum": list(losses)}}, "then": {"allOf": rules}}


def _union(losses: Mapping[str, LossSchema]) -> JsonSchema:
    """Return the kwargs of all losses, for completion before `type` is written."""
    takers: dict[str, dict[str, JsonSchema]] = {}
    for name, loss in losses.items():
        for kwarg, schema in loss.properties.items():
            takers.setdefault(kwarg, {})[name] = schema
    return {kwarg: _merged(by_loss) for kwarg, by_loss in takers.items()}


def _merged(by_loss: Mapping[str, JsonSchema]) -> JsonSchema:
    """Return what losses agree on about a kwarg of one name, and whose description is whose where they do not."""
    first, *others = by_loss.values()
    shared = {key: value for key, value in first.items() if all(other.get(key) == value for other in others)}
    shared.pop("default", None)  # else the completion of `kwargs` would insert those of all losses
    if "description" in shared or not any("description" in schema for schema in by_loss.values()):
        return shared
    meanings: dict[str, list[str]] = {}
    for name, schema in by_loss.items():
        meanings.setdefault(schema.get("description", ""), []).append(name)
    text = "\n\n".join(f"{', '.join(names)}: {meaning}" for meaning, names in meanings.items())
    return {**shared, "description": text}


def _snippet(name: str, loss: LossSchema) -> JsonSchema:
    """Return a spec to start from: every default but null; an example, or a place to fill in, for what has none."""
    defaults = {kwarg: schema.get("default") for kwarg, schema in loss.properties.items()}
    kwargs: dict[str, Any] = {kwarg: default for kwarg, default in defaults.items() if default is not None}
    for index, kwarg in enumerate(loss.required, 1):
        blank = [f"${index}"] if loss.properties[kwarg].get("type") == "array" else f"${index}"
        kwargs[kwarg] = loss.properties[kwarg].get("examples", [blank])[0]
    body = {"type": name, **({"kwargs": kwargs} if kwargs else {})}
    return {"label": name, "description": loss.kwargs["description"], "body": body}


def _rules(losses: Mapping[str, LossSchema]) -> list[JsonSchema]:
    """Say what follows from each type, and from each bare name."""
    kwargs = {"type": ["object", "null"], "properties": dict.fromkeys(COUNTS, False)}
    rules: list[JsonSchema] = [
        {"if": _UNTYPED, "then": {"properties": {"kwargs": {"properties": _union(losses)}}}},
        {"if": {"type": "string"}, "then": reference("loss-name")},
        _typed(_LOOSE_PATH, {"kwargs": kwargs, "inputs": {**_INPUTS, "additionalProperties": _KEY}}),
    ]
    for name, loss in losses.items():
        tensors = {tensor.name: {"description": f"Key of {tensor}.", **_KEY} for tensor in loss.tensors}
        inputs = {**_INPUTS, "properties": tensors, "additionalProperties": False}
        # while it completes, a client takes a const for any longer one; a pattern it takes as it is
        itself = {"const": name, "pattern": f"^{name}{_END}"}
        rules.append(_typed(itself, {"kwargs": reference(name), "inputs": inputs}))
        if loss.required:
            mapping = {"type": "object", "errorMessage": f"{name} has required kwargs: {', '.join(loss.required)}."}
            rules[-1]["then"]["required"] = ["kwargs"]
            rules[-1]["then"]["properties"]["kwargs"] = {"allOf": [reference(name), mapping]}
            rules.append({"if": {"const": name}, "then": mapping})
    return rules


def _typed(condition: JsonSchema, properties: JsonSchema) -> JsonSchema:
    condition = {"type": "object", "properties": {"type": condition}, "required": ["type"]}
    return {"if": condition, "then": {"properties": properties}}

"""A loss as plain data: the `loss:` section of a config."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from .errors import LossConfigError, Problem, config_error, key_name, near_miss, shorten
from .guards import is_list, is_mapping

__all__ = ["LossSpec", "SpecParts", "copied", "split_spec"]

SPEC_KEYS = ("type", "kwargs", "inputs")

_DEEPEST = 100

_CHANGEABLE: tuple[type, ...] = (dict, list, set)


class LossSpec(BaseModel):
    """The `loss:` section of a training config, validated.

    A registered loss is validated to the last kwarg; of a dotted path only the form, since checking more would import
    it: `resolve_loss(spec)` does. A bare name is accepted by `LossSpec.model_validate("token_ce")`.

    Attributes:
        type: Registered name, or `package.module:function`.
        kwargs: Arguments of the loss.
        inputs: Renames of its tensors, `{tensor: key}`; a key may say `outputs.key` or `batch.key`.

    Raises:
        LossConfigError: From the constructor; as part of another model the mistakes are in pydantic's ValidationError.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)

    type: str = Field(description="Registered name of the loss, or package.module:function.")
    kwargs: dict[str, Any] = Field(default_factory=dict[str, Any], description="Arguments of the loss.")
    inputs: dict[str, str] = Field(default_factory=dict[str, str], description="Renames of its tensors.")

    if not TYPE_CHECKING:  # static checkers read the signature off the fields

        def __init__(self, /, **data: Any) -> None:
            try:
                super().__init__(**data)
            except ValidationError as error:
                inner = [details.get("ctx", {}).get("error") for details in error.errors(include_url=False)]
                raise next((found for found in inner if isinstance(found, LossConfigError)), error) from None

        # or else pydantic would validate by calling this, with whatever keys the data has for keywords
        __init__.__pydantic_base_init__ = True

    @model_validator(mode="before")
    @classmethod
    def _check(cls, data: Any) -> Any:
        from .resolve import check_spec  # a layer above: a spec is data, and resolving is what validates it

        if isinstance(data, LossSpec):
            return data
        problems = check_spec(data)
        if problems:
            raise config_error(problems, loss=None)
        return copied(split_spec(data).as_fields())


def copied(value: Any, seen: dict[int, Any] | None = None, depth: int = 0) -> Any:
    """Copy containers within containers; what they hold (a module, a tensor) stays the caller's own.

    Raises:
        LossConfigError: They are nested too deep.
    """
    if depth > _DEEPEST:
        raise config_error([Problem("too-deep", (), f"data is nested more than {_DEEPEST} deep")], loss=None)
    seen = {} if seen is None else seen
    if id(value) in seen:
        return seen[id(value)]
    twin: Any = value
    if isinstance(value, _CHANGEABLE):
        twin = seen[id(value)] = copy.copy(value)
        for place in twin if is_mapping(value) else range(len(value)) if is_list(value) else ():
            twin[place] = copied(twin[place], seen, depth + 1)
    elif is_list(value) and type(value) is tuple:
        twin = seen[id(value)] = tuple(copied(item, seen, depth + 1) for item in value)
    return twin


class SpecParts(NamedTuple):
    """A spec taken apart, with what is wrong with its form."""

    type: str | None
    kwargs: dict[str, Any]
    inputs: dict[str, str]
    stray: dict[str, Any]
    problems: list[Problem]

    def as_fields(self) -> dict[str, Any]:
        """Return the fields of `LossSpec`."""
        return {"type": self.type, "kwargs": self.kwargs, "inputs": self.inputs}


def split_spec(data: Any) -> SpecParts:
    """Take a spec apart: a bare name, or a mapping with `type` and perhaps `kwargs` and `inputs` (null is empty)."""
    if isinstance(data, str):
        return SpecParts(data, {}, {}, {}, [])
    if not is_mapping(data):
        got = "null" if data is None else shorten(data)
        message = f"expected the name of a loss or a mapping with the keys type and kwargs, got {got}"
        return SpecParts(None, {}, {}, {}, [Problem("invalid-spec", (), message)])
    problems: list[Problem] = []
    name = data.get("type")
    if "type" not in data:
        if not any(near_miss(key_name(key), ["type"]) for key in data):  # a misspelt one is reported as such
            message = "required key is missing: the name of a loss, or package.module:function"
            problems.append(Problem("missing-key", ("type",), message, on_key=True))
    elif not isinstance(name, str):
        message = f"expected the name of a loss, or package.module:function, got {shorten(name)}"
        problems.append(Problem("invalid-value", ("type",), message))
        name = None
    kwargs = _mapping(data.get("kwargs"), "kwargs", "a mapping of arguments", problems)
    inputs = _mapping(data.get("inputs"), "inputs", "a mapping of tensor names to keys", problems)
    for tensor, key in list(inputs.items()):
        if not isinstance(key, str) or not key:
            problems.append(Problem("invalid-value", ("inputs", tensor), f"expected a key, got {shorten(key)}"))
            del inputs[tensor]
    stray = {key_name(key): value for key, value in data.items() if key not in SPEC_KEYS}
    return SpecParts(name, kwargs, inputs, stray, problems)


def stray_problem(key: str, kwarg_names: list[str]) -> Problem:
    """Say where a key beside `type` belongs."""
    nearest = near_miss(key, SPEC_KEYS)
    if key in kwarg_names:
        return Problem("misplaced-kwarg", (key,), "belongs under kwargs", f"kwargs: {{{key}: ...}}", on_key=True)
    if nearest is not None:
        return Problem("unknown-key", (key,), f"unknown key; did you mean {nearest}?", nearest, on_key=True)
    close = near_miss(key, kwarg_names)
    if close is not None:
        message = f"unknown key; did you mean {close}, which belongs under kwargs?"
        return Problem("misplaced-kwarg", (key,), message, f"kwargs: {{{close}: ...}}", on_key=True)
    return Problem("unknown-key", (key,), f"unknown key; a loss has {', '.join(SPEC_KEYS)}", on_key=True)


def _mapping(value: Any, key: str, wanted: str, problems: list[Problem]) -> dict[str, Any]:
    if value is None:
        return {}
    if not is_mapping(value):
        problems.append(Problem("invalid-value", (key,), f"expected {wanted}, got {shorten(value)}"))
        return {}
    for name in value:
        if not isinstance(name, str):
            problems.append(Problem("invalid-value", (key, key_name(name)), "a key must be a string", on_key=True))
    return {name: item for name, item in value.items() if isinstance(name, str)}

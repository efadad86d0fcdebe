"""The second way to write a loss: any callable `(outputs, batch, **kwargs)`, validated by its signature."""

from __future__ import annotations

import inspect
import sys
import warnings
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError

from .errors import LossConfigError, Problem, config_error, make_error, near_miss
from .problems import JsonSchema, implausible, problems_of, unknown_argument
from .spec import copied

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["COUNTS", "Signature", "read_signature"]

COUNTS = ("num_items_in_batch", "num_sequences_in_batch")
"""Keywords of a call that set denominators; reserved, so never kwargs of a config."""

_STRICT = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)


class Parameter(NamedTuple):
    """One kwarg of a callable."""

    name: str
    default: Any
    validator: TypeAdapter[Any] | None

    @property
    def required(self) -> bool:
        """Whether there is no default."""
        return self.default is inspect.Parameter.empty

    def schema(self) -> JsonSchema:
        """Return the JSON Schema of its values, empty when anything goes."""
        if self.validator is None:
            return {}
        try:
            return self.validator.json_schema()
        except PydanticUserError:  # a type that JSON cannot hold
            return {}


class Signature(NamedTuple):
    """The kwargs that a callable takes."""

    owner: str
    parameters: Mapping[str, Parameter]
    takes_any: bool
    counts: frozenset[str]
    leading: frozenset[str] = frozenset()

    def bind(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Validate kwargs and return copies of them.

        Raises:
            LossConfigError: Any is unknown, missing, or not what its annotation says; every mistake is listed.
        """
        problems: list[Problem] = []
        bound: dict[str, Any] = {}
        for name, value in kwargs.items():
            parameter = self.parameters.get(name)
            try:
                bound[name] = copied(value)
            except LossConfigError as error:
                problems += [problem.under(name) for problem in error.problems]
                continue
            if parameter is None:
                problems += self._unknown(name)
            else:
                bound[name], found = _validate(parameter, bound[name], self.owner)
                problems += found
        problems += [
            Problem("missing-kwarg", (name,), f"required argument of {self.owner} is missing", on_key=True)
            for name, parameter in self.parameters.items()
            if parameter.required and name not in kwargs
        ]
        if problems:
            raise config_error(problems, loss=self.owner)
        return bound

    def _unknown(self, name: str) -> list[Problem]:
        if name in COUNTS:
            return [Problem("reserved-kwarg", (name,), "belongs to a call, not to a config", on_key=True)]
        if name in self.leading:
            return [Problem("reserved-kwarg", (name,), "is what the loss is called with, no kwarg", on_key=True)]
        if not self.takes_any:
            return [unknown_argument(name, self.owner, self.parameters)]
        nearest = near_miss(name, self.parameters)
        if nearest is not None:
            warnings.warn(
                f"{self.owner}: {name!r} goes to **kwargs; did you mean {nearest!r}?",
                UserWarning,
                stacklevel=_callers_level(),
            )
        return []


def read_signature(fn: Callable[..., Any], owner: str) -> Signature:
    """Read the kwargs of a callable `(outputs, batch, ...)`.

    Raises:
        LossConfigError: It does not take outputs and batch as its first two arguments.
    """
    target = getattr(fn, "forward", fn) if hasattr(fn, "register_forward_hook") else fn
    try:
        parameters = list(inspect.signature(target).parameters.values())
    except (TypeError, ValueError):
        return Signature(owner, {}, True, frozenset())
    positional = [p for p in parameters if p.kind in {p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD}]
    takes_any_position = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    unreachable = any(p.kind is p.POSITIONAL_ONLY and p.default is p.empty for p in positional[2:])
    if unreachable or (len(positional) < 2 and not takes_any_position):
        raise make_error(
            LossConfigError,
            f"a loss takes (outputs, batch, **kwargs); this takes {inspect.Signature(parameters)}.",
            code="not-a-loss",
            loss=owner,
        )
    named = [p for p in parameters if p not in positional[:2] and p.kind in {p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY}]
    return Signature(
        owner,
        {p.name: _read_parameter(p, target) for p in named if p.name not in COUNTS},
        any(p.kind is p.VAR_KEYWORD for p in parameters),
        frozenset(p.name for p in named if p.name in COUNTS),
        frozenset(p.name for p in positional[:2] if p.kind is p.POSITIONAL_OR_KEYWORD),
    )


def _read_parameter(parameter: inspect.Parameter, fn: Callable[..., Any]) -> Parameter:
    annotation = parameter.annotation
    if isinstance(annotation, str):
        annotation = _evaluate(annotation, fn)
    validator = None if annotation is parameter.empty or annotation is Any else _make_validator(annotation)
    return Parameter(parameter.name, parameter.default, validator)


def _evaluate(annotation: str, fn: Callable[..., Any]) -> Any:
    while isinstance(fn, partial):
        fn = fn.func
    function = inspect.unwrap(getattr(fn, "__func__", fn))
    scope = getattr(function if hasattr(function, "__globals__") else type(fn).__call__, "__globals__", {})
    try:
        return eval(annotation, dict(scope))
    except Exception:  # a name under TYPE_CHECKING only, say: like no annotation
        return Any


def _make_validator(annotation: Any) -> TypeAdapter[Any] | None:
    for config in (_STRICT, None):  # models and dataclasses bring a config of their own
        try:
            validator: TypeAdapter[Any] = TypeAdapter(annotation, config=config)
        except Exception:  # whatever a stranger's annotation may raise: one that is no type is like none
            continue
        return validator if validator.pydantic_complete else None
    return None


def _validate(parameter: Parameter, value: Any, owner: str) -> tuple[Any, list[Problem]]:
    """Return what to bind, and what is wrong with it."""
    if parameter.validator is None:
        return value, []
    try:
        validated = parameter.validator.validate_python(value)
        if hasattr(validated, "__next__") and not hasattr(value, "__next__"):
            validated = list(validated)  # for Iterable, pydantic gives something that can be read only once
    except ValidationError as error:
        return value, _describe(parameter, value, error, owner)
    return validated, [problem.under(parameter.name) for problem in implausible(value, validated)]


def _callers_level() -> int:
    """Return the stack level of the caller of this library, for a warning of the function that asks."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("tensafe."):
        frame, level = frame.f_back, level + 1
    return level


def _describe(parameter: Parameter, value: Any, error: ValidationError, owner: str) -> list[Problem]:
    problems = problems_of(error, given=value, owner=owner, fields=(), schema=parameter.schema)
    return [problem.under(parameter.name) for problem in problems]

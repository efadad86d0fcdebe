"""Mistakes in one value, and in the keys of one mapping."""

from __future__ import annotations

import math
from copy import deepcopy
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from hypothesis import strategies as st

from .scalars import INT64

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from hypothesis.strategies import SearchStrategy

    from tensafe.training.losses.errors import Loc
    from tensafe.training.losses.problems import JsonSchema

__all__ = ["Kind", "Mistake", "missing", "misspellings", "misspelt", "of_one_value", "wrong_types"]

Kind = Literal["misspelt", "missing", "wrong_type", "bool", "nan", "inf", "out_of_range", "unknown_choice", "misplaced"]
"""The kinds of mistakes."""

_OF_TYPE: Mapping[str, Any] = {"number": 0.5, "string": "x", "boolean": True, "null": None, "array": [], "object": {}}
"""A value of each type of JSON; no integer, which is a number too."""


class Mistake(NamedTuple):
    """One that could be made.

    Attributes:
        kind: What kind it is.
        path: What an error names.
        at: What is changed; not always the same place, since a missing kwarg is named although it is not there.
        values: What is put there; None removes it.
        new_key: What the last key becomes, where it is a key that is changed.
    """

    kind: Kind
    path: Loc
    at: Loc
    values: SearchStrategy[Any] | None = None
    new_key: str | None = None


def misspelt(value: Mapping[str, Any], known: Collection[str], at: Loc) -> Iterator[Mistake]:
    """Yield keys that are nearly right: in place of one that is there, or beside them."""
    for name in known:
        for wrong in _slips(name, {*known, *value}):
            if name in value:
                yield Mistake("misspelt", (*at, wrong), (*at, name), new_key=wrong)
            else:
                yield Mistake("misspelt", (*at, wrong), (*at, wrong), st.just(0))


def missing(value: Mapping[str, Any], required: Collection[str], at: Loc) -> Iterator[Mistake]:
    """Yield required keys to leave out."""
    for name in required:
        if name in value:
            yield Mistake("missing", (*at, name), (*at, name))


def misspellings(word: str, known: Collection[str]) -> SearchStrategy[str]:
    """Return words that are nearly the right one."""
    return st.sampled_from(_slips(word, known))


def _slips(word: str, known: Collection[str]) -> list[str]:
    wrong = [word[:-1], word[1::-1] + word[2:], word + word[-1:], word + "_"]
    return [each for each in dict.fromkeys(wrong) if each and each not in known]


def of_one_value(branches: Sequence[JsonSchema], at: Loc) -> Iterator[Mistake]:
    """Yield values that fit no schema of several."""
    types = {_type_of(branch) for branch in branches}
    if "" in types:  # anything goes
        return
    yield from wrong_types(types, at)
    if types & {"number", "integer"}:
        yield Mistake("nan", at, at, st.just(math.nan))
        yield Mistake("inf", at, at, st.sampled_from([math.inf, -math.inf]))
    choices = [choice for branch in branches for choice in _choices(branch)]
    if choices:
        wrong = [slip for choice in choices for slip in _slips(choice, choices)]
        yield Mistake("unknown_choice", at, at, st.sampled_from(wrong))
    elif len(branches) - ("null" in types) == 1:
        beyond = st.one_of(*(_beyond(branch) for branch in branches))
        if not beyond.is_empty:
            yield Mistake("out_of_range", at, at, beyond)


def wrong_types(types: Collection[str], at: Loc) -> Iterator[Mistake]:
    """Yield values of other types."""
    others = {kind: value for kind, value in _OF_TYPE.items() if kind not in types}
    if {"number", "integer"} & set(types) and "boolean" in others:
        yield Mistake("bool", at, at, st.sampled_from([True, False]))
        del others["boolean"]
    if others:
        yield Mistake("wrong_type", at, at, st.sampled_from(list(others.values())).map(deepcopy))


def _type_of(schema: JsonSchema) -> str:
    """Return the JSON type of what a schema accepts; empty if it does not say."""
    kind: str = schema.get("type", "")
    return kind or ("string" if _choices(schema) else "")


def _choices(schema: JsonSchema) -> list[str]:
    choices = schema.get("enum", [schema["const"]] if "const" in schema else [])
    return [choice for choice in choices if isinstance(choice, str)]


def _beyond(schema: JsonSchema) -> SearchStrategy[Any]:
    """Return values just out of the range of a schema."""
    kind = schema.get("type")
    if kind == "string" and schema.get("minLength"):
        return st.just("")
    if kind == "array" and schema.get("minItems"):
        return st.just([]).map(deepcopy)
    if kind not in {"number", "integer"}:
        return st.nothing()
    low, high = schema.get("minimum"), schema.get("maximum")
    ends = [schema[key] for key in ("exclusiveMinimum", "exclusiveMaximum") if key in schema]
    step = 1 if kind == "integer" else 1 / 16
    ends += [] if low is None else [low - step]
    ends += [] if high is None else [high + step]
    if kind == "integer":
        ends += [INT64[1] + 1] if high is None else []
        ends += [INT64[0] - 1] if low is None else []
    return st.sampled_from(ends) if ends else st.nothing()

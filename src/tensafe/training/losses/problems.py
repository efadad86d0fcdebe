"""From pydantic's errors to ours: one sentence per mistake, at the path that the author wrote."""

from __future__ import annotations

from functools import cache
from itertools import islice
from typing import TYPE_CHECKING, Any

from .errors import MOST_PROBLEMS, LossConfigError, Problem, near_miss, shorten
from .guards import is_list, is_mapping, is_sequence

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from pydantic import ValidationError
    from pydantic_core import ErrorDetails

    from .errors import Loc

__all__ = ["expectation", "implausible", "problems_of", "unknown_argument"]

JsonSchema = dict[str, Any]


def problems_of(
    error: ValidationError, *, given: Any, owner: str, fields: Iterable[str], schema: Callable[[], JsonSchema]
) -> list[Problem]:
    """Translate a validation error.

    Args:
        error: What pydantic raised.
        given: The data that was validated, to find the author's path in.
        owner: Whose arguments they are, for the message.
        fields: The arguments that exist, for near misses.
        schema: Makes the JSON Schema of the arguments; only asked when a value is wrong.
    """
    found: dict[tuple[Loc, str], Problem] = {}
    known = list(fields)
    schema = cache(schema)  # it takes milliseconds to make
    details_list = error.errors(include_url=False)
    for details in details_list:
        if len(found) >= MOST_PROBLEMS:
            loc = _written(details["loc"], given, missing=False)
            message = f"reading stops here, after {MOST_PROBLEMS} mistakes of {owner}"
            return [*found.values(), Problem("too-many-problems", loc, message)]
        if details["type"] == "too_short" and any(_lies_under(other, details) for other in details_list):
            continue  # only because its items are wrong, each of which is reported
        for problem in _translate(details, given, owner, known, schema):
            kind = problem.code if problem.code != "invalid-value" else ""
            found.setdefault((problem.loc, kind), problem)
    return list(found.values())


def _lies_under(inner: ErrorDetails, outer: ErrorDetails) -> bool:
    depth = len(outer["loc"])
    return len(inner["loc"]) > depth and inner["loc"][:depth] == outer["loc"]


def implausible(value: object, validated: object) -> list[Problem]:
    """List what is wrong with data that pydantic let through, each at its place.

    Its strict float takes whatever has `__float__`, tensors too, and its integers have no end.
    """
    return list(islice(_implausible_numbers(value, validated), MOST_PROBLEMS))


def _implausible_numbers(value: object, validated: object) -> Iterator[Problem]:
    todo: list[tuple[Loc, object, object]] = [((), value, validated)]
    seen: set[int] = set()
    while todo:
        loc, value, validated = todo.pop()
        if (message := _implausible_number(value, validated)) is not None:
            yield Problem("invalid-value", loc, message)
        elif id(value) not in seen and (inside := list(_pairs(value, validated))):  # it may hold itself
            seen.add(id(value))
            todo += (((*loc, part), each, item) for part, each, item in reversed(inside))


def _pairs(value: object, validated: object) -> Iterator[tuple[str | int, object, object]]:
    """Yield the items of a mapping or a list, beside what became of them."""
    if is_mapping(value) and is_mapping(validated):
        for key, item in validated.items():
            if key in value:
                yield key if isinstance(key, str | int) else shorten(key), value[key], item
    elif is_list(value) and is_list(validated):
        for index, (each, item) in enumerate(zip(value, validated, strict=False)):
            yield index, each, item


def _implausible_number(value: object, validated: object) -> str | None:
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return "expected an integer that fits 64 bits"
    if isinstance(validated, int | float) and not isinstance(value, int | float) and hasattr(value, "__float__"):
        return f"expected plain data, got {type(value).__name__}; pass a plain number"
    return None


def unknown_argument(name: str, owner: str, known: Iterable[str]) -> Problem:
    """Describe an argument that does not exist."""
    known = list(known)
    nearest = near_miss(name, known)
    if name == "inputs":
        cure = "; renames of tensors stand beside it: {'type': ..., 'kwargs': {...}, 'inputs': {...}}"
    elif nearest is not None:
        cure = f"; did you mean {nearest}?"
    elif known:
        cure = f"; it takes {', '.join(known)}"
    else:
        cure = "; it takes none"
    return Problem("unknown-kwarg", (name,), f"unknown argument of {owner}{cure}", nearest, on_key=True)


def _translate(
    details: ErrorDetails, given: Any, owner: str, known: list[str], schema: Callable[[], JsonSchema]
) -> list[Problem]:
    inner = details.get("ctx", {}).get("error")
    loc = _written(details["loc"], given, missing=details["type"] in {"missing", "missing_argument"})
    if isinstance(inner, LossConfigError) and inner.problems:
        return [problem.under(*loc) for problem in inner.problems]
    if details["type"] in {"extra_forbidden", "unexpected_keyword_argument"}:
        return [_extra(loc, owner, known)]
    expected = expectation(_at(schema(), loc))
    if details["type"] in {"missing", "missing_argument"}:
        what = f": {expected}" if expected else ""
        return [Problem("missing-kwarg", loc, f"required argument of {owner} is missing{what}", on_key=True)]
    if inner is not None or expected is None or details["type"] in {"too_short", "too_long"}:
        return [Problem("invalid-value", loc, _own_words(details))]
    if details["type"] == "finite_number":
        expected = expected.replace("a number", "a finite number", 1)
    got = shorten(details["input"])
    nearest = near_miss(details["input"], _choices(_at(schema(), loc))) if isinstance(details["input"], str) else None
    cure = f"; did you mean {nearest}?" if nearest else ""
    return [Problem("invalid-value", loc, f"expected {expected}, got {got}{cure}", nearest)]


def _extra(loc: Loc, owner: str, known: list[str]) -> Problem:
    if len(loc) == 1:
        return unknown_argument(str(loc[0]), owner, known)
    return Problem("unknown-kwarg", loc, "unknown key", on_key=True)


def _own_words(details: ErrorDetails) -> str:
    """Return the text of a validator's own error, without what pydantic puts before it."""
    text = details["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    return text[:1].lower() + text[1:]


def _written(loc: Loc, given: Any, *, missing: bool) -> Loc:
    """Keep the parts of a path that are in the data; pydantic adds the tags of unions and the names of validators."""
    kept: list[str | int] = []
    for index, part in enumerate(loc):
        if _holds(given, part):
            given = given[part]
        elif not (missing and index == len(loc) - 1):
            continue
        kept.append(part)
    return tuple(kept)


def _holds(given: Any, part: str | int) -> bool:
    if is_mapping(given):
        return part in given
    return is_sequence(given) and not isinstance(given, str) and isinstance(part, int) and part < len(given)


def _at(schema: JsonSchema, loc: Loc) -> JsonSchema:
    """Return the part of a JSON Schema that speaks of the value at `loc`, or an empty one."""
    node: Any = schema
    for part in loc:
        node = _follow(node, schema)
        if isinstance(part, int):
            node = node.get("items", {})
        else:
            node = node.get("properties", {}).get(part, node.get("additionalProperties", {}))
        if isinstance(node, bool):  # the schema of anything, or of nothing
            return {}
    return _follow(node, schema)


def _follow(node: JsonSchema, root: JsonSchema) -> JsonSchema:
    while "$ref" in node:
        node = root.get("$defs", {}).get(node["$ref"].rsplit("/", 1)[-1], {})
    branches = [branch for branch in node.get("anyOf", ()) if branch.get("type") != "null"]
    if len(branches) == 1 and branches[0].get("type") in {"array", "object"}:
        return {**node, **branches[0]}
    return node


def _choices(schema: JsonSchema) -> list[str]:
    branches = schema.get("anyOf", [schema])
    values = [value for branch in branches for value in [*branch.get("enum", ()), branch.get("const")]]
    return [value for value in values if isinstance(value, str)]


_KINDS = {
    "number": "a number",
    "integer": "an integer",
    "string": "a string",
    "boolean": "true or false",
    "array": "a list",
    "object": "a mapping",
    "null": "null",
}


def expectation(schema: JsonSchema) -> str | None:
    """Say in words what a piece of JSON Schema accepts, such as `a number in [0, 1]`; None if that is not so simple."""
    if "anyOf" in schema:
        parts = [expectation(branch) for branch in schema["anyOf"]]
        return " or ".join(part for part in parts if part) if all(parts) else None
    if "enum" in schema:
        return "one of " + ", ".join(_literal(value) for value in schema["enum"])
    if "const" in schema:
        return _literal(schema["const"])
    if is_list(schema.get("type")):
        return expectation({"anyOf": [{**schema, "type": kind} for kind in schema["type"]]})
    kind = _KINDS.get(schema.get("type", ""))
    return None if kind is None else kind + _bounds(schema)


def _literal(value: Any) -> str:
    return value if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else repr(value)


def _bounds(schema: JsonSchema) -> str:
    low, open_low = schema.get("minimum"), schema.get("exclusiveMinimum")
    high, open_high = schema.get("maximum"), schema.get("exclusiveMaximum")
    left = f"({open_low:g}" if open_low is not None else f"[{low:g}" if low is not None else None
    right = f"{open_high:g})" if open_high is not None else f"{high:g}]" if high is not None else None
    if left and right:
        return f" in {left}, {right}"
    if left:
        return f" > {open_low:g}" if open_low is not None else f" >= {low:g}"
    if right:
        return f" < {open_high:g}" if open_high is not None else f" <= {high:g}"
    return ""

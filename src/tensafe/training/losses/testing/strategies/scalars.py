"""Numbers and strings in the ranges that a JSON Schema gives them."""

from __future__ import annotations

import math
import string
from typing import TYPE_CHECKING, Any, NamedTuple

from hypothesis import strategies as st

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

    from tensafe.training.losses.problems import JsonSchema

__all__ = ["INT64", "numbers", "texts"]

INT64 = (-(2**63), 2**63 - 1)
_STEPS = 16
"""Drawn numbers are whole sixteenths: exact in any dtype, and readable."""

_SPAN = 8


class _Range(NamedTuple):
    """The range of a number; `opened` are those ends that do not belong to it."""

    low: float
    high: float
    opened: tuple[float, float]

    @property
    def integers(self) -> tuple[int, int]:
        """The first and the last integer."""
        first, last = math.ceil(self.low), math.floor(self.high)
        return first + (first in self.opened), last - (last in self.opened)


def numbers(schema: JsonSchema, *, extreme: bool) -> SearchStrategy[Any]:
    """Return numbers, or integers, within the range of a schema: near its ends, or wherever they may be."""
    closed = schema.get("minimum", -math.inf), schema.get("maximum", math.inf)
    opened = schema.get("exclusiveMinimum", -math.inf), schema.get("exclusiveMaximum", math.inf)
    whole = _Range(max(closed[0], opened[0]), min(closed[1], opened[1]), opened)
    within = _widest(whole) if extreme else _nearest(whole)
    first, last = within.integers
    integers = st.integers(first, last) if first <= last else st.nothing()
    if schema["type"] == "integer":
        return integers
    return integers | (_floats(whole) if extreme else _sixteenths(within))


def _widest(whole: _Range) -> _Range:
    return whole._replace(low=max(whole.low, INT64[0]), high=min(whole.high, INT64[1]))


def _nearest(whole: _Range) -> _Range:
    low = whole.low
    if math.isinf(low):
        low = -_SPAN if math.isinf(whole.high) else whole.high - _SPAN
    return whole._replace(low=low, high=min(whole.high, low + (2 * _SPAN if low < 0 else _SPAN)))


def _floats(whole: _Range) -> SearchStrategy[float]:
    low, high = (None if math.isinf(end) else end for end in whole[:2])
    return st.floats(
        low,
        high,
        exclude_min=whole.low == whole.opened[0] and low is not None,
        exclude_max=whole.high == whole.opened[1] and high is not None,
        allow_nan=False,
        allow_infinity=False,
    )


def _sixteenths(near: _Range) -> SearchStrategy[float]:
    first, last = math.floor(near.low * _STEPS) + 1, math.ceil(near.high * _STEPS) - 1
    if first > last:  # too narrow for any
        return _floats(near)
    return st.integers(first, last).map(lambda number: number / _STEPS)


def texts(schema: JsonSchema) -> SearchStrategy[str]:
    """Return strings; short words of letters where the schema does not say more."""
    if "format" in schema:  # a date, a path: pydantic wants an object, not its text
        return st.nothing()
    if "pattern" in schema:
        pattern: str = schema["pattern"]
        return st.from_regex(pattern, fullmatch=True)
    least = schema.get("minLength", 0)
    return st.text(string.ascii_lowercase, min_size=least, max_size=schema.get("maxLength", least + 4))

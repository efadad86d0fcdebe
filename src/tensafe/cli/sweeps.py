"""The values of a kwarg that make the lines of a picture: as the command line gives them, or chosen."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from tensafe._yaml.scalars import resolve
from tensafe.training.losses.errors import LossConfigError, Problem, config_error

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tensafe.training.losses.problems import JsonSchema

    from .facts import Facts

__all__ = ["Sweep", "candidates", "parse_pairs", "parse_sweep"]

_MOST_CHOICES = 6


class Sweep(NamedTuple):
    """A kwarg and the values that it takes, one after the other."""

    kwarg: str
    values: tuple[Any, ...]


def parse_sweep(text: str | None) -> Sweep | None:
    """Read `beta=0.05,0.1,0.5`.

    Raises:
        LossConfigError: It has no name, no values, or a value twice.
    """
    if text is None:
        return None
    name, values = _split(text, "--sweep", "beta=0.05,0.1,0.5")
    parts = [part.strip() for part in values.split(",")]
    if "" in parts or len(set(parts)) < len(parts):
        what = "an empty value" if "" in parts else "a value twice"
        raise _problem(f"--sweep {text!r} has {what}; expected values such as beta=0.05,0.1,0.5")
    return Sweep(name, tuple(_scalar(part) for part in parts))


def parse_pairs(texts: Sequence[str]) -> dict[str, Any]:
    """Read `name=value` pairs; a value is read like a scalar of a config, or as JSON.

    Raises:
        LossConfigError: One has no name or no value, or a name comes twice.
    """
    pairs: dict[str, Any] = {}
    for text in texts:
        name, value = _split(text, "--kwarg", "beta=0.1")
        if name in pairs:
            raise _problem(f"--kwarg {name} is given twice")
        pairs[name] = _scalar(value.strip())
    return pairs


def candidates(facts: Facts) -> Iterator[Sweep]:
    """Yield sweeps that may be worth a picture, the likeliest first: over numbers, then choices."""
    kwargs = [kwarg for kwarg in facts.kwargs if kwarg.name not in {"reduction", "max_length", "metrics"}]
    for kwarg in kwargs:
        default = kwarg.schema.get("default")
        branches = kwarg.schema.get("anyOf", [kwarg.schema])
        number = next((branch for branch in branches if branch.get("type") == "number"), None)
        if number is not None and isinstance(default, int | float):
            yield Sweep(kwarg.name, tuple(_spread(float(default), number)))
    for kwarg in kwargs:
        choices = kwarg.schema.get("enum", [])
        if 1 < len(choices) <= _MOST_CHOICES:
            yield Sweep(kwarg.name, tuple(choices))


def _spread(default: float, schema: JsonSchema) -> list[float]:
    """Return a few numbers around a default, across the range where there is one."""
    low, high = (schema.get(key, schema.get(f"exclusive{key.title()}")) for key in ("minimum", "maximum"))
    if low is not None and high is not None:
        spread = {low + (high - low) * share for share in (0.1, 0.5, 0.9)}
    elif default:
        spread = {default / 2, default * 2}
    else:
        spread = {0.5, 1.0}
    return sorted({float(f"{number:.6g}") for number in spread | {default}})


def _split(text: str, option: str, example: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name.strip().isidentifier() or not value.strip():
        raise _problem(f"{option} expects NAME=VALUE such as {example}, got {text!r}")
    return name.strip(), value


def _scalar(text: str) -> Any:
    if text[:1] in {"[", "{", '"'}:
        try:
            return json.loads(text)
        except ValueError:
            pass
    return resolve(text, None, plain=True).value


def _problem(message: str) -> LossConfigError:
    return config_error([Problem("invalid-option", (), message)], loss=None)

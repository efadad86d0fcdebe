"""How a loss is used, in YAML and in Python."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from tensafe._docstrings import split_examples
from tensafe._yaml.scalars import resolve

if TYPE_CHECKING:
    from .facts import Facts

__all__ = ["as_yaml", "python_example", "yaml_example"]

_IMPORTS = ("import ", "from ")


def yaml_example(facts: Facts) -> str | None:
    """Return the section of a config, with every default that there is; None if no valid one could be made."""
    if facts.example is None:
        return None
    lines = ["loss:", f"  type: {facts.name}"]
    kwargs = facts.example.get("kwargs", {})
    if kwargs:
        lines.append("  kwargs:")
        lines += [f"    {kwarg.name}: {as_yaml(kwargs[kwarg.name])}" for kwarg in facts.kwargs if kwarg.name in kwargs]
    return "\n".join(lines) + "\n"


def python_example(facts: Facts) -> str:
    """Return the example of the docstring as a script, with what it prints as comments, or else a call of the loss."""
    steps = split_examples(facts.doc.example())
    if not steps:
        return f"""\
from tensafe.training.losses import resolve_loss

loss_fn = resolve_loss("{facts.name}")
result = loss_fn(outputs, batch)  # result["loss"], result["metrics"]
"""
    lines: list[str] = []
    for typed, printed in steps:
        if lines and lines[-1].startswith(_IMPORTS) and not typed.startswith(_IMPORTS):
            lines.append("")
        lines.append(typed)
        lines += [f"# {line}" for line in printed.splitlines()]
    return "\n".join(lines) + "\n"


def as_yaml(value: object) -> str:
    """Return plain data on one line of YAML: a word without quotes if it stays one, anything else like JSON."""
    if (
        isinstance(value, str)
        and re.fullmatch(r"\w[\w.+-]*", value)
        and resolve(value, None, plain=True).value == value
    ):
        return value
    try:
        return json.dumps(value)
    except (TypeError, ValueError):
        return str(value)

"""`tensafe init`: a commented config to start from."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import typer

from tensafe.training.losses.errors import TensafeError
from tensafe.training.losses.guards import is_list, is_mapping
from tensafe.training.losses.kwargs_schema import LossSchema, read_loss
from tensafe.training.losses.problems import expectation
from tensafe.training.losses.schema import training_config_schema

from .source import import_modules

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["run"]

_SCHEMA_FILE = "tensafe.schema.json"


def run(file: Path, loss: str, modules: list[str], *, force: bool) -> int:
    """Write the config, and beside it the schema that its first line names."""
    if not import_modules(modules):
        return 1
    try:
        config = _config(loss, read_loss(loss))
    except TensafeError as error:
        typer.echo(str(error), err=True)
        return 1
    schema = file.parent / _SCHEMA_FILE
    taken = file.exists() and not force
    if taken:
        typer.echo(f"tensafe: {file} exists; pass --force to overwrite it, or name another file", err=True)
        return 1
    try:
        file.write_text(config, encoding="utf-8")
        schema.write_text(json.dumps(training_config_schema(), indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        typer.echo(f"tensafe: cannot write {error.filename}: {error.strerror}", err=True)
        return 2
    options = "".join(f" --import {module}" for module in modules)
    typer.echo(f"wrote {file} and {schema}; next: tensafe validate {file}{options}")
    return 0


def _config(name: str, loss: LossSchema) -> str:
    lines = [
        f"# yaml-language-server: $schema={_SCHEMA_FILE}",
        "# The loss; other sections are yours, and are passed through as they are.",
        "loss:",
        f"  type: {name}  # `tensafe list` shows the others; a loss of your own is package.module:function",
    ]
    kwargs = [line for kwarg in loss.properties for line in _kwarg_lines(kwarg, loss)]
    return "\n".join([*lines, *(["  kwargs:", *kwargs] if kwargs else [])]) + "\n"


def _kwarg_lines(name: str, loss: LossSchema) -> list[str]:
    """Write a kwarg with its default, its effect and its range; one that has no value to show is commented out."""
    schema = _readable(loss.properties[name])
    accepted = expectation(schema)
    facts = [schema.get("description", ""), f"Accepts {accepted}." if accepted else ""]
    lines = [f"    # {' '.join(fact for fact in facts if fact)}"] if any(facts) else []
    if name in loss.required:
        example = schema.get("examples", [_EXAMPLES.get(schema.get("type", ""), "...")])[0]
        return [*lines, f"    {name}: {json.dumps(example)}"]
    default = schema.get("default")
    return [*lines, f"    # {name}:" if default is None else f"    {name}: {json.dumps(default)}"]


def _readable(node: Any) -> Any:
    """Leave the limits of 64 bits out of a schema: that an integer has them is nothing to read every time."""
    if is_list(node):
        return [_readable(each) for each in node]
    if not is_mapping(node):
        return node
    return {key: _readable(value) for key, value in node.items() if value not in (-(2**63), 2**63 - 1)}


_EXAMPLES: dict[str, Any] = {"array": [], "number": 1.0, "integer": 1, "string": "name", "boolean": True}

"""`tensafe init`: a commented config to start from."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import typer

from tensafe.training.losses.errors import TensafeError
from tensafe.training.losses.loss import Loss
from tensafe.training.losses.problems import expectation
from tensafe.training.losses.registry import lookup
from tensafe.training.losses.schema import training_config_schema

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["run"]

_SCHEMA_FILE = "tensafe.schema.json"


def run(file: Path, loss: str, *, force: bool) -> int:
    """Write the config, and beside it the schema that its first line names."""
    try:
        found = lookup(loss)
    except TensafeError as error:
        typer.echo(str(error), err=True)
        return 1
    schema = file.parent / _SCHEMA_FILE
    taken = file.exists() and not force
    if taken:
        typer.echo(f"tensafe: {file} exists; pass --force to overwrite it, or name another file", err=True)
        return 1
    try:
        file.write_text(_config(loss, found), encoding="utf-8")
        schema.write_text(json.dumps(training_config_schema(), indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        typer.echo(f"tensafe: cannot write {error.filename}: {error.strerror}", err=True)
        return 2
    typer.echo(f"wrote {file} and {schema}; next: tensafe validate {file}")
    return 0


def _config(name: str, loss: Any) -> str:
    lines = [
        f"# yaml-language-server: $schema={_SCHEMA_FILE}",
        "# The loss; other sections are yours, and are passed through as they are.",
        "loss:",
        f"  type: {name}  # `tensafe list` shows the others; a loss of your own is package.module:function",
    ]
    kwargs = _kwarg_lines(loss) if isinstance(loss, type) and issubclass(loss, Loss) else []
    return "\n".join([*lines, *(["  kwargs:", *kwargs] if kwargs else [])]) + "\n"


def _kwarg_lines(loss: type[Loss]) -> list[str]:
    """Write each kwarg with its default, its effect and its range; one that has no value to show is commented out."""
    lines: list[str] = []
    for name, schema in loss.model_json_schema()["properties"].items():
        lines.append(f"    # {schema.get('description', name)} Accepts {expectation(schema) or 'see the docs'}.")
        if loss.model_fields[name].is_required():
            lines.append(f"    {name}: {_EXAMPLES.get(schema.get('type', ''), '...')}")
        elif schema.get("default") is None:
            lines.append(f"    # {name}:")
        else:
            lines.append(f"    {name}: {json.dumps(schema['default'])}")
    return lines


_EXAMPLES = {"array": "[mse]", "number": "1.0", "integer": "1", "string": "name", "boolean": "true"}

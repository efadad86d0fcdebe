"""`tensafe schema`: JSON Schema for editors and CI."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import typer

from tensafe.training.losses.errors import TensafeError
from tensafe.training.losses.registry import get_registered_losses
from tensafe.training.losses.schema import loss_schema, schema_files, training_config_schema

from .source import import_modules

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["run"]


def run(name: str | None, write: Path | None, modules: list[str]) -> int:
    """Print one schema, or write them all; return the exit code."""
    if not import_modules(modules):
        return 1
    try:
        if write is not None:
            return _write(write, list(get_registered_losses()) if modules else None)
        schema = training_config_schema() if name is None else loss_schema(name)
    except TensafeError as error:
        typer.echo(str(error), err=True)
        return 1
    typer.echo(json.dumps(schema, indent=2))
    return 0


def _write(folder: Path, losses: list[str] | None) -> int:
    for path, text in schema_files(losses).items():
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        typer.echo(f"wrote {file}")
    return 0

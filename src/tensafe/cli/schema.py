"""`tensafe schema`: JSON Schema for editors and CI."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import typer

from tensafe.training.losses.errors import TensafeError
from tensafe.training.losses.registry import get_registered_losses
from tensafe.training.losses.schema import loss_schema, schema_files, training_config_schema

from .source import import_modules

__all__ = ["modeline", "run"]

_MODELINE = re.compile(r"^#\s*yaml-language-server:\s*\$schema=.*\r?\n?", re.MULTILINE)


def run(name: str | None, write: Path | None, configs: list[Path], modules: list[str]) -> int:
    """Print one schema, or write them all and point configs at theirs; return the exit code."""
    if not import_modules(modules):
        return 1
    try:
        if write is not None:
            return _write(write, list(get_registered_losses()) if modules else None, configs)
        schema = training_config_schema() if name is None else loss_schema(name)
    except TensafeError as error:
        typer.echo(str(error), err=True)
        return 1
    except OSError as error:
        typer.echo(f"tensafe: {error.filename}: {error.strerror}", err=True)
        return 2
    typer.echo(json.dumps(schema, indent=2))
    return 0


def modeline(schema: Path, config: Path) -> str:
    """Return the comment that tells editors the schema of a config, by its path from there."""
    return f"# yaml-language-server: $schema={os.path.relpath(schema, config.parent).replace(os.sep, '/')}"


def _write(folder: Path, losses: list[str] | None, configs: list[Path]) -> int:
    files = schema_files(losses)
    for path, text in files.items():
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    schema = folder / "training_config.json"
    typer.echo(f"wrote {schema}, and {len(files) - 1} schemas of one loss each in {folder / 'losses'}")
    for config in configs:
        _point(config, schema)
        typer.echo(f"wrote the first line of {config}")
    if not configs:
        typer.echo(f"first line of a config in this folder: {modeline(schema, Path('config.yaml'))}")
        typer.echo("--modeline FILE writes it into a config, wherever that is")
    return 0


def _point(config: Path, schema: Path) -> None:
    """Make a config's first line name its schema, instead of any that it named."""
    text = config.read_bytes().decode("utf-8")
    config.write_bytes(f"{modeline(schema, config)}\n{_MODELINE.sub('', text)}".encode())

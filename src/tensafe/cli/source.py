"""Reading what the commands are given: files, standard input, and the allowlist."""

from __future__ import annotations

import sys
import tomllib
from importlib import import_module
from pathlib import Path

import typer

from tensafe.training.losses.guards import is_list
from tensafe.training.losses.targets import Policy

__all__ = ["import_modules", "policy", "read"]


def read(file: str) -> tuple[str, bytes]:
    """Return the name and the bytes of a file, `-` being standard input; raises OSError."""
    if file == "-":
        return "<stdin>", sys.stdin.buffer.read()
    return file, Path(file).read_bytes()


def import_modules(modules: list[str]) -> bool:
    """Import modules for the losses that they register; say which one fails, and return whether none did."""
    if modules and not {"", str(Path.cwd())} & set(sys.path):
        sys.path.append(str(Path.cwd()))  # as `python -m` has it, but last: nothing there can hide what is installed
    for module in modules:
        try:
            import_module(module)
        except Exception as error:  # a stranger's module may raise anything
            typer.echo(f"tensafe: cannot import {module}: {type(error).__name__}: {error}", err=True)
            return False
    return True


def policy(allow: list[str], *, imports: bool = True) -> Policy:
    """Return what a config may import: what the command line allows, and what the operator's pyproject.toml does."""
    if not imports:
        return Policy(imports=False)
    return Policy(allow=(*allow, *_operator_allowlist()))


def _operator_allowlist() -> list[str]:
    """Read `[tool.tensafe] allow` of the nearest pyproject.toml above the working directory."""
    here = Path.cwd()
    for folder in (here, *here.parents):
        file = folder / "pyproject.toml"
        if file.is_file():
            break
    else:
        return []
    try:
        allow = tomllib.loads(file.read_text("utf-8")).get("tool", {}).get("tensafe", {}).get("allow", [])
    except (OSError, ValueError) as error:
        typer.echo(f"warning: {file} is not read for [tool.tensafe] allow: {error}", err=True)
        return []
    if not is_list(allow) or not all(isinstance(entry, str) for entry in allow):
        typer.echo(f"warning: {file}: [tool.tensafe] allow must be a list of strings; it is left out", err=True)
        return []
    return list(allow)

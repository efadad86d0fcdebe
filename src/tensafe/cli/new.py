"""`tensafe new`: a loss of your own and its test, to start from; both pass as they are written."""

from __future__ import annotations

from importlib.resources import files
from keyword import iskeyword
from string import Template
from typing import TYPE_CHECKING

import typer

from tensafe.training.losses.errors import TensafeError
from tensafe.training.losses.registry import check_name, names

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["run"]


def run(name: str, folder: Path, *, force: bool) -> int:
    """Write the loss and its test, and say what to do with them; return the exit code."""
    wrong = _wrong_name(name)
    if wrong is not None:
        typer.echo(f"tensafe: {wrong}", err=True)
        return 1
    words = {"name": name, "class_name": "".join(part.capitalize() for part in name.split("_"))}
    texts = {folder / f"{name}.py": "loss.txt", folder / f"test_{name}.py": "test.txt"}
    taken = [str(path) for path in texts if path.exists()]
    if taken and not force:
        typer.echo(f"tensafe: {' and '.join(taken)} exist already; pass --force to overwrite", err=True)
        return 1
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, template in texts.items():
            path.write_text(_filled(template, words), encoding="utf-8")
    except OSError as error:
        typer.echo(f"tensafe: cannot write {error.filename}: {error.strerror}", err=True)
        return 2
    typer.echo(_NEXT.format(paths=" and ".join(map(str, texts)), folder=folder, **words))
    return 0


_NEXT = """\
wrote {paths}; next:
  pytest {folder}/test_{name}.py
  tensafe show {name} --import {name}    (with PYTHONPATH={folder})
To publish it, name it in the pyproject.toml of its package:
  [project.entry-points."tensafe.losses"]
  {name} = "your_package.{name}:{class_name}\""""


def _wrong_name(name: str) -> str | None:
    try:
        check_name(name)
    except TensafeError as error:
        return str(error)
    if iskeyword(name):
        return f"{name} is a word of Python; choose another name"
    return f"there is a loss {name} already; choose another name" if name in names() else None


def _filled(template: str, words: dict[str, str]) -> str:
    text = files("tensafe.cli").joinpath("templates", template).read_text(encoding="utf-8")
    return Template(text).substitute(words)

"""`tensafe validate`: every mistake of every file, for people, tools and CI."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import typer

from tensafe.config import ConfigProblem, check_source

from .source import policy, read

if TYPE_CHECKING:
    from . import Format

__all__ = ["run"]


def run(files: list[str], format: Format, allow: list[str], *, imports: bool) -> int:
    """Validate files and report; return the exit code."""
    rules = policy(allow, imports=imports)
    problems: list[ConfigProblem] = []
    unreadable = False
    for file in files:
        try:
            name, source = read(file)
        except OSError as error:
            unreadable = True
            typer.echo(f"tensafe: cannot read {file}: {error.strerror or error}", err=True)
            continue
        config, found = check_source(source, name, rules)
        problems += found
        if format == "text":
            typer.echo(f"{name}: ok, loss {config.loss.type}" if config else "\n".join(str(one) for one in found))
    if format == "json":
        typer.echo(json.dumps([problem.as_dict() for problem in problems], indent=2))
    elif format == "github":
        for problem in problems:
            typer.echo(_annotation(problem))
    elif problems:
        typer.echo(f"{len(problems)} {'mistake' if len(problems) == 1 else 'mistakes'}.", err=True)
    return 2 if unreadable else 1 if problems else 0


def _annotation(problem: ConfigProblem) -> str:
    """Return a GitHub workflow command; its syntax reserves %, line ends and, in properties, colons and commas."""
    message = f"{problem.path}: {problem.message}" if problem.path else problem.message
    escaped = message.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    file = problem.file.replace("%", "%25").replace(":", "%3A").replace(",", "%2C")
    return f"::error file={file},line={problem.line},col={problem.column},title=tensafe {problem.code}::{escaped}"

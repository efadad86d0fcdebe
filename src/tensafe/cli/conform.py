"""`tensafe conform`: does a loss do what every loss should?"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.progress import Progress

from tensafe.training.losses.errors import TensafeError
from tensafe.training.losses.registry import names
from tensafe.training.losses.testing import assert_loss_conforms, select_checks

from .conform_report import Conformed, as_data, as_junit, print_loss, print_totals
from .source import import_modules
from .terminal import Terminal

if TYPE_CHECKING:
    from pathlib import Path

    from tensafe.training.losses.testing import CheckResult

    from . import Results

__all__ = ["run", "run_list"]


def run(losses: list[str], modules: list[str], *, groups: list[str] | None, format: Results, junit: Path | None) -> int:
    """Check losses, every one that there is if none is named, and report; return the exit code."""
    if not import_modules(modules):
        return 2
    try:
        conformed = _conform(losses or names(), groups)
        if junit is not None:
            junit.write_text(as_junit(conformed), encoding="utf-8")
    except (TensafeError, OSError) as error:
        typer.echo(f"tensafe: {error}", err=True)
        return 2
    if format == "json":
        typer.echo(json.dumps([as_data(each) for each in conformed], indent=2))
    elif len(conformed) == 1:
        print_loss(conformed[0])
    else:
        print_totals(conformed)
    return 1 if any(each.failures for each in conformed) else 0


def run_list(groups: list[str] | None) -> int:
    """Print the checks by group; return the exit code."""
    try:
        checks = select_checks(groups)
    except TensafeError as error:
        typer.echo(f"tensafe: {error}", err=True)
        return 2
    terminal = Terminal()
    for index, group in enumerate(dict.fromkeys(check.group for check in checks)):
        terminal.heading(group, apart=index > 0)
        terminal.rows([(check.name, check.summary) for check in checks if check.group == group])
    return 0


def _conform(losses: list[str], groups: list[str] | None) -> list[Conformed]:
    """Run the checks; on a terminal, show how far they are."""
    total = len(losses) * len(select_checks(groups))
    conformed: list[Conformed] = []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=total)
        for loss in losses:

            def advance(result: CheckResult, loss: str = loss) -> None:
                progress.update(task, advance=1, description=f"{loss} {result['check_name']}")

            start = time.perf_counter()
            results = assert_loss_conforms(loss, groups=groups, on_fail=None, on_skip=None, callback=advance)
            conformed.append(Conformed(loss, results, time.perf_counter() - start))
    return conformed

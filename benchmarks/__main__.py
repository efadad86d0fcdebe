"""The command: `python -m benchmarks`, from the root of the repository."""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

from .machine import describe_machine
from .measure import QUICK, Options, measure
from .results import Report, misses
from .rows import ROWS, Limits, Row
from .table import print_report, write_markdown
from .timing import Rounds

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["main"]

_SCALING_PICTURE = Path("docs/benchmarks_scaling.png")
_WIDTH = 150  # where the output goes to a file


def main(arguments: Sequence[str] | None = None, rows: Sequence[Row] = ROWS) -> int:
    """Run the command.

    Args:
        arguments: What follows `python -m benchmarks`.
        rows: The table.

    Returns:
        The exit status: 1 where `--check` finds a missed target.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    if (options.png or options.command == "scaling") and find_spec("matplotlib") is None:
        parser.error("a picture needs matplotlib: pip install -e '.[bench]'")
    console = Console(width=None if sys.stdout.isatty() else _WIDTH)
    if options.list:
        for row in rows:
            console.print(f"{row.name:23} {row.title}", markup=False, highlight=False, soft_wrap=True)
        return 0
    warnings.filterwarnings("ignore", module=r"torch\.")  # what it says of itself would break the progress bar
    torch.set_num_threads(options.threads)
    if options.device != "cpu":
        rows = [row._replace(limits=Limits()) for row in rows]  # the targets are for the CPU
    if options.command == "scaling":
        return _scaling(options, console)
    wanted = _wanted(parser, options.only, rows)
    report = _loaded(options.load) if options.load else _measured(wanted, options)
    print_report(report, rows, console)
    _write(report, rows, options)
    return 1 if options.check and report.misses else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Speed and memory of tensafe.")
    add = parser.add_argument
    add("command", nargs="?", choices=("run", "scaling"), default="run", help="the table, or how cost grows")
    add("--only", nargs="+", metavar="ROW", default=[], help="rows to run; a beginning such as ce- takes several")
    add("--list", action="store_true", help="list the rows and stop")
    add("--quick", action="store_true", help="few repeats, for a first look")
    add("--check", action="store_true", help="fail where a target is missed")
    add("--json", type=Path, metavar="FILE", help="write everything that was measured")
    add("--png", type=Path, metavar="FILE", help=f"draw it; scaling: default {_SCALING_PICTURE}")
    add("--markdown", type=Path, metavar="FILE", help="write the table between the two markers of a page")
    add("--load", type=Path, metavar="FILE", help="measure nothing, show what --json wrote")
    add("--threads", type=int, default=1, metavar="N", help="threads of torch (default 1)")
    add("--device", default="cpu", help="cpu, cuda, cuda:1 (default cpu)")
    add("--no-peers", action="store_true", help="tensafe and its base only")
    add("--no-memory", action="store_true", help="no peaks, each of which takes a process")
    add("--sizes", choices=("full", "tiny"), default="full", help=argparse.SUPPRESS)
    return parser


def _wanted(parser: argparse.ArgumentParser, only: Sequence[str], rows: Sequence[Row]) -> list[Row]:
    unknown = [name for name in only if not any(row.name.startswith(name) for row in rows)]
    if unknown:
        parser.error(f"no such row: {', '.join(unknown)}; --list shows them")
    exact = [row for row in rows if row.name in only]
    beginnings = [name for name in only if all(row.name != name for row in exact)]
    return [row for row in rows if not only or row in exact or row.name.startswith(tuple(beginnings))]


def _options(options: argparse.Namespace, *, apart: bool = False) -> Options:
    return Options(
        rounds=QUICK if options.quick else Rounds(),
        device=options.device,
        threads=options.threads,
        tiny=options.sizes == "tiny",
        peers=not options.no_peers,
        memory=not options.no_memory,
        apart=apart,
    )


def _measured(rows: Sequence[Row], options: argparse.Namespace) -> Report:
    how = {"quick": options.quick, "threads": options.threads, "device": options.device, "sizes": options.sizes}
    report = Report(describe_machine(options.device), how, [], [])
    apart = len(rows) > 1 and options.sizes == "full"
    with _progress() as progress:
        task = progress.add_task("", total=len(rows))
        for row in rows:
            result = measure(row, _options(options, apart=apart), _ticker(progress, task, row.name))
            report.rows.append(result)
            report.misses += misses(row, result)
            if options.json:  # after each row, lest an hour's work be lost
                options.json.write_text(json.dumps(report.to_json(), indent=1) + "\n", "utf-8")
            progress.advance(task)
            if not progress.console.is_terminal:
                progress.console.print(f"{row.name}: measured", markup=False, highlight=False)
    return report


def _loaded(path: Path) -> Report:
    return Report.from_json(json.loads(path.read_text("utf-8")))


def _write(report: Report, rows: Sequence[Row], options: argparse.Namespace) -> None:
    if options.png:
        from .plot import plot_report

        plot_report(report, rows, options.png)
    if options.markdown:
        write_markdown(report, rows, options.markdown)


def _scaling(options: argparse.Namespace, console: Console) -> int:
    from .scaling import draw, measure_curves

    path = options.png or _SCALING_PICTURE
    with _progress() as progress:
        task = progress.add_task("", total=None)
        curves = measure_curves(_options(options), _ticker(progress, task, "scaling"))
    draw(curves, _options(options), path)
    console.print(f"wrote {path}", highlight=False)
    return 0


def _progress() -> Progress:
    columns = (
        SpinnerColumn(),
        BarColumn(20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    return Progress(*columns, console=Console(stderr=True), transient=True)


def _ticker(progress: Progress, task: TaskID, name: str) -> Callable[[str], None]:
    return lambda what: progress.update(task, description=f"{name}: {what}")


if __name__ == "__main__":
    sys.exit(main())

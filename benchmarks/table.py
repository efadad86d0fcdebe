"""Results as a table: on the terminal, and in Markdown between two marker comments of a page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from .machine import to_text
from .results import Figures, Report, Result, Spread, missed_by

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from rich.console import Console

    from .rows import Row

__all__ = ["print_report", "write_markdown"]

_HEADERS = ("who", "time", "of the base", "of the floor", "memory", "error", "also", "target")
_START, _END = "<!-- benchmarks: start -->", "<!-- benchmarks: end -->"


def print_report(report: Report, rows: Sequence[Row], console: Console) -> None:
    """Print every row, what was left out, and which targets were missed."""
    console.print(to_text(report.machine), markup=False, highlight=False)
    for row, result in _pairs(report, rows):
        console.print(f"\n[bold]{row.name}[/]  {_title(row, result)}", highlight=False)
        console.print(_table_of(row, result))
    for contender, reason in _left_out(report).items():
        console.print(f"left out: {contender}: {reason}", markup=False, highlight=False)
    for miss in report.misses:
        console.print(f"missed: {miss}", markup=False, highlight=False, style="red")


def _table_of(row: Row, result: Result) -> Table:
    headers, lines = _used(row, result)
    table = Table(box=SIMPLE_HEAD, header_style="dim", pad_edge=False)
    for header in headers:
        table.add_column(header)
    for cells in lines:
        style = "red" if cells[-1].endswith("missed") else "green" if cells[-1].endswith("met") else None
        table.add_row(*map(Text, cells), style=style)
    return table


def _used(row: Row, result: Result) -> tuple[list[str], list[list[str]]]:
    """Return the headers and cells of the columns in which anything stands; the last one is always the target's."""
    lines = [_cells(row, figures) for figures in result.contenders]
    last = len(_HEADERS) - 1
    used = [i for i in range(len(_HEADERS)) if i == last or any(cells[i] for cells in lines)]
    return [_HEADERS[i] for i in used], [[cells[i] for i in used] for cells in lines]


def write_markdown(report: Report, rows: Sequence[Row], page: Path) -> None:
    """Replace what stands between the two marker comments of a page.

    Raises:
        ValueError: The page does not have both.
    """
    before, start, rest = page.read_text("utf-8").partition(_START)
    _, end, after = rest.partition(_END)
    if not start or not end:
        raise ValueError(f"{page} must have the lines {_START} and {_END}")
    body = "\n".join(_markdown(report, rows))
    page.write_text(f"{before}{start}\n{body}\n{end}{after}", "utf-8")


def _markdown(report: Report, rows: Sequence[Row]) -> Iterator[str]:
    yield f"{to_text(report.machine)}.\n"
    for row, result in _pairs(report, rows):
        headers, lines = _used(row, result)
        yield f"**{row.name}**: {_title(row, result)}\n"
        yield f"| {' | '.join(headers)} |"
        yield "|---" * len(headers) + "|"
        for cells in lines:
            bold = "**" if cells[-1] else ""
            yield f"| {' | '.join(cell and f'{bold}{cell}{bold}' for cell in cells)} |"
        yield ""
    left_out = _left_out(report)
    if left_out:
        yield "Left out: " + "; ".join(f"{name} ({reason})" for name, reason in left_out.items()) + ".\n"
    yield "Every target is met." if not report.misses else "Missed:\n"
    yield from (f"- {miss}" for miss in report.misses)


def _pairs(report: Report, rows: Sequence[Row]) -> Iterator[tuple[Row, Result]]:
    by_name = {row.name: row for row in rows}
    return ((by_name[result.row], result) for result in report.rows if result.row in by_name)


def _left_out(report: Report) -> dict[str, str]:
    return {name: reason for result in report.rows for name, reason in result.left_out.items()}


def _title(row: Row, result: Result) -> str:
    shows_memory = any(figures.memory is not None for figures in result.contenders)
    unit = f"; memory in {result.unit}" if shows_memory else ""
    return f"{row.title} ({result.detail}{unit})"


def _cells(row: Row, figures: Figures) -> list[str]:
    return [
        figures.contender + (" (base)" if figures.contender == row.base else ""),
        "" if figures.seconds is None else _time(figures.seconds),
        "" if figures.time is None else _ratio(figures.time),
        "" if figures.floor is None else _number(figures.floor.median),
        "" if figures.memory is None else _number(figures.memory),
        "" if figures.error is None else f"{figures.error:.0e}",
        _also(figures),
        _target(row, figures) if figures.contender in row.held else "",
    ]


def _also(figures: Figures) -> str:
    parts = []
    if figures.missed is not None:
        parts.append(f"{6 - figures.missed} of 6 faults")
    if figures.graphs is not None:
        parts.append(f"{figures.graphs} graph{'' if figures.graphs == 1 else 's'}")
    if figures.fullgraph is not None:
        parts.append(f"fullgraph: {figures.fullgraph}")
    if figures.failed is not None:
        parts.append(f"failed: {figures.failed}")
    return ", ".join(parts)


def _target(row: Row, figures: Figures) -> str:
    limits = row.limits
    named = (
        ("", limits.time, "x"),
        ("", limits.floor, "x floor"),
        ("mem ", limits.memory, ""),
        ("error ", limits.error, ""),
        ("", limits.seconds, " s"),
        ("missed faults ", limits.missed, ""),
        ("graphs ", limits.graphs, ""),
    )
    wanted = ", ".join(f"{name}<= {limit:g}{unit}" for name, limit, unit in named if limit is not None)
    if not wanted:
        return ""
    return f"{wanted}: {'missed' if missed_by(figures, row) else 'met'}"


def _time(spread: Spread) -> str:
    scale, unit = next((s, u) for s, u in ((1, "s"), (1e-3, "ms"), (0, "us")) if abs(spread.median) >= s)
    scale = scale or 1e-6
    lower, median, upper = (_number(value / scale) for value in spread)
    return f"{median} {unit} [{lower}, {upper}]"


def _ratio(spread: Spread) -> str:
    lower, median, upper = (f"{value:.2f}" for value in spread)
    return median if lower == upper else f"{median} [{lower}, {upper}]"


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"

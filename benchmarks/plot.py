"""The picture of a run: time and memory of each contender, in units of the base's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

from .machine import to_text
from .results import Figures, Report, Result
from .rows import Row

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

__all__ = ["BASE", "OURS", "plot_report"]

OURS, BASE = "#0b6e4f", "#444444"
_TARGET = "#c1121f"
_PEERS = ("#3a86ff", "#ff9f1c", "#8338ec", "#a0785a", "#e75a7c", "#17becf", "#9aa51b", "#7f7f7f")
_MARKERS = ("s", "^", "D", "v", "P", "X", "<", ">")

Pair = tuple[Row, Result]
Styles = dict[str, tuple[str, str]]


def plot_report(report: Report, rows: Sequence[Row], path: Path) -> None:
    """Draw the rows whose contenders do the same work, and save the picture.

    Raises:
        ValueError: There is none.
    """
    by_name = {row.name: row for row in rows}
    known = [(by_name[result.row], result) for result in report.rows if result.row in by_name]
    pairs = [(row, result) for row, result in known if row.kind == "work"]
    if not pairs:
        raise ValueError("none of these rows can be drawn")
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 2.2 + 0.4 * len(pairs)), sharey=True, layout="constrained")
    styles = _styles(pairs)
    _draw(left, pairs, styles, _time, _time_limit)
    _draw(right, pairs, styles, _memory, _memory_limit)
    left.set_xscale("log")
    low, high = left.get_xlim()
    ticks = [tick for tick in (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30) if low <= tick <= high]
    left.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    left.minorticks_off()
    left.set_xlabel("time, in units of the base's (log scale)")
    right.set_xlabel("peak memory above the inputs, in units of the base's")
    left.set_yticks(range(len(pairs)), [row.name for row, _ in pairs])
    left.set_ylim(len(pairs) - 0.5, -0.5)
    handles: dict[str, Any] = {}
    for axes in (left, right):
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=5, frameon=False)
    figure.suptitle(to_text(report.machine), fontsize=9)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _styles(pairs: Sequence[Pair]) -> Styles:
    """Return a colour and a marker for each contender that is neither base nor floor."""
    names = dict.fromkeys(
        figures.contender
        for row, result in pairs
        for figures in result.contenders
        if figures.contender not in {row.base, row.floor}
    )
    ours = [name for name in names if name.startswith("tensafe")]
    peers = [name for name in names if name not in ours]
    styles = {name: (OURS, marker) for name, marker in zip(ours, ("o", "d", "*"), strict=False)}
    for index, name in enumerate(peers):
        round_, place = divmod(index, len(_PEERS))
        styles[name] = (_PEERS[(place + round_) % len(_PEERS)], _MARKERS[place])
    return styles


def _draw(
    axes: Axes,
    pairs: Sequence[Pair],
    styles: Styles,
    value_of: Callable[[Row, Result, Figures], float | None],
    limit_of: Callable[[Row, Result], float | None],
) -> None:
    axes.axvline(1, color=BASE, linewidth=1, label="base")
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    for height, (row, result) in enumerate(pairs):
        limit = limit_of(row, result)
        if limit is not None:
            axes.plot(
                limit,
                height,
                marker="|",
                color=_TARGET,
                markersize=16,
                markeredgewidth=2.5,
                linestyle="",
                label="target",
            )
        for figures in result.contenders:
            value = value_of(row, result, figures)
            if value is not None and figures.contender in styles:
                colour, marker = styles[figures.contender]
                axes.plot(
                    value,
                    height,
                    marker=marker,
                    color=colour,
                    markersize=7,
                    alpha=0.9,
                    linestyle="",
                    label=figures.contender,
                )


def _time(row: Row, result: Result, figures: Figures) -> float | None:
    return None if figures.time is None else figures.time.median


def _time_limit(row: Row, result: Result) -> float | None:
    return row.limits.time


def _memory(row: Row, result: Result, figures: Figures) -> float | None:
    base = _memory_of_base(row, result)
    return None if figures.memory is None or not base else figures.memory / base


def _memory_limit(row: Row, result: Result) -> float | None:
    base = _memory_of_base(row, result)
    return None if row.limits.memory is None or not base else row.limits.memory / base


def _memory_of_base(row: Row, result: Result) -> float | None:
    return next((figures.memory for figures in result.contenders if figures.contender == row.base), None)

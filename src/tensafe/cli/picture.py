"""Pictures of losses, made by matplotlib without its global state."""

from __future__ import annotations

import re
import textwrap
from typing import TYPE_CHECKING, Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .examples import as_yaml

if TYPE_CHECKING:
    from pathlib import Path

    from .drawings import Drawing

__all__ = ["formats", "save"]

# Okabe and Ito's colours, which people with any kind of colour vision tell apart; the dashes are for grey print.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_DASHES: tuple[Any, ...] = ("-", (0, (6, 2)), (0, (2, 1.5)), (0, (6, 2, 1.5, 2)), (0, (1, 1)), (0, (8, 2, 2, 2, 2, 2)))
_GREY = "#d8d8d8"


def formats() -> list[str]:
    """Return the endings of the files that can be written."""
    return sorted(FigureCanvasAgg.get_supported_filetypes())


def save(drawing: Drawing, file: Path) -> None:
    """Draw value and gradient beside each other; raises OSError."""
    figure: Any = Figure(figsize=(9.2, 3.7), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2)
    facts, moved = drawing.facts, drawing.moved
    for index, (value, curve) in enumerate(drawing.curves):
        style = {
            "color": _COLOURS[index % len(_COLOURS)],
            "linestyle": _DASHES[index % len(_DASHES)],
            "linewidth": max(1.4, 2.6 - 0.4 * index),  # so that a line below another shows
        }
        left.plot(moved.positions, curve.values, label=_line_label(drawing, value), **style)
        right.plot(moved.positions, curve.gradients, **style)
    unit = _unit(facts.doc.sections.get("Returns", ""))
    by = _unit(facts.doc.arguments().get(moved.tensor, ""))
    left.set_title("value", fontsize=10)
    right.set_title("gradient", fontsize=10)
    left.set_ylabel(f"loss{unit}")
    right.set_ylabel(f"d loss / d {moved.name}")
    for axes in (left, right):
        axes.set_xlabel(drawing.label or f"{moved.name}{by}")
        axes.margins(x=0)
        axes.ticklabel_format(useOffset=False)
        axes.grid(color=_GREY, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    limits = right.get_ylim()
    right.axhline(0, color="#888888", linewidth=0.8, zorder=1)
    right.set_ylim(limits)  # the line shows only where there is a sign to tell
    if drawing.kwarg is not None:
        figure.legend(loc="outside right center", title=drawing.kwarg, frameon=False, handlelength=3.2)
    figure.suptitle(_title(drawing), fontsize=11)
    figure.savefig(file, metadata={"Software": None} if file.suffix.lower() == ".png" else None)


def _title(drawing: Drawing) -> str:
    facts = drawing.facts
    given = "".join(f", {name}={as_yaml(value)}" for name, value in drawing.kwargs.items())
    summary = re.sub(r":math:`([^`]*)`|`", r"\1", facts.doc.summary)
    return textwrap.fill(f"{facts.name}{given}: {summary}".replace("$", r"\$"), 100)


def _line_label(drawing: Drawing, value: Any) -> str:
    default = next((kwarg.default for kwarg in drawing.facts.kwargs if kwarg.name == drawing.kwarg), None)
    text = as_yaml(value)
    return f"{text} (default)" if text == default else text


def _unit(text: str) -> str:
    """Return the unit that a text names, in parentheses; most losses have none."""
    return " (nats)" if re.search(r"\bnats\b", text) else ""

r"""From the markup of docstrings to GitHub's Markdown.

Formulas stand in a `math` fence and in $`...`$: between bare dollars, Markdown takes the backslash off `\,` and `\{`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["cell", "formula", "prose", "table"]

_VERBATIM = re.compile(r"(:math:`[^`]*`|``[^`]*``|`[^`]*`)")


def prose(text: str) -> str:
    """Return a paragraph, what stands in backticks as code and formulas as formulas."""
    return "".join(_piece(piece) for piece in _VERBATIM.split(text))


def cell(text: str) -> str:
    """Return a paragraph on one line, as a cell of a table."""
    pieces = _VERBATIM.split(" ".join(text.split()))
    return "".join(_piece(_without_bars(piece)) for piece in pieces)


def formula(tex: str) -> str:
    """Return a formula that stands on its own."""
    return f"```math\n{_for_github(tex)}\n```"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of cells."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _piece(piece: str) -> str:
    if piece.startswith(":math:"):
        return f"$`{_for_github(piece[7:-1])}`$"
    if piece.startswith("``"):
        return piece[1:-1]
    return piece if piece.startswith("`") else re.sub(r"(\*|<(?=[A-Za-z/!?]))", r"\\\1", piece)


def _without_bars(piece: str) -> str:
    """Write the bars of a piece so that they end no cell."""
    if piece.startswith(":math:"):
        return piece.replace("\\|", "\\Vert ").replace("|", "\\vert ")
    return piece.replace("|", "\\|")


def _for_github(tex: str) -> str:
    """Leave out what GitHub refuses, and what looks like a link to whoever reads the page as plain Markdown."""
    return re.sub(r"\\operatorname\*?(?![a-z])", r"\\mathrm", tex).replace("](", "] (")

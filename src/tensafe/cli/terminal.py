"""Prose, entries and formulas on a terminal of whatever width and character set."""

from __future__ import annotations

import re
import shutil
import sys
import textwrap
from typing import TYPE_CHECKING

import typer

from tensafe._docstrings import Formula

from .tex import to_unicode
from .tex_symbols import GAP

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tensafe._docstrings import Paragraph

__all__ = ["Terminal", "readable"]

_WIDEST = 120


def readable(text: str) -> str:
    """Return prose of a docstring for the terminal: formulas in it as Unicode, where that can be done."""
    text = re.sub(r":math:`([^`]*)`", lambda match: _rendered(match[1]) or match[1], text)
    return re.sub(r"``([^`]*)``", r"`\1`", text)


class Terminal:
    """Writes to standard output what fits its width."""

    def __init__(self) -> None:
        self._width = min(shutil.get_terminal_size().columns, _WIDEST)

    def gap(self) -> None:
        """Write an empty line."""
        typer.echo("")

    def heading(self, title: str, note: str = "", *, apart: bool = True) -> None:
        """Write a title in bold, and perhaps something beside it."""
        typer.echo(("\n" if apart else "") + typer.style(title, bold=True) + (f"  ({note})" if note else ""))

    def entry(self, name: str, facts: str, text: str) -> None:
        """Write a name in bold with a few facts, and below it what it is."""
        first, *rest = self._wrap(f"{name}  {facts}", 2, 6)
        typer.echo("\n".join([first.replace(name, typer.style(name, bold=True), 1), *rest]))
        if text:
            self.prose(text, indent=6)

    def rows(self, rows: Sequence[tuple[str, str]], width: int | None = None) -> None:
        """Write names with a text beside each."""
        width = max((len(name) for name, _ in rows), default=0) if width is None else width
        for name, text in rows:
            self._echo(self._wrap(f"{name:{width}}  {readable(text)}".rstrip(), 2, width + 4))

    def block(self, block: Paragraph | Formula, indent: int = 0, hang: int = 0) -> None:
        """Write a paragraph or a formula."""
        if isinstance(block, Formula):
            self.formula(block, indent + 4)
        else:
            self.prose(block, indent, hang)

    def prose(self, text: str, indent: int = 0, hang: int = 0) -> None:
        """Write a paragraph; lists and indented lines stay as they are."""
        lines = text.splitlines()
        if any(line[:1] in {"-", "*", "|"} for line in lines):
            self.verbatim(readable(text), indent)
        else:
            self._echo(self._wrap(readable(" ".join(text.split())), indent, indent + hang))

    def formula(self, tex: str, indent: int) -> None:
        r"""Write a formula as Unicode if that can be done, else as TeX; one that is too long breaks at its `\quad`s."""
        for line in (_rendered(tex) or tex).splitlines():
            fits = len(line) <= self._width - indent
            self.verbatim(line if fits else line.replace(GAP, "\n"), indent)

    def verbatim(self, text: str, indent: int = 4) -> None:
        """Write lines as they are."""
        self._echo(textwrap.indent(text.rstrip(), " " * indent).splitlines())

    def _wrap(self, text: str, indent: int, hang: int) -> list[str]:
        width = max(self._width, hang + 20)
        wrapper = textwrap.TextWrapper(width, break_long_words=False, break_on_hyphens=False)
        wrapper.initial_indent, wrapper.subsequent_indent = " " * indent, " " * hang
        return wrapper.wrap(text)

    def _echo(self, lines: Iterable[str]) -> None:
        for line in lines:
            typer.echo(line)


def _rendered(tex: str) -> str | None:
    """Return a formula in Unicode if it can be had, and written to standard output."""
    text = to_unicode(tex)
    if text is None:
        return None
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return None
    return text

"""The parts of a Google-style docstring: prose and formulas at its head, then sections."""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Docstring", "Formula", "Paragraph", "blocks", "entries", "parse", "split_examples"]

_SECTIONS = frozenset(
    {"Args", "Arguments", "Attributes", "Returns", "Raises", "Note", "Notes", "Warning", "Example", "Examples"}
    | {"References", "See Also", "Yields"}
)
_HEADING = re.compile(rf"^({'|'.join(sorted(_SECTIONS))}):[ \t]*$", re.MULTILINE)
_MATH = re.compile(r"^\.\. math::(.*(?:\n(?:[ \t]+\S.*|[ \t]*))*)", re.MULTILINE)
_ENTRY = re.compile(r"^\*{0,2}(\w+)(?: \([^)]*\))?:(?=\s)")


class Paragraph(str):
    """Prose."""

    __slots__ = ()


class Formula(str):
    """The TeX of a formula that stands on its own, on one line."""

    __slots__ = ()


class Docstring(NamedTuple):
    """A docstring in parts.

    Attributes:
        summary: Its first paragraph, on one line.
        body: What follows up to the first section.
        sections: The texts of the sections by heading, without their indentation.
    """

    summary: str
    body: tuple[Paragraph | Formula, ...]
    sections: Mapping[str, str]

    def arguments(self) -> dict[str, str]:
        """Return what is said about each argument, on one line each."""
        return entries(self.sections.get("Args") or self.sections.get("Arguments") or "")

    def example(self) -> str:
        """Return the text of the section with examples."""
        return self.sections.get("Example") or self.sections.get("Examples") or ""


def parse(doc: str | None) -> Docstring:
    """Take a docstring apart; whatever it holds, nothing is raised."""
    text = inspect.cleandoc(doc or "")
    head, *rest = _HEADING.split(text)
    sections = {name: inspect.cleandoc(body.strip("\n")) for name, body in zip(rest[::2], rest[1::2], strict=True)}
    summary, _, body = head.strip().partition("\n\n")
    return Docstring(_on_one_line(summary), tuple(blocks(body)), sections)


def entries(text: str) -> dict[str, str]:
    """Return what a section says about each name, on one line each."""
    found: dict[str, list[str]] = {}
    current: list[str] = []
    for line in text.splitlines():
        entry = _ENTRY.match(line)
        if entry:
            current = found[entry[1]] = []
            line = line[entry.end() :]
        current.append(line)
    return {name: _on_one_line("\n".join(lines)) for name, lines in found.items()}


def split_examples(text: str) -> list[tuple[str, str]]:
    """Split doctests into what is typed and what that prints."""
    steps: list[tuple[list[str], list[str]]] = []
    for line in text.splitlines():
        if line.startswith(">>> "):
            steps.append(([line[4:]], []))
        elif line.startswith("...") and steps and not steps[-1][1]:
            steps[-1][0].append(line[4:])
        elif steps and line.strip():
            steps[-1][1].append(line)
    return [("\n".join(typed).rstrip(), "\n".join(printed)) for typed, printed in steps]


def blocks(text: str) -> list[Paragraph | Formula]:
    """Split text into paragraphs and the formulas between them."""
    found: list[Paragraph | Formula] = []
    for index, part in enumerate(_MATH.split(text)):
        if index % 2:
            found.append(Formula(_on_one_line(part)))
        else:
            found += [Paragraph(piece.strip("\n")) for piece in re.split(r"\n\s*\n", part) if piece.strip()]
    return found


def _on_one_line(text: str) -> str:
    return " ".join(text.split())

r"""TeX formulas for a terminal: a subset of TeX as one line of Unicode, or nothing at all.

A formula that is only half understood is worse than its source, so whatever lies outside the subset gives None. What
comes out groups as the source does: a fraction gets the parentheses that its bar stood for, an index that Unicode has
no small letters for is written `x_(a,b)`.
"""

# ruff: noqa: RUF001  # symbols are meant to look like what they are like

from __future__ import annotations

import re
import unicodedata
from typing import NamedTuple

from .tex_symbols import (
    ACCENTS,
    FONTS,
    FUNCTIONS,
    GAP,
    HALVES,
    IGNORED,
    LETTERS,
    NAMES,
    OPENING,
    RELATIONS,
    SIZES,
    SMALL_ABOVE,
    SMALL_BELOW,
    SPACES,
)

__all__ = ["to_unicode"]

_TOKEN = re.compile(r"\\(?:[A-Za-z]+\*?|.)|\s+|.", re.DOTALL)

_SCRIPTS = "".join({*SMALL_BELOW.values(), *SMALL_ABOVE.values()}).replace("-", r"\-")
_ONE = rf"(?:\d+(?:\.\d+)?|[^\W_]|∞)[{''.join(set(ACCENTS.values()))}′']*[{_SCRIPTS}]*"
_SINGLE = re.compile(rf"{_ONE}(?:[_^](?:\w+|\([^()]*\)))*(?:\([^()+\-/ ]*\)|\[[^\[\]+\-/ ]*\])?")
_ENDS_WORD = re.compile(r"[^\W_]$|[)\]}′'²³ⁿ]$")
_BEGINS_WORD = re.compile(r"[\w√¬∂∇∑∏]")
_AFTER_A_TERM = frozenset("-+=,;)]}<>|.&") | {f"\\{name}" for name in ("right", "quad", "qquad", "\\", "end", ";", "}")}
_BINDS = frozenset({"cdot", "times", "odot", "circ"})


def to_unicode(tex: str) -> str | None:
    r"""Return a formula as Unicode, or None if any of it lies outside the subset; its lines are those of the source.

    >>> to_unicode(r"\ell_i = \frac{a + b}{c}\,e^{-x_i^2}")
    'ℓᵢ = ((a + b)/c) e^(-xᵢ²)'
    >>> to_unicode(r"\underbrace{x}_y") is None
    True
    """
    try:
        reader = _Reader(_TOKEN.findall(tex))
        text = reader.sequence()
    except (_UnknownError, RecursionError):
        return None
    lines = (re.sub(r" +", " ", line.replace(GAP, "\0")) for line in text.split("\n"))
    return "\n".join(re.sub(r" ?\0[ \0]*", GAP, line).strip() for line in lines).strip()


class _UnknownError(Exception):
    """The formula has something that this module does not know."""


class _Atom(NamedTuple):
    """What a script can be put on: a `name` such as log, a `fraction`, a `group` of several factors, anything else."""

    text: str
    kind: str = ""


class _Reader:
    """Reads tokens from the left; each method takes what it returns the Unicode of."""

    def __init__(self, tokens: list[str]) -> None:
        self._tokens = tokens
        self._at = 0

    def sequence(self, *stops: str) -> str:
        """Read up to one of some tokens, or to the end, and leave it."""
        text, after_name = "", False
        while self._at < len(self._tokens) and self._tokens[self._at] not in stops:
            atom = self._factor()
            if atom.kind == "fraction" and (after_name or text.endswith(("/", "/ "))):
                atom = _Atom(f"({atom.text})")
            is_name = atom.kind == "name" or (after_name and atom.text == " ")
            apart = (atom.kind == "name" and _ENDS_WORD.search(text)) or (after_name and _BEGINS_WORD.match(atom.text))
            text += f" {atom.text}" if apart else atom.text
            after_name = is_name
        return text

    def _factor(self) -> _Atom:
        """Read one atom with its scripts."""
        atom = self._atom()
        scripts: dict[str, str] = {}
        while (mark := self._peek()) in {"_", "^"} and mark not in scripts:
            self._at += 1
            scripts[mark] = _script(mark, self._argument())
        return _with_scripts(atom, "".join(scripts.values()), stands_last=self._stands_last())

    def _stands_last(self) -> bool:
        """Whether no further factor follows, which a fraction would have to be told apart from."""
        rest = (token for token in self._tokens[self._at :] if not token.isspace() and token[1:] not in SIZES)
        following = next(rest, "")
        name = following.removeprefix("\\")
        return not following or following in _AFTER_A_TERM or (name in RELATIONS and name not in _BINDS)

    def _peek(self) -> str:
        return self._tokens[self._at] if self._at < len(self._tokens) else ""

    def _skip_space(self, wanted: bool = True) -> None:
        while wanted and self._peek().isspace():
            self._at += 1

    def _take(self) -> str:
        token = self._peek()
        if not token:
            raise _UnknownError
        self._at += 1
        return token

    def _argument(self) -> str:
        """Read what a command or a script applies to: a group, or one token."""
        self._skip_space()
        if self._peek() == "{":
            return self._group()
        if self._peek() in {"_", "^", "}", "&"}:
            raise _UnknownError
        return self._atom().text.strip()

    def _group(self) -> str:
        if self._take() != "{":
            raise _UnknownError
        text = self.sequence("}").strip()
        if self._take() != "}":
            raise _UnknownError
        return text

    def _atom(self) -> _Atom:
        token = self._take()
        if token == "{":
            self._at -= 1
            return _Atom(self._group(), "group")
        if token.isspace():
            return _Atom(" ")
        if token.startswith("\\"):
            return self._command(token[1:])
        if token == "~":
            return _Atom(" ")
        if token in "_^#$%&}":
            raise _UnknownError
        return _Atom(token)

    def _command(self, name: str) -> _Atom:
        simple = SPACES.get(name, LETTERS.get(name, "" if name in IGNORED else None))
        if simple is not None:
            self._skip_space(name in OPENING)
            return _Atom(simple)
        if name in RELATIONS:
            return _Atom(f" {RELATIONS[name]} ")
        if name in FUNCTIONS:
            return _Atom(name, "name")
        return self._construct(name)

    def _construct(self, name: str) -> _Atom:
        if name in SIZES:
            return self._delimiter()
        if name in NAMES:
            return _Atom(self._name(), "" if name.startswith("text") else "name")
        if name in FONTS or name in ACCENTS:
            return _Atom(_styled(name, self._argument()))
        if name in {"frac", "tfrac", "dfrac"}:
            return _fraction(self._argument(), self._argument())
        if name == "sqrt" and self._peek() != "[":
            return _Atom(f"√{_grouped(self._argument())}")
        if name == "\\" and self._peek() != "[":
            return _Atom("\n")
        if name == "begin":
            return _Atom(self._environment())
        raise _UnknownError

    def _name(self) -> str:
        r"""Read the letters of a name as they are: spaces inside `\text` count."""
        start = self._at
        self._group()
        name = "".join(self._tokens[start + 1 : self._at - 1]).replace("\\ ", " ").replace("\\_", "_")
        if set(name) & set("\\{}^"):
            raise _UnknownError
        return name

    def _delimiter(self) -> _Atom:
        self._skip_space()
        if self._peek() == ".":
            self._at += 1
            return _Atom("")
        return self._atom()

    def _environment(self) -> str:
        kind = self._name()
        if kind not in {"cases", "aligned", "align*", "gathered"}:
            raise _UnknownError
        rows = [[self.sequence("&", "\\\\", "\\end").strip()]]
        while (token := self._take()) != "\\end":
            if token == "&":
                rows[-1].append("")
            elif self._peek() == "[":
                raise _UnknownError
            else:
                rows.append([""])
            rows[-1][-1] = self.sequence("&", "\\\\", "\\end").strip()
        if self._name() != kind:
            raise _UnknownError
        between = ", " if kind == "cases" else " "
        lines = [
            between.join(cell.rstrip(" ,;") if between == ", " else cell for cell in row if cell)
            for row in rows
            if any(row)
        ]
        return "{ " + "; ".join(lines) + " }" if kind == "cases" else "\n".join(lines)


def _is_bracketed(text: str) -> bool:
    """Whether one pair of brackets holds all of a text."""
    if re.fullmatch(r"\|[^|]*\||‖[^‖]*‖", text):
        return True
    if text[:1] not in {"(", "[", "{"} or text[-1:] not in {")", "]", "}"}:
        return False
    depth = 0
    for index, char in enumerate(text):
        depth += (char in "([{") - (char in ")]}")
        if depth == 0:
            return index == len(text) - 1
    return False


def _grouped(text: str) -> str:
    """Put brackets around what is more than one factor: the bar of a fraction has held it together."""
    return text if _SINGLE.fullmatch(text) or _is_bracketed(text) else f"({text})"


def _script(mark: str, text: str) -> str:
    small = SMALL_BELOW if mark == "_" else SMALL_ABOVE
    tight = text.replace(" ", "")
    if tight and all(char in small for char in tight):
        return "".join(small[char] for char in tight)
    if tight == "′":
        return tight
    return f"{mark}{text}" if len(text) == 1 or (text.isascii() and text.isalnum()) else f"{mark}({text})"


def _with_scripts(atom: _Atom, scripts: str, *, stands_last: bool) -> _Atom:
    text, kind = atom
    if kind == "group":
        return _Atom(_grouped(text) + scripts if scripts else text)
    if kind == "fraction":
        return atom if stands_last and not scripts else _Atom(f"({text}){scripts}")
    return _Atom(text + scripts, kind)


def _fraction(above: str, below: str) -> _Atom:
    if (above, below) in HALVES:
        return _Atom(HALVES[above, below])
    return _Atom(f"{_grouped(above)}/{_grouped(below)}", "fraction")


def _styled(command: str, text: str) -> str:
    if command in FONTS:
        return "".join(_in_font(FONTS[command], char) for char in text)
    if len(text) != 1 or not text.isalnum():
        raise _UnknownError
    return text + ACCENTS[command]


def _in_font(font: str, char: str) -> str:
    """Return a letter or digit of a font; Unicode has the oldest of them outside its block of mathematical ones."""
    plain = unicodedata.name(char, "").replace("LATIN ", "").replace("LETTER ", "")
    for name in (f"MATHEMATICAL {font} {plain}", f"{font} {plain}"):
        try:
            return unicodedata.lookup(name)
        except KeyError:
            continue
    raise _UnknownError

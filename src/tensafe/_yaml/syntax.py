"""What the parser cannot read, said in our words: where the mistake is, and what cures it."""

import re
from typing import Final

import yaml

from .scalars import MAX_SHOWN, misfit, shown
from .text import Mark, YamlProblem, point, tag_mark

__all__ = ["syntax_problem"]

# Part of what the parser says; whether the mistake is where the broken token starts; and what we say.
_SENTENCES: Final = (
    ("expected ':'", True, "this line is not 'key: value': a ':' with a space after it is missing"),
    ("expected ',' or", True, "this {start} is not closed, or a ',' is missing: reading stopped at line {line}"),
    ("end of stream", True, "this quote is never closed"),
    ("unexpected document", True, "this quote is not closed before the '---' or '...' at line {line}"),
    ("values are not allowed", False, "this ':' stands inside a value: quote the value, or check the indentation"),
    ("entries are not allowed", False, "a list cannot start here: put '- ' on its own line, or quote the value"),
    ("keys are not allowed", False, "a key cannot start with '?' here: quote it if it is text"),
    ("unknown escape", False, r"unknown escape in double quotes: write '\\' for a backslash, or use single quotes"),
    ("Unicode character escape", False, "this escape in double quotes stands for no character"),
    ("hexdecimal", False, r"an escape in double quotes lacks digits: '\x' takes 2, '\u' takes 4, '\U' takes 8"),
    ("any token", False, "{char} cannot start a value: quote the value"),
    ("alphabetic or numeric", True, "{start} starts the name of an anchor or alias: quote the value if it is text"),
    ("document start", False, "only '---' or the end of the file can stand here, not {char}: quote the whole value"),
    ("node content", False, "a value is missing here, before {char}"),
    ("a block scalar", False, "the text after '|' or '>' starts on the next line: {char} cannot stand here"),
    ("YAML directive", False, "only one line can start with '%YAML'"),
    ("ing a tag", True, "'!' starts a tag, and this one is not well formed: quote the value if it is text"),
    ("stray line", False, "this line does not continue what starts at line {from_line}: check its indentation"),
    ("stray text", False, "{char} stands after the end of a value: quote the whole value"),
)
_STRAY: Final = ("expected key", "<block end>", "'-' indicator")
_GLUED: Final = re.compile(r"([\w.-]{1,60}):(\S[^\n]{0,60})")


def syntax_problem(text: str, error: yaml.YAMLError | UnicodeDecodeError, read_to: int) -> YamlProblem:
    """Say where and why the parser gave up.

    Args:
        text: What it read.
        error: What it raised.
        read_to: Index of the character after all that it understood.
    """
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        # The parser takes a tag whose % escapes make no UTF-8, and PyYAML then fails to decode it.
        return _problem("yaml-syntax", point(text, read_to), "what comes after this is not valid YAML")
    said, index = f"{error.context or 'parser'}: {error.problem}", error.problem_mark.index
    start = error.context_mark.index if error.context_mark else index
    if (tab := _indenting_tab(text, said, index)) is not None:
        return _problem("tab", point(text, tab), "a tab cannot indent: YAML takes only spaces for that")
    if "tag handle" in said:
        return _unknown_tag(text.split("\n"), error.problem_mark)
    if any(part in said for part in _STRAY):
        said = "stray line" if not _line_before(text, index).strip() else "stray text"
    at_start, sentence = next((row[1:] for row in _SENTENCES if row[0] in said), (False, "not valid YAML ({said})"))
    message = sentence.format(
        char=_name(text[index : index + 1]),
        start=_name(text[start : start + 1]),
        line=point(text, index).line,
        from_line=point(text, start).line,
        said=said[:MAX_SHOWN],
    )
    glued = _GLUED.match(text, start) if "expected ':'" in said else None
    suggestion = f"{glued[1]}: {glued[2]}" if glued else None
    return _problem("yaml-syntax", point(text, start if at_start else index), message, suggestion)


def _problem(code: str, mark: Mark, message: str, suggestion: str | None = None) -> YamlProblem:
    return YamlProblem(code, (), mark, message, suggestion)


def _unknown_tag(lines: list[str], place: yaml.Mark) -> YamlProblem:
    mark = tag_mark(lines, place)
    tag = lines[mark.line - 1][mark.column - 1 : mark.end_column - 1]
    return _problem("unknown-tag", mark, misfit(tag, "").message)


def _indenting_tab(text: str, said: str, index: int) -> int | None:
    if text[index : index + 1] == "\t" and ("any token" in said or "tab" in said):
        return index
    before = _line_before(text, index)
    margin = before[: len(before) - len(before.lstrip())]
    # A line with a tab in its margin goes on with the value above, until the parser meets its ':'.
    return index - len(before) + margin.index("\t") if "values are not" in said and "\t" in margin else None


def _line_before(text: str, index: int) -> str:
    return text[text.rfind("\n", 0, index) + 1 : index]


def _name(char: str) -> str:
    return {"": "the end of the file", "\n": "the end of the line"}.get(char) or shown(char)

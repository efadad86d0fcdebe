"""The text of a YAML file: places in it, the reason to refuse it, and the bytes that a parser may see."""

import re
from typing import Final, NamedTuple, NoReturn

import yaml

__all__ = ["Mark", "Path", "RefusedError", "YamlProblem", "decode", "lines_of", "point", "tag_mark"]

Path = tuple[str | int, ...]

# Without libyaml the events come from Python code, some fifteen times slower, hence the smaller file.
MAX_BYTES: Final = 2**20 if yaml.__with_libyaml__ else 2**15

_BOMS: Final = (
    (b"\xff\xfe\x00\x00", "UTF-32"),  # stands before UTF-16, whose mark it starts with
    (b"\x00\x00\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)
# What YAML 1.2 cannot print, and the three line breaks of YAML 1.1 that editors do not count as such.
_INVISIBLE: Final = re.compile(r"[\0-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")
# libyaml needs many seconds for a megabyte of %TAG lines, or of short tags with one long prefix.
_DIRECTIVE: Final = re.compile(r"^%(?!YAML[ \t]+1\.[12][ \t]*(?:#.*)?$)", re.MULTILINE)
_TAG: Final = re.compile(r"!(?:<[^>\s]*>|[^\s,\[\]{}]*)")


class Mark(NamedTuple):
    """Where a token is written; lines and columns count from 1, columns in characters.

    `end_column` is one past the token's last character on that line, and equals `column` where nothing is written.
    """

    line: int
    column: int
    end_column: int


class YamlProblem(NamedTuple):
    """A reason to refuse a file: a stable code, the place, and one sentence."""

    code: str
    path: Path
    mark: Mark
    message: str
    suggestion: str | None = None


class RefusedError(Exception):
    """Reading cannot go on, or would take too long."""

    def __init__(self, problem: YamlProblem) -> None:
        super().__init__(problem.message)
        self.problem = problem


def decode(source: bytes) -> str:
    r"""Give the text, `\n` its only line break, if a parser may see it.

    Raises:
        RefusedError: It may not.
    """
    if len(source) > MAX_BYTES:
        _reject("too-large", Mark(1, 1, 1), f"the file has {len(source)} bytes, and at most {MAX_BYTES} are read")
    for bom, name in _BOMS:
        if source.startswith(bom):
            _reject("not-utf8", Mark(1, 1, 1), f"the file is {name}: save it as UTF-8")
    source = source.removeprefix(b"\xef\xbb\xbf")
    try:
        text = _unify(source.decode())
    except UnicodeDecodeError as error:
        line, column, _ = point(_unify(source[: error.start].decode()), error.start)
        message = f"the byte 0x{source[error.start]:02x} is not UTF-8: save the file as UTF-8"
        _reject("not-utf8", Mark(line, column, column + 1), message)
    if found := _INVISIBLE.search(text):
        escape = f'"\\u{ord(found[0]):04x}"'
        message = f"the invisible character U+{ord(found[0]):04X} is not allowed: remove it, or write {escape}"
        _reject("control-character", point(text, found.start()), message)
    if found := _DIRECTIVE.search(text):
        message = "a line starts with '%', and of directives only '%YAML 1.2' and '%YAML 1.1' are read"
        _reject("directive", point(text, found.start()), message)
    return text


def lines_of(source: bytes) -> list[str]:
    """Give the lines that places in a refused file count, whatever its bytes."""
    return _unify(source.removeprefix(b"\xef\xbb\xbf").decode(errors="replace")).split("\n")


def point(text: str, index: int) -> Mark:
    """Give the place of one character, of no width at the end of a line."""
    before = text[:index]
    column = len(before) - before.rfind("\n")
    return Mark(before.count("\n") + 1, column, column + (text[index : index + 1] not in ("", "\n")))


def tag_mark(lines: list[str], place: yaml.Mark) -> Mark:
    """Give the place of the first tag after a parser's mark on its line, or the mark's place if none is there."""
    found = _TAG.search(lines[place.line], place.column)
    first, end = found.span() if found else (place.column, place.column + 1)
    return Mark(place.line + 1, first + 1, end + 1)


def _reject(code: str, mark: Mark, message: str) -> NoReturn:
    raise RefusedError(YamlProblem(code, (), mark, message))


def _unify(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")

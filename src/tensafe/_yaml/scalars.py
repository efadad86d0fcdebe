"""What the text and the tag of one YAML scalar mean, by the core schema of YAML 1.2.

PyYAML resolves scalars by YAML 1.1, where ``no`` is a boolean, ``1e-3`` a string, ``0777`` is 511 and ``12:30`` is 750.
Editors read YAML 1.2, and a config must mean the same to both, so the rules are written out here.
"""

import math
import re
from typing import Final, NamedTuple

Scalar = str | int | float | bool | None

CORE: Final = "tag:yaml.org,2002:"
MAX_DIGITS: Final = 100
MAX_SHOWN: Final = 80

_WORDS: Final[dict[str, Scalar]] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF"), math.inf),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), -math.inf),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), math.nan),
}
_NUMBER: Final = re.compile(
    r"(?P<decimal>[-+]?[0-9]+)"
    r"|0o(?P<octal>[0-7]+)"
    r"|0x(?P<hexadecimal>[0-9a-fA-F]+)"
    r"|[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
)
_BASES: Final = {"decimal": 10, "octal": 8, "hexadecimal": 16}
_FITS: Final[dict[str, tuple[type, ...]]] = {
    CORE + "str": (str,),
    CORE + "int": (int,),
    CORE + "float": (int, float),
    CORE + "bool": (bool,),
    CORE + "null": (type(None),),
    CORE + "map": (),
    CORE + "seq": (),
}


class Resolved(NamedTuple):
    """The value of a scalar and, if it breaks a rule, the rule's code with a sentence that says so."""

    value: Scalar
    code: str | None = None
    message: str = ""


def shown(text: str) -> str:
    """Quote a piece of a file for a message: on one line, printable, at most 80 characters."""
    quoted = repr(text[:MAX_SHOWN])
    return quoted if len(text) <= MAX_SHOWN >= len(quoted) else quoted[: MAX_SHOWN - 1] + "…"


def resolve(text: str, tag: str | None, *, plain: bool) -> Resolved:
    """Give the value of a scalar; one whose tag does not fit has the value it would have without the tag.

    Args:
        text: The scalar's text, escapes and folds undone.
        tag: Its full tag, or None.
        plain: Whether it stands without quotes.

    >>> resolve("1e-3", None, plain=True).value, resolve("no", None, plain=True).value
    (0.001, 'no')
    """
    if tag in ("!", CORE + "str"):
        return Resolved(text)
    untagged = _plain(text) if plain else Resolved(text)
    if tag is None:
        return untagged
    found = _plain(text) if tag in _FITS else untagged
    if found.code:
        return found
    if type(found.value) not in _FITS.get(tag, ()):
        return misfit(tag, f"the text {shown(text)}")._replace(value=untagged.value)
    return Resolved(float(found.value)) if tag == CORE + "float" and isinstance(found.value, int) else found


def misfit(tag: str, what: str) -> Resolved:
    """Say why a tag cannot stand before `what` follows it."""
    name = shown("!!" + tag.removeprefix(CORE) if tag.startswith(CORE) else tag)
    if tag in _FITS:
        return Resolved(None, "tag-mismatch", f"the tag {name} does not fit {what}")
    known = "!!str, !!int, !!float, !!bool, !!null, !!map and !!seq"
    return Resolved(None, "unknown-tag", f"unknown tag {name}: only {known} are read")


def _plain(text: str) -> Resolved:
    if text in _WORDS:
        return Resolved(_WORDS[text])
    number = _NUMBER.fullmatch(text)
    if number is None:
        return Resolved(text)
    if len(text) > MAX_DIGITS:
        size = f"a number of {len(text)} characters, and at most {MAX_DIGITS} are read"
        return Resolved(text, "too-many-digits", f"{size}: quote it if it is text")
    base = _BASES.get(number.lastgroup or "")
    return Resolved(float(text) if base is None else int(number[number.lastgroup or 0], base))

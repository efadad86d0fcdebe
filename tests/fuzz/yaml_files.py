"""Bytes of config files, wrong in every way: raw, broken valid files, files made by a grammar of YAML, and bombs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from hypothesis import strategies as st

__all__ = ["FILES", "SEEDS", "mutated"]

_ROOT: Final = Path(__file__).resolve().parents[2]

_RICH: Final = b"""\
%YAML 1.2
---
base: &base {reduction: sum, metrics: false}
loss:
  type: weighted_sum
  kwargs:
    losses:
      - type: token_ce
        kwargs: {<<: *base, label_smoothing: 1e-1}
        weight: {schedule: linear, start: 0.0, end: 1.0, steps: 10}
      - {type: "kl_penalty", weight: .5, inputs: {logps: 'outputs.logps'}}
      - mse # a name
  ? inputs
  : {}
model: !!map {name: >-
    folded
    text, size: !!int "3", "k\\u0065y": ~}
"""

SEEDS: Final = (
    *(path.read_bytes() for path in sorted((_ROOT / "configs").glob("*.yaml"))),
    *(path.read_bytes() for path in sorted((_ROOT / "docs" / "examples").glob("*.yaml"))),
    _RICH,
    b"loss: token_ce\n",
    b"loss: {type: contrastive, kwargs: {temperature: 0.07, margin: 0}}\n",
    b"loss: {type: 'bait.losses:fn', kwargs: {a: [1, 2.0, null, true]}}\n",
    b"loss: {type: matryoshka, kwargs: {loss: multiple_negatives, dims: [8, 4]}}\n",
)

_WORDS: Final = (
    *("loss", "type", "kwargs", "inputs", "losses", "weight", "schedule", "token_ce", "mse", "weighted_sum"),
    *(
        "matryoshka",
        "dims",
        "reduction",
        "label_smoothing",
        "ignore_index",
        "mean",
        "none",
        "no",
        "y",
        "tokn_ce",
        "los",
    ),
    *("bait.losses:fn", "os:system", "bait:a.b", "torch.hub:load", "builtins:eval", "subprocess.Popen", "__main__:x"),
    *("0", "-1", "1e-3", "1_000", ".nan", "-.inf", "1e999", "0x1F", "0o17", "12:30", "9" * 90, "9" * 101, "1e-400"),
    *(
        "~",
        "null",
        "true",
        "False",
        "=",
        "''",
        '""',
        "'a'",
        '"\\u00e9"',
        '"\\ud800"',
        '"\\x00"',
        "\u00e9",
        "\U0001f600",
    ),
)
_MARKS: Final = (
    *(": ", ":", "- ", "? ", "\n", "\n\n", "  ", "\t", "\r", "\r\n", ", ", "#", " # x", "|", "|+2\n", ">-\n", '"', "'"),
    *(
        "{",
        "}",
        "[",
        "]",
        "[]",
        "{}",
        "[[",
        "{? ",
        "&a ",
        "*a",
        "*a : ",
        "&a &b ",
        "<<: *a\n",
        "<<: [*a, *a]\n",
        "!",
        "! ",
    ),
    *(
        "!!python/object/apply:os.system [id]",
        "!!int ",
        "!!str ",
        "!!map ",
        "!!binary ",
        "!t ",
        "!<x> ",
        "!!set ",
        "!%C3 ",
    ),
    *("---\n", "...\n", "--- ", "%YAML 1.1\n", "%YAML 1.2\n", "%TAG ! x\n", "%", "@", "`", "\x00", "\x07", "\x1b[31m"),
    *("\x85", "\u2028", "\ufeff", "\ufffe", "\x7f", "\u202e", "\ud7ff", "\\", '"\\', '"\\x', "'''", "~~", ".", "..."),
)
_TOKENS: Final = (
    *(text.encode() for text in (*_WORDS, *_MARKS)),
    *(b"\xff\xfe", b"\xfe\xff", b"\xef\xbb\xbf", b"\xc3", b"\xed\xa0\x80", b"\xf8", b"\x80", b"a\x00b\x00"),
)

_places = st.integers(0, 2**16)
_tokens = st.sampled_from(_TOKENS)


def _cut(source: bytes, place: int, other: int, token: bytes, most: int) -> bytes:
    start, end = _span(source, place, other, most)
    return source[:start] + source[end:]


def _doubled(source: bytes, place: int, other: int, token: bytes, most: int) -> bytes:
    start, end = _span(source, place, other, most)
    return source[:end] + source[start:end] + source[end:]


def _moved(source: bytes, place: int, other: int, token: bytes, most: int) -> bytes:
    start, end = _span(source, place, other, most)
    rest = source[:start] + source[end:]
    target = other % (len(rest) + 1)
    return rest[:target] + source[start:end] + rest[target:]


def _flipped(source: bytes, place: int, other: int, token: bytes, most: int) -> bytes:
    at = place % max(len(source), 1)
    return source[:at] + bytes([(source[at] if source else 0) ^ (1 << other % 8)]) + source[at + 1 :]


def _inserted(source: bytes, place: int, other: int, token: bytes, most: int) -> bytes:
    at = place % (len(source) + 1)
    return source[:at] + token + source[at:]


def _replaced(source: bytes, place: int, other: int, token: bytes, most: int) -> bytes:
    start, end = _span(source, place, other, most)
    return source[:start] + token + source[end:]


def _repeated(source: bytes, place: int, other: int, token: bytes, most: int) -> bytes:
    at = place % (len(source) + 1)
    return source[:at] + token * (other % 5000) + source[at:]


def _line_doubled(source: bytes, place: int, other: int, token: bytes, most: int) -> bytes:
    lines = source.splitlines(keepends=True) or [b""]
    at = place % len(lines)
    return b"".join([*lines[:at], lines[at] * (2 + other % 3), *lines[at + 1 :]])


def _indented(source: bytes, place: int, other: int, token: bytes, most: int) -> bytes:
    lines = source.splitlines(keepends=True) or [b""]
    at = place % len(lines)
    margin = (b" ", b"  ", b"\t", b"- ", b"? ", b"")[other % 6]
    return b"".join([*lines[:at], margin + lines[at].lstrip(b" ")[:], *lines[at + 1 :]])


def _spliced(source: bytes, place: int, other: int, token: bytes, most: int) -> bytes:
    seed = SEEDS[other % len(SEEDS)]
    return source[: place % (len(source) + 1)] + seed[other % (len(seed) + 1) :]


def _recoded(source: bytes, place: int, other: int, token: bytes, most: int) -> bytes:
    text = source.decode(errors="replace")
    encoding = ("utf-16", "utf-16-le", "utf-32", "utf-8-sig", "latin-1", "cp1252")[other % 6]
    return text.encode(encoding, errors="replace")


def _span(source: bytes, place: int, other: int, most: int) -> tuple[int, int]:
    start = place % (len(source) + 1)
    return start, min(len(source), start + 1 + other % most)


_CHANGES: Final = (
    *(_cut, _doubled, _moved, _flipped, _inserted, _inserted, _replaced, _replaced, _repeated),
    *(_line_doubled, _indented, _indented, _spliced, _recoded),
)
_changes = st.tuples(st.sampled_from(_CHANGES), _places, _places, _tokens, st.sampled_from([1, 4, 16, 200]))


def mutated(source: bytes, changes: list[tuple[Any, int, int, bytes, int]]) -> bytes:
    """Apply changes one after another."""
    for change, *arguments in changes:
        source = change(source, *arguments)
    return source


_scalars = st.sampled_from(_WORDS) | st.text(max_size=6) | st.floats().map(repr) | st.integers().map(str)
_before = st.sampled_from(["", "", "", "", "&a ", "&b ", "!!str ", "!!int ", "! ", "!x ", "&a !!map "])


def _collections(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    pairs = st.lists(st.tuples(_scalars | st.sampled_from(["<<", "? a", "*a", "*a "]), inner), max_size=4)
    items = st.lists(inner, max_size=4)
    return st.one_of(
        pairs.map(lambda pairs: "{" + ", ".join(f"{key}: {value}" for key, value in pairs) + "}"),
        items.map(lambda items: "[" + ", ".join(items) + "]"),
        pairs.map(lambda pairs: "".join(f"\n{key}: {value}" for key, value in pairs).replace("\n", "\n  ")),
        items.map(lambda items: "".join(f"\n- {item}" for item in items).replace("\n", "\n  ")),
        st.tuples(_before, inner).map("".join),
    )


_nodes = st.recursive(_scalars | st.sampled_from(["*a", "*b"]), _collections, max_leaves=15)


@st.composite
def _grammatical(draw: st.DrawFn) -> bytes:
    head = draw(st.sampled_from(["", "", "", "%YAML 1.2\n---\n", "\ufeff", "a: &a {b: 1}\nb: &b [*a, *a]\n", "# x\n"]))
    loss = draw(
        st.sampled_from(["loss: ", "loss:\n  type: mse\n  kwargs: ", "loss: {type: weighted_sum, kwargs: ", ""])
    )
    tail = draw(st.sampled_from(["\n", "", "}\n", "\n---\n", "\nmodel: *a\n", "\n...\n"]))
    return (head + loss + draw(_nodes) + tail).encode(errors="surrogatepass")


_TERMS: Final = b"loss:\n  type: weighted_sum\n  kwargs:\n    losses:\n"
_UNITS: Final = (*_TOKENS, b"[", b"{a: ", b"- ", b"? ", b"{? ", b"[{", b"!a ", b"&a", b"<<: ", b"a: ")
_WRONG_TERMS: Final = (b"{type: mse, kwargs: {a: 1}}", b"tokn_ce", b"mse", b"{weight: x}", b"1", b"{weigth: 1}")


def _levels(unit: bytes, many: int) -> bytes:
    width, levels = 1 + many % 12, 1 + many // 12 % 12
    lines = [b"l%d: &l%d [%s]" % (at, at, b", ".join([b"*l%d" % (at - 1)] * width)) for at in range(1, levels)]
    return b"\n".join([b"l0: &l0 {loss: mse}", *lines, b"loss: *l%d\n" % (levels - 1)])


def _nested_terms(unit: bytes, many: int) -> bytes:
    return b"loss: " + b"{type: weighted_sum, kwargs: {losses: [" * (many % 40) + b"mze, mse" + b"]}}" * (many % 40)


def _kwargs(unit: bytes, many: int) -> bytes:
    return b"loss:\n  type: mse\n  kwargs:\n" + b"".join(b"    %s%d: 1\n" % (unit, at) for at in range(many))


_BOMBS: Final[tuple[Callable[[bytes, int], bytes], ...]] = (
    *(_levels, _nested_terms, _kwargs),
    lambda unit, many: b"loss: " + unit * many,
    lambda unit, many: b"".join(b"%s%d: 1\n" % (unit, at) for at in range(many)),
    lambda unit, many: _kwargs((b"k", b"reductio", b"k" * 80)[many % 3], many),
    lambda unit, many: _TERMS + (b"      - %s\n" % unit) * many,
    lambda unit, many: _TERMS + (b"      - %s\n" % _WRONG_TERMS[many % 6]) * many,
    lambda unit, many: b"".join(b" " * at + b"a:\n" for at in range(many % 300)),
    lambda unit, many: b"%TAG ! x\n" * many + b"loss: mse\n",
)
_bombs = st.builds(
    lambda bomb, unit, many: bomb(unit, many), st.sampled_from(_BOMBS), st.sampled_from(_UNITS), st.integers(1, 4000)
)


FILES: Final[st.SearchStrategy[bytes]] = st.one_of(
    st.binary(max_size=300),
    st.lists(_tokens, max_size=30).map(b"".join),
    st.builds(mutated, st.sampled_from(SEEDS), st.lists(_changes, min_size=1, max_size=6)),
    st.builds(mutated, st.sampled_from(SEEDS), st.lists(_changes, min_size=1, max_size=2)),
    _grammatical(),
    st.builds(mutated, _grammatical(), st.lists(_changes, max_size=2)),
    _bombs,
)
"""Bytes of files; shrinks towards few of them."""

import math
import time
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tensafe import _yaml
from tensafe._yaml import Document, Mark, Path, YamlProblem, read_yaml
from tensafe._yaml.scalars import resolve

MIB = 2**20


def good(source: str | bytes) -> Document:
    document, problems = read_yaml(source if isinstance(source, bytes) else source.encode())
    assert problems == []
    assert document is not None
    return document


def bad(source: str | bytes) -> YamlProblem:
    _, problems = read_yaml(source if isinstance(source, bytes) else source.encode())
    assert len(problems) == 1, problems
    return problems[0]


def named(*rows: tuple[Any, ...]) -> list[Any]:
    """Cases from rows whose first cell is the id."""
    return [pytest.param(*cells, id=name) for name, *cells in rows]


# The meaning of scalars and tags


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[(text, None) for text in ("", "~", "null", "Null", "NULL", "!!null ''", "!!null")],
        *[(text, True) for text in ("true", "True", "TRUE", "!!bool 'true'")],
        *[(text, False) for text in ("false", "False", "FALSE")],
        *[(text, text) for text in ("no", "yes", "on", "off", "y", "NO", "tRUE", "nULL", "nan", "inf", "1e", "+", ".")],
        *[
            (text, text)
            for text in ("1_000", "12:30", "2020-01-01", "0b11", "0o8", "0xg", "+0x1", "-0o7", "\u0661", "<<")
        ],
        *[("'1'", "1"), ('"true"', "true"), ("''", ""), ("! 12", "12"), ("!!str 12", "12"), ("!!str", "")],
        *[("0", 0), ("-0", 0), ("+12", 12), ("-7", -7), ("0777", 777), ("0o17", 15), ("0x1F", 31), ("!!int '3'", 3)],
        *[(str(2**63), 2**63), ("9" * 100, 10**100 - 1)],
        *[
            ("1e-3", 0.001),
            ("1.", 1.0),
            (".5", 0.5),
            ("-1.5E+2", -150.0),
            ("1e3", 1000.0),
            ("!!float 3", 3.0),
            ("!!float 0x1F", 31.0),
        ],
        *[
            (".inf", math.inf),
            ("+.Inf", math.inf),
            ("-.INF", -math.inf),
            ("1e999", math.inf),
            ("!!float .inf", math.inf),
        ],
        *[("!<tag:yaml.org,2002:str> 1", "1"), ("!!map {}", {}), ("! []", []), ("!!seq [1]", [1])],
        *[("|\n  a\n  b", "a\nb"), (">-\n  a\n  b", "a b"), ('"\\x41\\u00e9\\n"', "Aé\n"), ("'it''s'", "it's")],
    ],
)
def test_values(text: str, value: object) -> None:
    found = good(f"v: {text}").data["v"]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("text", [".nan", ".NaN", ".NAN", "!!float '.nan'"])
def test_nan(text: str) -> None:
    assert math.isnan(good(f"v: {text}").data["v"])


@pytest.mark.parametrize(
    ("source", "data"),
    named(
        ("root-list", "- 1\n- - 2\n", [1, [2]]),
        ("root-scalar", "loss", "loss"),
        ("keys", "0: a\n1.5: b\ntrue: c\n~: d\n", {0: "a", 1.5: "b", True: "c", None: "d"}),
        ("explicit-keys", "? a\n? b\n: c\n", {"a": None, "b": "c"}),
        ("bom", b"\xef\xbb\xbfa: 1", {"a": 1}),
        ("crlf", b"a: 1\r\nb:\r\n  - 2\r\n", {"a": 1, "b": [2]}),
        ("cr", b"a: 1\rb: 2\r", {"a": 1, "b": 2}),
        ("yaml-1.1", "%YAML 1.1\n---\na: no", {"a": "no"}),
        ("yaml-1.2", "# c\n%YAML 1.2 # c\n--- # c\na: 1\n...\n# c\n", {"a": 1}),
        ("null-document", "--- null", None),
        ("tab-after-colon", "a:\tb", {"a": "b"}),
        ("tab-in-brackets", "a: [\n\t1,\n\t2]", {"a": [1, 2]}),
        ("alias", "a: &x [1]\nb: *x\n", {"a": [1], "b": [1]}),
        ("alias-key", "a: &x k\n*x : 1\n", {"a": "k", "k": 1}),
        ("anchor-again", "[&x 1, *x, &x 2, *x]", [1, 1, 2, 2]),
        ("merge", "a: &x {p: 1, q: 2}\nb: {p: 3, <<: *x}", {"a": {"p": 1, "q": 2}, "b": {"p": 3, "q": 2}}),
        ("merge-before-own", "b:\n  <<: {p: 1}\n  p: 3", {"b": {"p": 3}}),
        ("merge-list", "<<: [{p: 1}, {p: 2, q: 3}]", {"p": 1, "q": 3}),
        ("merge-nested", "- &x {p: 1}\n- &y {<<: *x, q: 2}\n- <<: *y", [{"p": 1}, {"p": 1, "q": 2}, {"p": 1, "q": 2}]),
        ("merge-tagged", "!!merge <<: {p: 1}", {"p": 1}),
        ("merge-empty", "<<: []", {}),
        ("merge-same-text", "'1': own\n<<: {1: merged}", {"1": "own"}),
        ("merge-quoted", "'<<': 1\n<<: {p: 2}", {"<<": 1, "p": 2}),
    ),
)
def test_data(source: str | bytes, data: object) -> None:
    assert good(source).data == data


def test_aliased_data_is_not_shared() -> None:
    data = good("a: &x {p: [1]}\nb: *x\nc: {<<: *x}\n").data
    data["a"]["p"].append(2)
    assert data["b"] == data["c"] == {"p": [1]}


# Places

PLACES = """\
base: &b {lr: 1, é: [ü, no]}
m:
  <<: *b
  lr: 0.5 # c
  t: &q !!str 'x'
  e:
l:
- *b
- *q
- p: 1
text: |-2 # c
   x
flow: 'a
  b'
? k
: !!map
  0x1: -
"""


@pytest.mark.parametrize(
    ("path", "key", "value"),
    [
        ((), None, (1, 1, 5)),
        (("base",), (1, 1, 5), (1, 10, 11)),
        (("base", "lr"), (1, 11, 13), (1, 15, 16)),
        (("base", "é"), (1, 18, 19), (1, 21, 22)),
        (("base", "é", 1), (1, 25, 27), (1, 25, 27)),
        (("m",), (2, 1, 2), (3, 3, 5)),
        (("m", "lr"), (4, 3, 5), (4, 7, 10)),
        (("m", "é"), (1, 18, 19), (1, 21, 22)),
        (("m", "é", 0), (1, 22, 23), (1, 22, 23)),
        (("m", "t"), (5, 3, 4), (5, 15, 18)),
        (("m", "e"), (6, 3, 4), (6, 5, 5)),
        (("l",), (7, 1, 2), (8, 1, 2)),
        (("l", 0), (8, 3, 5), (1, 10, 11)),
        (("l", 0, "lr"), (1, 11, 13), (1, 15, 16)),
        (("l", 1), (9, 3, 5), (5, 15, 18)),
        (("l", 2), (10, 3, 4), (10, 3, 4)),
        (("text",), (11, 1, 5), (11, 7, 10)),
        (("flow",), (13, 1, 5), (13, 7, 9)),
        (("k",), (15, 3, 4), (16, 3, 8)),
        (("k", "0x1"), (17, 3, 6), (17, 8, 9)),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "encode",
    [str.encode, lambda text: b"\xef\xbb\xbf" + text.encode(), lambda text: text.replace("\n", "\r\n").encode()],
    ids=["lf", "bom", "crlf"],
)
def test_places(encode: Any, path: Path, key: tuple[int, ...] | None, value: tuple[int, ...]) -> None:
    source = encode(PLACES.replace("0x1: -", "0x1: x"))
    document = good(source)
    assert document.keys.get(path) == key
    assert document.values[path] == value
    assert document.lines[document.values[path].line - 1] in source.decode()


def test_plain_texts_are_of_unquoted_values() -> None:
    document = good("a: no\nb: 'no'\nc: 0x1\nd:\ne: [on, {k: 1}]\nf: !!str 1\ng: |\n  x\nh: x\n  y")
    values = {(*("e",), 0): "on", ("e", 1, "k"): "1"}
    assert document.plain == {("a",): "no", ("c",): "0x1", ("d",): "", **values, ("f",): "1", ("h",): "x y"}


def test_the_end_of_a_file_is_on_its_last_line() -> None:
    assert good("? !!str\n  ").values["",] == Mark(2, 3, 3)


# What is refused

SYNTAX = named(
    ("glued-colon", "a: 1\nb:2\nc: 3\n", (2, 1), "a ':' with a space after it is missing"),
    ("no-colon", "a: 1\nb\nc: 3\n", (2, 1), "a ':' with a space after it is missing"),
    ("open-list", "a: [1, 2\nb: 3\n", (1, 4), "'[' is not closed, or a ',' is missing: reading stopped at line 2"),
    ("open-mapping", "a: {x: 1\n", (1, 4), "'{' is not closed"),
    ("wrong-bracket", "a: [1}", (1, 4), "'[' is not closed"),
    ("open-quote", "a: 'b\nc: d\n", (1, 4), "this quote is never closed"),
    ("open-double-quote", 'a: "b\n', (1, 4), "this quote is never closed"),
    ("quote-over-documents", "a: 'x\n---\n'", (1, 4), "before the '---' or '...' at line 2"),
    ("deeper-line", "a: 1\n  b: 2\n", (2, 4), "this ':' stands inside a value"),
    ("two-colons", "a: b: c\n", (1, 5), "quote the value"),
    ("shallower-line", "a:\n    b: 1\n  c: 2\n", (3, 3), "what starts at line 1: check its indentation"),
    ("list-beside-keys", "a: 1\n- b\n", (2, 1), "check its indentation"),
    ("keys-beside-list", "- a\nb: 1\n", (2, 1), "check its indentation"),
    ("text-after-quote", "a: 'it's'\n", (1, 8), "'s' stands after the end of a value"),
    ("text-after-root", "{a: 1} b", (1, 8), "only '---' or the end of the file can stand here, not 'b'"),
    ("no-dashes", "%YAML 1.2\na: 1", (2, 1), "only '---'"),
    ("inline-list", "a: - b\n", (1, 4), "a list cannot start here"),
    ("inline-key", "a: ? b\n", (1, 4), "a key cannot start with '?'"),
    ("escape", 'a: "C:\\dir"\n', (1, 7), "unknown escape in double quotes: write '\\\\'"),
    ("surrogate", 'a: "\\ud800"', (1, 7), "stands for no character"),
    ("short-escape", 'a: "\\xzz"', (1, 7), "lacks digits"),
    ("at", "a: @b", (1, 4), "'@' cannot start a value: quote"),
    ("backtick", "a: `b`", (1, 4), "'`' cannot start a value"),
    ("percent", "a: %b", (1, 4), "'%' cannot start a value"),
    ("glob", "a: *.py", (1, 4), "'*' starts the name of an anchor or alias"),
    ("ampersand", "a: & b", (1, 4), "'&' starts the name"),
    ("no-item", "a: [1, , 2]", (1, 8), "a value is missing here, before ','"),
    ("end-of-file", "[", (1, 2), "before the end of the file"),
    ("block-header", "a: |b\n  c\n", (1, 5), "'b' cannot stand here"),
    ("tag-form", "a: !<b c", (1, 4), "'!' starts a tag"),
    ("tag-octets", "a: !%ed%a0%80 b", (1, 2), "what comes after this is not valid YAML"),
    ("two-versions", "%YAML 1.2\n%YAML 1.2\n--- 1", (2, 1), "only one line"),
)
REFUSED = named(
    ("duplicate", "duplicate-key", "a: 1\nb: 2\na: 3", (3, 1), "duplicate key 'a'; first written at line 1", ("a",)),
    ("duplicate-quoted", "duplicate-key", "a: {b: 1, 'b': 2}", (1, 11), "'b'; first written at line 1", ("a", "b")),
    ("duplicate-number", "duplicate-key", "1: a\n0x1: b", (2, 1), "'0x1'; first written at line 1", ("0x1",)),
    ("duplicate-path", "duplicate-key", "1: a\n'1': b", (2, 1), "duplicate key '1'", ("1",)),
    ("duplicate-hash", "duplicate-key", "1: a\ntrue: b", (2, 1), "duplicate key 'true'", ("true",)),
    ("duplicate-merge", "duplicate-key", "<<: {a: 1}\n<<: {b: 1}", (2, 1), "duplicate key '<<'", ("<<",)),
    ("duplicate-null", "duplicate-key", "~: a\nnull: b", (2, 1), "duplicate key 'null'", ("null",)),
    ("tag", "unknown-tag", "a: [!foo 1]", (1, 5), "unknown tag '!foo': only !!str, !!int", ("a", 0)),
    ("tag-python", "unknown-tag", "!!python/object/apply:os.system [x]", (1, 1), "'!!python/object/apply:os.sy", ()),
    ("tag-on-list", "unknown-tag", "a: &x !!set {b, c}", (1, 7), "'!!set'", ("a",)),
    ("tag-binary", "unknown-tag", "a: !!binary 'eA=='", (1, 4), "'!!binary'", ("a",)),
    ("tag-date", "unknown-tag", "a: !!timestamp 2020-01-01", (1, 4), "'!!timestamp'", ("a",)),
    ("tag-handle", "unknown-tag", "a: &x !b!c d", (1, 7), "'!b!c'", ("a",)),
    ("tag-before-line", "unknown-tag", "a: &x\n  !b c", (1, 4), "'!b'", ("a",)),
    ("tag-int", "tag-mismatch", "a: !!int x", (1, 4), "'!!int' does not fit the text 'x'", ("a",)),
    ("tag-int-float", "tag-mismatch", "a: !!int 1.5", (1, 4), "'!!int' does not fit", ("a",)),
    ("tag-int-bool", "tag-mismatch", "a: !!int true", (1, 4), "'!!int' does not fit", ("a",)),
    ("tag-bool", "tag-mismatch", "a: !!bool yes", (1, 4), "does not fit the text 'yes'", ("a",)),
    ("tag-null", "tag-mismatch", "a: !!null x", (1, 4), "'!!null'", ("a",)),
    ("tag-map", "tag-mismatch", "a: !!map x", (1, 4), "'!!map' does not fit the text 'x'", ("a",)),
    ("tag-str", "tag-mismatch", "a: !!str [x]", (1, 4), "'!!str' does not fit a list", ("a",)),
    ("tag-seq", "tag-mismatch", "a: !!seq {x: 1}", (1, 4), "'!!seq' does not fit a mapping", ("a",)),
    ("key-list", "complex-key", "a:\n  [b, c]: d", (2, 3), "a list cannot be a key", ("a",)),
    ("key-template", "complex-key", "a: {{ b }}", (1, 5), "a mapping cannot be a key: quote it", ("a",)),
    ("key-alias", "complex-key", "a: &x [b]\n*x : c", (2, 1), "a list cannot be a key", ()),
    ("key-digits", "too-many-digits", f"{2**63}: a", (1, 1), "is beyond 64 bits", (str(2**63),)),
    ("alias", "unknown-alias", "a: [b, *c]", (1, 8), "no anchor '&c' is written before", ("a", 1)),
    ("alias-key", "unknown-alias", "*c : 1", (1, 1), "no anchor '&c'", ()),
    ("alias-forward", "unknown-alias", "a: *c\nb: &c 1", (1, 4), "no anchor '&c'", ("a",)),
    ("alias-merge", "unknown-alias", "<<: [*c]", (1, 6), "no anchor '&c'", ("<<", 0)),
    ("recursive", "recursive-alias", "a: &x [*x]", (1, 8), "'*x' stands inside its own anchor", ("a", 0)),
    ("recursive-merge", "recursive-alias", "a: &x\n  <<: *x", (2, 7), "'*x'", ("a", "<<")),
    ("merge-scalar", "bad-merge", "a:\n  <<: 1", (2, 7), "not a scalar", ("a", "<<")),
    ("merge-empty", "bad-merge", "<<:", (1, 4), "not a scalar", ("<<",)),
    ("merge-item", "bad-merge", "<<: [{a: 1}, 2]", (1, 14), "takes a mapping or a list of mappings", ("<<",)),
    ("merge-lists", "bad-merge", "<<: [[{a: 1}]]", (1, 6), "not a list here", ("<<",)),
    ("documents", "second-document", "a: 1\n---\nb: 2", (2, 1), "a second document starts here", ()),
    ("directive", "directive", "a: 1\n...\n%YAML 1.3\n---\n", (3, 1), "only '%YAML 1.2' and '%YAML 1.1'", ()),
    ("directive-tag", "directive", "%TAG ! x\n--- !a b", (1, 1), "starts with '%'", ()),
    ("tab", "tab", "a:\n\tb: 1\n", (2, 1), "a tab cannot indent", ("a",)),
    ("tab-second", "tab", "a:\n  b: 1\n\tc: 2\n", (3, 1), "a tab cannot indent", ("a", "b")),
    ("tab-after-spaces", "tab", "a: 1\n  \tb: 2", (2, 3), "a tab cannot indent", ()),
    ("tab-after-dash", "tab", "-\ta: 1", (1, 2), "a tab cannot indent", (0,)),
    ("tab-in-text", "tab", "a: |\n\tx\n", (2, 1), "a tab cannot indent", ("a",)),
    ("nul", "control-character", "a: 1\nb: é\0", (2, 5), "U+0000 is not allowed", ()),
    ("escape", "control-character", "\x1b[31m", (1, 1), 'write "\\u001b"', ()),
    ("line-separator", "control-character", "a: 'x\u2028'", (1, 6), "U+2028", ()),
    ("next-line", "control-character", "a: 1\x85b: 2", (1, 5), "U+0085", ()),
    ("inner-bom", "control-character", "\ufeff\ufeffa: 1", (1, 1), "U+FEFF", ()),
    ("latin-1", "not-utf8", b"a: 1\r\nb: \xc3\xa9\xe9", (2, 5), "0xe9 is not UTF-8", ()),
    ("cut-short", "not-utf8", b"\xef\xbb\xbfa: \xc3", (1, 4), "0xc3 is not UTF-8", ()),
    ("utf-16", "not-utf8", "a: 1".encode("utf-16"), (1, 1), "the file is UTF-16: save it as UTF-8", ()),
    ("utf-32", "not-utf8", "a: 1".encode("utf-32"), (1, 1), "the file is UTF-32", ()),
    ("nothing", "empty", "", (1, 1), "the file is empty", ()),
    ("only-bom", "empty", b"\xef\xbb\xbf", (1, 1), "the file is empty", ()),
    ("only-comments", "empty", "# a\n\n  # b\n", (1, 1), "the file is empty", ()),
    ("only-dashes", "empty", "---\n# a\n", (1, 1), "the file is empty", ()),
)


@pytest.mark.parametrize(("source", "place", "part"), SYNTAX)
def test_syntax(source: str, place: tuple[int, int], part: str) -> None:
    document, problems = read_yaml(source.encode())
    assert document is None
    assert [(problem.code, problem.mark[:2]) for problem in problems] == [("yaml-syntax", place)]
    assert part in problems[0].message


@pytest.mark.parametrize(("code", "source", "place", "part", "path"), REFUSED)
def test_refused(code: str, source: str | bytes, place: tuple[int, int], part: str, path: Path) -> None:
    problem = bad(source)
    assert (problem.code, problem.mark[:2], problem.path) == (code, place, path)
    assert part in problem.message


def test_a_missing_space_is_suggested() -> None:
    assert bad("a: 1\nlr:1e-3\nb: 2").suggestion == "lr: 1e-3"
    assert bad("a: 1\nlr\nb: 2").suggestion is None


@pytest.mark.parametrize(
    ("source", "data"),
    named(
        ("first-of-duplicates", "a: 1\na: {b: 2}\nc: 3", {"a": 1, "c": 3}),
        ("without-tag", "[!foo 1, !!int x, !!bool '1', !foo '2']", [1, "x", "1", "2"]),
        ("lost-alias", "a: *x\nb: 1", {"a": None, "b": 1}),
        ("recursive", "&x [1, *x]", [1, None]),
        ("without-complex-key", "{[a]: 1, b: 2}", {"b": 2}),
        ("rest-of-merge", "<<: [1, *x, {a: 1}]\nb: 2", {"a": 1, "b": 2}),
        ("first-document", "a: 1\n---\nb: 2", {"a": 1}),
        ("many-digits", f"a: {'1' * 101}", {"a": "1" * 101}),
    ),
)
def test_data_beside_problems(source: str, data: object) -> None:
    document, problems = read_yaml(source.encode())
    assert problems
    assert document is not None
    assert document.data == data


def test_problems_come_in_the_order_of_the_file() -> None:
    _, problems = read_yaml(b"a: *x\n[b]: 1\na: !c\nd: [\n")
    assert [problem.code for problem in problems] == [
        *("unknown-alias", "complex-key", "duplicate-key", "unknown-tag", "yaml-syntax")
    ]


@pytest.mark.parametrize(
    "source",
    [
        *[f"a: !{'x' * 999} 1", f"a: *{'x' * 999}", f"a: !!int '{'x' * 999}'", f"a: !{'é' * 9}!x 1"],
        *["? " + "é\0".replace("\0", "\\0") * 99, f"'{chr(0x202E) * 99}': 1\n'{chr(0x202E) * 99}': 2"],
        *[f"{'1' * 99}: 1", f"a: &{'x' * 999} [*{'x' * 999}]", "a: 1\n" + "b" * 999 + ":" + "c" * 999 + "\nd: 1"],
    ],
)
def test_a_sentence_is_short_and_printable(source: str) -> None:
    for problem in read_yaml(source.encode())[1]:
        assert len(problem.message) < 200
        assert problem.message.isprintable()
        assert len(problem.suggestion or "") < 200


# Caps and hostile files


@pytest.mark.parametrize(
    ("code", "within", "beyond"),
    named(
        ("depth", "too-deep", "[" * 50 + "]" * 50, "[" * 51 + "]" * 51),
        ("block-depth", "too-deep", "- " * 50 + "x", "- " * 51 + "x"),
        (
            "alias-depth",
            "too-deep",
            "- &x " + "[" * 48 + "]" * 48 + "\n- - *x",
            "- &x [[]]\n- " + "[" * 48 + "*x" + "]" * 48,
        ),
        ("nodes", "too-large", "- a\n" * 49_999, "- a\n" * 50_000),
        ("bytes", "too-large", "#" * (MIB - 2) + "\na", "#" * (MIB - 1) + "\na"),
        ("digits", "too-many-digits", "1" * 100, "1" * 101),
        ("fraction", "too-many-digits", "0." + "1" * 98, "0." + "1" * 99),
        ("hexadecimal", "too-many-digits", "0x" + "f" * 98, "0x" + "f" * 99),
        (
            "aliases",
            "too-many-aliases",
            "- &x [" + "a, " * 997 + "]\n" + "- *x\n" * 49,
            "- &x [" + "a, " * 997 + "]\n" + "- *x\n" * 51,
        ),
        (
            "long-aliases",
            "too-many-aliases",
            "- &x " + "a" * 2**16 + "\n- *x\n- *x",
            "- &x " + "a" * 2**16 + "\n" + "- *x\n" * 769,
        ),
    ),
)
def test_caps(code: str, within: str, beyond: str) -> None:
    good(within)
    assert bad(beyond).code == code


def test_too_many_problems() -> None:
    document, problems = read_yaml(b"- *a\n" * 2000)
    assert document is None
    assert [problem.code for problem in problems[-2:]] == ["unknown-alias", "too-many-problems"]
    assert len(problems) == 1001


def laughs(item: str) -> str:
    return f"a0: &a0 {item}\n" + "".join(f"a{n}: &a{n} [{f'*a{n - 1},' * 9}]\n" for n in range(1, 30))


def colliding() -> str:
    """Integers of one and the same hash."""
    return "".join(f"{n * (2**61 - 1)}: 1\n" for n in range(1, 24_000))


HOSTILE = {
    "open-lists": "[" * MIB,
    "open-mappings": "{" * MIB,
    "open-pairs": "{a: " * (MIB // 4),
    "flat-list": "[" + "a," * (MIB // 2 - 1),
    "colons": "a: " * (MIB // 3),
    "dashes": "- " * (MIB // 2),
    "questions": "? " * (MIB // 2),
    "question-lines": "?\n" * (MIB // 2),
    "bangs": "!" * MIB,
    "percents": "%" * MIB,
    "percent-lines": "%\n" * (MIB // 2),
    "tag-directives": "".join(f"%TAG !{n:x}! x\n" for n in range(60_000)),
    "late-tag-directives": "a\n...\n" + "".join(f"%TAG !{n:x}! x\n" for n in range(60_000)),
    "long-tag-prefix": "%TAG ! " + "x" * (MIB // 2) + "\n---\n[" + "!a," * (MIB // 8) + "]",
    "documents": "--- a\n" * (MIB // 6),
    "open-quote": 'a: "' + "x" * (MIB - 4),
    "open-quote-lines": "a: '" + "x\n" * (MIB // 2 - 2),
    "long-plain": "a: " + "x " * (MIB // 2 - 2),
    "long-digits": "a: " + "1" * (MIB - 3),
    "long-comment": "#" * MIB,
    "blank-lines": "\n" * MIB,
    "tabs": "a: b\n" + "\t" * (MIB - 5),
    "bad-tags": "[" + "!a," * (MIB // 3 - 1),
    "unknown-aliases": "- *a\n" * (MIB // 5),
    "anchors": "".join(f"- &a{n} x\n" for n in range(10**5))[:MIB],
    "anchor-chain": "- &a0 [x]\n" + "".join(f"- &a{n} [*a{n - 1}]\n" for n in range(1, 10_000)),
    "laughs": laughs("[x, x]"),
    "laughs-empty": laughs("''"),
    "merges": "b: &b {"
    + ",".join(f"k{n}: 1" for n in range(20_000))
    + "}\n"
    + "".join(f"m{n}: {{<<: *b}}\n" for n in range(999)),
    "merge-lists": "b: &b {a: 1}\nc: {<<: [" + "*b," * 14_000 + "]}",
    "duplicates": "a: 1\n" * 24_000,
    "colliding-hashes": colliding(),
    "deep-keys": "".join(f"{' ' * n}a{n}:\n" for n in range(49))
    + "".join(f"{' ' * 49}k{n}: 1\n" for n in range(9_000)),
    "late-control": "é" * (MIB // 2 - 2) + "\0",
}


@pytest.mark.parametrize("source", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_files_are_read_in_two_seconds(source: str) -> None:
    encoded = source.encode()
    assert len(encoded) <= MIB
    start = time.process_time()
    read_yaml(encoded)
    assert time.process_time() - start < 2


# Any input at all

PIECES = (
    *(
        "a",
        "b: ",
        "k: v\n",
        "- ",
        "- x\n",
        "? ",
        ": ",
        "\n",
        "\n  ",
        "\n    ",
        " ",
        "\t",
        "\r",
        "\r\n",
        "[",
        "]",
        "{",
        "}",
    ),
    *(
        ",",
        "&a ",
        "*a",
        "x: &a ",
        "<<: ",
        "<<: *a\n",
        "!!merge <<: ",
        "!!str ",
        "!!int ",
        "!!float ",
        "!!null ",
        "!!map ",
        "!!seq ",
        "!foo ",
        "!",
    ),
    *("!<x>", "!a!b", "!%ed%a0%80 ", "|", "|-\n  ", ">", "'", '"', "'s'", '"q"', "\\", "\\x41", "#", " # c", "---\n"),
    *(
        "...\n",
        "%",
        "%YAML 1.1\n",
        "%TAG ! x\n",
        "@",
        "`",
        "1",
        "1e-3",
        "0x1F",
        ".nan",
        "true",
        "~",
        "é",
        "\u2028",
        "\ufeff",
        "\0",
    ),
)
SOURCES = st.one_of(
    st.binary(),
    st.text().map(str.encode),
    st.lists(st.sampled_from(PIECES), max_size=15).map(lambda p: "".join(p).encode()),
)
LOADERS = pytest.mark.parametrize("loader", [_yaml._LOADER, yaml.SafeLoader], ids=["default", "python"])


def leaves(data: Any) -> Iterator[object]:
    """The data, and all that is in it."""
    yield data
    if isinstance(data, (dict, list)):
        for item in data.values() if isinstance(data, dict) else data:
            yield from leaves(item)


def assert_sound(source: bytes) -> None:
    document, problems = read_yaml(source)
    marks = [problem.mark for problem in problems]
    assert marks == sorted(marks)
    if document is None:
        assert problems
        return
    assert set(document.values) == {(), *document.keys}
    assert set(document.plain) <= set(document.values)
    assert len(list(leaves(document.data))) == len(document.values)
    for mark in (*marks, *document.keys.values(), *document.values.values()):
        assert 1 <= mark.column <= mark.end_column <= len(document.lines[mark.line - 1]) + 1


@LOADERS
@settings(max_examples=100, deadline=None)
@given(source=SOURCES)
def test_any_input_is_read_or_refused(loader: type, source: bytes) -> None:
    with mock.patch.object(_yaml, "_LOADER", loader):
        assert_sound(source)


@LOADERS
@pytest.mark.parametrize(("code", "source", "place", "part", "path"), REFUSED)
def test_the_python_parser_refuses_the_same(
    loader: type, code: str, source: str | bytes, place: Any, part: str, path: Path
) -> None:
    with mock.patch.object(_yaml, "_LOADER", loader):
        assert bad(source).code == code


def stays_text(text: str) -> bool:
    """Whether no rule of YAML 1.2 makes a number of a text that PyYAML writes without quotes."""
    return resolve(text, None, plain=True).value == text


TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\x85\u2028\u2029\ufeff"), max_size=20).filter(
    stays_text
)
SCALARS = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | TEXTS
DATA = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4), max_leaves=12
)


@pytest.mark.parametrize("flow", [False, True, None], ids=["block", "flow", "mixed"])
@pytest.mark.parametrize("style", [None, '"'], ids=["plain", "tagged"])
@settings(max_examples=40, deadline=None)
@given(data=DATA)
def test_what_pyyaml_writes_is_read_back(style: str | None, flow: bool | None, data: object) -> None:
    source = yaml.safe_dump(data, default_style=style, default_flow_style=flow, allow_unicode=True)
    assert good(source).data == data


def starts(node: yaml.Node, path: Path = ()) -> Iterator[tuple[Path, tuple[int, int]]]:
    """Where PyYAML says that each scalar and list starts."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield from starts(value, (*path, key.value))
        return
    yield path, (node.start_mark.line + 1, node.start_mark.column + 1)
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from starts(item, (*path, index))


@pytest.mark.parametrize("flow", [False, True, None], ids=["block", "flow", "mixed"])
@settings(max_examples=40, deadline=None)
@given(data=DATA)
def test_places_agree_with_pyyaml(flow: bool | None, data: object) -> None:
    source = yaml.safe_dump(data, default_flow_style=flow)
    node = yaml.compose(source, Loader=yaml.SafeLoader)
    assert node is not None
    values = good(source).values
    for path, start in starts(node):
        assert values[path][:2] == start

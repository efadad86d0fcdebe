"""Read a YAML file into plain data, keeping the place of every key and value.

PyYAML's loaders keep the last of two equal keys, expand alias bombs, recurse as deep as the file tells them to and
forget where things stood. So only its events are used, which libyaml makes one at a time: a first pass builds a tree of
nodes with marks, reports what is wrong and stops at a cap; a second pass copies the tree out into plain data.
"""

import re
from typing import Any, Final, Literal, NamedTuple, NoReturn, cast

import yaml

from tensafe._yaml_scalars import CORE, MAX_SHOWN, Resolved, Scalar, misfit, resolve, shown

Path = tuple[str | int, ...]

# Without libyaml the events come from Python code, some fifteen times slower, hence the smaller file.
MAX_BYTES: Final = 2**20 if yaml.__with_libyaml__ else 2**15
MAX_DEPTH: Final = 50
MAX_NODES: Final = 50_000
MAX_PROBLEMS: Final = 1_000

_LOADER: type[yaml.SafeLoader | yaml.CSafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
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
_PROPERTIES: Final = re.compile(r"(?:[&!]\S*[ \t]+(?=[^\s#]))*")
_TAGS: Final = {"mapping": (None, "!", CORE + "map"), "list": (None, "!", CORE + "seq")}
_MERGE: Final = object()  # stands for the key `<<`, which differs from the text "<<"

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
_TAG: Final = re.compile(r"!(?:<[^>\s]*>|[^\s,\[\]{}]*)")
_GLUED: Final = re.compile(r"([\w.-]{1,60}):(\S[^\n]{0,60})")
_STRAY: Final = ("expected key", "<block end>", "'-' indicator")


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


class Document(NamedTuple):
    """Plain data and where it came from.

    `keys` tells where the last part of a path is written, be it a key or the start of a list item; `values` where the
    value is written, `()` being the root. So `- *a` has its key at the alias, its value and all below at the anchor,
    and a merged key has both at the anchor. `plain` keeps the text of each value that stands without quotes.
    """

    data: Any
    keys: dict[Path, Mark]
    values: dict[Path, Mark]
    plain: dict[Path, str]
    lines: list[str]


def read_yaml(source: bytes) -> tuple[Document | None, list[YamlProblem]]:
    r"""Read one YAML document by the rules of YAML 1.2; whatever the file holds, nothing is raised.

    Args:
        source: The bytes of the file.

    Returns:
        The document, or None when it could not be read to its end, and the problems in the order of the file. A file
        is good only without problems. A document beside problems is as complete as can be (the first of equal keys,
        None for what could not be read), so that a caller can go on to look for other mistakes.

    >>> document, problems = read_yaml(b"loss:\n  beta: 1e-1\n  beta: 2\n")
    >>> document.data, document.keys["loss", "beta"]
    ({'loss': {'beta': 0.1}}, Mark(line=2, column=3, end_column=7))
    >>> problems[0].mark.line, problems[0].message
    (3, "duplicate key 'beta'; first written at line 2")
    """
    try:
        builder = _Builder(_decode(source))
    except _RefusedError as refused:
        return None, [refused.problem]
    try:
        root = _compose(builder)
    except _RefusedError as refused:
        builder.problems.append(refused.problem)
        root = None
    problems = sorted(builder.problems, key=lambda problem: problem.mark)
    return _copy_out(root, builder.lines) if root else None, problems


class _RefusedError(Exception):
    """Reading cannot go on, or would take too long."""

    def __init__(self, code: str, path: Path, mark: Mark, message: str, suggestion: str | None = None) -> None:
        super().__init__(message)
        self.problem = YamlProblem(code, path, mark, message, suggestion)


class _Node:
    """A value as it is written, once however many aliases point to it."""

    __slots__ = ("entries", "height", "kind", "mark", "plain", "size", "text", "value")

    def __init__(self, kind: Literal["scalar", "list", "mapping", "lost"], mark: Mark) -> None:
        self.kind: Final = kind  # "lost" stands for an alias that leads nowhere, which is reported already
        self.mark = mark
        self.size = 0  # keys and values in it with its aliases copied out; 0 until its end is read
        self.height = 0  # levels of lists and mappings in it, itself included
        self.value: Scalar = None
        self.text = ""
        self.plain = False
        self.entries: list[_Entry] = []


class _Entry(NamedTuple):
    """An item of a list or a pair of a mapping; `part` is what its path ends with."""

    key: Scalar
    part: str | int
    mark: Mark
    node: _Node


class _Key(NamedTuple):
    """A key whose value is still to come."""

    value: Scalar
    text: str
    mark: Mark
    role: Literal["pair", "merge", "dropped"]


class _Open:
    """A list or mapping whose end is still to come."""

    __slots__ = ("before", "key", "node", "seen", "sources")

    def __init__(self, node: _Node, before: int) -> None:
        self.node = node
        self.before = before
        self.key: _Key | None = None
        self.seen: dict[object, Mark] = {}  # by value and by text: keys must differ in the data and in the paths
        self.sources: list[_Node] = []

    def part(self) -> Path:
        if self.node.kind == "list":
            return (len(self.node.entries),)
        return (self.key.text,) if self.key else ()


class _Builder:
    """Makes the tree of nodes from events, on a stack of its own instead of Python's."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.lines = text.split("\n")
        self.problems: list[YamlProblem] = []
        self.root: _Node | None = None
        self.read_to = 0
        self._stack: list[_Open] = []
        self._anchors: dict[str | None, _Node] = {}  # all that have none go to None, where no alias finds them
        self._count = 0
        self._copied = 0

    def feed(self, event: yaml.Event) -> None:
        self.read_to = cast("yaml.Mark", event.end_mark).index
        match event:
            case yaml.ScalarEvent():
                node = self._scalar(event)
                self._place(node, node.mark)
            case yaml.AliasEvent():
                mark = self.token(event)
                self._place(self._alias(str(event.anchor), mark), mark)
            case yaml.CollectionStartEvent():
                self._open(event)
            case yaml.CollectionEndEvent():
                self._close()
            case _:
                pass

    def report(self, code: str, mark: Mark, message: str, *key: str) -> None:
        if len(self.problems) == MAX_PROBLEMS:
            self.refuse("too-many-problems", mark, f"reading stops here, after {MAX_PROBLEMS} problems")
        self.problems.append(YamlProblem(code, (*self._path(), *key), mark, message))

    def refuse(self, code: str, mark: Mark, message: str, suggestion: str | None = None) -> NoReturn:
        raise _RefusedError(code, self._path(), mark, message, suggestion)

    def token(self, event: yaml.Event) -> Mark:
        """Give the place of an event, less the anchor and the tag that stand before it on its line."""
        start, end = cast("yaml.Mark", event.start_mark), cast("yaml.Mark", event.end_mark)
        line, column = start.line, start.column
        if start.index == len(self.text):  # the parser gives the end of the file a line of its own
            return _point(self.text, start.index)
        if properties := _PROPERTIES.match(self.text, start.index, end.index):
            column += len(properties[0])
        if end.line == line:
            return Mark(line + 1, column + 1, end.column + 1)
        rest = self.lines[line][column:].rstrip()
        if not isinstance(event, yaml.ScalarEvent) or event.style in ("|", ">"):
            rest = rest.split(maxsplit=1)[0]
        return Mark(line + 1, column + 1, column + 1 + len(rest))

    def tag(self, start: object) -> Mark:
        """Give the place of the first tag after a parser's mark on its line, or the mark's place if none is there."""
        place = cast("yaml.Mark", start)
        found = _TAG.search(self.lines[place.line], place.column)
        first, end = found.span() if found else (place.column, place.column + 1)
        return Mark(place.line + 1, first + 1, end + 1)

    def _path(self) -> Path:
        return tuple(part for frame in self._stack for part in frame.part())

    def _scalar(self, event: yaml.ScalarEvent) -> _Node:
        node = _Node("scalar", self.token(event))
        node.text, node.plain = event.value, not event.style
        merge = node.text == "<<" and event.tag == CORE + "merge"  # some programs write this tag before each `<<`
        resolved = resolve(node.text, None if merge else event.tag, plain=node.plain)
        node.value = resolved.value
        node.size = 1 + len(node.text) // 1024  # a long text is more than one node, lest aliases multiply it
        self._spend(node.size, node.mark)
        self._complain(resolved, self.tag(event.start_mark) if event.tag else node.mark)
        self._anchors[event.anchor] = node
        return node

    def _alias(self, name: str, mark: Mark) -> _Node:
        node = self._anchors.get(name)
        size = node.size if node else 0
        self._copied += size
        self._spend(size or 1, mark)
        if node is None:
            self.report("unknown-alias", mark, f"no anchor {shown('&' + name)} is written before this alias")
        elif not size:
            self.report("recursive-alias", mark, f"the alias {shown('*' + name)} stands inside its own anchor")
        else:
            self._limit_depth(node.height, mark)
            return node
        return _Node("lost", mark)

    def _open(self, event: yaml.CollectionStartEvent) -> None:
        mark = self.token(event)
        node = _Node("mapping" if isinstance(event, yaml.MappingStartEvent) else "list", mark)
        node.height = 1
        self._limit_depth(node.height, mark)
        if event.tag not in _TAGS[node.kind]:
            self._complain(misfit(str(event.tag), f"a {node.kind}"), self.tag(event.start_mark))
        self._anchors[event.anchor] = node
        self._stack.append(_Open(node, self._count))
        self._spend(1, mark)

    def _close(self) -> None:
        frame = self._stack.pop()
        node = frame.node
        for entry in (entry for source in frame.sources for entry in source.entries):
            if entry.key not in frame.seen and entry.part not in frame.seen:
                frame.seen[entry.key] = frame.seen[entry.part] = entry.mark
                node.entries.append(entry)
        node.size = self._count - frame.before
        self._place(node, node.mark)

    def _place(self, node: _Node, mark: Mark) -> None:
        """Put a finished node, which stands or is pointed to at `mark`, into the innermost open collection."""
        if not self._stack:
            self.root = node
            return
        frame = self._stack[-1]
        owner = frame.node
        owner.height = max(owner.height, node.height + 1)
        if owner.kind == "list":
            index = len(owner.entries)
            owner.entries.append(_Entry(index, index, mark, node))
        elif frame.key is None:
            frame.key = self._key(frame, node, mark)
        else:
            self._pair(frame, frame.key, node, mark)
            frame.key = None

    def _key(self, frame: _Open, node: _Node, mark: Mark) -> _Key:
        if frame.node.mark.column == frame.node.mark.end_column:  # a block mapping has no token of its own
            frame.node.mark = mark
        if node.kind == "scalar":
            return self._scalar_key(frame, node, mark)
        if node.kind != "lost":
            self.report("complex-key", mark, f"a {node.kind} cannot be a key: quote it if it is text")
        return _Key(None, "?", mark, "dropped")

    def _scalar_key(self, frame: _Open, node: _Node, mark: Mark) -> _Key:
        value, text = node.value, node.text
        merge = node.plain and text == "<<"
        if isinstance(value, int) and value.bit_length() > 63:  # equal hashes for thousands of these are easy to find
            self.report("too-many-digits", mark, f"the key {shown(text)} is beyond 64 bits: quote it", text)
            value = text
        names: tuple[object, ...] = (_MERGE,) if merge else (value, text)
        first = next((frame.seen[name] for name in names if name in frame.seen), None)
        if first:
            self.report("duplicate-key", mark, f"duplicate key {shown(text)}; first written at line {first.line}", text)
            return _Key(value, text, mark, "dropped")
        frame.seen.update(dict.fromkeys(names, mark))
        return _Key(value, text, mark, "merge" if merge else "pair")

    def _pair(self, frame: _Open, key: _Key, node: _Node, mark: Mark) -> None:
        if key.role == "pair":
            frame.node.entries.append(_Entry(key.value, key.text, key.mark, node))
        if key.role != "merge":
            return
        sources = [(entry.node, entry.mark) for entry in node.entries] if node.kind == "list" else [(node, mark)]
        for source, place in sources:
            if source.kind == "mapping":
                frame.sources.append(source)
            elif source.kind != "lost":
                self.report("bad-merge", place, f"'<<' takes a mapping or a list of mappings, not a {source.kind} here")

    def _complain(self, resolved: Resolved, mark: Mark) -> None:
        if resolved.code:
            self.report(resolved.code, mark, resolved.message)

    def _spend(self, size: int, mark: Mark) -> None:
        self._count += size
        if self._count - self._copied > MAX_NODES:
            self.refuse("too-large", mark, f"the file holds more than {MAX_NODES} keys and values")
        if self._count > MAX_NODES:
            self.refuse("too-many-aliases", mark, f"with aliases the file holds more than {MAX_NODES} keys and values")

    def _limit_depth(self, height: int, mark: Mark) -> None:
        if len(self._stack) + height > MAX_DEPTH:
            self.refuse("too-deep", mark, f"lists and mappings are more than {MAX_DEPTH} deep here")


def _decode(source: bytes) -> str:
    r"""Give the text, `\n` its only line break, if a parser may see it."""
    if len(source) > MAX_BYTES:
        _reject("too-large", Mark(1, 1, 1), f"the file has {len(source)} bytes, and at most {MAX_BYTES} are read")
    for bom, name in _BOMS:
        if source.startswith(bom):
            _reject("not-utf8", Mark(1, 1, 1), f"the file is {name}: save it as UTF-8")
    source = source.removeprefix(b"\xef\xbb\xbf")
    try:
        text = _unify(source.decode())
    except UnicodeDecodeError as error:
        line, column, _ = _point(_unify(source[: error.start].decode()), error.start)
        message = f"the byte 0x{source[error.start]:02x} is not UTF-8: save the file as UTF-8"
        _reject("not-utf8", Mark(line, column, column + 1), message)
    if found := _INVISIBLE.search(text):
        escape = f'"\\u{ord(found[0]):04x}"'
        message = f"the invisible character U+{ord(found[0]):04X} is not allowed: remove it, or write {escape}"
        _reject("control-character", _point(text, found.start()), message)
    if found := _DIRECTIVE.search(text):
        message = "a line starts with '%', and of directives only '%YAML 1.2' and '%YAML 1.1' are read"
        _reject("directive", _point(text, found.start()), message)
    return text


def _reject(code: str, mark: Mark, message: str) -> NoReturn:
    raise _RefusedError(code, (), mark, message)


def _unify(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _point(text: str, index: int) -> Mark:
    """Give the place of one character, of no width at the end of a line."""
    before = text[:index]
    column = len(before) - before.rfind("\n")
    return Mark(before.count("\n") + 1, column, column + (text[index : index + 1] not in ("", "\n")))


def _compose(builder: _Builder) -> _Node:
    try:
        for event in yaml.parse(builder.text, Loader=_LOADER):
            if isinstance(event, yaml.DocumentStartEvent) and builder.root:
                message = "a second document starts here, and only one is read"
                builder.report("second-document", builder.token(event), message)
                break
            builder.feed(event)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        _refuse_syntax(builder, error)
    root = builder.root
    if root is None or (root.plain and not root.text and root.mark.column == root.mark.end_column):
        builder.refuse("empty", Mark(1, 1, 1), "the file is empty")
    return root


def _refuse_syntax(builder: _Builder, error: yaml.YAMLError | UnicodeDecodeError) -> NoReturn:
    """Say in our words where and why the parser gave up."""
    text = builder.text
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        # The parser takes a tag whose % escapes make no UTF-8, and PyYAML then fails to decode it.
        builder.refuse("yaml-syntax", _point(text, builder.read_to), "what comes after this is not valid YAML")
    said, index = f"{error.context or 'parser'}: {error.problem}", error.problem_mark.index
    start = error.context_mark.index if error.context_mark else index
    if (tab := _indenting_tab(text, said, index)) is not None:
        builder.refuse("tab", _point(text, tab), "a tab cannot indent: YAML takes only spaces for that")
    if "tag handle" in said:
        mark = builder.tag(error.problem_mark)
        tag = builder.lines[mark.line - 1][mark.column - 1 : mark.end_column - 1]
        builder.refuse("unknown-tag", mark, misfit(tag, "").message)
    if any(part in said for part in _STRAY):
        said = "stray line" if not _line_before(text, index).strip() else "stray text"
    at_start, sentence = next((row[1:] for row in _SENTENCES if row[0] in said), (False, "not valid YAML ({said})"))
    message = sentence.format(
        char=_name(text[index : index + 1]),
        start=_name(text[start : start + 1]),
        line=_point(text, index).line,
        from_line=_point(text, start).line,
        said=said[:MAX_SHOWN],
    )
    glued = _GLUED.match(text, start) if "expected ':'" in said else None
    suggestion = f"{glued[1]}: {glued[2]}" if glued else None
    builder.refuse("yaml-syntax", _point(text, start if at_start else index), message, suggestion)


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


def _copy_out(root: _Node, lines: list[str]) -> Document:
    """Copy a tree of nodes, some of them shared by aliases, into data that shares nothing."""
    top: list[Any] = [None]
    document = Document(None, {}, {}, {}, lines)
    todo: list[tuple[Path, Any, _Entry]] = [((), top, _Entry(0, 0, root.mark, root))]
    while todo:
        path, owner, (key, _, mark, node) = todo.pop()
        if path:
            document.keys[path] = mark
        document.values[path] = node.mark
        if node.plain:
            document.plain[path] = node.text
        owner[key] = data = _shell(node)
        todo.extend(((*path, entry.part), data, entry) for entry in reversed(node.entries))
    return document._replace(data=top[0])


def _shell(node: _Node) -> Any:
    """Give a scalar's value, or a collection with its keys in order and nothing in it yet."""
    if node.kind == "mapping":
        return dict.fromkeys(entry.key for entry in node.entries)
    return [None] * len(node.entries) if node.kind == "list" else node.value

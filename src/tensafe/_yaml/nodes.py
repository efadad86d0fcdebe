"""The tree that a first pass over the events builds: nodes with marks, and every problem on the way."""

import re
from typing import Final, Literal, NamedTuple, NoReturn, cast

import yaml

from .scalars import CORE, Resolved, Scalar, misfit, resolve, shown
from .text import Mark, Path, RefusedError, YamlProblem, point, tag_mark

__all__ = ["Builder", "Entry", "Node"]

MAX_DEPTH: Final = 50
MAX_NODES: Final = 50_000
MAX_PROBLEMS: Final = 1_000

_PROPERTIES: Final = re.compile(r"(?:[&!]\S*[ \t]+(?=[^\s#]))*")
_TAGS: Final = {"mapping": (None, "!", CORE + "map"), "list": (None, "!", CORE + "seq")}
_MERGE: Final = object()  # stands for the key `<<`, which differs from the text "<<"


class Node:
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
        self.entries: list[Entry] = []


class Entry(NamedTuple):
    """An item of a list or a pair of a mapping; `part` is what its path ends with."""

    key: Scalar
    part: str | int
    mark: Mark
    node: Node


class _Key(NamedTuple):
    """A key whose value is still to come."""

    value: Scalar
    text: str
    mark: Mark
    role: Literal["pair", "merge", "dropped"]


class _Open:
    """A list or mapping whose end is still to come."""

    __slots__ = ("before", "key", "node", "seen", "sources")

    def __init__(self, node: Node, before: int) -> None:
        self.node = node
        self.before = before
        self.key: _Key | None = None
        self.seen: dict[object, Mark] = {}  # by value and by text: keys must differ in the data and in the paths
        self.sources: list[Node] = []

    def part(self) -> Path:
        if self.node.kind == "list":
            return (len(self.node.entries),)
        return (self.key.text,) if self.key else ()


class Builder:
    """Makes the tree of nodes from events, on a stack of its own instead of Python's."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.lines = text.split("\n")
        self.problems: list[YamlProblem] = []
        self.root: Node | None = None
        self.read_to = 0
        self._stack: list[_Open] = []
        self._anchors: dict[str | None, Node] = {}  # all that have none go to None, where no alias finds them
        self._count = 0
        self._copied = 0

    def feed(self, event: yaml.Event) -> None:
        """Take the next event."""
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
        """Note a problem, with `key` when it is about a key that is not open yet, and read on."""
        if len(self.problems) == MAX_PROBLEMS:
            self.refuse("too-many-problems", mark, f"reading stops here, after {MAX_PROBLEMS} problems")
        self.problems.append(YamlProblem(code, (*self.path(), *key), mark, message))

    def refuse(self, code: str, mark: Mark, message: str) -> NoReturn:
        """Stop reading, for a reason that has to do with what is open now."""
        raise RefusedError(YamlProblem(code, self.path(), mark, message))

    def token(self, event: yaml.Event) -> Mark:
        """Give the place of an event, less the anchor and the tag that stand before it on its line."""
        start, end = cast("yaml.Mark", event.start_mark), cast("yaml.Mark", event.end_mark)
        line, column = start.line, start.column
        if start.index == len(self.text):  # the parser gives the end of the file a line of its own
            return point(self.text, start.index)
        if properties := _PROPERTIES.match(self.text, start.index, end.index):
            column += len(properties[0])
        if end.line == line:
            return Mark(line + 1, column + 1, end.column + 1)
        rest = self.lines[line][column:].rstrip()
        if not isinstance(event, yaml.ScalarEvent) or event.style in ("|", ">"):
            rest = rest.split(maxsplit=1)[0]
        return Mark(line + 1, column + 1, column + 1 + len(rest))

    def path(self) -> Path:
        """Give the path of the value that comes next, or that was cut short."""
        return tuple(part for frame in self._stack for part in frame.part())

    def _tag(self, event: yaml.Event) -> Mark:
        return tag_mark(self.lines, cast("yaml.Mark", event.start_mark))

    def _scalar(self, event: yaml.ScalarEvent) -> Node:
        node = Node("scalar", self.token(event))
        node.text, node.plain = event.value, not event.style
        merge = node.text == "<<" and event.tag == CORE + "merge"  # some programs write this tag before each `<<`
        resolved = resolve(node.text, None if merge else event.tag, plain=node.plain)
        node.value = resolved.value
        node.size = 1 + len(node.text) // 1024  # a long text is more than one node, lest aliases multiply it
        self._spend(node.size, node.mark)
        self._complain(resolved, self._tag(event) if event.tag else node.mark)
        self._anchors[event.anchor] = node
        return node

    def _alias(self, name: str, mark: Mark) -> Node:
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
        return Node("lost", mark)

    def _open(self, event: yaml.CollectionStartEvent) -> None:
        mark = self.token(event)
        node = Node("mapping" if isinstance(event, yaml.MappingStartEvent) else "list", mark)
        node.height = 1
        self._limit_depth(node.height, mark)
        if event.tag not in _TAGS[node.kind]:
            self._complain(misfit(str(event.tag), f"a {node.kind}"), self._tag(event))
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

    def _place(self, node: Node, mark: Mark) -> None:
        """Put a finished node, which stands or is pointed to at `mark`, into the innermost open collection."""
        if not self._stack:
            self.root = node
            return
        frame = self._stack[-1]
        owner = frame.node
        owner.height = max(owner.height, node.height + 1)
        if owner.kind == "list":
            index = len(owner.entries)
            owner.entries.append(Entry(index, index, mark, node))
        elif frame.key is None:
            frame.key = self._key(frame, node, mark)
        else:
            self._pair(frame, frame.key, node, mark)
            frame.key = None

    def _key(self, frame: _Open, node: Node, mark: Mark) -> _Key:
        if frame.node.mark.column == frame.node.mark.end_column:  # a block mapping has no token of its own
            frame.node.mark = mark
        if node.kind == "scalar":
            return self._scalar_key(frame, node, mark)
        if node.kind != "lost":
            self.report("complex-key", mark, f"a {node.kind} cannot be a key: quote it if it is text")
        return _Key(None, "?", mark, "dropped")

    def _scalar_key(self, frame: _Open, node: Node, mark: Mark) -> _Key:
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

    def _pair(self, frame: _Open, key: _Key, node: Node, mark: Mark) -> None:
        if key.role == "pair":
            frame.node.entries.append(Entry(key.value, key.text, key.mark, node))
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

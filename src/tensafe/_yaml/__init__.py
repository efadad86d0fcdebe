"""Read a YAML file into plain data, keeping the place of every key and value.

PyYAML's loaders keep the last of two equal keys, expand alias bombs, recurse as deep as the file tells them to and
forget where things stood. So only its events are used, which libyaml makes one at a time: a first pass builds a tree of
nodes with marks, reports what is wrong and stops at a cap; a second pass copies the tree out into plain data.
"""

from typing import Any, NamedTuple

import yaml

from .nodes import Builder, Entry, Node
from .text import Mark, Path, RefusedError, YamlProblem, decode, lines_of

__all__ = ["Document", "Mark", "Path", "YamlProblem", "lines_of", "read_yaml"]

_LOADER: type[yaml.SafeLoader | yaml.CSafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


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
        builder = Builder(decode(source))
    except RefusedError as refused:
        return None, [refused.problem]
    try:
        root = _compose(builder)
    except RefusedError as refused:
        builder.problems.append(refused.problem)
        root = None
    problems = sorted(builder.problems, key=lambda problem: problem.mark)
    return _copy_out(root, builder.lines) if root else None, problems


def _compose(builder: Builder) -> Node:
    try:
        for event in yaml.parse(builder.text, Loader=_LOADER):
            if isinstance(event, yaml.DocumentStartEvent) and builder.root:
                message = "a second document starts here, and only one is read"
                builder.report("second-document", builder.token(event), message)
                break
            builder.feed(event)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        from .syntax import syntax_problem  # only a failure needs it

        problem = syntax_problem(builder.text, error, builder.read_to)
        raise RefusedError(problem._replace(path=builder.path())) from None
    root = builder.root
    if root is None or (root.plain and not root.text and root.mark.column == root.mark.end_column):
        builder.refuse("empty", Mark(1, 1, 1), "the file is empty")
    return root


def _copy_out(root: Node, lines: list[str]) -> Document:
    """Copy a tree of nodes, some of them shared by aliases, into data that shares nothing."""
    top: list[Any] = [None]
    document = Document(None, {}, {}, {}, lines)
    todo: list[tuple[Path, Any, Entry]] = [((), top, Entry(0, 0, root.mark, root))]
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


def _shell(node: Node) -> Any:
    """Give a scalar's value, or a collection with its keys in order and nothing in it yet."""
    if node.kind == "mapping":
        return dict.fromkeys(entry.key for entry in node.entries)
    return [None] * len(node.entries) if node.kind == "list" else node.value

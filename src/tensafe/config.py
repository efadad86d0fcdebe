"""Config files: a training YAML to a validated config, with every mistake at its file, line and column.

A config file is data, not code: it may name registered losses, and dotted paths only as far as an allowlist given from
outside the file goes. Nothing here imports torch.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tensafe._yaml import Document, Mark, YamlProblem, lines_of, read_yaml
from tensafe.training.losses.errors import LossConfigError, Problem, dotted, near_miss, shorten
from tensafe.training.losses.guards import is_mapping
from tensafe.training.losses.resolve import check_spec
from tensafe.training.losses.spec import LossSpec, split_spec
from tensafe.training.losses.targets import Policy

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["ConfigError", "ConfigProblem", "TrainingConfig", "check_source", "load_config"]

_SECTION = "loss"
_MOST_NODES = 10_000
_MOST_PROBLEMS = 1_000
_YAML_1_1_BOOLEANS = {"y": "true", "yes": "true", "on": "true", "n": "false", "no": "false", "off": "false"}
_UNDERSCORED_NUMBER = re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?([eE][-+]?[0-9]+)?")


class ConfigProblem(NamedTuple):
    """One mistake in a config file.

    Attributes:
        file: Name of the file, as given.
        line: Line of the offending key or value, from 1.
        column: Column of its first character, from 1.
        path: Where in the file's data, such as `loss.kwargs.losses.1.weight`.
        code: Stable identifier of the kind of mistake.
        message: One sentence: what was expected and what was got.
        suggestion: The nearest fix, alone; None when there is none.
        source: The line of the file, for showing.
        width: Number of characters to underline.
    """

    file: str
    line: int
    column: int
    path: str
    code: str
    message: str
    suggestion: str | None
    source: str
    width: int

    def as_dict(self) -> dict[str, Any]:
        """Return the fields that tools read."""
        return {name: getattr(self, name) for name in self._fields if name not in {"source", "width"}}

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}:{self.column}"
        head = f"{where}: {self.path}: {self.message}" if self.path else f"{where}: {self.message}"
        if not self.source.strip():
            return head
        source, column = _window(self.source, self.column)
        caret = "^" * max(1, min(self.width, len(source) - column + 1))
        number = f"{self.line:>5}"
        return f"{head}\n{number} | {source}\n{' ' * len(number)} | {' ' * (column - 1)}{caret}"


class ConfigError(LossConfigError):
    """A config file has mistakes; the text shows each with its place, `config_problems` lists them."""

    code = "invalid-config-file"
    config_problems: tuple[ConfigProblem, ...] = ()


@dataclass(frozen=True)
class TrainingConfig:
    """A training config whose loss is validated.

    Attributes:
        loss: The `loss:` section; `resolve_loss(config.loss)` makes the loss.
        sections: The other sections as plain data, as they are in the file; also `config["name"]`.
    """

    loss: LossSpec
    sections: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def __getitem__(self, section: str) -> Any:
        return self.sections[section]


def load_config(path: str | Path, *, allow: Iterable[str] = ()) -> TrainingConfig:
    """Read and validate a training config.

    Args:
        path: A YAML 1.2 file with a `loss:` section: a mapping with `type`, `kwargs` and `inputs`, or a bare name.
        allow: Modules (with all beneath them), or exact `module:name` targets, that dotted paths in the file may
            import. By default the file can name registered losses only.

    Returns:
        The config; sections other than `loss` are kept as they are.

    Raises:
        ConfigError: The file has mistakes; all of them are listed, with line and column.
        OSError: The file cannot be read.
    """
    allowed = (allow,) if isinstance(allow, str) else tuple(allow)
    config, problems = check_source(Path(path).read_bytes(), str(path), Policy(allow=allowed))
    if config is None:
        raise _config_error(problems)
    return config


def check_source(source: bytes, file: str, policy: Policy) -> tuple[TrainingConfig | None, list[ConfigProblem]]:
    """Validate the bytes of a config file.

    Args:
        source: The bytes.
        file: What to call it in messages.
        policy: What its dotted paths may import.

    Returns:
        The config, or None with all mistakes in the order of the file.
    """
    document, yaml_problems = read_yaml(source)
    problems = [_from_yaml(problem, file, document, source) for problem in yaml_problems]
    if document is None:
        return None, problems
    unread = {problem.path for problem in yaml_problems}
    found = [problem for problem in _check_data(document, policy) if problem.loc not in unread]
    problems += [_locate(problem, document, file) for problem in found]
    if problems:
        return None, sorted(problems, key=lambda problem: (problem.line, problem.column))[:_MOST_PROBLEMS]
    spec = LossSpec.model_construct(**split_spec(document.data[_SECTION]).as_fields())
    sections = {name: section for name, section in document.data.items() if name != _SECTION}
    return TrainingConfig(spec, sections), []


def _check_data(document: Document, policy: Policy) -> list[Problem]:
    data = document.data
    if not is_mapping(data):
        return [Problem("invalid-value", (), f"expected a mapping with a {_SECTION} section, got {shorten(data)}")]
    if sum(path[:1] == (_SECTION,) for path in document.values) > _MOST_NODES:
        message = f"the section holds more than {_MOST_NODES} keys and values"
        return [Problem("too-large", (_SECTION,), message, on_key=True)]
    if _SECTION in data:
        return [problem.under(_SECTION) for problem in check_spec(data[_SECTION], policy)]
    close = next((key for key in data if isinstance(key, str) and near_miss(key, [_SECTION])), None)
    if close is not None:
        message = f"unknown section; did you mean {_SECTION}?"
        return [Problem("unknown-key", (close,), message, _SECTION, on_key=True)]
    return [Problem("missing-key", (_SECTION,), "required section is missing: it says what to train with", on_key=True)]


def _locate(problem: Problem, document: Document, file: str) -> ConfigProblem:
    path = problem.loc
    if path and path[-1] == "type" and isinstance(_value_at(document.data, path[:-1]), str):
        path = path[:-1]  # a bare name stands for its type
    problem = _with_yaml_advice(problem._replace(loc=path), document)
    return _placed(problem, path, _mark(problem, document), file, document.lines)


def _mark(problem: Problem, document: Document) -> Mark:
    """Return the place of the key or value; of the nearest key around it when it is missing."""
    path = problem.loc
    marks = document.keys if problem.on_key else document.values
    if path in marks:
        return marks[path]
    while path not in document.keys and path:
        path = path[:-1]
    return document.keys.get(path) or document.values[()]


def _value_at(data: Any, path: tuple[str | int, ...]) -> Any:
    for part in path:
        try:
            data = data[part]
        except (KeyError, IndexError, TypeError):
            return None
    return data


def _with_yaml_advice(problem: Problem, document: Document) -> Problem:
    """Say why YAML bit, where a word or a number reads differently in YAML 1.1."""
    text = document.plain.get(problem.loc)
    if text is None or problem.code != "invalid-value" or not isinstance(_value_at(document.data, problem.loc), str):
        return problem
    boolean = _YAML_1_1_BOOLEANS.get(text.lower())
    if boolean is not None:
        cure = problem.suggestion or boolean
        message = problem.message.partition("; did you mean")[0]
        return problem._replace(
            message=f"{message}; `{text}` is a boolean in YAML 1.1 and text in YAML 1.2: write {cure}", suggestion=cure
        )
    if "_" in text and _UNDERSCORED_NUMBER.fullmatch(text):
        cure = text.replace("_", "")
        message = f"{problem.message}; `{text}` is a number in YAML 1.1 and text in YAML 1.2: write {cure}"
        return problem._replace(message=message, suggestion=cure)
    return problem


def _from_yaml(problem: YamlProblem, file: str, document: Document | None, source: bytes) -> ConfigProblem:
    lines = document.lines if document else lines_of(source)
    return _placed(problem, problem.path, problem.mark, file, lines)


def _placed(
    problem: Problem | YamlProblem, path: tuple[str | int, ...], mark: Mark, file: str, lines: list[str]
) -> ConfigProblem:
    return ConfigProblem(
        file,
        mark.line,
        mark.column,
        dotted(path),
        problem.code,
        problem.message,
        problem.suggestion,
        _line(lines, mark.line),
        mark.end_column - mark.column,
    )


def _line(lines: list[str], number: int) -> str:
    return lines[number - 1] if 0 < number <= len(lines) else ""


def _window(source: str, column: int, width: int = 160) -> tuple[str, int]:
    """Return the part of a long line around a column, without control characters, and the column within it."""
    start = max(0, column - 1 - width // 2) if len(source) > width else 0
    part = source[start : start + width]
    return "".join(char if char.isprintable() else " " for char in part), column - start


def _config_error(problems: list[ConfigProblem]) -> ConfigError:
    shown = [str(problem) for problem in problems[:10]]
    if len(problems) > len(shown):
        shown.append(f"... and {len(problems) - len(shown)} more")
    error = ConfigError("\n".join(shown))
    first = problems[0]
    error.code = first.code
    error.hint = first.suggestion
    error.config_problems = tuple(problems)
    return error

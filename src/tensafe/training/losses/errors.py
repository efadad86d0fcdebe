"""The errors of tensafe.

```
TensafeError
├── LossConfigError   (ValueError)               a loss or its kwargs are described wrongly
│   ├── UnknownLossError  (LookupError)          no loss of that name or path
│   └── UnsafeTargetError                        a dotted path that must not be imported or called
├── LossInputError    (ValueError)               outputs or batch do not fit the tensors that the loss declares
├── LossTypeError     (TypeError)                something of the wrong kind was passed to tensafe itself
└── LossReturnError   (ValueError)               a loss returned something else than a LossReturn
```

Errors define no `__init__`: `torch.compile` can trace `raise` of a plain exception only, and keeps its text that way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = [
    "MOST_PROBLEMS",
    "Loc",
    "LossConfigError",
    "LossInputError",
    "LossReturnError",
    "LossTypeError",
    "Problem",
    "TensafeError",
    "UnknownLossError",
    "UnsafeTargetError",
    "config_error",
    "dotted",
    "key_name",
    "make_error",
    "missing_tensor",
    "near_miss",
    "near_misses",
    "shorten",
]

Loc = tuple[str | int, ...]
"""Where in a spec: keys, and list items by their index from 0."""

MOST_PROBLEMS = 100
"""How many mistakes of one loss, or of the losses nested in one, are looked for: each takes milliseconds to explain."""

_MOST_LINES = 10


class Problem(NamedTuple):
    """One mistake in a loss config.

    Attributes:
        code: Stable identifier of the kind of mistake, such as `unknown-kwarg`.
        loc: Path to the offending key or value, relative to what was validated.
        message: One sentence: what was expected and what was got.
        suggestion: The nearest fix, alone, such as `label_smoothing`; None when there is none.
        on_key: Whether the key is wrong rather than its value.
    """

    code: str
    loc: Loc
    message: str
    suggestion: str | None = None
    on_key: bool = False

    def under(self, *prefix: str | int) -> Problem:
        """Return the same problem, seen from `prefix` levels further out."""
        return self._replace(loc=(*prefix, *self.loc))


class TensafeError(Exception):
    """Root of every error that tensafe raises on purpose.

    Attributes:
        code: Stable identifier, such as `shape-mismatch`.
        loss: Name of the loss concerned, if known.
        loc: Path to the argument, key or tensor concerned.
        hint: The nearest fix, if there is one.
    """

    code: str = "error"
    loss: str | None = None
    loc: Loc = ()
    hint: str | None = None


class LossConfigError(TensafeError, ValueError):
    """A loss, its kwargs or its spec are described wrongly; `problems` lists every mistake found."""

    code = "invalid-config"
    problems: tuple[Problem, ...] = ()


class UnknownLossError(LossConfigError, LookupError):
    """No loss has this name, or nothing lies at this dotted path."""

    code = "unknown-loss"


class UnsafeTargetError(LossConfigError):
    """A dotted path leads to code that a loss spec may not import or call."""

    code = "unsafe-target"


class LossInputError(TensafeError, ValueError):
    """A tensor is missing, or has the wrong kind, rank, size or device."""

    code = "invalid-input"


class LossTypeError(TensafeError, TypeError):
    """An object of the wrong kind was given where a loss, a name or tensors were due."""

    code = "invalid-type"


class LossReturnError(TensafeError, ValueError):
    """A loss returned something else than its protocol promises."""

    code = "invalid-return"


ErrorT = TypeVar("ErrorT", bound=TensafeError)
ConfigErrorT = TypeVar("ConfigErrorT", bound=LossConfigError)


def make_error(
    kind: type[ErrorT], message: str, *, code: str, loss: str | None = None, loc: Loc = (), hint: str | None = None
) -> ErrorT:
    """Build an error; its text is `<loss>: <message> <hint>`."""
    text = message if loss is None else f"{loss}: {message}"
    if hint is not None:
        text = f"{text} {hint}"
    error = kind(text)
    error.code = code
    error.loss = loss
    error.loc = loc
    error.hint = hint
    return error


def config_error(
    problems: Sequence[Problem],
    *,
    loss: str | None,
    kind: type[ConfigErrorT] = LossConfigError,  # type: ignore[assignment]  # python/mypy#3737: generic defaults
) -> ConfigErrorT:
    """Build one error out of every problem found; one line each, at most ten."""
    lines = [f"{dotted(problem.loc)}: {problem.message}" if problem.loc else problem.message for problem in problems]
    if len(lines) > _MOST_LINES:
        rest = len(lines) - _MOST_LINES + 1
        lines = [*lines[: _MOST_LINES - 1], f"... and {rest} more"]
    head = "" if loss is None else f"{loss}: "
    error = kind(head + ("\n" + " " * len(head)).join(lines))
    first = problems[0]
    error.code = first.code
    error.loss = loss
    error.loc = first.loc
    error.hint = first.suggestion
    error.problems = tuple(problems)
    return error


def missing_tensor(*names: str) -> LossInputError:
    """Build what `compute` raises when it was given none of some optional tensors; the adapter adds what it found."""
    wanted = " or ".join(repr(name) for name in names)
    return make_error(LossInputError, f"{wanted} must be given.", code="missing-tensor", loc=(names[0],))


def dotted(loc: Loc) -> str:
    """Return a path as a config file's reader writes it: `kwargs.losses.1.type`."""
    parts = (str(part) for part in loc)
    return ".".join(part if part.isprintable() and 0 < len(part) <= 80 else shorten(part) for part in parts)


def key_name(key: object) -> str:
    """Return a key of a stranger's mapping as text for a path: itself if it is a string, else short."""
    return key if isinstance(key, str) else shorten(key)


def near_miss(word: str, candidates: Iterable[str]) -> str | None:
    """Return the candidate that `word` was most likely meant to be, or None."""
    import difflib  # only a failure needs it

    folded = {_fold(candidate): candidate for candidate in sorted(candidates, reverse=True)}
    if _fold(word) in folded:
        return folded[_fold(word)]
    matches = difflib.get_close_matches(_fold(word)[:100], list(folded), n=1, cutoff=0.6)
    return folded[matches[0]] if matches else None


def near_misses(word: str, candidates: Iterable[str], *, most: int) -> list[str]:
    """Return the candidates that are most like a word, however little, the likest first."""
    import difflib

    return difflib.get_close_matches(_fold(word)[:100], sorted(candidates), n=most, cutoff=0.0)


def _fold(word: str) -> str:
    return word.strip().lower().replace("-", "_").replace(" ", "_")


def shorten(value: object, limit: int = 80) -> str:
    """Return a short, one-line rendering of plain data; of anything else only its type, since a repr can be endless."""
    if value is None or isinstance(value, bool | int | float):
        text = repr(value) if not isinstance(value, int) or value.bit_length() < 256 else "a huge int"
    elif isinstance(value, str):
        text = repr(value[: limit + 1])
    else:
        text = type(value).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."

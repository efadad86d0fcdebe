"""What a loss says when it refuses a call, and whether a person can act on it."""

from __future__ import annotations

import re
import warnings
from typing import TYPE_CHECKING

from tensafe.training.losses.testing.outcome import fail

from .comparing import agree

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tensafe.training.losses.testing.trial import Trial

__all__ = ["has_word", "refusal_of", "require_clear", "require_short", "told", "uses"]

_MOST_BYTES = 2000
_MOST_LINES = 10
_TENSOR = re.compile(r"(?<![\w.])tensor\([\[\d.-]")


def refusal_of(trial: Trial) -> Exception | None:
    """Return the error that a call raises; None if it goes through, be it with a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            trial.call()
        except Exception as error:
            return error
    return None


def uses(trial: Trial, key: str) -> bool:
    """Whether a loss is another one, or none, without a tensor."""
    without = trial.without(key)
    return refusal_of(without) is not None or not agree(trial.call()["loss"], without.call()["loss"])


def require_clear(error: Exception, when: str, tells: Mapping[str, Iterable[str]], trial: Trial) -> None:
    """Fail unless the text of an error is short, says some things, and prints no tensor.

    Args:
        error: What was raised.
        when: On what occasion, for the report.
        tells: What it must say, each with the words of which any will do.
        trial: The call, for the report.
    """
    missing = [what for what, words in tells.items() if not any(has_word(str(error), word) for word in words)]
    if missing:
        fail(f"{when} it raised {told(error)}\nwhich does not name {', or '.join(missing)}", trial=trial)
    require_short(error, when, trial)


def require_short(error: Exception, when: str, trial: Trial) -> None:
    """Fail if the text of an error is too long to be read, or prints a tensor."""
    text = str(error)
    size, lines = len(text.encode()), len(text.splitlines())
    if size >= _MOST_BYTES or lines > _MOST_LINES:
        advice = f"Say it in at most {_MOST_LINES} lines: names, dtypes and shapes, no tensors or dicts of them."
        fail(f"{when} it raised a {type(error).__name__} of {size} bytes in {lines} lines", advice, trial)
    if _TENSOR.search(text):
        advice = "Print shapes and dtypes, never tensors: their values are the user's data, and there may be millions."
        fail(f"{when} it raised {told(error)}\nwhich prints a tensor", advice, trial)


def told(error: Exception) -> str:
    """Return an error in one short line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text if len(text) <= 300 else text[:297] + '...'}"


def has_word(text: str, word: str) -> bool:
    """Whether a text has a word, and not only as part of another."""
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text) is not None

"""How a check ends: it passes, it fails with what to do about it, or it does not apply."""

from __future__ import annotations

import unittest
from typing import TYPE_CHECKING, Literal, NoReturn, TypedDict

if TYPE_CHECKING:
    from .trial import Trial

__all__ = [
    "CheckFailedError",
    "CheckResult",
    "ConformanceError",
    "NotApplicable",
    "fail",
    "first_line",
    "in_words",
    "skip",
]

Status = Literal["passed", "failed", "skipped", "xfail", "xpass"]


class CheckFailedError(AssertionError):
    """A loss does not do what a check asks for.

    Attributes:
        advice: What to change in the loss.
        trial: The call that shows it, if it is not the last one that was made.
    """

    advice: str | None = None
    trial: Trial | None = None


class NotApplicable(unittest.SkipTest):
    """A check says nothing about this loss; pytest and unittest take it for a skip. Its text is the reason."""


class ConformanceError(AssertionError):
    """A loss failed checks; the text has all of them, `results` has everything that was tried.

    Attributes:
        results: The result of each check.
    """

    results: list[CheckResult]


class CheckResult(TypedDict):
    """What one check found.

    Attributes:
        check_name: Name of the check, such as `check_gradcheck`.
        group: `core`, `numerics`, `tooling` or `lifecycle`.
        status: `passed`, `failed`, `skipped`; `xfail` for a failure that was expected, `xpass` for one that was
            expected and did not come.
        exception: What was raised, with its traceback; the reason of a skip is its text.
        expected_to_fail: Whether the caller expected a failure.
        expected_to_fail_reason: Why, as the caller gave it.
        advice: What to change in a loss that failed.
        input: The call that failed, as Python that can be run; None where there was no call.
        seconds: How long it took.
    """

    check_name: str
    group: str
    status: Status
    exception: BaseException | None
    expected_to_fail: bool
    expected_to_fail_reason: str | None
    advice: str | None
    input: str | None
    seconds: float


def fail(message: str, advice: str | None = None, trial: Trial | None = None) -> NoReturn:
    """Fail the running check.

    Args:
        message: What was seen, and what was expected.
        advice: What to change in the loss; by default the first paragraph of the check's advice.
        trial: The call that shows it, if it is not the last one that was made.
    """
    failure = CheckFailedError(message)
    failure.advice = advice
    failure.trial = trial
    raise failure


def skip(reason: str) -> NoReturn:
    """Leave the running check, which says nothing about this loss, for a reason that a person can act on."""
    raise NotApplicable(reason)


def in_words(error: BaseException) -> str:
    """Return what was raised: what a check says of a loss as it is, of anything else its kind too."""
    return str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"


def first_line(error: BaseException) -> str:
    """Return the kind of an error, and the first line of what it says."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"

"""Running the checks: all at once, or one by one under pytest."""

from __future__ import annotations

import textwrap
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Literal
from unittest import SkipTest

import torch

from .catalogue import GROUPS, Check, find_check, select_checks
from .info import LossInfo
from .outcome import CheckResult, ConformanceError, in_words
from .subject import Subject
from .trial import LAST

if TYPE_CHECKING:
    import pytest

    from tensafe.training.losses.resolve import Spec

__all__ = [
    "assert_loss_conforms",
    "describe_failure",
    "loss_checks_generator",
    "parametrize_with_loss_checks",
    "run_check",
    "verdict",
]

Infos = LossInfo | Callable[[Any], LossInfo | None] | None
Failures = Mapping[str, str]
"""Names of checks that are expected to fail, each with the reason."""


def assert_loss_conforms(
    loss: Spec,
    *,
    info: LossInfo | None = None,
    groups: Iterable[str] | None = None,
    expected_failed_checks: Failures | None = None,
    on_fail: Literal["raise", "warn"] | None = "raise",
    on_skip: Literal["warn"] | None = "warn",
    callback: Callable[[CheckResult], None] | None = None,
) -> list[CheckResult]:
    """Run the checks on a loss, all of them whatever the first ones find.

    Args:
        loss: Whatever `resolve_loss` takes; each check resolves it anew.
        info: What the loss does not tell itself: see `LossInfo`.
        groups: Which checks to run: any of `core`, `numerics`, `tooling` and `lifecycle`; all by default.
        expected_failed_checks: Checks that are known to fail, and why. They are run all the same, and one that passes
            is a failure too: the list is out of date.
        on_fail: `raise` an error with every failure at the end, `warn` of each, or None to do neither.
        on_skip: `warn` of each check that does not apply, with the reason; or None.
        callback: Called with each result as it comes.

    Returns:
        The result of each check.

    Raises:
        ConformanceError: A check failed, or passed unexpectedly.
        TensafeError: The loss cannot be resolved, or there is no such check or group.

    Example:
        >>> results = assert_loss_conforms("mse", groups=["core"], on_skip=None)
        >>> {result["status"] for result in results} <= {"passed", "skipped"}
        True
    """
    Subject(loss, info).resolve()  # what cannot be resolved says so itself, once
    expected = _known(expected_failed_checks or {})
    checks = select_checks(groups)
    results: list[CheckResult] = []
    for check in checks:
        result = run_check(check, loss, info, expected.get(check.name))
        results.append(result)
        _tell(result, on_fail, on_skip)
        if callback is not None:
            callback(result)
    failed = [result for result in results if result["status"] in {"failed", "xpass"}]
    if failed and on_fail == "raise":
        error = ConformanceError(_report(Subject(loss, info).name, failed, verdict(results)))
        error.results = results
        raise error
    return results


def run_check(check: Check, loss: Spec, info: LossInfo | None = None, expected: str | None = None) -> CheckResult:
    """Run one check; whatever it raises is part of the result.

    Args:
        check: The check.
        loss: Whatever `resolve_loss` takes.
        info: See `LossInfo`.
        expected: Why it is expected to fail; None if it is not.
    """
    result = CheckResult(
        check_name=check.name,
        group=check.group,
        status="passed" if expected is None else "xpass",
        exception=None,
        expected_to_fail=expected is not None,
        expected_to_fail_reason=expected,
        advice=None,
        input=None,
        seconds=0.0,
    )
    LAST.set(None)
    start = time.perf_counter()
    try:
        _run(check, loss, info)
    except SkipTest as reason:
        result["status"], result["exception"] = "skipped", reason
    except Exception as error:
        result["status"], result["exception"] = "failed" if expected is None else "xfail", error
        trial = getattr(error, "trial", None) or LAST.get()
        result["advice"] = getattr(error, "advice", None) or check.advice
        result["input"] = None if trial is None else trial.as_python()
    result["seconds"] = time.perf_counter() - start
    return result


def loss_checks_generator(
    loss: Spec, *, info: LossInfo | None = None, groups: Iterable[str] | None = None
) -> Iterator[tuple[Spec, Callable[[Spec], None]]]:
    """Yield the loss with each check that there is for it; `check(loss)` raises where it fails.

    A check that does not apply raises `unittest.SkipTest`, which pytest knows too.
    """
    for check in select_checks(groups):
        yield loss, partial(_run, check, info=info)


def parametrize_with_loss_checks(
    losses: Sequence[Spec],
    *,
    info: Infos = None,
    groups: Iterable[str] | None = None,
    expected_failed_checks: Callable[[Any], Failures] | None = None,
    xfail_strict: bool = True,
) -> pytest.MarkDecorator:
    """Decorate a test with every check of every loss: `def test_conforms(loss, check): check(loss)`.

    Args:
        losses: Whatever `resolve_loss` takes, each.
        info: What the losses do not tell themselves: one for all, or a function from loss to `LossInfo`.
        groups: Which checks to run; all by default.
        expected_failed_checks: From loss to the checks that are known to fail, and why.
        xfail_strict: Whether a check that was expected to fail, and passes, is a failure.
    """
    import pytest

    cases: list[Any] = []
    for loss in losses:
        expected = _known(expected_failed_checks(loss)) if expected_failed_checks is not None else {}
        own = info if isinstance(info, LossInfo) or info is None else info(loss)
        for check in select_checks(groups):
            reason = expected.get(check.name)
            marks = () if reason is None else (pytest.mark.xfail(reason=reason, strict=xfail_strict),)
            name = loss if isinstance(loss, str) else getattr(loss, "__qualname__", type(loss).__qualname__)
            cases.append(pytest.param(loss, partial(_run, check, info=own), marks=marks, id=f"{name}-{check.name}"))
    return pytest.mark.parametrize(("loss", "check"), cases)


def verdict(results: Sequence[CheckResult]) -> str:
    """Return one line that sums up results, for a README."""
    counts = {status: [result for result in results if result["status"] == status] for status in _SHOWN}
    reasons = list(dict.fromkeys(str(result["exception"]) for result in counts["skipped"]))
    parts = [f"{len(found)} {_SHOWN[status]}" for status, found in counts.items() if found or status in _ALWAYS]
    if 0 < len(reasons) <= _MOST_REASONS:
        at = next(index for index, part in enumerate(parts) if part.endswith("skipped"))
        parts[at] += f" ({', '.join(reasons)})"
    return f"tensafe-conformance: {', '.join(parts)}; {_judgement(results)}"


def describe_failure(result: CheckResult) -> str:
    """Return what failed, what to do about it, and the call that shows it."""
    error = result["exception"]
    if error is None:
        return f"{result['check_name']}: passed, though it was expected to fail: {result['expected_to_fail_reason']}"
    head = f"{result['check_name']}: {in_words(error)}"
    advice = f"\n  {result['advice']}" if result["advice"] else ""
    shown = "" if result["input"] is None else "\n" + textwrap.indent(result["input"], "    ")
    return f"{head}{advice}{shown}"


_SHOWN = {
    "passed": "passed",
    "skipped": "skipped",
    "xfail": "failed as expected",
    "xpass": "passed unexpectedly",
    "failed": "failed",
}
_ESSENTIAL = frozenset({"core", "numerics"})
"""The groups that a loss must pass to conform."""

_MOST_REASONS = 3
"""How many reasons of skips fit into one line."""

_ALWAYS = frozenset({"passed", "skipped", "failed"})


def _judgement(results: Sequence[CheckResult]) -> str:
    """Say whether the loss conforms, as far as it was checked."""
    passed = {result["group"] for result in results if result["status"] == "passed"}
    bad = {result["group"] for result in results if result["status"] in {"failed", "xfail", "xpass"}}
    if bad & _ESSENTIAL:
        return "does not conform"
    if not passed >= _ESSENTIAL:
        seen = [group for group in GROUPS if group in passed | bad]
        return f"only {' and '.join(seen)} checked" if seen else "nothing was checked"
    return "conforms, compilable" if "tooling" in passed - bad else "conforms"


def _known(failures: Failures) -> dict[str, str]:
    """Return expected failures by the full names of their checks; refuse a name that no check has."""
    return {find_check(name).name: reason for name, reason in failures.items()}


def _run(check: Check, loss: Spec, info: LossInfo | None = None) -> None:
    with _in_one_thread(), torch.random.fork_rng(devices=[]):  # pyright: ignore[reportUnknownMemberType]
        torch.default_generator.manual_seed(0)  # the one that is forked; torch.manual_seed takes 1 ms for the others
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # what a loss says of a kwarg that a check chose
            check.run(Subject(loss, info))


@contextmanager
def _in_one_thread() -> Generator[None]:
    """Let torch use one thread: the tensors are tiny, and on a busy machine threads that wait cost the most."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _tell(result: CheckResult, on_fail: str | None, on_skip: str | None) -> None:
    text = f"{result['check_name']}: {result['exception'] or 'passed, though it was expected to fail'}"
    if result["status"] in {"failed", "xpass"} and on_fail == "warn":
        warnings.warn(text, UserWarning, stacklevel=3)
    if result["status"] == "skipped" and on_skip == "warn":
        warnings.warn(text, UserWarning, stacklevel=3)


def _report(name: str, failed: Sequence[CheckResult], last_line: str) -> str:
    head = f"{name} fails {len(failed)} of the checks."
    return "\n\n".join([head, *(describe_failure(result) for result in failed), last_line])

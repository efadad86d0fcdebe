"""The list of checks: functions `check_*(subject)` that raise, each with its group and what to do when it fails."""

from __future__ import annotations

import inspect
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, NamedTuple

from tensafe.training.losses.errors import LossTypeError, make_error, near_miss, shorten

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .subject import Subject

__all__ = ["GROUPS", "Check", "all_checks", "conformance_check", "find_check", "select_checks"]

GROUPS = ("core", "numerics", "tooling", "lifecycle")
"""The groups of checks, the most important first."""

_checks: dict[str, Check] = {}


class Check(NamedTuple):
    """One thing that every loss should do.

    Attributes:
        name: Name of its function, such as `check_gradcheck`.
        group: One of `GROUPS`.
        advice: What to change in a loss that fails it.
        run: Raises if a loss does not do it.
    """

    name: str
    group: str
    advice: str
    run: Callable[[Subject], None]

    @property
    def summary(self) -> str:
        """What it asks of a loss, in one line."""
        return inspect.getdoc(self.run).partition("\n")[0]  # type: ignore[union-attr]  # every check has one


def conformance_check(group: str, advice: str) -> Callable[[Callable[[Subject], None]], Callable[[Subject], None]]:
    """Add a check to the list.

    Args:
        group: One of `GROUPS`.
        advice: What to change in a loss that fails it, in a sentence or two, for a person who wrote one.
    """

    def add(run: Callable[[Subject], None]) -> Callable[[Subject], None]:
        _checks[run.__name__] = Check(run.__name__, group, advice, run)
        return run

    return add


@cache
def all_checks() -> tuple[Check, ...]:
    """Return every check, by group."""
    from . import checks

    for module in sorted(module.name for module in iter_modules(checks.__path__)):
        import_module(f"{checks.__name__}.{module}")
    return tuple(sorted(_checks.values(), key=lambda check: GROUPS.index(check.group)))


def find_check(name: str) -> Check:
    """Return the check of a name, with or without `check_` before it.

    Raises:
        LossTypeError: There is none; the message has the nearest.
    """
    by_name = {check.name: check for check in all_checks()}
    found = by_name.get(name) or by_name.get(f"check_{name}")
    if found is None:
        raise _unknown("check", name, by_name)
    return found


def select_checks(groups: Iterable[str] | None = None) -> tuple[Check, ...]:
    """Return the checks of some groups; of all, if none are named.

    Raises:
        LossTypeError: There is no such group.
    """
    wanted = GROUPS if groups is None else (groups,) if isinstance(groups, str) else tuple(groups)
    for group in wanted:
        if group not in GROUPS:
            raise _unknown("group of checks", group, GROUPS)
    return tuple(check for check in all_checks() if check.group in wanted)


def _unknown(what: str, name: str, known: Iterable[str]) -> LossTypeError:
    known = list(known)
    nearest = near_miss(name, known)
    hint = f"Did you mean {nearest}?" if nearest else f"There are: {', '.join(known)}."
    return make_error(LossTypeError, f"there is no {what} {shorten(name)}.", code="unknown-check", hint=hint)

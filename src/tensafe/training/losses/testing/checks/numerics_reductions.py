"""Reductions: what sum, mean and the others make of the same values, and what they are divided by."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from tensafe.training.losses.errors import TensafeError
from tensafe.training.losses.testing.aids.comparing import agree, shown
from tensafe.training.losses.testing.aids.exclusion import exclude
from tensafe.training.losses.testing.catalogue import conformance_check
from tensafe.training.losses.testing.outcome import fail, skip

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from tensafe.training.losses.testing.subject import Subject
    from tensafe.training.losses.testing.trial import Trial

_COUNTS = ("num_items_in_batch", "num_sequences_in_batch")
_USUAL = ("none", "sum", "mean")
_NO_MODE = "batch_median"
_ITEMS = 8
_NORM = 5


@conformance_check(
    "numerics",
    "Its reductions disagree. `sum` is the sum of what `none` returns, `mean` divides it by what counts (not by all "
    "positions) or by num_items_in_batch; a name that is no reduction must be refused.",
)
def check_reductions_consistent(subject: Subject) -> None:
    """The sum is that of the values, the mean divides it by what counts, and a given count is honoured or refused."""
    honoured = [name for name in _COUNTS if _check_count(subject.trial(), name, "")]
    if "reduction" not in subject.resolve().kwargs:
        if not honoured:
            skip("has no kwarg reduction, and takes no num_items_in_batch")
        return
    modes = dict(_modes(subject))
    _check_sums(modes)
    _check_mean(modes)
    _check_sequences(modes)
    _check_given_count(modes)
    for mode, trial in modes.items():
        for name in _COUNTS:
            _check_count(trial, name, mode)
    if "mean" in modes:
        _check_mean_of_what_counts(subject, modes["mean"])
    _check_refused(subject)


def _modes(subject: Subject) -> Iterator[tuple[str, Trial]]:
    """Yield the reductions that there are; those of a plain `reduction: str` are found by trying."""
    claimed = subject.choices("reduction")
    for mode in claimed or _USUAL:
        more: dict[str, Any] = {"max_length": _NORM} if mode == "sequence_sum_norm" else {}
        try:
            trial = subject.trial(reduction=mode, **more)
            trial.call()
        except Exception:
            if claimed:
                raise
        else:
            yield mode, trial


def _check_sums(modes: dict[str, Trial]) -> None:
    if "none" not in modes or "sum" not in modes:
        return
    values, total = _loss(modes["none"]), _loss(modes["sum"])
    if total.ndim or not agree(values.sum(), total, rtol=1e-9, atol=1e-12):
        fail(
            f"what reduction none returns adds up to {shown(values.sum())}, and sum is {shown(total)}",
            trial=modes["sum"],
        )


def _check_mean(modes: dict[str, Trial]) -> None:
    if "mean" not in modes or "sum" not in modes:
        return
    total, mean = _loss(modes["sum"]), _loss(modes["mean"])
    values = _loss(modes["none"]) if "none" in modes else None
    if mean == 0:
        if total != 0:
            fail(f"the mean is 0, and the sum {shown(total)}", trial=modes["mean"])
        return
    items = _items(modes)
    if values is None or not values.ndim or items is None:
        return
    least = int((values != 0).sum())
    if not least <= items <= values.numel():
        there = f"of the {values.numel()} values that reduction none returns, {least} are not 0"
        fail(f"the mean is the sum divided by {items}, and {there}", trial=modes["mean"])


def _items(modes: dict[str, Trial]) -> int | None:
    """Return what the mean divides the sum by; None where that is no whole number: there are weights, or two means."""
    if not {"sum", "mean"} <= modes.keys():
        return None
    count = _loss(modes["sum"]) / _loss(modes["mean"])
    if not count.isfinite():
        return None
    return int(count.round()) if agree(count, count.round(), rtol=1e-9, atol=0.0) else None


def _check_sequences(modes: dict[str, Trial]) -> None:
    """Of one sample alone, the mean over sequences is that of the sequence; a norm is a constant."""
    for mode, same in (("sequence_mean", "mean"), ("sequence_sum", "sum")):
        if mode in modes and same in modes:
            one = modes[mode].rows(slice(0, 1))
            if not agree(_loss(one), _loss(modes[same].rows(slice(0, 1))), rtol=1e-9, atol=1e-12):
                fail(f"of one sequence, {mode} is not its {same}", trial=one)
    if {"sequence_sum", "sequence_sum_norm"} <= modes.keys():
        norm = modes["sequence_sum_norm"]
        if not agree(_loss(norm) * _NORM, _loss(modes["sequence_sum"]), rtol=1e-9, atol=1e-12):
            fail("sequence_sum_norm is not sequence_sum divided by max_length", trial=norm)


def _check_count(trial: Trial, name: str, mode: str) -> bool:
    """Whether a count is honoured; one that is neither honoured nor refused fails."""

    def given(count: int) -> Tensor:
        counts: dict[str, Any] = {name: count}
        return trial.call(**counts)["loss"].detach()

    try:
        once, twice = given(_ITEMS), given(2 * _ITEMS)
    except (TensafeError, TypeError, ValueError):
        return False
    if not agree(once, 2 * twice, rtol=1e-9, atol=1e-12):
        suffix = f" with reduction {mode}" if mode else ""
        fail(f"{name} is taken{suffix}, and twice as many do not halve the loss", trial=trial)
    return True


def _check_given_count(modes: dict[str, Trial]) -> None:
    """A mean that divides the sum by a number of items divides it by the one that is given."""
    if _items(modes) is not None and _check_count(modes["mean"], "num_items_in_batch", "mean"):
        mean, total = modes["mean"].call(num_items_in_batch=_ITEMS)["loss"], _loss(modes["sum"])
        if not agree(_ITEMS * mean, total, rtol=1e-9, atol=1e-12):
            message = f"with num_items_in_batch={_ITEMS} the mean is {shown(mean)}, and the sum {shown(total)}"
            fail(message, trial=modes["mean"])


def _check_mean_of_what_counts(subject: Subject, trial: Trial) -> None:
    """A sample that is left out whole changes no mean."""
    left_out = exclude(subject, trial, all_of_it=True)
    if left_out is None or trial.batch_size < 2:
        return
    kept = trial.rows(slice(0, -1))

    def without_last(key: str, tensor: Tensor) -> Tensor:
        if key not in left_out.places or not trial.has_samples(key):
            return tensor
        return torch.cat((tensor[:-1], left_out.trial.tensors[key][-1:]))

    masked = trial.changed(without_last)
    if all(left_out.of(key) is not None for key in trial.learnt if trial.has_samples(key)):
        mean, right = _loss(masked), _loss(kept)
        if not agree(mean, right, rtol=1e-9, atol=1e-12):
            message = f"where the last sample does not count, the mean is {shown(mean)}, and without it {shown(right)}"
            fail(message, "Divide the sum by what counts, such as counts.sum(), rather than by all positions.", masked)


def _check_refused(subject: Subject) -> None:
    try:
        trial = subject.trial(reduction=_NO_MODE)
        trial.call()
    except Exception:
        return
    fail(f"reduction={_NO_MODE!r} is taken as if there were such a reduction", "Annotate it as a Literal.", trial)


def _loss(trial: Trial) -> Tensor:
    return trial.call()["loss"].detach()

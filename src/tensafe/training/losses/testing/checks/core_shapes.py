"""Shapes that do not belong together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from tensafe.training.losses.testing.aids.axes import SharedAxis, groups_of, names_of, one_optional_each, shared_axes
from tensafe.training.losses.testing.aids.comparing import agree
from tensafe.training.losses.testing.aids.refusals import refusal_of, require_clear
from tensafe.training.losses.testing.catalogue import conformance_check
from tensafe.training.losses.testing.outcome import fail, skip

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from tensafe.training.losses.testing.subject import Subject
    from tensafe.training.losses.testing.trial import Trial

_ALONE = "takes no two tensors that share an axis"


@conformance_check(
    "core",
    "Compare the shapes before computing, and raise an error that names both keys and prints both shapes: `if "
    "logits.shape[:2] != labels.shape: raise LossInputError(...)`. A subclass of Loss whose compute() annotates its "
    "tensors, Float[Tensor, 'batch seq vocab'], does so by itself.",
)
def check_shape_mismatch_message(subject: Subject) -> None:
    """Where two tensors differ in an axis that they share, the error names both, and both sizes."""
    for trial, shared in _each_shared_axis(subject, guess=not subject.is_typed):
        size = trial.tensors[shared.key].shape[shared.axis]
        for other in (size + 1, size - 1):
            if other > 0:
                _require_refusal(trial, shared, other)


def _require_refusal(trial: Trial, shared: SharedAxis, size: int) -> None:
    key, axis, partners = shared
    tensor = trial.tensors[key]
    changed = trial.replaced(**{key: _resized(tensor, axis, size)})
    shape, theirs = list(changed.tensors[key].shape), [list(trial.tensors[name].shape) for name in partners]
    beside = " and ".join(f"{name!r} {shape}" for name, shape in zip(partners, theirs, strict=True) if name != key)
    when = f"with {key!r} {shape}" + (f" beside {beside}" if beside else "")
    error = refusal_of(changed)
    if error is None:
        fail(f"{when} it went through", trial=changed)
    sizes = [str(size), str(tensor.shape[axis])]
    others = [name for name in partners if name != key] or [key]
    both = {key: names_of(trial, key), " or ".join(others): names_of(trial, *others)}
    both.update({f"the size {number}": [number] for number in sizes})
    require_clear(error, when, both, changed)


def _resized(tensor: Tensor, axis: int, size: int) -> Tensor:
    if size < tensor.shape[axis]:
        return tensor.narrow(axis, 0, size)
    return torch.cat([tensor, tensor.narrow(axis, 0, 1)], axis)


@conformance_check(
    "core",
    "Something broadcast: [N, 1] against [N] is every pair, and one number stands for all. Compare the shapes before "
    "computing, `if predictions.shape != targets.shape: raise LossInputError(...)`.",
)
def check_no_silent_broadcast(subject: Subject) -> None:
    """A tensor with an axis of size 1 too many, or in the place of a longer one, or a number, is refused."""
    tried: set[tuple[str, tuple[int, ...]]] = set()
    for trial, shared in _each_shared_axis(subject, guess=True):
        for tensor in _broadcastable(trial.tensors[shared.key], shared.axis):
            if (shared.key, tuple(tensor.shape)) not in tried:
                tried.add((shared.key, tuple(tensor.shape)))
                _require_no_broadcast(trial, shared, tensor)


def _broadcastable(tensor: Tensor, axis: int) -> Iterator[Tensor]:
    yield tensor.unsqueeze(-1)
    yield tensor.flatten()[0]
    if tensor.shape[axis] > 1:
        yield tensor.narrow(axis, 0, 1)


def _require_no_broadcast(trial: Trial, shared: SharedAxis, tensor: Tensor) -> None:
    changed = trial.replaced(**{shared.key: tensor})
    # an axis of size 1 that is dropped again, as by flatten(), does no harm
    if refusal_of(changed) is None and not agree(changed.call()["loss"], trial.call()["loss"]):
        partner = next(name for name in shared.partners if name != shared.key)
        fail(
            f"with {shared.key!r} {list(tensor.shape)} instead of {list(trial.tensors[shared.key].shape)} beside "
            f"{partner!r} {list(trial.tensors[partner].shape)} it went through, and gave another loss",
            trial=changed,
        )


def _each_shared_axis(subject: Subject, *, guess: bool) -> Iterator[tuple[Trial, SharedAxis]]:
    """Yield each axis that a tensor shares with another; those of optional tensors in calls that have them."""
    found = False
    for trial, new in one_optional_each(subject):
        for group in groups_of(subject, trial):
            for shared in shared_axes(group, trial, guess=guess):
                if shared.key in new:
                    found = True
                    yield trial, shared
    if not found:
        skip(_ALONE)

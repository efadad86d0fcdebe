"""Inputs at the end of what numbers can be: very large, infinite, and none at all."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

import torch

from tensafe.training.losses.errors import TensafeError
from tensafe.training.losses.testing.aids.comparing import agree, shown
from tensafe.training.losses.testing.catalogue import conformance_check
from tensafe.training.losses.testing.outcome import fail, skip

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from tensafe.training.losses.testing.subject import Subject
    from tensafe.training.losses.testing.trial import Trial

_LARGE, _LARGEST = 1e4, torch.finfo(torch.float32).max
_VERY_LARGE = 1e30

_BOUNDED = ("logps", "logprobs", "log_probs", "probs", "nll", "margins", "weights", "lengths", "mask")
"""Endings of names of what is not any number."""
_VECTORS = ("embedding", "hidden")


@conformance_check(
    "numerics",
    "It overflows. Use torch.logsumexp, F.logsigmoid, F.softplus or F.log_softmax in place of exp and log, take what "
    "does not count out before the formula, and bound what must be exponentiated.",
)
def check_extreme_values(subject: Subject) -> None:
    """Scores of 1e4, and of a quarter of what float32 can hold, give a finite value and gradient wherever float32 can.

    The scale is float64 on the same scores. At 1e4 it must be finite itself, and near. Where it does not fit float32,
    such as the square of 1e38, nothing is asked; where the sum over all items would not, the value may be infinite.
    """
    plain = subject.trial("float32")
    scores = [key for key in plain.tensors if _is_score(key, plain)]
    if not scores:
        skip("takes no scores that may be any number")
    for size in (_LARGE, _LARGEST / 4):
        pushed = [key for key in scores if size == _LARGE or not _is_vector(key, plain)]
        groups = [[key] for key in pushed] + ([pushed] if len(pushed) > 1 else [])
        for keys, sign in itertools.product(groups, (1.0, -1.0)):
            trial = plain.replaced(**{key: _pushed(plain.tensors[key], sign * size) for key in keys})
            _check_extreme(
                trial, f"with {' and '.join(map(repr, keys))} at {'+-' if sign > 0 else '-+'}{size:.3g}", size
            )


def _is_score(key: str, trial: Trial) -> bool:
    """Whether a tensor may hold any number; of one that nothing is known about, its values tell."""
    tensor, spec = trial.tensors[key], trial.specs.get(key)
    if not tensor.is_floating_point() or key.endswith(_BOUNDED) or not tensor.numel():
        return False
    if spec is None or "_" in spec.dims:
        return bool((tensor < 0).any() and (tensor > 0).any())
    return spec.values is None


def _is_vector(key: str, trial: Trial) -> bool:
    """Whether a tensor holds vectors, whose length overflows long before their numbers do."""
    spec = trial.specs.get(key)
    return any(word in key for word in _VECTORS) or (spec is not None and "hidden" in spec.dims)


def _pushed(tensor: Tensor, size: float) -> Tensor:
    return torch.where(tensor >= 0, size, -size)


def _check_extreme(trial: Trial, when: str, size: float) -> None:
    exact = trial.changed(lambda _, tensor: tensor.double() if tensor.is_floating_point() else tensor).run()
    run = trial.run()
    if size == _LARGE and not exact.loss.isfinite().all():
        fail(f"{when} the loss is {shown(exact.loss)} even in float64", trial=trial)
    if not (exact.loss.abs() <= _LARGEST / 2).all():
        return
    items = max(tensor.numel() for tensor in trial.tensors.values())
    _check_as_finite("the loss", run.loss, exact.loss, _LARGEST / items, when, trial)
    for key, gradient in run.gradients.items():
        _check_as_finite(f"the gradient of {key!r}", gradient, exact.gradients[key], _LARGEST / 2, when, trial)
    # not nearer: what a loss bounds, such as log(1 - p), it may bound in each dtype as the dtype can
    if size == _LARGE and not agree(run.loss, exact.loss, rtol=1e-2, atol=1e-5 * size):
        fail(f"{when} the loss is {shown(run.loss)}, and in float64 {shown(exact.loss)}", trial=trial)


def _check_as_finite(what: str, found: Tensor, exact: Tensor, most: float, when: str, trial: Trial) -> None:
    if found.isnan().any():
        fail(f"{when} {what} is NaN, and in float64 it is {shown(exact[found.isnan()][0])}", trial=trial)
    lost = ~found.isfinite() & (exact.abs() <= most)
    if lost.any():
        fail(f"{when} {what} is infinite, and in float64 it is {shown(exact[lost][0])}", trial=trial)


@conformance_check(
    "numerics",
    "A NaN disappears, so a run that has gone wrong would go on. Do not use nan_to_num, nansum or nanmean on what "
    "counts, nor comparisons that are false for NaN, as in `torch.where(x > 0, x, 0.0)`; clamp keeps NaN.",
)
def check_non_finite_propagates(subject: Subject) -> None:
    """NaN in an item that counts makes the loss non-finite, or is refused; so does infinity where NaN is due.

    An item counts if it has a gradient. Infinity may have a finite loss: a hinge is 0 beyond its margin, and a class of
    logit -inf is one that cannot be. It is then what a very large number of that sign has; any other is made up.
    """
    some = False
    for dtype in ("float64", "float32"):
        trial = subject.trial(dtype)
        for key, place in _counted(trial):
            some = True
            _check_nan(trial, key, place)
            for sign in (1.0, -1.0):
                _check_infinity(trial, key, place, sign)
    if not some:
        skip("no item of the sample has a gradient; pass LossInfo(sample_inputs=...) with one that has")


def _counted(trial: Trial) -> Iterator[tuple[str, int]]:
    """Yield the item of each tensor that the loss depends on most."""
    for key, gradient in trial.run().gradients.items():
        if gradient.any():
            yield key, int(gradient.abs().argmax())


def _check_nan(trial: Trial, key: str, place: int) -> None:
    spoilt = _with(trial, key, place, math.nan)
    value = _value(spoilt)
    if value is not None and value.isfinite().all():
        fail(f"an item of {key!r} is NaN, and the loss is {shown(value)}", trial=spoilt)


def _check_infinity(trial: Trial, key: str, place: int, sign: float) -> None:
    spoilt = _with(trial, key, place, sign * math.inf)
    value = _value(spoilt)
    if value is None or not value.isfinite().all():
        return
    near = _value(_with(trial, key, place, sign * _VERY_LARGE))
    if near is None or not agree(value, near, rtol=1e-5, atol=1e-5):
        told = "refused" if near is None else shown(near)
        message = f"an item of {key!r} is {sign * math.inf}, and the loss is {shown(value)}"
        fail(f"{message}; at {sign * _VERY_LARGE:g} it is {told}", trial=spoilt)


def _with(trial: Trial, key: str, place: int, value: float) -> Trial:
    tensor = trial.tensors[key].clone()
    tensor.view(-1)[place] = value
    return trial.replaced(**{key: tensor})


def _value(trial: Trial) -> Tensor | None:
    """Return the loss of a call; None if it is refused."""
    try:
        return trial.call()["loss"].detach()
    except (TensafeError, ValueError):
        return None

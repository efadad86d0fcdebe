"""The value itself: against an independent one, and of many rows at once against a few at a time."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from tensafe.training.losses.testing.aids.comparing import agree, shown
from tensafe.training.losses.testing.aids.exclusion import exclude
from tensafe.training.losses.testing.catalogue import conformance_check
from tensafe.training.losses.testing.outcome import NotApplicable, fail, skip

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch import Tensor

    from tensafe.training.losses.testing.subject import Subject
    from tensafe.training.losses.testing.trial import Run, Trial

_LARGE = 2**20
"""Elements of a tensor that is large enough to be worked on in parts."""

_FEW = {"batch": 4, "seq": 2}
_LONG = {"seq": 33, "vocab": 4096}
_MOST_SAMPLES = 2**12 + 3


@conformance_check(
    "numerics",
    "It computes something else than its reference. Look at what is scored against what (the shift by one), at what is "
    "divided by what, and at the sign.",
)
def check_matches_reference(subject: Subject) -> None:
    """In float64 it equals its independent reference, in every reduction and with every optional tensor."""
    reference = subject.info.reference
    if reference is None:
        skip("no reference; pass LossInfo(reference=...)")
    compared = 0
    for told, trial in subject.trials():
        try:
            right = float(reference(trial.outputs, trial.batch, **trial.loss.kwargs))
        except NotImplementedError:  # it does not know this kwarg, or this tensor
            continue
        compared += 1
        found = float(trial.call()["loss"].detach().sum())
        if not math.isclose(found, right, rel_tol=1e-10, abs_tol=1e-12):
            suffix = f" ({told})" if told else ""
            fail(f"the loss is {found:.12g}, and its reference {right:.12g}{suffix}", trial=trial)
    if not compared:
        skip("the reference knows none of the samples")


@conformance_check(
    "numerics",
    "A large batch is worked on in parts, and the parts do not add up. Look at the last part, which may be shorter, at "
    "one in which nothing counts, and at whether something is divided once for each part.",
)
def check_chunked_equals_dense(subject: Subject) -> None:
    """A large batch, a stretch of which is masked, has the sum of what its parts have, in value and gradient."""
    if "sum" not in subject.choices("reduction"):
        skip("has no reduction sum")
    if not _is_sum_of_samples(subject):
        skip("its samples depend on each other")
    large = _large(subject)
    _check_parts(_with_a_stretch_masked(subject, large) or large)


def _is_sum_of_samples(subject: Subject) -> bool:
    """Whether the loss of a few samples is the sum of the losses of each."""
    try:
        trial = subject.trial(sizes=_FEW, reduction="sum")
    except NotApplicable:  # what sizes it can have is not known
        raise NotApplicable("the axes of its samples are not known") from None
    parts = [trial.rows(slice(index, index + 1)).call()["loss"] for index in range(trial.batch_size)]
    return trial.batch_size > 1 and agree(sum(parts), trial.call()["loss"], rtol=1e-9, atol=1e-9)


def _large(subject: Subject) -> Trial:
    """Return a call of so many samples that the largest tensor is large."""
    has_vocabulary = any("vocab" in spec.dims for spec in subject.trial().specs.values())
    sizes = _LONG if has_vocabulary else {"seq": 64}
    single = subject.trial("float32", sizes={**sizes, "batch": 1}, reduction="sum")
    widest = max(tensor.numel() for key, tensor in single.tensors.items() if single.has_samples(key))
    if has_vocabulary:  # the logits may be made inside
        widest = max(widest, _LONG["seq"] * _LONG["vocab"])
    samples = min(_LARGE // widest + 4, _MOST_SAMPLES)
    return subject.trial("float32", sizes={**sizes, "batch": samples}, reduction="sum")


def _with_a_stretch_masked(subject: Subject, trial: Trial) -> Trial | None:
    """Return the same call in which the third quarter of the samples does not count; None if nothing can say so."""
    nothing = exclude(subject, trial, all_of_it=True)
    if nothing is None:
        return None
    quarter = trial.batch_size // 4
    stretch = slice(2 * quarter, 3 * quarter)

    def masked(key: str, tensor: Tensor) -> Tensor:
        if key not in nothing.places:
            return tensor
        return torch.cat((tensor[: stretch.start], nothing.trial.tensors[key][stretch], tensor[stretch.stop :]))

    return trial.changed(masked)


def _check_parts(trial: Trial) -> None:
    whole = trial.run()
    parts = [trial.rows(part).run() for part in _parts(trial.batch_size)]
    if not agree(whole.loss, _total(part.loss for part in parts), rtol=1e-4, atol=1e-4):
        added = _total(part.loss for part in parts)
        fail(
            f"the sum over {trial.batch_size} samples is {shown(whole.loss)}; its parts add up to {shown(added)}",
            trial=trial,
        )
    for key, gradient in whole.gradients.items():
        right = _joined(trial, key, parts)
        if not agree(gradient, right, rtol=1e-3, atol=1e-5 * float(right.abs().max())):
            off = shown((gradient - right).abs().max())
            fail(
                f"the gradient of {key!r}, of {trial.batch_size} samples, is off by {off} from that of its parts",
                trial=trial,
            )


def _parts(samples: int) -> Iterator[slice]:
    size = max(samples // 4, 1)
    for start in range(0, samples, size):
        yield slice(start, start + size)


def _joined(trial: Trial, key: str, parts: list[Run]) -> Tensor:
    gradients = [part.gradients[key] for part in parts]
    return torch.cat(gradients) if trial.has_samples(key) else _total(gradients)


def _total(tensors: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(tensors)).double().sum(0)

"""What does not count has no effect, and where nothing counts there is nothing to learn."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from tensafe.training.losses.errors import TensafeError
from tensafe.training.losses.nested import innermost
from tensafe.training.losses.testing.aids.comparing import agree, shown
from tensafe.training.losses.testing.aids.exclusion import exclude
from tensafe.training.losses.testing.catalogue import conformance_check
from tensafe.training.losses.testing.outcome import NotApplicable, fail, skip

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tensafe.training.losses.testing.aids.exclusion import Exclusion
    from tensafe.training.losses.testing.subject import Subject
    from tensafe.training.losses.testing.trial import Run, Trial

_JUNK = (math.nan, math.inf, 1e30)
_NO_ID = 10**6
"""An id of no class."""


@conformance_check(
    "numerics",
    "What the mask or the ignored label leaves out reaches the loss. Replace it before the formula, "
    "`x = torch.where(counts, x, 0.0)`, rather than after: NaN * 0 is NaN, and so is the gradient of a NaN that "
    "torch.where drops. If no label is ignored, say so: LossInfo(ignore_index=None).",
)
def check_masked_items_have_no_effect(subject: Subject) -> None:
    """Junk where nothing counts, NaN too, leaves the loss as it is, and gets a gradient of exactly 0."""
    some = False
    for told, trial in _all_trials(subject):
        left_out = exclude(subject, trial)
        if left_out is not None:
            some = True
            _check_junk(left_out, _JUNK if not told else _JUNK[:1], told)
    if not some:
        skip("nothing tells what does not count: no mask, no ignored label")


def _all_trials(subject: Subject) -> Iterator[tuple[str, Trial]]:
    yield from subject.trials()
    if "none" in subject.choices("reduction"):
        yield "reduction=none", subject.trial(reduction="none")
    yield "float32", subject.trial("float32")


def _check_junk(left_out: Exclusion, junks: tuple[float, ...], told: str) -> None:
    clean = left_out.trial.run()
    suffix = f" ({told})" if told else ""
    for junk in junks:
        trial = left_out.junked(junk, _NO_ID)
        spoilt = trial.run()
        if not agree(spoilt.loss, clean.loss, rtol=1e-12, atol=0.0):
            values = "" if clean.loss.ndim else f" from {shown(clean.loss)} to {shown(spoilt.loss)}"
            fail(f"{junk} where nothing counts changes the loss{values}{suffix}", trial=trial)
        for key, gradient in spoilt.gradients.items():
            place = left_out.of(key)
            if place is not None and gradient[place].any():  # NaN too
                fail(f"the gradient of {key!r} is not 0 where nothing counts, and it holds {junk}{suffix}", trial=trial)
            if not agree(gradient, clean.gradients[key], rtol=1e-12, atol=0.0):
                fail(f"{junk} where nothing counts changes the gradient of {key!r}{suffix}", trial=trial)


@conformance_check(
    "numerics",
    "Where nothing counts there is nothing to divide by. Divide by `counts.sum().clamp(min=1)`, and start from the "
    "tensors of the model, so that the 0 is still part of the graph: a rank with nothing to learn needs its backward.",
)
def check_nothing_to_learn(subject: Subject) -> None:
    """All masked, and an empty batch: 0.0 with a zero gradient, or a typed error; one token: no NaN."""
    for told, trial in subject.trials():
        left_out = exclude(subject, trial, all_of_it=True)
        if left_out is not None:
            _check_nothing(left_out.trial, f"nothing counts{f' ({told})' if told else ''}", left_out)
    empty = _of_sizes(subject, batch=0)
    if empty is not None:
        _check_nothing(empty, "the batch is empty", None)
    single = _of_sizes(subject, batch=1, seq=1)
    if single is not None and (run := _run(single)) is not None:
        _check_finite(run, "there is one token, or one sample", single)


def _of_sizes(subject: Subject, **sizes: int) -> Trial | None:
    """Return a call of the given sizes; of samples that were given, so many."""
    if subject.info.sample_inputs is None:
        try:
            return subject.trial(sizes=sizes)
        except NotApplicable:  # it refuses such a call, as it may
            return None
    trial = subject.trial()
    return trial.rows(slice(0, sizes["batch"])) if trial.batch_size else None


def _check_nothing(trial: Trial, when: str, left_out: Exclusion | None) -> None:
    run = _run(trial)
    if run is None:
        return
    _check_finite(run, when, trial)
    for key, gradient in run.gradients.items():
        if (left_out is None or left_out.of(key) is not None) and gradient.any():
            fail(f"{when}, and the gradient of {key!r} is not 0", trial=trial)
    learns = any(gradient.any() for gradient in run.gradients.values())
    if run.loss.any() and not learns and _is_of_what_is_left_out(trial, left_out):
        fail(f"{when}, and the loss is {shown(run.loss)}, not 0", trial=trial)


def _is_of_what_is_left_out(trial: Trial, left_out: Exclusion | None) -> bool:
    """Whether the value too is of nothing; a completion without tokens has log-probability 0, and is one of a pair."""
    if left_out is None:
        return True
    of_one_side = any(key.endswith("_labels") and key != "shift_labels" for key in left_out.places)
    return not of_one_side and len(list(innermost(trial.loss))) == 1


def _check_finite(run: Run, when: str, trial: Trial) -> None:
    if not run.loss.isfinite().all():
        fail(f"{when}, and the loss is {shown(run.loss)}", trial=trial)
    if trial.learnt and not run.result["loss"].requires_grad:
        fail(f"{when}, and the loss is not part of the graph", trial=trial)
    for key, gradient in run.gradients.items():
        if not gradient.isfinite().all():
            fail(f"{when}, and the gradient of {key!r} is not finite", trial=trial)


def _run(trial: Trial) -> Run | None:
    """Run a call; None if it is refused, as its documentation may say."""
    try:
        return trial.run()
    except (TensafeError, ValueError):
        return None

"""What must make no difference: padding, the order of the samples, and what the loss claims besides."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from tensafe.training.losses.adapter import TypedLoss
from tensafe.training.losses.contract import lookup_keys
from tensafe.training.losses.nested import innermost
from tensafe.training.losses.testing.aids.comparing import agree, change_of, shown
from tensafe.training.losses.testing.catalogue import conformance_check
from tensafe.training.losses.testing.outcome import fail, skip

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

    from tensafe.training.losses.testing.subject import Subject
    from tensafe.training.losses.testing.trial import Run, Trial

_PADS = 3
_JUNK = 7.0


@conformance_check(
    "numerics",
    "Something is divided by, or summed over, all positions instead of those that count. Divide by the number of "
    "labels that are not ignored, or by mask.sum(), in the metrics too.",
)
def check_padding_invariance(subject: Subject) -> None:
    """Positions that do not count, appended to every sequence, change nothing and get no gradient."""
    padded = 0
    for told, trial in subject.trials():
        guides = _guides(subject, trial)
        if not guides or not _governs(guides, trial):
            continue
        padded += 1
        axis = min(tensor.ndim for tensor in guides.values()) - 1
        lead = next(tensor.shape for tensor in guides.values() if tensor.ndim == axis + 1)
        longer = _padded(subject, trial, guides, lead)
        run, before = longer.run(), trial.run()
        change = change_of(before, _cut(run, before))
        if change is not None:
            fail(f"{_PADS} more positions that do not count change {change}{_when(told)}", trial=longer)
        for key, gradient in run.gradients.items():
            if gradient.count_nonzero() != before.gradients[key].count_nonzero():
                fail(f"positions that do not count get a gradient, in {key!r}{_when(told)}", trial=longer)
    if not padded:
        skip("nothing says that a position does not count")


def _guides(subject: Subject, trial: Trial) -> dict[str, Tensor]:
    """Return the tensors that say which positions count."""
    tensors = trial.tensors
    names = [*subject.labels(trial), *(key for key in tensors if key == "mask" or key.endswith("_mask"))]
    return {key: tensors[key] for key in names if tensors[key].ndim}


def _governs(guides: Mapping[str, Tensor], trial: Trial) -> bool:
    """Whether every loss inside takes one of these tensors; otherwise some see what does not count as if it did."""
    typed = [loss for loss in innermost(trial.loss) if isinstance(loss, TypedLoss)]
    return all(any(lookup_keys(spec, loss.inputs)[1][0] in guides for spec in loss.contract.tensors) for loss in typed)


def _padded(subject: Subject, trial: Trial, guides: Mapping[str, Tensor], lead: torch.Size) -> Trial:
    """Return the call with more positions along the last of the leading axes, of which none counts."""
    ignored = subject.ignored_label(trial)

    def change(key: str, tensor: Tensor) -> Tensor:
        if tensor.shape[: len(lead)] != lead:
            return tensor
        fill = 0.0
        if key in guides and key.endswith("labels") and ignored is not None:
            fill = ignored
        elif tensor.is_floating_point():
            fill = -_JUNK
        after_lead = 2 * (tensor.ndim - len(lead))
        return F.pad(tensor, (*[0] * after_lead, 0, _PADS), value=fill)

    return trial.changed(change)


def _cut(run: Run, like: Run) -> Run:
    """Return a result, the gradients cut to the shapes of another's."""
    cuts = {key: tuple(slice(size) for size in gradient.shape) for key, gradient in like.gradients.items()}
    return run._replace(gradients={key: gradient[cuts[key]] for key, gradient in run.gradients.items()})


@conformance_check(
    "numerics",
    "The order of the samples matters. Do not refer to neighbours in the batch, or take the first rows for something "
    "else; if the order means something, say so with Traits(permutation_invariant=False).",
)
def check_batch_permutation_invariance(subject: Subject) -> None:
    """Samples in another order give the same loss and metrics, and their gradients in that order."""
    moved: list[str] = []
    shuffled = trial = subject.trial()
    for seed in range(3):
        trial = subject.trial(seed=seed)
        if trial.batch_size < 2:
            skip("its batches have less than two samples")
        order = torch.arange(trial.batch_size).roll(1)
        order[[0, -1]] = order[[-1, 0]].clone() if trial.batch_size > 2 else order[[0, -1]]
        shuffled = trial.rows(order)
        expected = _reordered(trial, trial.run(), order)
        moved += [change for change in [change_of(expected, shuffled.run())] if change is not None]
        if moved:
            break
    if moved and subject.traits.permutation_invariant:
        fail(f"samples in another order change {moved[0]}", trial=shuffled)
    if not moved and not subject.traits.permutation_invariant:
        fail("it claims Traits(permutation_invariant=False), yet the order makes no difference", "Drop the claim.")


def _reordered(trial: Trial, run: Run, order: Tensor) -> Run:
    gradients = {key: grad[order] if trial.has_samples(key) else grad for key, grad in run.gradients.items()}
    loss = run.result["loss"]
    per_sample = loss.ndim and loss.shape[0] == len(order)
    return run._replace(result={**run.result, "loss": loss[order] if per_sample else loss}, gradients=gradients)


@conformance_check(
    "numerics",
    "It claims in Traits(shift_invariant=...) that a number may be added along the last axis. Work with differences, "
    "or with log_softmax, or drop the claim: a penalty such as a z-loss breaks it.",
)
def check_shift_invariance(subject: Subject) -> None:
    """A number added along the last axis, another one in each row, changes nothing, if the loss claims so."""
    if not subject.traits.shift_invariant:
        skip("it claims no shift invariance")
    for key in subject.traits.shift_invariant:
        found = [(told, trial) for told, trial in subject.trials() if key in trial.tensors]
        if not found:
            fail(f"it claims Traits(shift_invariant=({key!r},)), and takes no {key!r}", "Drop the claim.")
        told, trial = found[0]
        tensor = trial.tensors[key]
        by = torch.linspace(-2.0, 3.0, tensor[..., 0].numel(), dtype=tensor.dtype).reshape(tensor[..., :1].shape)
        shifted = trial.replaced(**{key: tensor + by})
        before, after = (each.run()._replace() for each in (trial, shifted))
        change = change_of(_without_metrics(before), _without_metrics(after))
        if change is not None:
            fail(f"numbers added to {key!r} change {change}{_when(told)}", trial=shifted)


@conformance_check(
    "numerics",
    "It claims in Traits(symmetric_in=...) that two tensors may be swapped. A loss of pairs that looks from one side "
    "only is not symmetric: take the mean of both directions, or drop the claim.",
)
def check_symmetry(subject: Subject) -> None:
    """Two tensors that are swapped give the same loss, and their gradients swapped, if the loss claims so."""
    if not subject.traits.symmetric_in:
        skip("it claims no symmetry")
    trial = subject.trial()
    for pair in subject.traits.symmetric_in:
        one, other = _both(trial, pair, "symmetric_in")
        swapped = trial.replaced(**{one: trial.tensors[other], other: trial.tensors[one]})
        before, after = _without_metrics(trial.run()), _without_metrics(swapped.run())
        if set(pair) <= set(trial.learnt):
            other_way = {one: after.gradients[other], other: after.gradients[one]}
            after = after._replace(gradients={**after.gradients, **other_way})
        else:
            before, after = (run._replace(gradients={}) for run in (before, after))
        change = change_of(before, after)
        if change is not None:
            fail(f"to swap {one!r} and {other!r} changes {change}", trial=swapped)


@conformance_check(
    "numerics",
    "It claims Traits(non_negative=True), and a value is below 0: look for a sign, or for a difference that is not "
    "bounded by 0. If the value may be negative, drop the claim.",
)
def check_non_negative(subject: Subject) -> None:
    """No value is below 0, if the loss claims so; not on spread out, nor on nearly equal numbers."""
    if not subject.traits.non_negative:
        skip("it does not claim to be non-negative")
    for trial in _ranging(subject):
        least = trial.call()["loss"].detach().min()
        if least < -1e-12:  # what cancels may be rounded down
            fail(f"a value is {shown(least)}", trial=trial)


def _ranging(subject: Subject) -> Iterator[Trial]:
    """Yield calls with what is learnt on several scales; unreduced, where that can be."""
    choices = subject.choices("reduction")
    kwargs: dict[str, Any] = {"reduction": "none"} if "none" in choices else {}
    for seed in range(4):
        trial = subject.trial(seed=seed, **kwargs)
        for scale in (1.0, 1e-3, 30.0):
            yield trial.replaced(**{key: trial.outputs[key] * scale for key in trial.learnt})


@conformance_check(
    "numerics",
    "It claims in Traits(zero_where_equal=...) that two tensors which are equal cost nothing. Subtract the value at "
    "the optimum (the entropy of the target, say), or drop the claim.",
)
def check_zero_at_optimum(subject: Subject) -> None:
    """Where two tensors are equal the loss is 0, and so is its gradient, if the loss claims so."""
    pair = subject.traits.zero_where_equal
    if pair is None:
        skip("it claims no optimum")
    for seed in range(2):
        trial = subject.trial(seed=seed)
        one, other = _both(trial, pair, "zero_where_equal")
        equal = trial.replaced(**{one: trial.tensors[other].clone()})
        run = equal.run()
        if not agree(run.loss, torch.zeros_like(run.loss), atol=1e-12):
            fail(f"where {one!r} and {other!r} are equal, the loss is {shown(run.loss.abs().max())}", trial=equal)
        if run.gradients[one].abs().max() > 1e-12:
            fail(f"where {one!r} and {other!r} are equal, the gradient of {one!r} is not 0", trial=equal)


def _both(trial: Trial, pair: tuple[str, str], claim: str) -> tuple[str, str]:
    for key in pair:
        if key not in trial.tensors:
            fail(f"it claims {claim} of {key!r}, and takes no {key!r}", "Name tensors that it takes.", trial)
    return pair


def _without_metrics(run: Run) -> Run:
    return run._replace(result={"loss": run.result["loss"]})


def _when(told: str) -> str:
    return f" ({told})" if told else ""

"""Whether the samples of a batch depend on each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .comparing import agree

if TYPE_CHECKING:
    from torch import Tensor

    from tensafe.training.losses.testing.subject import Subject
    from tensafe.training.losses.testing.trial import Trial

__all__ = ["coupled_sample", "has_reduction"]

_COUNTING = ("weights", "mask", "lengths")


def coupled_sample(subject: Subject) -> tuple[int, str, Trial] | None:
    """Return a sample whose gradient changes when the others do, the tensor that it changes for, and the call.

    The loss is summed where it can be: a mean couples samples through its denominator, which is not what is meant.
    Where it cannot be, only what the denominator does not depend on is changed.
    """
    summed = has_reduction(subject)
    kwargs: dict[str, Any] = {"reduction": "sum"} if summed else {}
    trial, other = (subject.trial(seed=seed, **kwargs) for seed in (0, 1))
    before = trial.run().gradients
    for kept in range(trial.batch_size):
        changed = _with_others(trial, other, kept, everything=summed)
        after = changed.run().gradients
        for key in trial.learnt:
            if trial.has_samples(key) and not agree(before[key][kept], after[key][kept], rtol=1e-7, atol=1e-10):
                return kept, key, changed
    return None


def has_reduction(subject: Subject) -> bool:
    """Whether the loss can be told to add its values up."""
    if subject.choices("reduction"):
        return "sum" in subject.choices("reduction")
    return "reduction" in subject.resolve().kwargs


def _with_others(trial: Trial, other: Trial, kept: int, *, everything: bool) -> Trial:
    """Return the call with every sample but one changed to what it is in the other call."""
    values = other.tensors

    def change(key: str, tensor: Tensor) -> Any:
        if not trial.has_samples(key) or not (everything or _is_counted(key, tensor)):
            return tensor
        new = values.get(key)
        if new is None or new.shape != tensor.shape or bool((new == tensor).all()):
            new = tensor * 0.5 if tensor.is_floating_point() else tensor
        new = new.clone()
        new[kept] = tensor[kept]
        return new

    return trial.changed(change)


def _is_counted(key: str, tensor: Tensor) -> bool:
    """Whether a tensor holds what is counted, rather than what counts."""
    return tensor.is_floating_point() and not key.endswith(_COUNTING)

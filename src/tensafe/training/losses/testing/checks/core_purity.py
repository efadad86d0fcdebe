"""What is not a loss's own: what it was given, and the keys beside those that it takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tensafe.training.losses.testing.aids.comparing import agree, change_of
from tensafe.training.losses.testing.catalogue import conformance_check
from tensafe.training.losses.testing.outcome import fail

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tensafe.training.losses.testing.subject import Subject


@conformance_check(
    "core",
    "Leave the caller's data as it is: no in-place operation (a trailing underscore, x[...] = ..., +=) on a tensor "
    "that was passed in or on a view of one, no new or popped keys. Use torch.where or masked_fill, or clone first.",
)
def check_outputs_not_mutated(subject: Subject) -> None:
    """Neither the call nor the backward pass changes outputs or batch: values, versions, keys or their order."""
    for what, trial in subject.trials():
        at = f" ({what})" if what else ""
        # what a model computes is no leaf: on a leaf autograd itself would object
        attached = {key: leaf * 1 for key, leaf in trial.leaves().items()}
        sides = {"outputs": {**trial.outputs, **attached}, "batch": dict(trial.batch)}
        before = {side: _Snapshot(items) for side, items in sides.items()}
        trial.call()  # for the report
        loss = trial.loss(sides["outputs"], sides["batch"])["loss"].sum()
        if loss.requires_grad:
            loss.backward()  # type: ignore[no-untyped-call]  # torch has no types for it
        for side, items in sides.items():
            change = before[side].change(items)
            if change is not None:
                fail(f"it changed {side}{at}: {change}", trial=trial)


class _Snapshot:
    """What outputs or a batch were like."""

    def __init__(self, items: Mapping[str, Any]) -> None:
        self._items = dict(items)
        self._tensors = {key: value for key, value in items.items() if isinstance(value, Tensor)}
        self._versions = {key: tensor._version for key, tensor in self._tensors.items()}
        self._values = {key: tensor.detach().clone() for key, tensor in self._tensors.items()}

    def change(self, items: Mapping[str, Any]) -> str | None:
        """Say what is not as it was; None if everything is."""
        if list(items) != list(self._items):
            return f"its keys were {', '.join(self._items)}, now {', '.join(items)}"
        for key, value in items.items():
            if value is not self._items[key]:
                return f"{key!r} is another object"
        for key, tensor in self._tensors.items():
            if not agree(tensor, self._values[key], rtol=0, atol=0):
                return f"the values of {key!r}"
            if tensor._version != self._versions[key]:
                return f"{key!r} was written to, though its values are the same"
        return None


@conformance_check(
    "core",
    "Take tensors by their keys, outputs['logits'], and never by their order, by their number or by going through all "
    "of them: models and collators add keys of their own.",
)
def check_extra_keys_ignored(subject: Subject) -> None:
    """Keys that the loss does not know, in outputs or batch, change nothing."""
    trial = subject.trial("float64")
    before = trial.run()
    extra: dict[str, Any] = {
        "unrelated_scores": torch.full((3, 2), torch.nan, dtype=torch.float64),
        "unrelated_ids": torch.arange(3),
        "unrelated_text": ["one", "two"],
        "unrelated_nothing": None,
    }
    first = trial._replace(outputs={**extra, **trial.outputs}, batch={**extra, **trial.batch})
    last = trial._replace(outputs={**trial.outputs, **extra}, batch={**trial.batch, **extra})
    for where, changed in (("before", first), ("after", last)):
        change = change_of(before, changed.run(), rtol=0, atol=0)
        if change is not None:
            fail(f"keys that have nothing to do with it, {where} its own, changed {change}", trial=changed)

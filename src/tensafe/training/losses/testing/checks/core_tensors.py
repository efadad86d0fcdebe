"""Tensors of the wrong kind, and on different devices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from tensafe.training.losses.testing.aids.axes import groups_of, names_of, one_optional_each
from tensafe.training.losses.testing.aids.refusals import refusal_of, require_clear
from tensafe.training.losses.testing.catalogue import conformance_check
from tensafe.training.losses.testing.outcome import fail, skip

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from tensafe.training.losses.contract import TensorSpec
    from tensafe.training.losses.testing.subject import Subject
    from tensafe.training.losses.testing.trial import Trial

_WRONG: dict[str, tuple[str, ...]] = {
    "float": ("int64", "bool", "complex64", "str"),
    "num": ("bool", "complex64", "str"),
    "int": ("float32", "bool", "complex64", "str"),
    "bool": ("float32", "complex64", "str"),
    "any": ("str",),
}
"""What is no good where a kind is due."""

_NO_IDS = ("mask", "lengths", "weights")
"""Ends of the names of integers that are no ids: a plain function may take them as floats or bools too."""


@conformance_check(
    "core",
    "Look at the dtypes first: floats that are learnt must be floating-point, ids integers and no bools. Raise an "
    "error that names the key and both dtypes, and convert nothing that may have been a mistake: `labels.long()` makes "
    "ids of probabilities. A subclass of Loss does so by itself.",
)
def check_dtype_errors(subject: Subject) -> None:
    """Integers, bools, complex numbers and text where floats are due, floats and bools where ids are, are refused."""
    for trial, group, key in _each_tensor(subject):
        kind = trial.specs[key].kind if key not in group else group[key].kind
        for name in _WRONG[kind] if subject.is_typed else _wrong_for_a_function(trial, key, kind):
            changed = trial.replaced(**{key: "text" if name == "str" else trial.tensors[key].to(getattr(torch, name))})
            error = refusal_of(changed)
            when = f"with {key!r} as {name} instead of {_name(trial.tensors[key])}"
            if error is None:
                fail(f"{when} it went through", trial=changed)
            require_clear(error, when, {key: names_of(trial, key)}, changed)


def _wrong_for_a_function(trial: Trial, key: str, kind: str) -> tuple[str, ...]:
    """Return what is no good for a tensor of which only a sample is known."""
    if kind == "float":  # integers from a data set are as good as floats
        return _WRONG["float"] if key in trial.learnt else ("complex64", "str")
    return _WRONG["int"] if kind == "int" and not key.endswith(_NO_IDS) else ("str",)


@conformance_check(
    "core",
    "Compare the devices before computing, and raise an error that names both keys and both devices: `if labels.device "
    "!= logits.device: raise LossInputError(...)`; do not move tensors silently. A subclass of Loss does so by itself.",
)
def check_device_mismatch_message(subject: Subject) -> None:
    """Where two tensors are on different devices, the error names both, and the devices."""
    found = False
    for trial, group, key in _each_tensor(subject):
        partners = [other for other in group if other != key]
        if not partners:
            continue
        found = True
        moved = trial.replaced(**{key: trial.tensors[key].to("meta")})
        when = f"with {key!r} on meta, {' and '.join(map(repr, partners))} on cpu"
        error = refusal_of(moved)
        if error is None:
            fail(f"{when} it went through", trial=moved)
        named = {key: names_of(trial, key), " or ".join(partners): names_of(trial, *partners)}
        named.update({device: [device] for device in ("meta", "cpu")})
        require_clear(error, when, named, moved)
    if not found:
        skip("takes a single tensor")


def _each_tensor(subject: Subject) -> Iterator[tuple[Trial, dict[str, TensorSpec], str]]:
    """Yield each tensor of the loss, with those that it is looked at together with, in a call that has it."""
    found = False
    for trial, new in one_optional_each(subject):
        for group in groups_of(subject, trial):
            for key in group:
                if key in new:
                    found = True
                    yield trial, dict(group), key
    if not found:
        skip("takes no tensors by name")


def _name(tensor: Tensor | Any) -> str:
    return str(tensor.dtype).removeprefix("torch.")

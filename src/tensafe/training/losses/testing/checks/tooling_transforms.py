"""A loss inside torch.func's transforms, and without a graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tensafe.training.losses.testing.aids.agreement import require_same_result
from tensafe.training.losses.testing.catalogue import conformance_check
from tensafe.training.losses.testing.outcome import fail, first_line, skip

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tensafe.training.losses.testing.subject import Subject
    from tensafe.training.losses.testing.trial import Trial

_BATCHES = 3


@conformance_check(
    "tooling",
    "torch.func.vmap cannot go over it. Leave out what needs one value at a time or writes into a tensor: .item(), an "
    "`if` on a value, indexing by a mask, in-place operations on new tensors, an autograd function without vmap.",
)
def check_vmap_and_func_grad(subject: Subject) -> None:
    """The gradients of several batches at once, as DP-SGD takes those of samples, are those of each by itself."""
    trials = [subject.trial("float64", seed=seed) for seed in range(_BATCHES)]
    first = trials[0]
    if not first.learnt:
        skip("no tensor of its sample is learnt")
    if any(_shapes(trial) != _shapes(first) for trial in trials):
        skip("the shapes of its samples depend on the seed")

    def value(leaves: Mapping[str, Tensor], outputs: Mapping[str, Any], batch: Mapping[str, Any]) -> Tensor:
        return first.loss({**outputs, **leaves}, batch)["loss"].sum()

    leaves, outputs, batch = (_stacked([side[part] for side in map(_sides, trials)]) for part in range(3))
    axes = tuple({key: 0 if isinstance(each, Tensor) else None for key, each in side.items()} for side in _sides(first))
    try:
        gradients, values = torch.func.vmap(torch.func.grad_and_value(value), axes)(leaves, outputs, batch)
    except Exception as error:
        fail(f"under torch.func it raises {first_line(error)}", trial=first)
    for index, trial in enumerate(trials):
        expected = trial.run(first.loss)
        _require_close("the loss", values[index], expected.loss.sum(), trial)
        for key, gradient in expected.gradients.items():
            _require_close(f"the gradient of {key}", gradients[key][index], gradient, trial)


@conformance_check(
    "tooling",
    "The value must not depend on whether gradients are recorded, and nothing may record them where the caller said "
    "no: leave out torch.enable_grad() and requires_grad_(), and do not call autograd inside the loss.",
)
def check_no_grad_and_inference_mode(subject: Subject) -> None:
    """Under no_grad and inference_mode it gives the same result, without a graph."""
    for what, trial in subject.trials("float64"):
        trial = trial.replaced(**trial.leaves())
        expected = trial.call()
        for context in (torch.no_grad, torch.inference_mode):
            where = f"under {context.__name__}{f' with {what}' if what else ''}"
            try:
                with context():
                    found = trial.call()
            except Exception as error:
                fail(f"{where} it raises {type(error).__name__}: {error}", trial=trial)
            if found["loss"].requires_grad:
                fail(f"{where} the loss has a graph", trial=trial)
            require_same_result(found, expected, where, trial)


def _shapes(trial: Trial) -> dict[str, Any]:
    return {key: (tensor.shape, tensor.dtype) for key, tensor in trial.tensors.items()}


def _sides(trial: Trial) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Return what is learnt, the other outputs, and the batch."""
    leaves = {key: trial.outputs[key].detach() for key in trial.learnt}
    return leaves, {key: value for key, value in trial.outputs.items() if key not in leaves}, dict(trial.batch)


def _stacked(sides: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        key: torch.stack([side[key] for side in sides]) if isinstance(value, Tensor) else value
        for key, value in sides[0].items()
    }


def _require_close(what: str, found: Tensor, expected: Tensor, trial: Trial) -> None:
    try:
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12, equal_nan=True)
    except AssertionError as error:
        fail(f"under torch.func {what} is not what it is else: {' '.join(str(error).split())}", trial=trial)

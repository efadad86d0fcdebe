"""Gradients: those of the value, once and twice."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from tensafe.training.losses.testing.catalogue import conformance_check
from tensafe.training.losses.testing.outcome import fail, skip

if TYPE_CHECKING:
    from torch import Tensor

    from tensafe.training.losses.testing.subject import Subject
    from tensafe.training.losses.testing.trial import Trial


@conformance_check(
    "numerics",
    "The gradient is not that of the value. Let autograd differentiate the whole formula, without .detach(), .data or "
    "numpy on the way; if a factor is held fixed on purpose, say so with Traits(surrogate=True).",
)
def check_gradcheck(subject: Subject) -> None:
    """The gradient is that of finite differences, in float64; that of a surrogate is not."""
    trial = subject.trial("float64")
    differs = _difference(trial, torch.autograd.gradcheck)
    if not subject.traits.surrogate:
        if differs is not None:
            fail(differs, trial=trial)
    elif differs is None:
        fail("it claims Traits(surrogate=True), yet its gradient is that of its value", "Drop the claim.", trial)


@conformance_check(
    "numerics",
    "Second derivatives are wrong or missing: a custom autograd function needs a backward that can be differentiated "
    "itself. If it has none by design, say so with Traits(twice_differentiable=False).",
)
def check_gradgradcheck(subject: Subject) -> None:
    """The gradient can be differentiated again, correctly, if the loss claims that."""
    if subject.traits.surrogate:
        skip("its gradient is not that of its value")
    trial = subject.trial("float64")
    differs = _difference(trial, torch.autograd.gradgradcheck)
    if subject.traits.twice_differentiable and differs is not None:
        fail(differs, trial=trial)
    if not subject.traits.twice_differentiable and differs is None:
        fail("it claims Traits(twice_differentiable=False), yet it is", "Drop the claim.", trial)


def _difference(trial: Trial, gradcheck: object) -> str | None:
    """Return what a comparison with finite differences says; None if they agree."""
    leaves = trial.leaves()

    def value(*tensors: Tensor) -> Tensor:
        return trial.replaced(**dict(zip(leaves, tensors, strict=True))).call()["loss"]

    try:
        gradcheck(value, tuple(leaves.values()), fast_mode=True)  # type: ignore[operator]
    except RuntimeError as error:  # gradcheck's own error is one
        return str(error)
    return None

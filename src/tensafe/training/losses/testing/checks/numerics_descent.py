"""Where the gradient leads, and to what."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from tensafe.training.losses.testing.aids.comparing import shown
from tensafe.training.losses.testing.catalogue import conformance_check
from tensafe.training.losses.testing.outcome import fail, skip

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from tensafe.training.losses.testing.subject import Subject
    from tensafe.training.losses.testing.trial import Trial

_STEP = 1e-6
_MOST_SEEDS = 5

_OF_ANOTHER = ("ref_", "old_", "rollout_", "teacher_", "target_", "kl_")
"""What the names of tensors begin with that another model has computed, or this one at another time."""

_ESTIMATED = ("advantages", "returns")


@conformance_check(
    "numerics",
    "A step along minus the gradient must lower the loss by the step times the gradient's norm. Look for a sign in a "
    "backward of your own; if the gradient is by design not that of the value, say so with Traits(surrogate=True).",
)
def check_direction(subject: Subject) -> None:
    """A small step along minus the gradient lowers the loss, by as much as the gradient says."""
    if subject.traits.surrogate:
        skip("its gradient is not that of its value")
    flat = True
    for seed in range(3):
        trial = subject.trial(seed=seed)
        run = trial.run()
        norm = sum(float(gradient.square().sum()) for gradient in run.gradients.values()) ** 0.5
        if not norm:
            continue
        flat = False
        step = {key: trial.outputs[key] - _STEP / norm * gradient for key, gradient in run.gradients.items()}
        fallen = run.loss.sum() - trial.replaced(**step).call()["loss"].detach().sum()
        expected = _STEP * norm
        if abs(float(fallen) - expected) > 1e-2 * expected + 1e-13:
            told = f"lowers the loss by {shown(fallen)} instead of {shown(expected)}"
            fail(f"a step of {_STEP:g} along minus the gradient {told}", trial=trial)
    if flat:
        skip("its samples are where it is flat")


@conformance_check(
    "numerics",
    "What the model computes must get a gradient, and it must be finite: look for .detach(), .data, .item(), argmax or "
    "numpy on the way. What another model computed must get none: add .detach() to it.",
)
def check_grad_reaches_inputs(subject: Subject) -> None:
    """Every output that is learnt gets a finite gradient; what a reference or a teacher computed gets none."""
    learnt = subject.trial().learnt
    if not learnt:
        skip("nothing that it takes is learnt")
    reached: set[str] = set()
    for seed in range(_MOST_SEEDS):
        reached |= _reached(subject.trial(seed=seed))
        if reached == set(learnt):
            break
    missed = [key for key in learnt if key not in reached]
    if missed:
        fail(f"no gradient reaches {', '.join(map(repr, missed))}")
    for told, trial in subject.trials():
        _check_others(subject, trial, told)


def _reached(trial: Trial) -> set[str]:
    """Return what gets a gradient that is not 0."""
    gradients = {key: grad for key, grad in _gradients(trial, trial.learnt).items() if grad is not None}
    for key, gradient in gradients.items():
        if not gradient.isfinite().all():
            fail(f"the gradient of {key!r} is not finite", trial=trial)
    return {key for key, gradient in gradients.items() if gradient.any()}


def _check_others(subject: Subject, trial: Trial, told: str) -> None:
    others = [key for key, value in trial.tensors.items() if key not in trial.learnt and value.is_floating_point()]
    when = f" ({told})" if told else ""
    for key, gradient in _gradients(trial, [*trial.learnt, *others]).items():
        got = gradient is not None and bool(gradient.any())
        if key in subject.traits.passes_gradient_to and not got:
            fail(f"it claims Traits(passes_gradient_to=({key!r},)), yet {key!r} gets none{when}", "Drop it.", trial)
        if got and key in others and _is_anothers(key) and key not in subject.traits.passes_gradient_to:
            fail(f"a gradient reaches {key!r}, which another model computed{when}", trial=trial)


def _is_anothers(key: str) -> bool:
    return key.startswith(_OF_ANOTHER) or key in _ESTIMATED


def _gradients(trial: Trial, keys: tuple[str, ...] | list[str]) -> Mapping[str, Tensor | None]:
    """Return the gradient of each tensor, None where none reaches it."""
    leaves = {key: trial.tensors[key].detach().clone().requires_grad_() for key in keys}
    loss = trial.replaced(**leaves).call()["loss"].sum()
    if not loss.requires_grad:
        return dict.fromkeys(keys)
    return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values()), allow_unused=True), strict=True))

"""What a loss computes in: the dtypes of its results, and how near they come to float64."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from tensafe.training.losses.testing.aids.comparing import agree, shown
from tensafe.training.losses.testing.catalogue import conformance_check
from tensafe.training.losses.testing.outcome import NotApplicable, fail

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from tensafe.training.losses.testing.subject import Subject
    from tensafe.training.losses.testing.trial import Run, Trial
    from tensafe.training.losses.types import LossReturn

_LOW = ("bfloat16", "float16")
_RELATIVE, _ABSOLUTE = 1e-4, 1e-5
"""How far a loss of 16-bit inputs may be from the float64 one of the same inputs."""

_MANY = {"batch": 64, "seq": 64}
_MANY_SAMPLES, _SOME_SAMPLES = 4096, 256
"""Samples, where samples are all there is: as many as there are tokens else, or fewer, where each may meet each."""


@conformance_check(
    "numerics",
    "Widen 16-bit floats before the first operation, `x.float()`, and nothing else: float64 inputs give a float64 "
    "loss. A typed loss gets this from its adapter.",
)
def check_dtype_policy(subject: Subject) -> None:
    """The loss of 16-bit inputs is float32, that of float64 is float64; gradients come in the dtype of the input."""
    for dtype in ("float64", "float32", *_LOW):
        trial = subject.trial(dtype)
        run = trial.run()
        expected = torch.float64 if dtype == "float64" else torch.float32
        if run.loss.dtype is not expected:
            fail(f"the loss of {dtype} inputs is {_name(run.loss)}, not {str(expected).removeprefix('torch.')}")
        for key, gradient in run.gradients.items():
            if gradient.dtype is not trial.tensors[key].dtype:
                fail(f"the gradient of {key!r}, which is {dtype}, is {_name(gradient)}")


@conformance_check(
    "numerics",
    "It is not accurate on 16-bit inputs: something is computed, or summed, in 16 bits. Widen them before the first "
    "operation: `x.float()`.",
)
def check_low_precision_accuracy(subject: Subject) -> None:
    """On 16-bit inputs, few and 4096 of them, it is as near to float64 on the same inputs as float32 can be."""
    for dtype in _LOW:
        for told, trial in (("", subject.trial(dtype)), *_large(subject, dtype)):
            exact = trial.changed(_widened).run()
            problem = _difference(trial.run(), exact, torch.finfo(getattr(torch, dtype)).eps)
            if problem is not None:
                fail(f"{dtype} inputs{told}: {problem}", trial=trial)


@conformance_check(
    "numerics",
    "Under autocast something is computed in 16 bits. Wrap the body in `with torch.autocast(device.type, "
    "enabled=False):` and widen what comes in; a typed loss gets this from its adapter.",
)
def check_autocast_invariant(subject: Subject) -> None:
    """Inside torch.autocast, as in mixed-precision training, value and gradients stay what they are outside."""
    trial = subject.trial("float32")

    def within(outputs: Any, batch: Any) -> LossReturn:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return trial.loss(outputs, batch)

    outside, inside = trial.run(), trial.run(within)
    if inside.loss.dtype is not outside.loss.dtype:
        fail(f"under autocast the loss is {_name(inside.loss)}, and else {_name(outside.loss)}", trial=trial)
    problem = _difference(inside, outside, _RELATIVE)
    if problem is not None:
        fail(f"under autocast {problem}", trial=trial)


def _large(subject: Subject, dtype: str) -> Iterator[tuple[str, Trial]]:
    """Yield a call of many tokens or samples, where sizes can be chosen: what is biased does not average out."""
    axes = {dim for spec in subject.trial().specs.values() for dim in spec.dims}
    if axes & {"seq", "*rows"}:
        sizes = _MANY
    else:
        sizes = {"batch": _MANY_SAMPLES if subject.traits.sample_independent else _SOME_SAMPLES}
    try:
        trial = subject.trial(dtype, sizes=sizes)
    except NotApplicable:
        return
    yield f", a batch of {' x '.join(str(size) for size in sizes.values())}", trial


def _difference(run: Run, exact: Run, eps: float) -> str | None:
    """Return what is further off than float32 arithmetic, and a gradient in the input's dtype, account for."""
    if not agree(run.loss, exact.loss, rtol=_RELATIVE, atol=_ABSOLUTE):
        return f"the loss is {shown(run.loss)}, where it should be {shown(exact.loss)}"
    for key, gradient in run.gradients.items():
        right = exact.gradients[key]
        largest = float(right.abs().max()) if right.numel() else 0.0
        # terms that are rounded each may cancel
        if not agree(gradient.double(), right.double(), rtol=2 * eps, atol=eps * largest + 1e-6):
            off = float((gradient.double() - right.double()).abs().max())
            return f"the gradient of {key!r}, up to {shown(largest)}, is off by {shown(off)}"
    return None


def _widened(key: str, tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def _name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")

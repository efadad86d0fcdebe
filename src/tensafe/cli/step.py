"""One training step of a loss on a batch made for it, and the memory that it is predicted to need, on fake tensors."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from tensafe._lazy import torch
from tensafe.training.losses.adapter import ResolvedLoss, TypedLoss
from tensafe.training.losses.contract import lookup_keys
from tensafe.training.losses.registry import lookup
from tensafe.training.losses.resolve import resolve_loss
from tensafe.training.losses.sample_values import IGNORED_SHARE
from tensafe.training.losses.samples import Sample, SampleSettings, make_sample

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

    from tensafe.training.losses.types import Leaner, LossReturn

__all__ = ["Comparison", "Step", "compare", "predict", "take_step"]

_ASYNCHRONOUS = frozenset({"cuda", "mps", "xpu"})


class Step(NamedTuple):
    """What one step gave.

    Attributes:
        result: What the loss returned.
        forward: Seconds that the loss took.
        backward: Seconds that the gradients took.
    """

    result: LossReturn
    forward: float
    backward: float


class Comparison(NamedTuple):
    """The memory that a loss needs, and what a leaner one would need to do the same.

    Both start at the tensors that the leaner one takes and end at the gradients of those, which a training step has in
    either case. All that is made on this way counts.

    Attributes:
        need: Bytes that the loss needs, with the tensors that the leaner one never makes.
        leaner: Name of the leaner one.
        leaner_need: Bytes that it needs.
        start: The tensors at which both start, and their shapes.
        spared: The tensors that the leaner one never makes.
    """

    need: int
    leaner: str
    leaner_need: int
    start: Mapping[str, tuple[int, ...]]
    spared: tuple[str, ...]


def take_step(loss: ResolvedLoss, outputs: Mapping[str, Any], batch: Mapping[str, Any], device: str) -> Step:
    """Run a loss forward and backward."""
    started = _now(device)
    result = loss(outputs, batch)
    middle = _now(device)
    if result["loss"].requires_grad:
        torch.autograd.backward(result["loss"].sum())
    return Step(result, middle - started, _now(device) - middle)


def predict(loss: ResolvedLoss, settings: SampleSettings) -> tuple[Sample, Step, int]:
    """Return a sample of fake tensors, a step on it, and the bytes that the step would take beside the sample."""
    from tensafe._memory import count_peak

    with _fake_tensors():
        sample = make_sample(loss, settings)
        step, peak = count_peak(lambda: take_step(loss, sample.outputs, sample.batch, settings.device))
    return sample, step, peak.size


def compare(loss: ResolvedLoss, settings: SampleSettings) -> Comparison | None:
    """Compare a loss with the leaner one that its class names; None where it names none."""
    leaner = type(loss.loss)._leaner if isinstance(loss, TypedLoss) else None
    if leaner is None or not isinstance(loss, TypedLoss):
        return None
    from tensafe._memory import count_peak

    other = _leaner_loss(loss, leaner)
    keys = {tensor.name: lookup_keys(tensor, loss.inputs)[1][0] for tensor in loss.contract.tensors}
    with _fake_tensors():
        sample, start, again = (make_sample(one, settings) for one in (loss, other, other))

        def step() -> dict[str, Any]:
            made = leaner.makes(start.outputs)
            outputs = {**sample.outputs, **{keys[name]: tensor for name, tensor in made.items()}}
            take_step(loss, outputs, sample.batch, settings.device)
            return made

        spared, peak = count_peak(step)
        _, leaner_peak = count_peak(lambda: take_step(other, again.outputs, again.batch, settings.device))
    shapes = {name: tuple(tensor.shape) for name, tensor in start.outputs.items()}
    return Comparison(peak.size, other.name, leaner_peak.size, shapes, tuple(spared))


def _leaner_loss(loss: TypedLoss, leaner: Leaner) -> ResolvedLoss:
    """Resolve the leaner loss, with those kwargs that it has too."""
    fields = lookup(leaner.loss).model_fields
    given = {name: getattr(loss.loss, name) for name in loss.loss.model_fields_set}
    return resolve_loss(leaner.loss, **{name: value for name, value in given.items() if name in fields})


@contextmanager
def _fake_tensors() -> Generator[None]:
    """Make tensors without data, on which operations take the memory that they take on real ones."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    from tensafe.training.losses.ops.lean import predicting

    with FakeTensorMode(allow_non_fake_inputs=True), predicting(live_share=1 - IGNORED_SHARE):
        yield


def _now(device: str) -> float:
    """Return the time at which what was launched has ended."""
    if device.partition(":")[0] in _ASYNCHRONOUS:
        torch.accelerator.synchronize(device)
    return time.perf_counter()

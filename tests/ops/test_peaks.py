"""What operations need at most, beside their inputs: counted, and predicted for sizes that a test cannot have."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ops.cases import gradient_of
from tensafe._memory import MemoryMeter
from tensafe.training.losses.ops.cross_entropy import Formula, cross_entropy, cross_entropy_dot
from tensafe.training.losses.ops.divergence import Divergence, divergence, divergence_dot
from tensafe.training.losses.ops.info_nce import info_nce, info_nce_dot
from tensafe.training.losses.ops.lean import predicting
from tensafe.training.losses.ops.linear_cross_entropy import linear_cross_entropy, linear_cross_entropy_dot
from tensafe.training.losses.ops.logps import logps, logps_and_entropy

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

MIB = 2**20
FULL = Formula(label_smoothing=0.1, z_loss=0.1)


class Peak(NamedTuple):
    """An operation on inputs of certain shapes, and what it may take.

    Attributes:
        run: Makes a number of tensors that want a gradient.
        shapes: Theirs.
        scratch: In MiB, beside the gradients, of float32 and of bfloat16 inputs.
    """

    run: Callable[..., Tensor]
    shapes: tuple[tuple[int, int], ...]
    scratch: tuple[float, float]


def ones(tensor: Tensor) -> Tensor:
    return torch.ones(tensor.shape[0])


def labels(tensor: Tensor) -> Tensor:
    return torch.arange(tensor.shape[0])


def both(logits: Tensor) -> Tensor:
    first, second = logps_and_entropy(logits, labels(logits))
    return first.sum() + second.sum()


LOGITS, STATES, SIDES = ((512, 8192),), ((512, 16), (8192, 16)), ((2048, 16),) * 2
PEAKS = {
    "cross_entropy": Peak(lambda x: cross_entropy(x, labels(x)).sum(), LOGITS, (2, 2)),
    "cross_entropy_dot": Peak(lambda x: cross_entropy_dot(x, labels(x), ones(x)), LOGITS, (2, 2)),
    "cross_entropy_dot-full": Peak(lambda x: cross_entropy_dot(x, labels(x), ones(x), FULL), LOGITS, (2, 2)),
    "logps": Peak(lambda x: logps(x, labels(x), temperature=0.5).sum(), LOGITS, (2, 2)),
    "logps_and_entropy": Peak(both, LOGITS, (6, 6)),
    "divergence": Peak(lambda x: divergence(x, x.detach()).sum(), LOGITS, (4.2, 4.2)),
    "divergence_dot": Peak(lambda x: divergence_dot(x, x.detach(), ones(x)), LOGITS, (4.2, 4.2)),
    "jsd": Peak(lambda x: divergence_dot(x, x.detach(), ones(x), Divergence("jsd")), LOGITS, (6, 6)),
    "linear": Peak(lambda h, w: linear_cross_entropy(h, w, labels(h), chunk_size=64).sum(), STATES, (2, 18)),
    "linear_dot": Peak(lambda h, w: linear_cross_entropy_dot(h, w, labels(h), ones(h), chunk_size=64), STATES, (2, 18)),
    "info_nce": Peak(lambda a, b: info_nce(a, b, temperature=0.1).sum(), SIDES, (2, 2.5)),
    "info_nce_dot": Peak(lambda a, b: info_nce_dot(a, b, ones(a), temperature=0.1, symmetric=True), SIDES, (4, 4.5)),
}
every_peak = pytest.mark.parametrize("name", PEAKS)
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


def leaves_of(peak: Peak, dtype: torch.dtype) -> list[Tensor]:
    return [torch.zeros(shape, dtype=dtype, requires_grad=True) for shape in peak.shapes]


def taken(peak: Peak, dtype: torch.dtype, *, backward: bool = True, predicted: bool = False) -> float:
    """Return the most that was alive at once, in MiB, but for the gradients."""
    with ExitStack() as stack:
        if predicted:
            stack.enter_context(FakeTensorMode())
            stack.enter_context(predicting())
        leaves = leaves_of(peak, dtype)
        meter = stack.enter_context(MemoryMeter())
        if not backward:
            stack.enter_context(torch.no_grad())
        total = peak.run(*leaves)
        if not backward:
            return float(meter.peak / MIB)
        torch.autograd.backward(total)
        return float(meter.peak - sum(gradient_of(leaf).nbytes for leaf in leaves)) / MIB


@every_peak
@every_dtype
def test_a_step_takes_the_gradients_and_a_few_chunks_as_predicted(name: str, dtype: torch.dtype) -> None:
    peak = PEAKS[name]
    measured = taken(peak, dtype)
    assert measured <= peak.scratch[dtype is torch.bfloat16] + 0.25
    assert taken(peak, dtype, predicted=True) == pytest.approx(measured, abs=0.3)


@every_peak
@every_dtype
def test_values_alone_take_a_few_chunks(name: str, dtype: torch.dtype) -> None:
    scratch = PEAKS[name].scratch[dtype is torch.bfloat16]
    assert taken(PEAKS[name], dtype, backward=False) <= scratch + 0.25


LARGE = ((1024, 2**15),)
TARGETS = {
    # name: shapes, backward, and the most in units of the logits, or scores, in float32 and bfloat16
    "cross_entropy": (LARGE, True, (0.05, 0.1)),
    "cross_entropy_dot": (LARGE, True, (0.05, 0.1)),
    "logps": (LARGE, True, (0.05, 0.1)),
    "logps no_grad": (LARGE, False, (0.05, 0.05)),
    "divergence_dot": (LARGE, True, (0.1, 0.1)),
    "jsd": (LARGE, True, (0.1, 0.15)),
    "linear_dot": (((2048, 1024), (128_256, 1024)), True, (0.1, 0.2)),
    "info_nce_dot": (((4096, 512),) * 2, True, (0.3, 0.9)),
}


@pytest.mark.parametrize("target", TARGETS)
@every_dtype
def test_at_the_sizes_of_language_models_that_is_little(target: str, dtype: torch.dtype) -> None:
    shapes, backward, most = TARGETS[target]
    peak = PEAKS[target.split()[0]]._replace(shapes=shapes)
    rows, columns = shapes[0] if len(shapes) == 1 else (shapes[0][0], shapes[1][0])
    whole = rows * columns * dtype.itemsize / MIB
    assert taken(peak, dtype, backward=backward, predicted=True) < most[dtype is torch.bfloat16] * whole


@pytest.mark.parametrize("form", ["values", "dot"])
@every_dtype
def test_a_gradient_over_the_logits_takes_nothing(form: str, dtype: torch.dtype) -> None:
    logits = torch.zeros(*LOGITS[0], dtype=dtype, requires_grad=True) * 1
    with MemoryMeter() as meter:
        if form == "dot":
            total = cross_entropy_dot(logits, labels(logits), ones(logits), overwrite_logits=True)
        else:
            total = cross_entropy(logits, labels(logits), overwrite_logits=True).sum()
        torch.autograd.grad(total, logits)
    assert meter.peak < (0.01 if dtype is torch.float32 else 0.3) * logits.nbytes  # one chunk in float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_weights_that_want_a_gradient_get_none_without_grad_mode(dtype: torch.dtype) -> None:
    hidden, weight = torch.zeros(64, 64, dtype=dtype), torch.zeros(2**14, 64, dtype=dtype, requires_grad=True)
    with torch.no_grad(), MemoryMeter() as meter:
        total = linear_cross_entropy_dot(hidden, weight, labels(hidden), ones(hidden), chunk_size=1)
    assert not total.requires_grad
    assert meter.peak < 4 * 64 * 2**14 * (0.1 if dtype is torch.float32 else 3)


@pytest.mark.parametrize("name", [name for name in PEAKS if "dot" in name or name == "jsd"])
def test_gradients_are_handed_over_not_copied(name: str) -> None:
    leaves = leaves_of(PEAKS[name], torch.float32)
    total = PEAKS[name].run(*leaves)
    with MemoryMeter() as meter:
        torch.autograd.backward(total, retain_graph=True)
    assert meter.peak < 0.01 * sum(leaf.nbytes for leaf in leaves)

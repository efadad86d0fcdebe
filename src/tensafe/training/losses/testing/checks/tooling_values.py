"""Whether a loss looks at the values of tensors on the host, which on an accelerator waits for the device."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from tensafe.training.losses.testing.catalogue import conformance_check
from tensafe.training.losses.testing.outcome import fail, first_line

if TYPE_CHECKING:
    from tensafe.training.losses.testing.subject import Subject
    from tensafe.training.losses.testing.trial import Run, Trial


@conformance_check(
    "tooling",
    "Something needs the values of a tensor on the host, or makes a tensor on another device. Keep metrics as detached "
    "0-d tensors instead of .item() or float(); choose with torch.where, not `if`, a mask with where, not by indexing; "
    "make new tensors with device=<that of an input>, or by zeros_like and the like.",
)
def check_no_host_sync(subject: Subject) -> None:
    """Forward and backward run on tensors without values, and on a GPU without waiting for it."""
    for what, trial in subject.trials("float32"):
        where = f" with {what}" if what else ""
        expected = trial.run()
        _require_shapes(trial, expected, _on_meta(trial, where), f"on the meta device{where}")
        if not what:  # a slower way to ask the same, of tensors that say that they are on the CPU
            _require_shapes(trial, expected, _on_fakes(trial), "on fake tensors")
        if torch.cuda.is_available():
            _on_cuda(trial, where)


def _on_meta(trial: Trial, where: str) -> Run:
    try:
        return trial.changed(lambda _, tensor: tensor.to("meta")).run()
    except Exception as error:
        fail(f"on the meta device{where} it raises {first_line(error)}", trial=trial)


def _on_fakes(trial: Trial) -> Run:
    try:
        with FakeTensorMode() as mode:
            return trial.changed(lambda _, tensor: mode.from_tensor(tensor)).run()
    except Exception as error:
        fail(f"on fake tensors it raises {first_line(error)}", trial=trial)


def _on_cuda(trial: Trial, where: str) -> None:
    moved = trial.changed(lambda _, tensor: tensor.cuda())
    moved.run()  # the first call may load kernels and set handles up
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        moved.run()
    except Exception as error:
        fail(f"on a GPU{where} it raises {first_line(error)}", trial=trial)
    finally:
        torch.cuda.set_sync_debug_mode(before)


def _require_shapes(trial: Trial, expected: Run, found: Run, where: str) -> None:
    if found.loss.shape != expected.loss.shape:
        fail(f"{where} the loss is {list(found.loss.shape)}, else {list(expected.loss.shape)}", trial=trial)
    for key, gradient in expected.gradients.items():
        if found.gradients[key].shape != gradient.shape:
            fail(f"{where} the gradient of {key} is {list(found.gradients[key].shape)}", trial=trial)

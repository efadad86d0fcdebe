"""What surrounds a call: torch's default dtype, and its default device."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tensafe.training.losses.testing.aids.agreement import require_agreement
from tensafe.training.losses.testing.catalogue import conformance_check
from tensafe.training.losses.testing.outcome import fail, first_line

if TYPE_CHECKING:
    from collections.abc import Generator

    from tensafe.training.losses.testing.subject import Subject
    from tensafe.training.losses.testing.trial import Run, Trial


@conformance_check(
    "lifecycle",
    "Tensors that the loss makes take dtype and device from its inputs: torch.zeros_like(x), x.new_zeros(...), "
    "torch.tensor(0.5, dtype=x.dtype, device=x.device), or a plain number; torch's defaults belong to the caller.",
)
def check_default_dtype_and_device_context(subject: Subject) -> None:
    """The default dtype and device of torch make no difference to the result, and a call leaves them as they are."""
    trial = subject.trial("float32")
    expected = trial.run()
    with _default_dtype(torch.float64):
        found = _run(trial, "with float64 as default dtype")
        if torch.get_default_dtype() is not torch.float64:
            fail("a call changes torch's default dtype", trial=trial)
    _require_dtype(found, trial)
    require_agreement(found, expected, "with float64 as default dtype", trial, rtol=1e-6, atol=1e-7)
    with torch.device("meta"):
        found = _run(trial, "with meta as default device")
    require_agreement(found, expected, "with meta as default device", trial, rtol=1e-6, atol=1e-7)


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Generator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _run(trial: Trial, where: str) -> Run:
    try:
        return trial.run()
    except Exception as error:
        fail(f"{where} it raises {first_line(error)}", trial=trial)


def _require_dtype(found: Run, trial: Trial) -> None:
    """Fail if anything in a result became float64 only because that is the default."""
    result: Any = found.result
    values = {"the loss": result["loss"], **result.get("metrics", {})}
    for name, value in values.items():
        if isinstance(value, Tensor) and value.dtype is torch.float64:
            fail(f"with float64 as default dtype {name} is float64, for inputs of float32", trial=trial)

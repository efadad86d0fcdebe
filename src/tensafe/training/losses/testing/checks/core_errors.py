"""Calls that must be refused, as the caller of the checks gives them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tensafe.training.losses.testing.aids.refusals import refusal_of, require_short, told
from tensafe.training.losses.testing.catalogue import conformance_check
from tensafe.training.losses.testing.outcome import fail, skip
from tensafe.training.losses.testing.trial import Trial

if TYPE_CHECKING:
    from tensafe.training.losses.testing.info import ErrorCase
    from tensafe.training.losses.testing.subject import Subject


@conformance_check(
    "core",
    "Refuse what LossInfo.error_inputs says must be refused, with an error of that class whose text says what was "
    "expected and what was got, in at most ten lines and without the values of tensors.",
)
def check_error_inputs(subject: Subject) -> None:
    """Each call of `LossInfo.error_inputs` raises its class of error, with a text that is short and matches."""
    if subject.info.error_inputs is None:
        skip("LossInfo gives no error_inputs")
    for index, case in enumerate(subject.info.error_inputs()):
        _require_refusal(subject, case, f"error input {index}")


def _require_refusal(subject: Subject, case: ErrorCase, name: str) -> None:
    outputs, batch, kwargs, kind, pattern = case
    trial = Trial(subject.resolve(), outputs, batch, (), {})
    try:
        loss = subject.resolve(**kwargs)
    except Exception as refused:
        error: Exception | None = refused
    else:
        trial = trial._replace(loss=loss)
        error = refusal_of(trial)
    if error is None:
        fail(f"{name} went through; expected {kind.__name__}", trial=trial)
    if not isinstance(error, kind):
        fail(f"{name} raised {told(error)}\nexpected {kind.__name__}", trial=trial)
    if re.search(pattern, str(error)) is None:
        fail(f"{name} raised {told(error)}\nexpected a text that matches {pattern!r}", trial=trial)
    require_short(error, f"for {name}", trial)

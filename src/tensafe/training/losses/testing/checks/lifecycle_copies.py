"""Copies of a loss: pickled into another process, and deep."""

from __future__ import annotations

import copy
import pickle
from typing import TYPE_CHECKING

from tensafe.training.losses.testing.aids import fresh_process
from tensafe.training.losses.testing.aids.agreement import require_same_result
from tensafe.training.losses.testing.catalogue import conformance_check
from tensafe.training.losses.testing.outcome import fail, skip

if TYPE_CHECKING:
    from tensafe.training.losses.adapter import ResolvedLoss
    from tensafe.training.losses.testing.aids.fresh_process import Answer
    from tensafe.training.losses.testing.subject import Subject
    from tensafe.training.losses.testing.trial import Trial

_MODULE_LEVEL = "Define it at module level: pickle finds a function or a class by its module and name."


@conformance_check(
    "lifecycle",
    "What is pickled, to a data loader's worker or another rank, must be all there is: keep settings in fields or "
    "kwargs, not in globals that a program sets, and no locks, open files or lambdas in attributes.",
)
def check_pickle_roundtrip(subject: Subject) -> None:
    """Pickled after a call and loaded in a fresh process, it gives the same loss."""
    trial = subject.trial("float64")
    expected = trial.call()["loss"]
    pickled = _pickled(trial)
    try:
        answer = fresh_process.ask(pickled, trial.outputs, trial.batch)
    except OSError as error:
        skip(f"no other process can be started: {error}")
    if answer is None:
        fail("the process that loaded it died", trial=trial)
    _check_answer(answer, trial)
    require_same_result({"loss": answer.value}, {"loss": expected}, "in a fresh process", trial)


@conformance_check(
    "lifecycle",
    "A trainer copies what it is given. Keep no tensors, locks or files in attributes; what holds settings must copy "
    "them all, so leave __deepcopy__ to Python.",
)
def check_deepcopy(subject: Subject) -> None:
    """Copied after a call it gives the same result, and so does the original, whatever the copy does."""
    trial = subject.trial("float64")
    expected = trial.call()
    try:
        copied: ResolvedLoss = copy.deepcopy(trial.loss)
    except Exception as error:
        fail(f"copy.deepcopy raises {type(error).__name__}: {error}", trial=trial)
    _require_same_repr(repr(copied), trial)
    require_same_result(trial.call(copied), expected, "deep-copied", trial)
    require_same_result(trial.call(), expected, "after its copy was called,", trial)


def _pickled(trial: Trial) -> bytes:
    try:
        return pickle.dumps(trial.loss)
    except Exception as error:
        text = f"it cannot be pickled: {type(error).__name__}: {error}"
        local = "local object" in str(error) or "lambda" in str(error)
        fail(text, _MODULE_LEVEL if local else None, trial)


def _check_answer(answer: Answer, trial: Trial) -> None:
    if answer.missing is not None:
        skip(f"a fresh process cannot import {answer.missing}: put the loss where an import finds it")
    if answer.error is not None:
        fail(f"in a fresh process it raises {answer.error}", trial=trial)
    _require_same_repr(answer.shown, trial)


def _require_same_repr(shown: str, trial: Trial) -> None:
    if shown != repr(trial.loss) and " at 0x" not in shown:
        fail(f"the copy is {shown}, the original {trial.loss!r}", trial=trial)

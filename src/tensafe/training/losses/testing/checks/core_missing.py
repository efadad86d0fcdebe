"""What is not there: a key that is missing, or whose value is None."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from tensafe.training.losses.testing.aids.axes import names_of, one_optional_each
from tensafe.training.losses.testing.aids.comparing import agree
from tensafe.training.losses.testing.aids.refusals import refusal_of, require_clear
from tensafe.training.losses.testing.catalogue import conformance_check
from tensafe.training.losses.testing.outcome import fail, skip

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tensafe.training.losses.testing.subject import Subject
    from tensafe.training.losses.testing.trial import Trial

_OTHER = "unrelated_key"
"""A key that is there whatever is missing, so that an error has something to list."""

_ADVICE = (
    "Look whether a tensor is there before using it, and raise an error that names the key and those that are there: "
    "`if batch.get('labels') is None: raise LossInputError(f\"'labels' must be in batch; it has {', '.join(batch)}\")`"
    ". A subclass of Loss, whose compute() names its tensors, does so by itself."
)


@conformance_check("core", _ADVICE)
def check_missing_key_message(subject: Subject) -> None:
    """Without a key that it needs, the error names that key and those that are there."""
    for trial, key in _each_key(subject):
        _require_refusal(subject, trial.without(key), key, f"without {key!r}")


@conformance_check("core", _ADVICE)
def check_none_value_message(subject: Subject) -> None:
    """None is like a key that is missing: the error is as good and, where the key is optional, the loss the same."""
    for trial, key in _each_key(subject):
        when = f"with {key!r} None"
        with_none = trial.replaced(**{key: None})
        with_none = with_none._replace(learnt=tuple(name for name in trial.learnt if name != key))
        if refusal_of(trial.without(key)) is not None:
            _require_refusal(subject, with_none, key, when)
            continue
        error = refusal_of(with_none)
        if error is not None:
            require_clear(error, f"it does without {key!r}, but {when}", {key: names_of(trial, key)}, with_none)
        elif not agree(with_none.call()["loss"], trial.without(key).call()["loss"], rtol=0, atol=0):
            advice = f"Take None for absent: `{key} = batch.get({key!r})`, then `if {key} is not None`."
            fail(f"{when} its loss is not the one without {key!r}", advice, with_none)


def _each_key(subject: Subject) -> Iterator[tuple[Trial, str]]:
    """Yield each tensor of the loss, in a call that has it and a key besides that it does not know."""
    declared = subject.declared()
    found = False
    for trial, new in one_optional_each(subject):
        filled = trial._replace(
            outputs={**trial.outputs, _OTHER: torch.zeros(())}, batch={**trial.batch, _OTHER: torch.zeros(())}
        )
        if subject.is_typed:  # the same key on both sides would be ambiguous, were it one of the loss
            new = new & declared.keys()
        for key in sorted(new):
            found = True
            yield filled, key
    if not found:
        skip("takes no tensors by name")


def _require_refusal(subject: Subject, trial: Trial, key: str, when: str) -> None:
    """Fail unless a call is refused clearly, or may do without the key."""
    error = refusal_of(trial)
    if error is not None:
        named = {key: names_of(trial, key), f"the keys that are there, such as {_OTHER}": [_OTHER]}
        require_clear(error, when, named, trial)
        return
    spec = subject.declared().get(key)
    if spec is not None and not spec.optional:
        fail(f"{when} it went through, though compute() declares it as required", trial=trial)

"""A loss as the `loss:` section of a config file, and back."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tensafe.training.losses.errors import LossConfigError
from tensafe.training.losses.resolve import resolve_loss
from tensafe.training.losses.testing.aids.agreement import require_same_result
from tensafe.training.losses.testing.catalogue import conformance_check
from tensafe.training.losses.testing.outcome import fail, skip

if TYPE_CHECKING:
    from tensafe.training.losses.adapter import ResolvedLoss
    from tensafe.training.losses.testing.subject import Subject
    from tensafe.training.losses.testing.trial import Trial


@conformance_check(
    "lifecycle",
    "A config file holds numbers, strings, bools, lists and mappings. Let kwargs be such, say with their annotations "
    "what they may be, and keep every setting in a kwarg: what an instance was constructed with is in no config.",
)
def check_config_roundtrip(subject: Subject) -> None:
    """Written to JSON as type and kwargs and resolved again, it is the same loss."""
    for what, trial in subject.trials("float64"):
        where = f"resolved from its config{f' with {what}' if what else ''}"
        config = _through_json(trial)
        again = _resolved(config, trial)
        if (once_more := _through_json(trial._replace(loss=again))) != config:
            fail(f"{where} its config is {once_more}, not {config}", trial=trial)
        require_same_result(trial.call(again), trial.call(), where, trial)


def _through_json(trial: Trial) -> dict[str, Any]:
    try:
        config = trial.loss.to_config()
    except LossConfigError as error:
        if error.code != "no-config":
            raise
        skip("no config can name it: it is local, a lambda or an instance")
    try:
        return json.loads(json.dumps(config, allow_nan=False))  # type: ignore[no-any-return]
    except (TypeError, ValueError) as error:
        fail(f"its kwargs cannot be written to JSON: {error}", trial=trial)


def _resolved(config: dict[str, Any], trial: Trial) -> ResolvedLoss:
    try:
        return resolve_loss(config)
    except LossConfigError as error:
        fail(f"its own config is refused: {error}", trial=trial)

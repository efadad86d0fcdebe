"""Numbers that change with the step of the training, such as the weight of a term of a sum."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, ValidationError, WithJsonSchema, WrapValidator

from tensafe._lazy import torch

from .errors import LossConfigError, LossInputError, Problem, config_error, make_error, near_miss, shorten
from .explain import make_reader
from .guards import is_mapping
from .problems import problems_of
from .strict import StrictModel

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

__all__ = ["Constant", "Cosine", "Linear", "Schedule", "Scheduled", "Step", "step_of"]


class Schedule(StrictModel):
    """A number for each step. In a config, a mapping with the name of the schedule under `schedule`."""

    start: float = Field(description="The number at first.")

    @abstractmethod
    def at(self, step: int | Tensor, dtype: torch.dtype | None = None) -> float | Tensor:
        """Return the number at a step.

        Args:
            step: Steps that were taken before this one, from 0: an int, or a 0-d integer tensor, whose value is not
                looked at.
            dtype: Of the result where the step is a tensor; else it is a float.
        """

    def to_config(self) -> dict[str, Any]:
        """Return the mapping that it is written as."""
        return {"schedule": type(self).model_fields["schedule"].default, **self.model_dump(exclude_unset=True)}


class Constant(Schedule):
    """The same number at every step.

    Attributes:
        start: The number.

    Example:
        >>> Constant(start=0.5).at(1000)
        0.5
    """

    schedule: Literal["constant"] = "constant"

    def at(self, step: int | Tensor, dtype: torch.dtype | None = None) -> float | Tensor:
        """Return the number at a step; see `Schedule`."""
        return self.start


class _Change(Schedule):
    """From one number to another."""

    end: float = Field(description="The number in the end.")
    steps: int = Field(ge=1, description="How many steps it takes to get there.")

    def _between(self, share: float | Tensor) -> float | Tensor:
        """Return what lies between start and end; exactly those for 0 and 1."""
        return (1 - share) * self.start + share * self.end


class _Ramp(_Change):
    """From one number to another, all the way."""

    warmup: int = Field(default=0, ge=0, description="Steps before anything changes.")

    def _progress(self, step: int | Tensor, dtype: torch.dtype | None) -> float | Tensor:
        """Return which share of the steps is taken, in [0, 1]."""
        if isinstance(step, torch.Tensor):
            return (step - self.warmup).clamp(0, self.steps).to(dtype) / self.steps
        return min(max(step - self.warmup, 0), self.steps) / self.steps


class Linear(_Ramp):
    r"""A straight line from one number to another.

    At step :math:`t` it is :math:`s + (e - s)\,p` with :math:`p = \mathrm{clip}((t - w) / n, 0, 1)`.

    Attributes:
        start: :math:`s`, the number up to step :math:`w`.
        end: :math:`e`, the number from step :math:`w + n` on.
        steps: :math:`n` >= 1, the steps from one to the other.
        warmup: :math:`w` >= 0, the steps before anything changes.

    Example:
        >>> line = Linear(start=0.0, end=1.0, steps=10, warmup=5)
        >>> [line.at(step) for step in (0, 5, 8, 15, 100)]
        [0.0, 0.0, 0.3, 1.0, 1.0]
    """

    schedule: Literal["linear"] = "linear"

    def at(self, step: int | Tensor, dtype: torch.dtype | None = None) -> float | Tensor:
        """Return the number at a step; see `Schedule`."""
        return self._between(self._progress(step, dtype))


class Cosine(_Ramp):
    r"""Half a cosine wave from one number to another, slow at both ends.

    It is :math:`s + (e - s) (1 - \cos \pi p) / 2`; all else is as in `Linear`.

    Example:
        >>> wave = Cosine(start=1.0, end=0.0, steps=4)
        >>> [round(wave.at(step), 4) for step in range(5)]
        [1.0, 0.8536, 0.5, 0.1464, 0.0]
    """

    schedule: Literal["cosine"] = "cosine"

    def at(self, step: int | Tensor, dtype: torch.dtype | None = None) -> float | Tensor:
        """Return the number at a step; see `Schedule`."""
        progress = self._progress(step, dtype)
        cosine = torch.cos(math.pi * progress) if isinstance(progress, torch.Tensor) else math.cos(math.pi * progress)
        return self._between((1 - cosine) / 2)


class Step(_Change):
    """One number before a step, another from it on.

    Attributes:
        start: The number before.
        end: The number from then on.
        steps: The first step with the other number, >= 1.

    Example:
        >>> [Step(start=0.0, end=1.0, steps=10).at(step) for step in (9, 10)]
        [0.0, 1.0]
    """

    schedule: Literal["step"] = "step"

    def at(self, step: int | Tensor, dtype: torch.dtype | None = None) -> float | Tensor:
        """Return the number at a step; see `Schedule`."""
        reached = step >= self.steps
        return self._between(reached.to(dtype) if isinstance(reached, torch.Tensor) else float(reached))


_KINDS: Mapping[str, type[Schedule]] = {
    kind.model_fields["schedule"].default: kind for kind in (Constant, Linear, Cosine, Step)
}


def _read(value: Any, validate: Callable[[Any], Any]) -> Any:
    if isinstance(value, Schedule) or not is_mapping(value):
        return validate(value)
    name = value.get("schedule")
    kind = _KINDS.get(name) if isinstance(name, str) else None
    if kind is None:
        raise config_error([_unknown(value)], loss=None)
    try:
        return kind.model_validate(dict(value))
    except ValidationError as error:
        owner = f"the schedule {name}"
        fields, schema = kind.model_fields, kind.model_json_schema
        raise config_error(
            problems_of(error, given=value, owner=owner, fields=fields, schema=schema), loss=None
        ) from None


def _unknown(value: Mapping[Any, Any]) -> Problem:
    names = f"one of {', '.join(_KINDS)}"
    if "schedule" not in value:
        return Problem("missing-kwarg", ("schedule",), f"required key of a schedule is missing: {names}", on_key=True)
    name = value["schedule"]
    nearest = near_miss(name, _KINDS) if isinstance(name, str) else None
    cure = f"; did you mean {nearest}?" if nearest else ""
    return Problem("invalid-value", ("schedule",), f"expected {names}, got {shorten(name)}{cure}", nearest)


def _json_schema() -> dict[str, Any]:
    """Return one schema of numbers and of all schedules: `if` the name is that, `then`, so that a mistake is one."""
    models = {name: kind.model_json_schema() for name, kind in _KINDS.items()}
    keys = {key: dict(schema) for model in models.values() for key, schema in model["properties"].items()}
    for schema in keys.values():
        del schema["title"]  # made up from the key
    names = [
        {"const": name, "title": name, "description": (kind.__doc__ or "").partition("\n")[0]}
        for name, kind in _KINDS.items()
    ]
    keys["schedule"] = {"description": "How the number changes.", "anyOf": names}
    return {
        "title": "schedule",
        "type": ["number", "object"],
        "required": ["schedule"],
        "properties": keys,
        "additionalProperties": False,
        "allOf": [_rule(name, models[name], keys) for name in _KINDS],
    }


def _rule(name: str, model: dict[str, Any], keys: Mapping[str, Any]) -> dict[str, Any]:
    is_it = {"type": "object", "required": ["schedule"], "properties": {"schedule": {"const": name}}}
    strange = {key: False for key in keys if key not in model["properties"]}
    return {"if": is_it, "then": {"required": model["required"], "properties": strange}}


Scheduled = Annotated[float | Schedule, WrapValidator(_read), WithJsonSchema(_json_schema())]
"""Field type of a number that may change with the step: a number, or a schedule."""


def step_of(owner: str, taken: bool, given: Any, batch: Any) -> int | Tensor | None:
    """Return the step of a call: what was given, else what is in the batch; None where no step is taken.

    Under `torch.compile` it is a tensor, so that one graph serves all steps.

    Args:
        owner: The loss that is called, for messages.
        taken: Whether anything in it has a schedule.
        given: The keyword of the call.
        batch: The batch.

    Raises:
        LossInputError: There is none, or it is neither an int >= 0 nor a 0-d tensor of integers.
        LossConfigError: It was given, and nothing has a schedule.
    """
    if not taken:
        if given is None:
            return None
        message, hint = "nothing in it has a schedule, so step has no effect.", "Leave it out."
        raise make_error(LossConfigError, message, code="unused-step", loss=owner, loc=("step",), hint=hint)
    step = make_reader(batch)("step") if given is None else given
    if isinstance(step, torch.Tensor):
        usable = step.ndim == 0 and not (step.is_floating_point() or step.is_complex() or step.dtype is torch.bool)
    else:
        usable = isinstance(step, int) and not isinstance(step, bool) and step >= 0
    if not usable:
        raise _no_step(owner, step)
    if torch.compiler.is_compiling() and not isinstance(step, torch.Tensor):
        return torch.full((), step)
    found: int | Tensor = step
    return found


def _no_step(owner: str, step: Any) -> LossInputError:
    if step is None:
        message = "a schedule needs the step of the training, and there is none."
        hint = "Call the loss with step=..., or put it into the batch as step."
        return make_error(LossInputError, message, code="missing-step", loss=owner, loc=("step",), hint=hint)
    got = shorten(step)
    if isinstance(step, torch.Tensor):
        got = f"a tensor of shape {list(step.shape)}, {str(step.dtype).removeprefix('torch.')}"
    message = f"step must be an int >= 0 or a 0-d tensor of integers; got {got}."
    return make_error(LossInputError, message, code="invalid-step", loss=owner, loc=("step",))

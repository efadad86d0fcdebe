"""The base classes of a loss: a frozen pydantic model whose fields are its kwargs."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, ValidationError, model_validator

from .errors import LossConfigError, Problem, config_error, make_error
from .figures import Figure
from .problems import problems_of
from .registry import get_registered_losses, register
from .strict import StrictModel
from .traits import Traits
from .types import Elements, Leaner

if TYPE_CHECKING:
    from types import FrameType
    from typing import Self

__all__ = ["ElementLoss", "Loss", "TokenLoss"]

_MOST_TAKERS = 5
"""How many losses that do have a kwarg are named to one who gave it to another."""


class Loss(StrictModel):
    """Base of every typed loss: its fields are the kwargs, its `compute` names the tensors.

    A subclass declares fields with `Field(default=..., description=...)` and ranges, and one of

    - `compute(self, <tensors>) -> Elements`: each parameter is a tensor, annotated with jaxtyping's notation and taken
      by name from outputs or batch; the values come back unreduced.
    - `__call__(self, outputs, batch) -> LossReturn`: for a loss made of other losses.

    `class MyLoss(ElementLoss, name="my_loss")` also registers it. The values of fields are plain data: a number is
    finite, an int is fine where a float is due, a bool or a string is not.

    Attributes:
        metrics: Whether the result carries metrics.

    Raises:
        LossConfigError: A kwarg is unknown, missing or out of range; every mistake is listed.
    """

    compute: ClassVar[Callable[..., Elements]]
    """Unreduced loss of named tensors."""

    explain: ClassVar[Callable[..., str | None]]
    """`explain(<the tensors of compute>)` may say what was wrong with their values, after `compute` has failed."""

    _upcast: ClassVar[bool] = True
    """Whether 16-bit floats are widened to float32 before `compute`; False when its own numerics do so."""
    _divisible: ClassVar[bool] = True
    """Whether `num_items_in_batch` may divide what `compute` returns; False for one value of the whole batch."""
    _apart: ClassVar[bool] = False
    """Whether the last axis of the values is one of several losses, whose means are added; each may have a count."""
    _leaner: ClassVar[Leaner | None] = None
    """The loss to use instead where memory is short; `tensafe check` tells what it would save."""
    _family: ClassVar[str] = "other"
    """What it is listed under, such as token, preference or policy gradient."""
    _figure: ClassVar[Figure | None] = None
    """What `tensafe plot` draws; None leaves the choice to it, which makes a sample and moves one element of it."""
    _traits: ClassVar[Traits] = Traits()
    """What it claims as a function, such as that it is never negative; the conformance checks hold it to that."""
    _name: ClassVar[str | None] = None
    _locals: ClassVar[Mapping[str, Any]] = {}

    metrics: bool = Field(default=True, description="Whether the result carries metrics; off saves a little time.")

    if not TYPE_CHECKING:  # static checkers read the signature off the fields

        def __init__(self, /, **kwargs: Any) -> None:
            try:
                super().__init__(**kwargs)
            except ValidationError as error:
                raise type(self)._config_error(error, kwargs) from None

    def __init_subclass__(cls, *, name: str | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _refuse_shadowing(cls)
        # `compute` is read when it is first resolved: by then the locals that its annotations name may be gone.
        cls._locals = _annotation_locals(cls)

    @classmethod
    def __pydantic_init_subclass__(cls, *, name: str | None = None, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        cls._name = name
        if name is None:
            return
        if not cls.is_concrete():
            raise make_error(
                LossConfigError,
                f"class {cls.__qualname__} has neither compute() nor __call__(), so it cannot be named.",
                code="incomplete-loss",
                loss=name,
                hint="Define compute(self, <tensors>) -> Elements.",
            )
        register(name, cls)

    @classmethod
    def is_concrete(cls) -> bool:
        """Whether the class can compute anything: it has `compute` or, for a combinator, `__call__`."""
        return hasattr(cls, "compute") or cls.is_combinator()

    @classmethod
    def is_combinator(cls) -> bool:
        """Whether the class is called with outputs and batch as they are, rather than with named tensors."""
        return any("__call__" in vars(base) for base in cls.__mro__)

    @classmethod
    def _config_error(cls, error: ValidationError, given: Mapping[str, Any]) -> LossConfigError:
        owner = cls._name or cls.__name__
        schema = partial(_schema_of, cls)
        problems = problems_of(error, given=given, owner=owner, fields=cls.model_fields, schema=schema)
        losses = get_registered_losses() if any(_is_stranger(problem) for problem in problems) else {}
        return config_error([_with_true_owner(problem, owner, losses) for problem in problems], loss=owner)


@cache
def _schema_of(loss: type[Loss]) -> dict[str, Any]:
    return loss.model_json_schema()  # half a millisecond and more, and a config may have many mistakes


def _is_stranger(problem: Problem) -> bool:
    """Whether an argument is like none of this loss, and so perhaps meant for another."""
    return problem.code == "unknown-kwarg" and problem.suggestion is None and len(problem.loc) == 1


def _with_true_owner(problem: Problem, owner: str, losses: Mapping[str, Any]) -> Problem:
    """Point at the losses that do take an argument that this one does not."""
    if not _is_stranger(problem):
        return problem
    argument = problem.loc[0]
    takers = [name for name, loss in losses.items() if argument in getattr(loss, "model_fields", {})]
    if not takers:
        return problem
    more = f" and {len(takers) - _MOST_TAKERS} more" if len(takers) > _MOST_TAKERS else ""
    known = f"{argument} is a kwarg of {', '.join(takers[:_MOST_TAKERS])}{more}"
    return problem._replace(message=f"unknown argument of {owner}; {known}")


def _refuse_shadowing(cls: type[Loss]) -> None:
    for name, annotation in inspect.get_annotations(cls).items():
        inherited = any(name in getattr(base, "model_fields", {}) for base in cls.__mro__[1:])
        taken = hasattr(Loss, name) or (name in Loss.__class_vars__ and "ClassVar" not in str(annotation))
        if not name.startswith("_") and taken and not inherited:
            raise make_error(
                LossConfigError,
                f"field {name!r} of {cls.__qualname__} would hide {name!r} of the base class.",
                code="shadowed-name",
                loc=(name,),
                hint="Give it another name.",
            )


def _annotation_locals(cls: type[Loss]) -> dict[str, Any]:
    """Keep those locals of the function around a class that the annotations of its `compute` mention."""
    frame = _defining_frame()
    compute = cls.__dict__.get("compute")
    if frame is None or frame.f_code.co_name == "<module>" or compute is None:
        return {}
    texts = [text for text in getattr(compute, "__annotations__", {}).values() if isinstance(text, str)]
    return {name: value for name, value in frame.f_locals.items() if any(name in text for text in texts)}


def _defining_frame() -> FrameType | None:
    """Return the frame of the `class` statement: the first one outside this module and the metaclasses."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and _is_machinery(frame.f_globals.get("__name__", "")):
        frame = frame.f_back
    return frame


def _is_machinery(module: str) -> bool:
    return module in {__name__, "abc"} or module.startswith("pydantic.")


class ElementLoss(Loss):
    """Base of losses with one value per element; see `reduction`.

    Attributes:
        reduction: `none` keeps the values, `sum` adds them, `mean` divides by what counts (the sum of the weights), or
            by `num_items_in_batch` when that is given.
    """

    reduction: Literal["none", "sum", "mean"] = Field(
        default="mean", description="How the values become one number: none, sum, or mean over what counts."
    )


# What TokenLoss._max_length_goes_with_its_reduction says, for editors. The inner conditions leave values that are wrong
# in themselves to the field's own schema: one message each.
_MAX_LENGTH_SCHEMA: dict[str, Any] = {
    "if": {"properties": {"reduction": {"const": "sequence_sum_norm"}}, "required": ["reduction"]},
    "then": {
        "required": ["max_length"],
        "properties": {
            "max_length": {
                "if": {"type": "null"},
                "then": {"type": "integer", "errorMessage": "Required by reduction sequence_sum_norm."},
                "doNotSuggest": True,
            }
        },
    },
    "else": {
        "properties": {
            "max_length": {
                "if": {"type": "integer", "minimum": 1},
                "then": {"type": "null", "errorMessage": "Has no effect without reduction: sequence_sum_norm."},
                "doNotSuggest": True,
            }
        }
    },
}


class TokenLoss(Loss):
    """Base of losses with one value per token (`batch seq`); adds the reductions by sequence.

    Attributes:
        reduction: As in `ElementLoss`, and: `sequence_mean`, the mean over sequences of the mean over their tokens;
            `sequence_sum`, the mean over sequences of the sum over their tokens; `sequence_sum_norm`, that divided by
            the constant `max_length` (Dr. GRPO). A sequence in which nothing counts is no sequence.
        max_length: The constant of `sequence_sum_norm`, in tokens.
    """

    model_config = ConfigDict(json_schema_extra={"allOf": [_MAX_LENGTH_SCHEMA]})

    reduction: Literal["none", "sum", "mean", "sequence_mean", "sequence_sum", "sequence_sum_norm"] = Field(
        default="mean",
        description="How token losses become one number: none, sum, mean over the tokens that count, "
        "or a mean over sequences of each one's mean, sum, or sum / max_length.",
    )
    max_length: int | None = Field(
        default=None,
        ge=1,
        description="Tokens that each sequence's sum is divided by; belongs to reduction sequence_sum_norm.",
    )

    @model_validator(mode="after")
    def _max_length_goes_with_its_reduction(self) -> Self:
        wanted = self.reduction == "sequence_sum_norm"
        if wanted != (self.max_length is not None):
            message = (
                "required by reduction sequence_sum_norm: the constant that each sequence's sum is divided by"
                if wanted
                else f"has no effect with reduction {self.reduction}; drop it, or set reduction: sequence_sum_norm"
            )
            code = "missing-kwarg" if wanted else "unused-kwarg"
            raise config_error([Problem(code, ("max_length",), message, on_key=True)], loss=None)
        return self

"""Kwargs: given for one call, misspelt, and of values that they cannot have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from tensafe.training.losses.errors import LossConfigError, TensafeError
from tensafe.training.losses.testing.aids.comparing import change_of
from tensafe.training.losses.testing.aids.kwarg_values import Kwarg, read_kwargs, takes_any
from tensafe.training.losses.testing.aids.refusals import has_word, told
from tensafe.training.losses.testing.catalogue import conformance_check
from tensafe.training.losses.testing.outcome import fail, skip

if TYPE_CHECKING:
    from tensafe.training.losses.testing.subject import Subject
    from tensafe.training.losses.testing.trial import Run, Trial


@conformance_check(
    "core",
    "A kwarg of a call is for that call alone. Use the argument as it comes, and do not keep it: no assignment to "
    "self, to a global or to a mutable default.",
)
def check_default_kwargs_then_override(subject: Subject) -> None:
    """A kwarg given to a call wins over the one that is bound, once, and does not stick."""
    trial = subject.trial("float64")
    kwargs = read_kwargs(trial.loss)
    if not kwargs:
        skip("takes no named kwargs")
    if sum(_overrides_once(subject, trial, kwarg) for kwarg in kwargs) == 0:
        skip("no other value of its kwargs is known")


def _overrides_once(subject: Subject, trial: Trial, kwarg: Kwarg) -> bool:
    """Whether the loss could be called with another value of a kwarg, and then did as it should."""
    before = trial.run()
    for value in kwarg.others():
        given = {kwarg.name: value}
        try:
            overridden = trial.run(**given)
        except TensafeError:  # it needs another kwarg beside it, or does not fit this sample
            continue
        text = f"{kwarg.name}={value!r}"
        _require_same(before, trial.run(), f"a call with {text} changed the next one, without it", trial)
        bound = trial._replace(loss=subject.resolve(**given))
        _require_same(bound.run(), overridden, f"{text} does not do in a call what it does when it is bound", trial)
        again = bound.run(**{kwarg.name: kwarg.value})
        _require_same(before, again, f"a call cannot undo {text} when it is bound", bound)
        return True
    return False


def _require_same(before: Run, after: Run, message: str, trial: Trial) -> None:
    change = change_of(before, after, rtol=0, atol=0)
    if change is not None:
        fail(f"{message}: {change}", trial=trial)


@conformance_check(
    "core",
    "Let a kwarg that does not exist be refused: name the kwargs instead of collecting them and, in a class, leave "
    "`extra` of model_config as it is. Else a typo trains with the default, and nobody notices.",
)
def check_unknown_kwarg_rejected(subject: Subject) -> None:
    """A misspelt kwarg is refused when the loss is resolved, and the right one suggested."""
    loss = subject.resolve()
    if takes_any(loss):
        skip("declares **kwargs, which takes misspelt ones too")
    names = [kwarg.name for kwarg in read_kwargs(loss)]
    for name in names:
        wrong = f"{name[:-1]}{name[-1:] * 2}"
        error = _refusal_at_resolve(subject, wrong, 0)
        if error is None:
            fail(f"{wrong} was accepted when the loss was resolved, though it takes {name}")
        if not has_word(str(error), name):
            fail(f"{wrong} was refused with {told(error)}\nwhich does not suggest {name}")
    if _refusal_at_resolve(subject, "no_such_kwarg", 0) is None:
        fail("no_such_kwarg=0 was accepted when the loss was resolved")


@conformance_check(
    "core",
    "Say what a kwarg may be where it is declared: its type, and its range with Field(gt=..., le=...), as in "
    "`label_smoothing: Annotated[float, Field(ge=0, le=1)] = 0.0` or, in a class, `Field(default=0.0, ge=0, le=1)`.",
)
def check_kwarg_types_and_ranges(subject: Subject) -> None:
    """A kwarg of a wrong type, NaN, infinite, out of range or no choice is refused by name."""
    loss = subject.resolve()
    kwargs = read_kwargs(loss)
    if not kwargs:
        skip("takes any kwargs, and names none" if takes_any(loss) else "takes no kwargs that could be wrong")
    for kwarg in kwargs:
        for value in kwarg.wrong():
            error = _refusal_at_resolve(subject, kwarg.name, value)
            if error is None and not kwarg.annotated:
                _require_refusal_in_call(subject, kwarg, value)
            elif error is None:
                fail(f"{kwarg.name}={_shown(value)} was accepted")
            elif not has_word(str(error), kwarg.name):
                fail(f"{kwarg.name}={_shown(value)} was refused with {told(error)}\nwhich does not name {kwarg.name}")


def _refusal_at_resolve(subject: Subject, name: str, value: Any) -> LossConfigError | None:
    try:
        subject.resolve(**{name: value})
    except LossConfigError as error:
        return error
    return None


def _require_refusal_in_call(subject: Subject, kwarg: Kwarg, value: Any) -> None:
    """A kwarg without an annotation is not looked at when it is resolved; the loss may look at it itself."""
    trial = subject.trial("float64")
    try:
        trial.call(**{kwarg.name: value})
    except (ValueError, TypeError) as error:
        if has_word(str(error), kwarg.name):
            return
        _fail_unannotated(
            kwarg, value, f"was accepted, and then raised {told(error)}", trial.bound(**{kwarg.name: value})
        )
    except Exception as error:
        _fail_unannotated(kwarg, value, f"was accepted, and then raised {told(error)}", trial)
    else:
        _fail_unannotated(kwarg, value, "was accepted", trial)


def _fail_unannotated(kwarg: Kwarg, value: Any, how: str, trial: Trial) -> NoReturn:
    kind = type(kwarg.value).__name__ if isinstance(kwarg.value, bool | int | float | str) else "<type>"
    fail(
        f"{kwarg.name}={_shown(value)} {how}",
        f"Annotate it, and it is validated before anything runs: `{kwarg.name}: {kind} = {_shown(kwarg.value)}`, "
        f"or with its range, `{kwarg.name}: Annotated[{kind}, Field(ge=..., le=...)]`. An annotation that names what "
        "is imported under TYPE_CHECKING counts for none.",
        trial,
    )


def _shown(value: object) -> str:
    return "object()" if type(value) is object else repr(value)

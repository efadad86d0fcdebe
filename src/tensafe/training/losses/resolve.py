"""From a spec to a loss that is ready to be called."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from .adapter import CombinedLoss, ProtocolLoss, ResolvedLoss, TypedLoss
from .errors import MOST_PROBLEMS, LossConfigError, LossTypeError, Problem, config_error, make_error
from .guards import is_class, is_mapping
from .loss import Loss
from .protocol import read_signature
from .registry import known_without_plugins, lookup
from .spec import LossSpec, split_spec, stray_problem
from .targets import TRUSTED, Policy, import_target, parse_target, refuse_gadget

__all__ = ["Spec", "check_spec", "find_loss", "resolve_loss", "resolving_part", "resolving_under"]

Spec = str | Mapping[str, Any] | LossSpec | Loss | Callable[..., Any]
"""What `resolve_loss` takes; a `ResolvedLoss` and a `Loss` class are callables."""

# Scoped to one resolution, never global state: what was allowed once is not allowed to the next config.
_policy: ContextVar[Policy] = ContextVar("tensafe_policy", default=TRUSTED)

# What is wrong with the nested losses of the spec that is being checked; None outside of `resolving_under`.
_nested_problems: ContextVar[list[Problem] | None] = ContextVar("tensafe_nested_problems", default=None)


def resolve_loss(spec: Spec, /, **kwargs: Any) -> ResolvedLoss:
    """Resolve a loss, with every kwarg validated before any tensor exists.

    Args:
        spec: A registered name; `"package.module:function"`; a callable `(outputs, batch, **kwargs)`; a `Loss` or a
            `Loss` class; a mapping `{"type", "kwargs", "inputs"}` as in a config file; or a loss resolved before.
        **kwargs: Arguments of the loss; they win over those in the spec.

    Returns:
        The loss: `loss_fn(outputs, batch) -> LossReturn`.

    Raises:
        UnknownLossError: No loss has this name, or nothing lies at this path.
        UnsafeTargetError: The path leads into the standard library or to a loader of foreign code.
        LossConfigError: A kwarg is unknown, missing or out of range; the message lists every mistake.
        LossTypeError: `spec` is nothing that a loss can be resolved from.

    Example:
        >>> resolve_loss("token_ce", label_smoothing=0.1).kwargs["label_smoothing"]
        0.1
        >>> resolve_loss("token_ce", label_smothing=0.1)
        Traceback (most recent call last):
        ...
        tensafe.training.losses.errors.LossConfigError: token_ce: label_smothing: unknown argument of token_ce; \
did you mean label_smoothing?
    """
    if isinstance(spec, ResolvedLoss):
        return spec.bind(kwargs)
    if isinstance(spec, LossSpec):
        spec = {"type": spec.type, "kwargs": spec.kwargs, "inputs": spec.inputs}
    if is_mapping(spec):
        return _resolve_mapping(spec, kwargs)
    if isinstance(spec, str):
        return _adapt(find_loss(spec), kwargs, {}, name=spec)
    if isinstance(spec, Loss) or callable(spec):
        return _adapt(spec, kwargs, {})
    raise make_error(
        LossTypeError,
        f"a loss is resolved from a name, a dotted path, a callable, a Loss or a mapping; got {type(spec).__name__}.",
        code="not-a-spec",
    )


@contextmanager
def resolving_under(policy: Policy) -> Generator[None]:
    """Resolve specs, nested ones too, under a policy about what they may import."""
    found = _nested_problems.get()
    tokens = _policy.set(policy), _nested_problems.set([] if found is None else found)
    try:
        yield
    finally:
        _policy.reset(tokens[0])
        _nested_problems.reset(tokens[1])


@contextmanager
def resolving_part() -> Generator[None]:
    """Resolve a loss inside another; under `resolving_under`, only until too many of them were wrong.

    Raises:
        LossConfigError: Too many were.
    """
    found = _nested_problems.get()
    before = 0 if found is None else len(found)
    if before >= MOST_PROBLEMS:
        message = f"not looked at, after {MOST_PROBLEMS} mistakes in the losses before it"
        raise config_error([Problem("too-many-problems", (), message)], loss=None)
    try:
        yield
    except LossConfigError as error:
        if found is not None:
            found[before:] = problems_in(error)  # which has in it what was found further inside
        raise


def check_spec(data: Any, policy: Policy = Policy(imports=False)) -> list[Problem]:  # noqa: B008  # a constant
    """Return everything that is wrong with a spec, at paths relative to it."""
    try:
        with resolving_under(policy):
            _resolve_mapping(data if is_mapping(data) else _as_mapping(data), {})
    except LossConfigError as error:
        return problems_in(error)
    return []


def _as_mapping(data: Any) -> Mapping[str, Any]:
    parts = split_spec(data)
    if parts.problems:
        raise config_error(parts.problems, loss=None)
    return parts.as_fields()


def _resolve_mapping(data: Mapping[str, Any], kwargs: Mapping[str, Any]) -> ResolvedLoss:
    parts = split_spec(data)
    problems = list(parts.problems)
    kind = LossConfigError
    found: Any = None
    resolved: ResolvedLoss | None = None
    try:
        if parts.type is not None:
            found = find_loss(parts.type)
            resolved = _adapt(found, {**parts.kwargs, **kwargs}, parts.inputs, name=parts.type)
    except LossConfigError as error:
        kind = type(error)
        problems += [_placed(problem, kwargs, at_type=found is None) for problem in problems_in(error)]
    problems += [stray_problem(key, _kwarg_names(found)) for key in parts.stray]
    if resolved is None or problems:
        raise config_error(problems, loss=None, kind=kind)
    return resolved


def problems_in(error: LossConfigError) -> list[Problem]:
    """Return the problems that an error lists, or the error itself as one."""
    return list(error.problems) or [Problem(error.code, error.loc, str(error))]


def _placed(problem: Problem, kwargs: Mapping[str, Any], *, at_type: bool) -> Problem:
    """Put a problem where the spec has it: under type or under kwargs; those with arguments of the call stay."""
    if at_type or not problem.loc:
        return problem.under("type")
    return problem if problem.loc[0] in kwargs or problem.loc[0] == "inputs" else problem.under("kwargs")


def _kwarg_names(found: Any) -> list[str]:
    if is_class(found) and issubclass(found, Loss):
        return list(found.model_fields)
    if isinstance(found, Loss):
        return list(type(found).model_fields)
    return list(read_signature(found, "").parameters) if callable(found) and not is_class(found) else []


def find_loss(name: str) -> Any:
    """Return what a name or a dotted path stands for."""
    policy = _policy.get()
    target = None if name in known_without_plugins() else parse_target(name)
    if target is None:
        return lookup(name)
    if policy.imports:
        return import_target(target, policy)
    refuse_gadget(target)
    return _not_imported


def _not_imported(outputs: Any, batch: Any, **kwargs: Any) -> Any:
    """Stand in for a dotted path that is only looked at; takes any kwargs, and is never called."""
    raise make_error(LossConfigError, "this loss was validated without being imported.", code="not-imported")


def _adapt(found: Any, kwargs: Mapping[str, Any], inputs: Mapping[str, str], name: str | None = None) -> ResolvedLoss:
    if isinstance(found, type):
        found = _construct(found, kwargs)
        kwargs = {}
    if isinstance(found, TypedLoss):
        return TypedLoss(found.loss, {**found.inputs, **inputs}).bind(kwargs)
    if isinstance(found, Loss) and not type(found).is_combinator():
        return TypedLoss(found, inputs).bind(kwargs)
    if inputs and found is not _not_imported:  # which may be a typed loss, with tensors to rename
        raise config_error(
            [Problem("unused-inputs", ("inputs",), "has no effect: this loss takes outputs and batch as they are")],
            loss=name,
        )
    if isinstance(found, ResolvedLoss):
        return found.bind(kwargs)
    if isinstance(found, Loss):
        return CombinedLoss(found).bind(kwargs)
    if not callable(found):
        problem = Problem("not-a-loss", (), f"it is a {type(found).__qualname__}, which cannot be called")
        raise config_error([problem], loss=name)
    return ProtocolLoss(found, kwargs, name)


def _construct(found: type, kwargs: Mapping[str, Any]) -> Loss:
    if issubclass(found, Loss) and found.is_concrete():
        return found(**kwargs)
    hint = "it has no compute()" if issubclass(found, Loss) else "give an instance, or a subclass of Loss"
    raise config_error(
        [Problem("not-a-loss", (), f"{found.__module__}.{found.__qualname__} is a class, and no loss; {hint}")],
        loss=None,
    )

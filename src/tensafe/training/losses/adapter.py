"""A resolved loss: one face, `loss_fn(outputs, batch) -> LossReturn`, over the three kinds of loss there are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from tensafe._lazy import torch

from .check import compile_call, wake
from .contract import Contract, read_contract
from .errors import LossConfigError, LossInputError, Problem, config_error, make_error, near_miss, shorten
from .explain import check_containers, explain, make_reader, readable, what_there_is
from .packing import PACKED
from .protocol import COUNTS, read_signature
from .reduction import BY_SEQUENCE, MODES, WHOLE, Reduction, reduce_elements
from .registry import is_registered
from .returns import checked_return

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from .loss import Loss
    from .types import LossReturn

__all__ = ["CombinedLoss", "ProtocolLoss", "ResolvedLoss", "TypedLoss"]

_MOST_OVERRIDES_KEPT = 64
_HASHABLE = (str, int, float, bool, type(None))


class ResolvedLoss(ABC):
    """A loss that is ready to be called: `loss_fn(outputs, batch) -> LossReturn`.

    Attributes:
        name: Registered name, or the qualified name of the callable.
        kwargs: Every kwarg with its value, defaults included.
    """

    name: str
    _call_keywords: Collection[str] = COUNTS
    """What a call may give that is no kwarg."""

    def __call__(self, outputs: Any, batch: Any, **overrides: Any) -> LossReturn:
        """Compute the loss.

        Args:
            outputs: What the model returned: a mapping, or an object with attributes.
            batch: What it was trained on, likewise.
            **overrides: Kwargs for this call only, validated like any others; in eager mode. And the denominators of
                a loss that is summed over accumulation steps and ranks, `num_items_in_batch` (of reduction `mean`) and
                `num_sequences_in_batch` (of the `sequence_*` ones): a number >= 0, a 0-d tensor (whose value is not
                looked at), or None. Both may also stand in the batch. And `step` where a number of the loss has a
                schedule: an int >= 0 or a 0-d tensor; it too may stand in the batch.

        Returns:
            `loss`, `metrics` and perhaps `auxiliary`; see `LossReturn`.

        Raises:
            LossInputError: A tensor is missing, or of the wrong kind, rank, size or device.
            LossConfigError: An override is unknown or out of range.
            LossReturnError: The loss returned something else than promised.
        """
        if not overrides:
            return self._run(outputs, batch, {})
        counts = {name: overrides.pop(name) for name in self._call_keywords if name in overrides}
        loss = self._overridden(overrides) if overrides else self
        return loss._run(outputs, batch, counts)

    @property
    @abstractmethod
    def kwargs(self) -> dict[str, Any]:
        """Every kwarg with its value, defaults included."""

    @abstractmethod
    def bind(self, kwargs: Mapping[str, Any]) -> ResolvedLoss:
        """Return the same loss with some kwargs replaced; `resolve_loss(loss_fn, **kwargs)` calls it."""

    @abstractmethod
    def to_config(self) -> dict[str, Any]:
        """Return the spec as plain data, to be written to a config file: `type`, `kwargs` and perhaps `inputs`."""

    @abstractmethod
    def _run(self, outputs: Any, batch: Any, counts: Mapping[str, Any]) -> LossReturn: ...

    @abstractmethod
    def _state(self) -> tuple[Any, ...]:
        """Return the arguments of the constructor, for pickle, copy and ==."""

    def _overridden(self, overrides: Mapping[str, object]) -> ResolvedLoss:
        if torch.compiler.is_compiling():
            names = ", ".join(f"{name}=..." for name in overrides)
            raise make_error(
                LossConfigError,
                "a call inside torch.compile cannot override kwargs.",
                code="override-in-compile",
                loss=self.name,
                hint=f"Bind them outside: loss_fn = resolve_loss(loss_fn, {names}).",
            )
        if not all(isinstance(value, _HASHABLE) for value in overrides.values()):
            return self.bind(overrides)
        key = frozenset((name, type(value), value) for name, value in overrides.items())
        known: dict[Any, ResolvedLoss] = self.__dict__["_memo"]
        bound = known.get(key)  # asked once: another thread may clear it
        if bound is None:
            bound = self.bind(overrides)
            if len(known) >= _MOST_OVERRIDES_KEPT:  # a schedule gives a new number at each step
                known.clear()
            known[key] = bound
        return bound

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._state()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ResolvedLoss):
            return NotImplemented
        return type(other) is type(self) and other._state() == self._state()

    def __hash__(self) -> int:
        return hash((type(self), self.name))

    def __repr__(self) -> str:
        return f"{self.name}({', '.join(f'{name}={value!r}' for name, value in self.kwargs.items())})"


class _LossValue(ResolvedLoss):
    """What the adapters of `Loss` values share."""

    def __init__(self, loss: Loss) -> None:
        self.loss = loss
        self.name = type(loss)._name or type(loss).__qualname__
        self.__doc__ = type(loss).__doc__
        self._memo: dict[Any, ResolvedLoss] = {}

    @property
    def kwargs(self) -> dict[str, Any]:
        return {name: getattr(self.loss, name) for name in type(self.loss).model_fields}

    def _rebuilt(self, kwargs: Mapping[str, Any]) -> Loss:
        kept = {name: getattr(self.loss, name) for name in self.loss.model_fields_set}
        return type(self.loss)(**{**kept, **kwargs})

    def to_config(self) -> dict[str, Any]:
        name = type(self.loss)._name or f"{type(self.loss).__module__}:{type(self.loss).__qualname__}"
        return {"type": name, "kwargs": self.loss.model_dump(mode="json", exclude_unset=True)}


class TypedLoss(_LossValue):
    """Adapter of a `Loss` with `compute`: takes its tensors by name, checks them, computes, reduces.

    Args:
        loss: The loss, with its kwargs.
        inputs: Renames of tensors, `{tensor: key}`; a key may say `outputs.key` or `batch.key`.

    Attributes:
        loss: The loss, with its kwargs.
        inputs: The renames.
        contract: The tensors that the loss takes.
        reduction: How its elements become one number, denominators of a call apart.
    """

    def __init__(self, loss: Loss, inputs: Mapping[str, str] | None = None) -> None:
        super().__init__(loss)
        self.inputs = dict(inputs or {})
        self.contract: Contract = read_contract(type(loss))
        _check_inputs(self.name, self.contract, self.inputs)
        mode = self.kwargs.get("reduction", "mean")
        if mode not in MODES:
            message = f"{shorten(mode)} is no reduction; there are {', '.join(sorted(MODES))}"
            raise config_error([Problem("invalid-value", ("reduction",), message)], loss=self.name)
        max_length = self.kwargs["max_length"] if mode == "sequence_sum_norm" else None
        self.reduction = Reduction(mode, max_length, apart=type(loss)._apart)
        self._with_metrics = loss.metrics
        self._compute = loss.compute
        self._call = compile_call(
            self.contract, tuple(self.inputs.items()), upcast=type(loss)._upcast, scalars=mode in WHOLE
        )

    def __call__(self, outputs: Any, batch: Any, **overrides: Any) -> LossReturn:
        """Compute the loss; see `ResolvedLoss`, which this spares a call."""
        if overrides:
            return super().__call__(outputs, batch, **overrides)
        return self._call(self, outputs, batch)

    def bind(self, kwargs: Mapping[str, Any]) -> TypedLoss:
        """Return the same loss with some kwargs replaced, and the same renames."""
        return TypedLoss(self._rebuilt(kwargs), self.inputs) if kwargs else self

    def to_config(self) -> dict[str, Any]:
        """Return `type`, the kwargs that were given, and the renames if there are any."""
        return {**super().to_config(), **({"inputs": dict(self.inputs)} if self.inputs else {})}

    def _state(self) -> tuple[Any, ...]:
        return self.loss, self.inputs

    def _run(self, outputs: Any, batch: Any, counts: Mapping[str, Any]) -> LossReturn:
        return self._call(self, outputs, batch, counts or None)

    # What the generated code calls where it does not go straight through

    def _slowly(self, outputs: Any, batch: Any, counts: Mapping[str, Any] | None) -> LossReturn:
        """Take the tensors at leisure; if they fit, go on."""
        # a trace must leave everything as it was, or it would not hold for the next call
        if not torch.compiler.is_compiling():
            wake(self._call)
        tensors = explain(self.name, self.contract, self.inputs, type(self.loss)._upcast, outputs, batch)
        return self._without_autocast(outputs, batch, tensors, counts)

    def _without_autocast(
        self, outputs: Any, batch: Any, tensors: tuple[Any, ...], counts: Mapping[str, Any] | None
    ) -> LossReturn:
        device = next((tensor.device.type for tensor in tensors if tensor is not None), "cpu")
        if device == "meta" or not torch.is_autocast_enabled(device):  # meta has no autocast, and torch raises
            return self._reduced(outputs, batch, tensors, counts)
        with torch.autocast(device, enabled=False):
            return self._reduced(outputs, batch, tensors, counts)

    def _reduced(
        self, outputs: Any, batch: Any, tensors: tuple[Any, ...], counts: Mapping[str, Any] | None
    ) -> LossReturn:
        try:
            elements, reduction = self._compute(*tensors), self._counted(batch, counts)
            if reduction.mode in BY_SEQUENCE:
                self._check_rows(elements, readable(batch))
            return reduce_elements(self.name, elements, reduction, with_metrics=self._with_metrics)
        except (LossInputError, IndexError, RuntimeError) as error:  # the reduction too runs what compute() returned
            self._raise_better(error, outputs, batch, tensors)
            raise

    def _check_rows(self, elements: object, batch: Any) -> None:
        """Refuse packed rows where a reduction by sequence would take each row for one sequence."""
        if getattr(elements, "segment_ids", None) is not None:
            return
        for key in PACKED:
            if batch.get(key) is not None:
                raise self._packed(key)

    def _packed(self, key: str) -> LossInputError:
        if all(tensor.name != "segment_ids" for tensor in self.contract.tensors):
            hint = "Use reduction mean, or let compute() take segment_ids and return Elements(..., segment_ids=...)."
        elif key == "seq_idx":
            hint = "Rename it: inputs: {segment_ids: seq_idx}."
        else:
            hint = "Pass segment_ids, which tensafe.distributed.segment_ids_from makes of cu_seqlens or position_ids."
        return make_error(
            LossInputError,
            f"there is {key!r}, so rows hold several sequences; reduction {self.reduction.mode} would take each row "
            "for one.",
            code="packed-rows",
            loss=self.name,
            loc=("reduction",),
            hint=hint,
        )

    def _counted(self, batch: Any, counts: Mapping[str, Any] | None) -> Reduction:
        """Return the reduction with the denominators of this call, else of its batch."""
        given = counts or {}
        from_batch = make_reader(batch)
        items, sequences = (given[name] if name in given else from_batch(name) for name in COUNTS)
        if items is not None and not type(self.loss)._divisible:
            raise _nothing_to_divide(self.name)
        return self.reduction._replace(num_items=items, num_sequences=sequences)

    def _raise_better(self, error: Exception, outputs: Any, batch: Any, tensors: tuple[Any, ...]) -> None:
        """Raise what says more than an error of `compute` or of the functions it returned, if anything does."""
        if torch.compiler.is_compiling():
            return
        if isinstance(error, LossInputError):
            if error.loss is None:
                raise self._located(error, outputs, batch) from None
            return
        message = self._explain(tensors)
        if message is not None:
            raise make_error(LossInputError, message, code="invalid-values", loss=self.name) from error

    def _located(self, error: LossInputError, outputs: Any, batch: Any) -> LossInputError:
        """Add the name of the loss to an error of `compute`, and what there is instead of a tensor that it misses."""
        check_containers(self.name, self.contract, outputs, batch)
        hint = error.hint
        message = str(error) if hint is None else str(error).removesuffix(f" {hint}")  # it is added again below
        missed = next((tensor for tensor in self.contract.tensors if error.loc == (tensor.name,)), None)
        if error.code == "missing-tensor" and missed is not None:
            found, nearest = what_there_is(missed, self.contract, self.inputs, outputs, batch)
            message, hint = f"{message.removesuffix('.')}; {found}.", hint or nearest
        return make_error(LossInputError, message, code=error.code, loss=self.name, loc=error.loc, hint=hint)

    def _explain(self, tensors: tuple[Any, ...]) -> str | None:
        """Ask the loss what was wrong with the values; only where looking at them is possible and free of a sync."""
        describe = getattr(self.loss, "explain", None)
        if describe is None or any(tensor is not None and tensor.device.type != "cpu" for tensor in tensors):
            return None
        try:
            message: str | None = describe(*tensors)
        except Exception:  # fake tensors and functorch have no values to look at: the first error says it all
            return None
        return message


class CombinedLoss(_LossValue):
    """Adapter of a `Loss` with `__call__`, which is made of other losses and is called with what they need."""

    def __init__(self, loss: Loss) -> None:
        super().__init__(loss)
        self._signature = read_signature(loss, self.name)  # type: ignore[arg-type]  # a combinator has __call__
        self._unreduced = self.kwargs.get("reduction") == "none"
        self._call_keywords = (*COUNTS, *self._signature.parameters)  # those of `__call__`; the kwargs are fields

    def bind(self, kwargs: Mapping[str, Any]) -> CombinedLoss:
        """Return the same loss with some kwargs replaced."""
        return CombinedLoss(self._rebuilt(kwargs)) if kwargs else self

    def _state(self) -> tuple[Any, ...]:
        return (self.loss,)

    def _run(self, outputs: Any, batch: Any, counts: Mapping[str, Any]) -> LossReturn:
        taken = self._signature.counts.union(self._signature.parameters)
        _check_counts(self.name, taken, counts)
        declared = {name: count for name, count in counts.items() if name in taken}
        result = self.loss(outputs, batch, **declared)  # type: ignore[operator]  # see above
        return checked_return(result, self.name, unreduced=self._unreduced)


class ProtocolLoss(ResolvedLoss):
    """Adapter of a plain callable `(outputs, batch, **kwargs)`.

    Args:
        fn: A function, instance or module.
        bound: Its kwargs; validated by annotations and defaults.
        name: What to call it.

    Attributes:
        fn: The callable, as given (a module stays reachable for its parameters).
    """

    def __init__(self, fn: Callable[..., Any], bound: Mapping[str, Any] | None = None, name: str | None = None) -> None:
        self.fn = fn
        self.name = name or getattr(fn, "__qualname__", None) or type(fn).__qualname__
        self.__doc__ = fn.__doc__
        self._signature = read_signature(fn, self.name)
        self._bound = self._signature.bind(bound or {})
        self._unreduced = self.kwargs.get("reduction") == "none"
        self._memo: dict[Any, ResolvedLoss] = {}

    @property
    def kwargs(self) -> dict[str, Any]:
        """Every kwarg with its value, defaults included."""
        defaults = {name: parameter.default for name, parameter in self._signature.parameters.items()}
        return {**defaults, **self._bound}

    def bind(self, kwargs: Mapping[str, Any]) -> ProtocolLoss:
        """Return the same callable with some kwargs replaced."""
        return ProtocolLoss(self.fn, {**self._bound, **kwargs}, self.name) if kwargs else self

    def to_config(self) -> dict[str, Any]:
        """Return as `type` the registered name or the path that leads to the callable, and the kwargs that were given.

        Raises:
            LossConfigError: It is not registered, and no path leads to it: it is local, a lambda or an instance.
        """
        if is_registered(self.name, self.fn):
            return {"type": self.name, "kwargs": dict(self._bound)}
        named = self.fn if hasattr(self.fn, "__qualname__") else None
        if named is None or not named.__qualname__.isidentifier():
            raise make_error(
                LossConfigError,
                "no path leads to this callable, so a config cannot name it.",
                code="no-config",
                loss=self.name,
                hint="Define it at the top level of a module.",
            )
        return {"type": f"{named.__module__}:{named.__qualname__}", "kwargs": dict(self._bound)}

    def _state(self) -> tuple[Any, ...]:
        return self.fn, self._bound, self.name

    def _run(self, outputs: Any, batch: Any, counts: Mapping[str, Any]) -> LossReturn:
        _check_counts(self.name, self._signature.counts, counts)
        from_batch = make_reader(batch)
        declared = {name: counts[name] if name in counts else from_batch(name) for name in self._signature.counts}
        given = {name: count for name, count in declared.items() if count is not None or name in counts}
        result = self.fn(outputs, batch, **self._bound, **given)
        return checked_return(result, self.name, unreduced=self._unreduced)


def _check_counts(owner: str, declared: frozenset[str], counts: Mapping[str, Any]) -> None:
    for name, count in counts.items():
        if name not in declared and count is not None:
            raise make_error(
                LossConfigError,
                f"does not declare {name}, so it cannot honour it: the loss would be normalised per micro-batch.",
                code="unused-count",
                loss=owner,
                loc=(name,),
                hint=f"Add the keyword {name}=None to it and divide by it.",
            )


def _check_inputs(owner: str, contract: Contract, inputs: Mapping[str, str]) -> None:
    names = [tensor.name for tensor in contract.tensors]
    problems: list[Problem] = []
    for name in inputs:
        if name not in names:
            nearest = near_miss(name, names)
            cure = f"; did you mean {nearest}?" if nearest else f"; its tensors are {', '.join(names)}"
            message = f"{owner} takes no tensor of this name{cure}"
            problems.append(Problem("unknown-tensor", ("inputs", name), message, nearest, on_key=True))
    if problems:
        raise config_error(problems, loss=owner)


def _nothing_to_divide(owner: str) -> LossConfigError:
    return make_error(
        LossConfigError,
        "num_items_in_batch divides one sum over items; this loss is one value for the whole batch.",
        code="unused-count",
        loss=owner,
        loc=("num_items_in_batch",),
        hint="Leave it out.",
    )

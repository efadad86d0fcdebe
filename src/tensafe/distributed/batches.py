"""What one loss counts in one batch, before there are any outputs.

`compute` is run on the tensors of the batch and, for what is missing, on tensors that have shapes and no values. What
counts must come out known, and the same whatever is not known: the sizes of axes that the batch does not tell, and
which of several tensors the model will give.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from tensafe.training.losses.contract import TensorSpec, is_variadic, lookup_keys
from tensafe.training.losses.errors import (
    LossConfigError,
    LossInputError,
    LossReturnError,
    TensafeError,
    make_error,
)
from tensafe.training.losses.explain import explain, make_reader, match_axes
from tensafe.training.losses.reduction import check_sequences, denominator
from tensafe.training.losses.types import Elements

from .unknown import Unknown, UnknownButConstants

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tensafe.training.losses.adapter import TypedLoss

    Sizes = Mapping[str, int | tuple[int, ...]]

__all__ = ["Counter"]

_GUESSES = (2, 3)
"""Sizes of an axis that the batch does not tell; what counts must not depend on which."""


class Counter:
    """Adds up what a loss counts.

    Args:
        loss: A typed loss.
        outputs: Optional tensors that the model will give.

    Attributes:
        loss: As given.
        keyword: What a call calls the count; None where the loss divides by nothing.
    """

    def __init__(self, loss: TypedLoss, outputs: tuple[str, ...]) -> None:
        self.loss = loss
        self.keyword = _keyword(loss)
        self._outputs = outputs
        self._total: Tensor | None = None

    @property
    def is_apart(self) -> bool:
        """Whether there is a count for each of several means."""
        return self.keyword == "num_items_in_batch" and self.loss.reduction.apart

    @property
    def width(self) -> int | None:
        """How many numbers it counts; None where that is up to the batches."""
        return None if self.is_apart else 1

    @property
    def found(self) -> int:
        """How many numbers there were in the batches."""
        return 0 if self._total is None else self._total.numel()

    def padded(self, width: int) -> Tensor:
        """Return the count as a vector of this length."""
        if self._total is None:
            return torch.zeros(width, dtype=torch.float64)
        return torch.nn.functional.pad(self._total, (0, width - self.found))

    def add(self, batch: Any, sizes: Sizes) -> None:
        """Count a batch."""
        count = _Batch(self.loss, batch, sizes).count(self._outputs).detach().reshape(-1)
        self._total = count if self._total is None else self._total + count.to(self._total.device)


def _keyword(loss: TypedLoss) -> str | None:
    mode = loss.reduction.mode
    if mode == "mean" and not type(loss.loss)._divisible:
        raise make_error(
            LossConfigError,
            "is one value for a whole batch, so micro-batches do not add up to it, whatever they are divided by.",
            code="not-countable",
            loss=loss.name,
            hint="Give it the batch of a whole step at once.",
        )
    return {"mean": "num_items_in_batch", "sum": None, "none": None}.get(mode, "num_sequences_in_batch")


class _Made(NamedTuple):
    """What stands for the outputs of the model.

    Attributes:
        names: The tensors that are made, beside those that the loss cannot do without.
        sizes: Of the axes that are known.
        guess: The size of all others.
        kind: What the tensors are.
    """

    names: tuple[str, ...]
    sizes: Mapping[str, Any]
    guess: int = _GUESSES[0]
    kind: type[Unknown] = Unknown


class _Batch:
    """One batch of one loss.

    Args:
        loss: The loss.
        batch: The batch, without outputs.
        sizes: Of axes that the batch does not tell.
    """

    def __init__(self, loss: TypedLoss, batch: Any, sizes: Sizes) -> None:
        self.loss = loss
        self.batch = batch
        self.specs = {spec.name: spec for spec in loss.contract.tensors}
        self.given = dict(_given(loss, batch))
        self.device = next((each.device for each in self.given.values() if isinstance(each, Tensor)), None)
        self.sizes = {**_bound(self.specs, self.given), **sizes}

    def count(self, outputs: tuple[str, ...]) -> Tensor:
        """Return what the loss counts in it."""
        wanted = tuple(name for name in outputs if name in self.specs and name not in self.given)
        (_, count), *others = ways = list(self._ways(_Made(wanted, self.sizes)))
        if any(not torch.equal(count, other) for _, other in others):
            raise self._undecided([set(made.names) for made, _ in ways])
        return count

    def _ways(self, made: _Made) -> Iterator[tuple[_Made, Tensor]]:
        """Yield the outputs that the loss can do with, of those that it asks for, and what it counts then."""
        try:
            count = self._certain(made)
        except LossInputError as error:
            failed: LossInputError | None = error
            nowhere = error
            for choice in self._choices(error, made):
                try:
                    yield from self._ways(choice)
                    failed = None
                except LossInputError as other:  # it leads nowhere
                    nowhere = other if nowhere is error else nowhere
            if failed is not None:
                raise nowhere from None
        else:
            yield made, count

    def _choices(self, error: LossInputError, made: _Made) -> Iterator[_Made]:
        """Yield what may be made, or taken for a size, so that an error does not come again."""
        if error.code == "missing-tensor":
            for name, spec in self.specs.items():
                absent = name not in self.given and name not in made.names
                if spec.optional and absent and spec.kind in {"float", "num"} and repr(name) in str(error):
                    yield made._replace(names=(*made.names, name))
        elif error.code == "invalid-length" and error.loc:  # a list of the config says how long an axis is
            length = len(getattr(self.loss.loss, str(error.loc[0]), ()))
            for axis in self._free(made):
                if not is_variadic(axis):
                    yield made._replace(sizes={**made.sizes, axis: length})

    def _certain(self, made: _Made) -> Tensor:
        """Return the count, if it does not depend on a size that was guessed."""
        found = self._counted(made)
        free = list(self._free(made))
        if free and not torch.equal(found, self._counted(made._replace(guess=_GUESSES[1]))):
            culprits = [
                axis
                for axis in free
                if not torch.equal(found, self._counted(made._replace(sizes={**made.sizes, axis: self._size(axis)})))
            ]
            raise make_error(
                LossInputError,
                f"the count depends on the size of {' and '.join(culprits or free)}, and no tensor of the batch tells "
                "that.",
                code="unknown-size",
                loss=self.loss.name,
                hint=f"Pass sizes={{{(culprits or free)[0]!r}: ...}}, or a function that gives them for a batch.",
            )
        return found

    def _size(self, axis: str) -> Any:
        return (_GUESSES[1],) * 2 if is_variadic(axis) else _GUESSES[1]

    def _counted(self, made: _Made) -> Tensor:
        try:
            elements = self._elements(made)
            weights = self._weights(elements, made)
        except LossConfigError as error:
            try:
                elements = self._elements(made._replace(kind=UnknownButConstants))
                weights = self._weights(elements, made)
            except LossConfigError:
                raise error from error.__cause__
        check_sequences(self.loss.name, weights, self.loss.reduction)
        wide = weights.to(torch.float64) if weights.is_floating_point() else weights
        return torch.as_tensor(denominator(wide, self.loss.reduction, elements.segment_ids)).to(torch.float64)

    def _weights(self, elements: Elements, made: _Made) -> Tensor:
        if elements.weights is None:
            values = elements.values() if callable(elements.values) else elements.values
            return torch.ones(values.shape, dtype=torch.float64, device=self.device)
        if isinstance(elements.weights, Unknown):
            raise self._unknown(made, "what counts depends on their values")
        return elements.weights

    def _elements(self, made: _Made) -> Elements:
        loss = self.loss
        outputs = {lookup_keys(spec, loss.inputs)[1][0]: self._make(spec, made) for spec in self._needed(made)}
        tensors = explain(loss.name, loss.contract, loss.inputs, type(loss.loss)._upcast, outputs, self.batch)
        try:
            with torch.no_grad():
                elements: object = loss.loss.compute(*tensors)
        except TensafeError:
            raise
        except Exception as error:
            raise self._unknown(made, f"compute() fails without their values: {error}") from error
        return self._checked(elements)

    def _checked(self, elements: object) -> Elements:
        if not isinstance(elements, Elements):
            message = f"compute() must return Elements(values, ...); got {type(elements).__name__}."
            raise make_error(LossReturnError, message, code="not-elements", loss=self.loss.name)
        return elements

    def _needed(self, made: _Made) -> list[TensorSpec]:
        """Return the tensors to make: ids, masks and the like must be in the batch, for they say what counts."""
        return [
            spec
            for name, spec in self.specs.items()
            if name not in self.given
            and (name in made.names or (not spec.optional and spec.kind in {"float", "num", "any"}))
        ]

    def _make(self, spec: TensorSpec, made: _Made) -> Unknown:
        shape: list[int] = []
        for dim in spec.dims:
            if isinstance(dim, int):
                shape.append(dim)
            elif is_variadic(dim):
                shape += made.sizes.get(dim, () if dim == "..." else (made.guess,) * 2)
            else:
                shape.append(made.sizes.get(dim, made.guess))
        dtype = {"int": torch.int64, "bool": torch.bool}.get(spec.kind, torch.float32)
        return made.kind.of(shape, dtype, self.device or torch.device("cpu"))

    def _free(self, made: _Made) -> list[str]:
        """Return the axes whose sizes are guessed."""
        axes = dict.fromkeys(dim for spec in self._needed(made) for dim in spec.dims if isinstance(dim, str))
        return [axis for axis in axes if axis not in {*made.sizes, "_", "..."}]

    def _unknown(self, made: _Made, why: str) -> LossConfigError:
        names = ", ".join(spec.name for spec in self._needed(made))
        return make_error(
            LossConfigError,
            f"cannot be counted before the model has returned {names or 'anything'}: {why}.",
            code="not-countable",
            loss=self.loss.name,
            hint="Put what says what counts into the batch; or count it yourself, add that up with sum_over_ranks, "
            f"and pass it as {_keyword(self.loss)}.",
        )

    def _undecided(self, ways: list[set[str]]) -> LossInputError:
        shared = set[str].intersection(*ways)
        told = " or ".join(dict.fromkeys(" and ".join(sorted(way - shared)) for way in ways if way - shared))
        return make_error(
            LossInputError,
            f"what counts depends on whether the model gives {told}.",
            code="ambiguous-count",
            loss=self.loss.name,
            loc=("outputs",),
            hint=f"Say so: outputs={tuple(sorted(ways[-1]))}.",
        )


def _given(loss: TypedLoss, batch: Any) -> Iterator[tuple[str, Any]]:
    """Yield the tensors of a loss that a batch has."""
    read = make_reader(batch)
    for spec in loss.contract.tensors:
        place, keys = lookup_keys(spec, loss.inputs)
        value = next((found for key in keys if (found := read(key)) is not None), None)
        if place != "outputs" and value is not None:
            yield spec.name, value


def _bound(specs: Mapping[str, TensorSpec], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sizes of axes that tensors tell; what does not fit together is refused later, like in a call."""
    sizes: dict[str, Any] = {}
    for name, value in given.items():
        shape = value.shape if isinstance(value, Tensor) else _shape_of(value)
        sizes = {**(match_axes(specs[name], shape) or {}), **sizes}
    return sizes


def _shape_of(numbers: Any) -> tuple[int, ...]:
    try:
        return tuple(torch.tensor(numbers).shape)
    except (ValueError, TypeError, RuntimeError):
        return ()

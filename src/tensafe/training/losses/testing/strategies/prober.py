"""Which tensors go together, and which sizes a loss accepts.

What a loss declares says nearly all of it; the rest (one of two optional tensors, as many classes as it has weights for
them) is found out by calling it.
"""

from __future__ import annotations

import warnings
from itertools import islice, product
from typing import TYPE_CHECKING, Any

import torch

from tensafe.training.losses.adapter import CombinedLoss, TypedLoss
from tensafe.training.losses.contract import MAY_BE_EMPTY, is_variadic
from tensafe.training.losses.errors import LossInputError, TensafeError
from tensafe.training.losses.guards import is_list, is_mapping
from tensafe.training.losses.sample_values import Drawing

from .needs import Layout, read_needs

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from tensafe.training.losses.adapter import ResolvedLoss

__all__ = ["Prober"]

_SIZE = 2
_MOST_TRIES = 500
_LARGEST = 4096


class Prober:
    """Finds out what a loss accepts, by calling it with tensors of one size.

    Args:
        loss: The loss.
        max_size: Largest size of an axis, where the loss does not need more.

    Attributes:
        needs: What the loss takes.
        layouts: Sizes to choose from, for each axis, with the usual ones first.
        ranks: What the variadic axes may stand for together.

    Raises:
        LossInputError: Nothing that was tried is accepted.
    """

    def __init__(self, loss: ResolvedLoss, max_size: int) -> None:
        self.loss = loss
        self.needs = read_needs(loss)
        self._known: dict[tuple[frozenset[str], Any], frozenset[str] | LossInputError] = {}
        axes = [str(dim) for need in self.needs for dim in need.spec.dims if isinstance(dim, str)]
        self._variadic = list(dict.fromkeys(axis for axis in axes if is_variadic(axis)))
        self._named = list(dict.fromkeys(["batch", "seq", *(axis for axis in axes if not is_variadic(axis))]))
        self._hints = sorted(_numbers_in(loss))
        self._base = self._find_base()
        self.sizes = {axis: self._sizes_of(axis, max_size) for axis in self._named}
        self.ranks = [axes for axes in self._all_ranks() if self._accepts(self._base._replace(axes=axes))]

    def together(self, wanted: frozenset[str], axes: Mapping[str, tuple[str, ...]]) -> frozenset[str]:
        """Return the keys of optional tensors nearest to those wanted that the loss accepts together."""
        layout = self._base._replace(axes=axes)
        for keys in (wanted, frozenset[str]()):
            if not isinstance(found := self._repaired(keys, layout), LossInputError):
                return found
        return frozenset()

    def _find_base(self) -> Layout:
        refusals: list[LossInputError] = []
        axes = next(self._all_ranks())
        for chosen in islice(product([_SIZE, *self._hints], repeat=len(self._named)), _MOST_TRIES):
            layout = Layout(dict(zip(self._named, chosen, strict=True)), axes)
            found = self._repaired(frozenset(), layout)
            if not isinstance(found, LossInputError):
                return layout
            refusals.append(found)
        raise refusals[0]

    def _sizes_of(self, axis: str, max_size: int) -> list[int]:
        least = [0] if axis in MAY_BE_EMPTY else []
        candidates = [*range(1, max_size + 1), *least, *(hint for hint in self._hints if hint > max_size)]
        fitting = [
            size for size in candidates if self._accepts(self._base._replace(sizes={**self._base.sizes, axis: size}))
        ]
        usual = [size for size in fitting if size <= max_size]
        return usual or fitting

    def _all_ranks(self) -> Iterator[dict[str, tuple[str, ...]]]:
        """Yield what the variadic axes may stand for: tokens are in sequences, nearly all else is not."""
        choices = [_axes_of(axis, self._named) for axis in self._variadic]
        for chosen in product(*choices):
            yield dict(zip(self._variadic, chosen, strict=True))

    def _accepts(self, layout: Layout) -> bool:
        return not isinstance(self._repaired(frozenset(), layout), LossInputError)

    def _repaired(self, wanted: frozenset[str], layout: Layout) -> frozenset[str] | LossInputError:
        key = wanted, (*layout.sizes.items(), *layout.axes.items())
        if key not in self._known:
            self._known[key] = self._repair(set(wanted), layout)
        return self._known[key]

    def _repair(self, present: set[str], layout: Layout) -> frozenset[str] | LossInputError:
        """Add what the loss misses, and take away what it does not want beside the rest, unless that is no cure."""
        touched: set[str] = set()
        while (error := self._error(frozenset(present), layout)) is not None:
            key = self._optional_key(error)
            if key is None or key in touched:
                return error.with_traceback(None)  # which would keep the tensors
            touched.add(key)
            present ^= {key}
        return frozenset(present)

    def _optional_key(self, error: TensafeError) -> str | None:
        named = error.loc[0] if error.loc else None
        return next((need.key for need in self.needs if need.optional and need.spec.name == named), None)

    def _error(self, present: frozenset[str], layout: Layout) -> LossInputError | None:
        outputs: dict[str, Any] = {}
        batch: dict[str, Any] = {}
        for need in self.needs:
            if not need.optional or need.key in present:
                drawing = Drawing(torch.Generator().manual_seed(0), layout.sizes.get(need.ids or "", 2), None)
                values = drawing.values(need.spec, layout.shape(need.spec))
                (outputs if need.side == "outputs" else batch)[need.key] = values
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                self.loss(outputs, batch)
        except LossInputError as error:
            return error
        return None


def _axes_of(axis: str, named: Sequence[str]) -> list[tuple[str, ...]]:
    if axis == "*rows":
        return [("batch", "seq"), ("batch",), ()]
    if axis.lstrip("*") in named:
        return [(axis.lstrip("*"),), ()]
    return [("batch",), ("batch", "seq"), ()]


def _numbers_in(held: Any) -> set[int]:
    """Return the numbers that a loss may want an axis to have: those in its kwargs, and the lengths of its lists."""
    if isinstance(held, TypedLoss | CombinedLoss):
        held = held.kwargs
    if isinstance(held, int) and not isinstance(held, bool):
        return {held} if 0 < held <= _LARGEST and held != _SIZE else set()
    items: Iterable[Any] = held.values() if is_mapping(held) else held if is_list(held) else ()
    own = {len(held)} - {_SIZE, 0} if is_list(held) else set[int]()
    return own.union(*(_numbers_in(item) for item in items))

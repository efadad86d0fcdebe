"""Tensors of which only shape and dtype are known, for what a model has not computed yet.

What is computed from them is as unknown; what is computed from known tensors alone stays known. So a loss can be run on
a batch without its outputs to see what it would count, in no time and in no memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_any, tree_leaves, tree_map

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Unknown", "UnknownButConstants", "ValuesNeededError"]


class ValuesNeededError(RuntimeError):
    """Something asked for values that are not known."""


class Unknown(Tensor):
    """A tensor without values.

    Args:
        shadow: Its shape and dtype, on the device `meta`.
        device: Where it claims to be.
    """

    shadow: Tensor

    @staticmethod
    def __new__(cls: Any, shadow: Tensor, device: torch.device) -> Unknown:
        """Make the wrapper; torch wants it here."""
        made: Any = Tensor._make_wrapper_subclass(
            cls, shadow.shape, strides=shadow.stride(), dtype=shadow.dtype, device=device
        )
        made.shadow = shadow
        return made  # type: ignore[no-any-return]

    @classmethod
    def of(cls, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Unknown:
        """Return a tensor of this shape and dtype that claims to be on a device."""
        return cls(torch.empty(tuple(shape), dtype=dtype, device="meta"), device)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch declares no classmethod, and calls one
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operation on shapes alone; whatever it makes is unknown."""
        given = dict(kwargs or {})
        _refuse_to_write_into_known(func, args, given)
        device = given.get("device") or _device((args, given))
        if given.get("device") is not None:
            given["device"] = "meta"
        try:
            made = func(*tree_map(_shadow, args), **tree_map(_shadow, given))
        except (RuntimeError, NotImplementedError) as error:
            if "meta" in str(error):  # what no shape can tell: a number to branch on, how many are not zero
                raise ValuesNeededError(f"{func} needs values") from error
            raise
        if func._schema.is_mutable and not isinstance(made, tuple):
            return args[0] if args else given["out"]

        def wrapped(value: Any) -> Any:
            return cls(value, torch.device(device)) if isinstance(value, Tensor) else value

        return tree_map(wrapped, made)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]  # nor does torch say what it is
        return f"Unknown({list(self.shape)}, {self.dtype})"


class UnknownButConstants(Unknown):
    """The same, but what is filled with a constant, such as `ones_like`, is known; it must not be written to, then."""

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch declares no classmethod, and calls one
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Make constants; do with all else as before."""
        if func.overloadpacket in _CONSTANTS:
            return func(*tree_map(_stand_in, args), **tree_map(_stand_in, dict(kwargs or {})))
        return super().__torch_dispatch__(func, types, args, kwargs)


_aten: Any = torch.ops.aten
_CONSTANTS = (
    _aten.ones_like, _aten.zeros_like, _aten.full_like, _aten.new_ones, _aten.new_zeros, _aten.new_full
)  # fmt: skip


def _stand_in(value: Any) -> Any:
    if not isinstance(value, Unknown):
        return value
    return torch.zeros((), dtype=value.dtype, device=value.device).expand(value.shape)  # a single number in memory


def _shadow(value: Any) -> Any:
    if isinstance(value, Unknown):
        return value.shadow
    return value.to("meta") if isinstance(value, Tensor) else value


def _device(given: Any) -> torch.device:
    return next(value.device for value in tree_leaves(given) if isinstance(value, Unknown))


def _refuse_to_write_into_known(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Refuse an operation that would leave a known tensor with values that are not known."""
    for index, argument in enumerate(func._schema.arguments):
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        value = args[index] if index < len(args) else kwargs.get(argument.name)
        if tree_any(lambda each: isinstance(each, Tensor) and not isinstance(each, Unknown), value):
            raise ValuesNeededError(f"{func} writes what is not known into a known tensor")

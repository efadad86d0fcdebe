"""From a contract to the function that a call of a loss runs, generated once per contract.

The generated code is straight-line: look up, compare, compute, hand over. For two tensors that costs two microseconds,
and it runs under `torch.compile(fullgraph=True)`, where shapes are refused at trace time. Whatever it does not like it
leaves to `TypedLoss._slowly`, which converts what may be converted and otherwise says what is wrong. To see what a loss
gets: `print(source_of(read_contract(MSE)))`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from textwrap import indent
from typing import Any

from tensafe._lazy import torch

from .contract import DTYPES, MAY_BE_EMPTY, Contract, TensorSpec, is_variadic, lookup_keys
from .errors import LossInputError
from .explain import readable
from .reduction import reduce_elements
from .types import Elements, LossReturn

__all__ = ["Call", "compile_call", "source_of", "wake"]

Call = Callable[..., LossReturn]
"""`call(adapter, outputs, batch, counts=None)`: in all but its origin a method of `TypedLoss`."""

Inputs = tuple[tuple[str, str], ...]
"""Renames, `(tensor, key)`; a key may say `outputs.` or `batch.`."""

# Globals of the generated code: reading an attribute of a module takes as long as looking a tensor up. `Tensor` is the
# last to be set, since a call tells by it whether the others are.
_TORCH_NAMES = (*(name for names in DTYPES.values() for name in names), "strided", "Tensor")


@cache
def compile_call(contract: Contract, inputs: Inputs = (), *, upcast: bool = True, scalars: bool = False) -> Call:
    """Generate the function that a call of a loss runs; the arguments are those of `source_of`."""
    source = source_of(contract, inputs, upcast=upcast, scalars=scalars)
    names: dict[str, Any] = dict.fromkeys(_TORCH_NAMES)
    for thing in (Elements, LossInputError, readable, reduce_elements):
        names[thing.__name__] = thing
    exec(compile(source, "<tensafe call>", "exec"), names)
    call: Call = names["call"]
    if sys.modules.get("torch") is not None:
        wake(call)
    return call


def wake(call: Call) -> None:
    """Give a call what it takes from torch, if that was not imported yet when the call was generated."""
    names = call.__globals__
    if names["Tensor"] is None:
        # private, but it takes a third of the time of `is_autocast_enabled(device.type)`; TypedLoss asks that in turn
        names["any_autocast"] = getattr(torch._C, "_is_any_autocast_enabled", lambda: True)
        names.update({name: getattr(torch, name) for name in _TORCH_NAMES})


_LEAVE = "return self._slowly(outputs, batch, counts)"

_CALL = """\
def call(self, outputs, batch, counts=None):
    if Tensor is None:
        {leave}
    from_outputs = outputs if isinstance(outputs, dict) else readable(outputs)
    from_batch = batch if isinstance(batch, dict) else readable(batch)
    try:
{checks}
    except RuntimeError:  # a nested tensor of strided layout has no shape to look at
        {leave}
    if any_autocast():
        return self._without_autocast(outputs, batch, ({tensors},), counts)
    try:
        elements = self._compute({tensors})
        if not {scalars}:
            self._check_rows(elements, from_batch)
        reduction = self.reduction
        if counts is not None or 'num_items_in_batch' in from_batch or 'num_sequences_in_batch' in from_batch:
            reduction = self._counted(batch, counts)
        elif {scalars} and type(elements) is Elements:
            values, weights, metrics, dot, _ = elements
            if weights is None and metrics is None and dot is None and isinstance(values, Tensor):
                if values.dtype is float32 and values.ndim == 0:
                    return {{'loss': values, 'metrics': {{}}}}
        return reduce_elements(self.name, elements, reduction, with_metrics=self._with_metrics)
    except (LossInputError, IndexError, RuntimeError) as error:
        self._raise_better(error, outputs, batch, ({tensors},))
        raise
"""


def source_of(contract: Contract, inputs: Inputs = (), *, upcast: bool = True, scalars: bool = False) -> str:
    """Return the source of the function that a call of a loss runs.

    Args:
        contract: The tensors of the loss.
        inputs: Renames of theirs.
        upcast: Whether 16-bit floats are widened to float32.
        scalars: Whether the reduction leaves a value that is one number as it is.
    """
    checks = "\n".join(_Writer(contract, dict(inputs), upcast).statements())
    tensors = ", ".join(_tensor(tensor) for tensor in contract.tensors)
    return _CALL.format(leave=_LEAVE, checks=indent(checks, " " * 8), tensors=tensors, scalars=scalars)


def _nested(head: str, statements: Iterable[str]) -> str:
    return f"{head}\n" + indent("\n".join(statements), "    ")


def _leave_if(condition: str) -> str:
    return _nested(f"if {condition}:", [_LEAVE])


def _if_given(tensor: TensorSpec, *statements: str) -> str:
    return _nested(f"if {_tensor(tensor)} is not None:", statements) if tensor.optional else "\n".join(statements)


def _tensor(tensor: TensorSpec) -> str:
    return f"t_{tensor.name}"


def _axis(dim: str) -> str:
    return f"all_{dim[1:]}" if is_variadic(dim) else f"d_{dim}"  # `seq` and `*seq` may stand in one contract


def _any_of(*kinds: str) -> str:
    return f"({', '.join(name for kind in kinds for name in DTYPES[kind])},)"


_KIND_CHECKS: Mapping[str, str] = {
    "float": f"""\
if dtype is not float32:
    if dtype is float16 or dtype is bfloat16:
        {{widen}}
    elif dtype is float64:
        wide = True
    else:
        {_LEAVE}""",
    "int": f"""\
if dtype is not int64:
    if dtype not in {_any_of("int")}:
        {_LEAVE}
    {{tensor}} = {{tensor}}.to(int64)""",
    "bool": _leave_if("dtype is not bool"),
    "num": f"""\
if dtype is float16 or dtype is bfloat16:
    {{widen}}
elif dtype not in {_any_of("float", "int")}:
    {_LEAVE}""",
    "any": "",
}


class _Writer:
    """Writes the statements that take the tensors out of outputs and batch, and look at them."""

    def __init__(self, contract: Contract, inputs: Mapping[str, str], upcast: bool) -> None:
        self._contract = contract
        self._inputs = inputs
        self._upcast = upcast
        self._bound: set[str] = set()

    def statements(self) -> list[str]:
        tensors = self._contract.tensors
        maybe_unbound = self._contract.dim_names() if any(tensor.optional for tensor in tensors) else []
        return [
            *(self._lookup(tensor) for tensor in tensors),
            *(f"{_axis(dim)} = None" for dim in maybe_unbound),
            "wide = False",
            *(self._check(tensor) for tensor in tensors),
            *self._widening(),
            *self._devices(),
        ]

    def _lookup(self, tensor: TensorSpec) -> str:
        place, keys = lookup_keys(tensor, self._inputs)
        name = _tensor(tensor)
        first, *others = [_lookup_key(name, key, place) for key in keys]
        return "\n".join([first, *(_nested(f"if {name} is None:", [other]) for other in others)])

    def _check(self, tensor: TensorSpec) -> str:
        name = _tensor(tensor)
        widen = f"{name} = {name}.to(float32)" if self._upcast else "pass"
        statements = [
            _leave_if(f"not isinstance({name}, Tensor) or {name}.layout is not strided"),
            f"dtype = {name}.dtype",
            _KIND_CHECKS[tensor.kind].format(tensor=name, widen=widen),
            *self._shape(tensor),
        ]
        return _if_given(tensor, *statements)

    def _shape(self, tensor: TensorSpec) -> list[str]:
        name, dims = _tensor(tensor), tensor.dims
        if all(isinstance(dim, int) or (dim in self._bound and not is_variadic(dim)) for dim in dims):
            known = "".join(f"{dim if isinstance(dim, int) else _axis(dim)}, " for dim in dims)
            return [_leave_if(f"{name}.shape != ({known})")]
        variadic = next((index for index, dim in enumerate(dims) if is_variadic(dim)), None)
        if variadic is None:
            places = [self._target(tensor, index) for index in range(len(dims))]
            start = [_leave_if(f"len(shape) != {len(dims)}"), f"[{', '.join(places)}] = shape"]
        elif len(dims) == 1:
            places, start = ["shape"], []
        else:
            places = [_place(index, variadic, len(dims)) for index in range(len(dims))]
            start = [_leave_if(f"len(shape) < {len(dims) - 1}")]
        sizes = [self._size(dim, place, tensor.optional) for dim, place in zip(dims, places, strict=True)]
        return [f"shape = {name}.shape", *start, *sizes]

    def _target(self, tensor: TensorSpec, index: int) -> str:
        """Return what to unpack the size of an axis into: its own variable, if this is where it is bound."""
        dim = tensor.dims[index]
        compared = isinstance(dim, int) or dim in self._bound or dim in tensor.dims[:index] or tensor.optional
        return f"size_{index}" if compared or dim == "_" else _axis(str(dim))

    def _size(self, dim: str | int, place: str, optional: bool) -> str:
        """Bind an axis where it is first seen, compare where it is seen again."""
        if dim in {"_", "..."}:
            return ""
        if isinstance(dim, int):
            return _leave_if(f"{place} != {dim}")
        variable = _axis(dim)
        differ = _leave_if(f"{place} != {variable}")
        if dim in self._bound:
            return differ
        bind = [] if place == variable else [f"{variable} = {place}"]
        if not is_variadic(dim) and dim not in MAY_BE_EMPTY:
            bind.append(_leave_if(f"{variable} < 1"))
        if optional:
            return _nested(f"if {variable} is None:", bind) + f"\nel{differ}"
        self._bound.add(dim)
        return "\n".join(bind)

    def _widening(self) -> list[str]:
        """One float64 among the floats: all are, like torch's own promotion."""
        floats = [tensor for tensor in self._contract.tensors if tensor.kind == "float"]
        widen = [_if_given(tensor, f"{_tensor(tensor)} = {_tensor(tensor)}.to(float64)") for tensor in floats]
        return [_nested("if wide:", widen)] if len(floats) > 1 else []

    def _devices(self) -> list[str]:
        """To compare two devices takes three times as long as to see that both are the CPU."""
        first, *others = self._contract.tensors
        on_cpu = " and ".join(_on_cpu(tensor) for tensor in self._contract.tensors)
        start = [f"device = {_tensor(first)}.device"]
        if first.optional:
            others = [first, *others]
            names = ", ".join(_tensor(tensor) for tensor in others)
            start = [f"device = next(tensor for tensor in ({names},) if tensor is not None).device"]
        differ = [_if_given(tensor, _leave_if(f"{_tensor(tensor)}.device != device")) for tensor in others]
        return [_nested(f"if not ({on_cpu}):", [*start, *differ])] if others else []


def _on_cpu(tensor: TensorSpec) -> str:
    name = _tensor(tensor)
    return f"({name} is None or {name}.is_cpu)" if tensor.optional else f"{name}.is_cpu"


def _place(index: int, variadic: int, count: int) -> str:
    """Return where the axis at an index stands in `shape`, when one of them stands for any number of axes."""
    if index == variadic:
        return f"shape[{index}:{index - count + 1 or ''}]"
    return f"shape[{index if index < variadic else index - count}]"


def _lookup_key(name: str, key: str, place: str | None) -> str:
    if place is not None:
        return f"{name} = from_{place}.get({key!r})"
    return f"""\
{name} = from_outputs.get({key!r})
if {name} is None:
    {name} = from_batch.get({key!r})
elif {key!r} in from_batch and from_batch[{key!r}] is not {name}:
    {_LEAVE}"""

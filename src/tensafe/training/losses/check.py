"""From a contract to the function that takes its tensors out of outputs and batch, generated once per loss.

The generated code is straight-line: look up, compare, hand over. It costs about a microsecond per tensor and runs under
`torch.compile(fullgraph=True)`, where shapes are refused at trace time. Whatever it does not like goes to `explain`,
which converts what may be converted and otherwise says what is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from tensafe._lazy import torch

from .contract import MAY_BE_EMPTY, Contract, TensorSpec, is_variadic, lookup_keys
from .explain import explain, make_reader

__all__ = ["Gather", "compile_gather"]

Gather = Callable[[Any, Any], tuple[tuple[Any, ...], Any, Any]]
"""`gather(outputs, batch) -> (tensors, num_items_in_batch, num_sequences_in_batch)`."""


@cache
def compile_gather(owner: str, contract: Contract, inputs: tuple[tuple[str, str], ...], upcast: bool) -> Gather:
    """Generate the gather function of a loss.

    Args:
        owner: Name of the loss, for messages.
        contract: Its tensors.
        inputs: Renames, `(tensor, key)`; a key may say `outputs.` or `batch.`.
        upcast: Whether 16-bit floats are widened to float32.
    """
    source = _Source(contract, dict(inputs), upcast).text()

    def slow(outputs: Any, batch: Any) -> tuple[Any, ...]:
        return explain(owner, contract, dict(inputs), upcast, outputs, batch)

    namespace: dict[str, Any] = {"torch": torch, "make_reader": make_reader, "slow": slow}
    exec(compile(source, f"<tensafe gather of {owner}>", "exec"), namespace)
    gather: Gather = namespace["gather"]
    return gather


_KIND_CHECKS: Mapping[str, tuple[str, ...]] = {
    "float": (
        "if {d} is not torch.float32:",
        "    if {d} is torch.float16 or {d} is torch.bfloat16:",
        "        {widen}",
        "    elif {d} is torch.float64:",
        "        wide = True",
        "    else:",
        "        return slow(outputs, batch)",
    ),
    "int": (
        "if {d} is not torch.int64:",
        "    if {d} is torch.int32 or {d} is torch.int16 or {d} is torch.int8 or {d} is torch.uint8:",
        "        {t} = {t}.to(torch.int64)",
        "    else:",
        "        return slow(outputs, batch)",
    ),
    "bool": ("if {d} is not torch.bool:", "    return slow(outputs, batch)"),
    "num": (
        "if {d} is torch.float16 or {d} is torch.bfloat16:",
        "    {widen}",
        "elif {d} is torch.bool or {d}.is_complex:",
        "    return slow(outputs, batch)",
    ),
    "any": (),
}


_DEVICE = "the device"  # bound and compared like an axis; no axis can have this name


class _Source:
    """Writes the source of one gather function."""

    def __init__(self, contract: Contract, inputs: Mapping[str, str], upcast: bool) -> None:
        self._contract = contract
        self._inputs = inputs
        self._upcast = upcast
        self._bound: set[str] = set()
        self._lines: list[str] = []

    def text(self) -> str:
        self._add(
            "def gather(outputs, batch):",
            "  try:",
            "    from_outputs = outputs.get if isinstance(outputs, dict) else make_reader(outputs)",
            "    from_batch = batch.get if isinstance(batch, dict) else make_reader(batch)",
            "    wide = False",
        )
        for tensor in self._contract.tensors:
            self._add_lookup(tensor)
        if any(tensor.optional for tensor in self._contract.tensors):
            names = [*self._contract.dim_names(), _DEVICE]
            self._add("    " + " = ".join(_variable(name) for name in names) + " = None")
        for tensor in self._contract.tensors:
            self._add_check(tensor)
        floats = [tensor for tensor in self._contract.tensors if tensor.kind == "float"]
        if len(floats) > 1:  # one float64 among them: all are, like torch's own promotion
            self._add("    if wide:")
            for tensor in floats:
                guard = f" if t_{tensor.name} is not None else None" if tensor.optional else ""
                self._add(f"        t_{tensor.name} = t_{tensor.name}.to(torch.float64){guard}")
        tensors = "".join(f"t_{tensor.name}, " for tensor in self._contract.tensors)
        self._add(
            f"    return ({tensors}), from_batch('num_items_in_batch'), from_batch('num_sequences_in_batch')",
            "  except RuntimeError:  # a nested tensor of strided layout has no shape to look at",
            "    return slow(outputs, batch)",
        )
        return "\n".join(self._lines)

    def _add(self, *lines: str) -> None:
        self._lines.extend(lines)

    def _add_lookup(self, tensor: TensorSpec) -> None:
        place, keys = lookup_keys(tensor, self._inputs)
        name = f"t_{tensor.name}"
        for index, key in enumerate(keys):
            pad = "    "
            if index:
                self._add(f"    if {name} is None:")
                pad = "        "
            if place is not None:
                self._add(f"{pad}{name} = from_{place}({key!r})")
                continue
            self._add(
                f"{pad}{name} = from_outputs({key!r})",
                f"{pad}other = from_batch({key!r})",
                f"{pad}if {name} is None:",
                f"{pad}    {name} = other",
                f"{pad}elif other is not None and other is not {name}:",
                f"{pad}    return slow(outputs, batch)",
            )

    def _add_check(self, tensor: TensorSpec) -> None:
        name = f"t_{tensor.name}"
        pad = "    "
        if tensor.optional:
            self._add(f"    if {name} is not None:")
            pad = "        "
        widen = f"{name} = {name}.to(torch.float32)" if self._upcast else "pass"
        body = [
            f"if not isinstance({name}, torch.Tensor) or {name}.layout is not torch.strided:",
            "    return slow(outputs, batch)",
            f"dtype = {name}.dtype",
            *(line.format(d="dtype", t=name, widen=widen) for line in _KIND_CHECKS[tensor.kind]),
            f"shape = {name}.shape",
            *self._dim_checks(tensor),
            *self._bind(_DEVICE, f"{name}.device", tensor.optional),
        ]
        self._add(*(pad + line for line in body))

    def _dim_checks(self, tensor: TensorSpec) -> list[str]:
        variadic = next((i for i, dim in enumerate(tensor.dims) if is_variadic(dim)), None)
        count = len(tensor.dims)
        rank_is_wrong = f"len(shape) != {count}" if variadic is None else f"len(shape) < {count - 1}"
        lines = [f"if {rank_is_wrong}:", "    return slow(outputs, batch)"]
        for index, dim in enumerate(tensor.dims):
            if dim in {"_", "..."}:
                continue
            from_end = index - count
            if index == variadic:
                place = f"shape[{index}:{from_end + 1 or ''}]"
            else:
                place = f"shape[{index if variadic is None or index < variadic else from_end}]"
            if isinstance(dim, int):
                lines += [f"if {place} != {dim}:", "    return slow(outputs, batch)"]
            else:
                lines += self._bind(dim, place, tensor.optional)
        return lines

    def _bind(self, dim: str, place: str, optional: bool) -> list[str]:
        """Bind an axis (or the device) where it is first seen, compare where it is seen again."""
        variable = _variable(dim)
        refuse_empty = []
        if not is_variadic(dim) and dim not in MAY_BE_EMPTY and dim != _DEVICE:
            refuse_empty = [f"if {variable} < 1:", "    return slow(outputs, batch)"]
        differ = [f"if {place} != {variable}:", "    return slow(outputs, batch)"]
        if dim in self._bound:
            return differ
        if not optional:
            self._bound.add(dim)
            return [f"{variable} = {place}", *refuse_empty]
        return [
            f"if {variable} is None:",
            f"    {variable} = {place}",
            *("    " + line for line in refuse_empty),
            "el" + differ[0],
            differ[1],
        ]


def _variable(dim: str) -> str:
    return "device" if dim == _DEVICE else f"d_{dim.removeprefix('*')}"

"""The slow path of the tensor check: converts lists and numbers, and says what is wrong with everything else.

It is plain Python over shapes and dtypes, never over values, so `torch.compile` traces it and reports the same
sentence.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, NoReturn

from tensafe._lazy import torch

from .contract import DTYPES, MAY_BE_EMPTY, Contract, TensorSpec, is_variadic, lookup_keys
from .errors import LossInputError, LossTypeError, dotted, key_name, make_error, near_miss, shorten
from .guards import is_list, is_mapping

__all__ = ["check_containers", "explain", "make_reader", "match_axes", "readable", "what_there_is"]

_MOST_KEYS = 20


class _Attributes:
    """An object's attributes, read like the items of a mapping; a method counts as absent."""

    def __init__(self, source: Any) -> None:
        self._source = source

    def get(self, name: str) -> Any:
        value = getattr(self._source, name, None)
        return None if callable(value) else value

    def __getitem__(self, name: str) -> Any:
        return self.get(name)

    def __contains__(self, name: str) -> bool:
        return self.get(name) is not None


def readable(source: Any) -> Any:
    """Return what has `get`, `[]` and `in`: a mapping itself, or the attributes of any other object."""
    return source if is_mapping(source) else _Attributes(source)


def make_reader(source: Any) -> Callable[[str], Any]:
    """Return `name -> value or None` for a mapping or an object with attributes."""
    reader: Callable[[str], Any] = readable(source).get
    return reader


def explain(
    owner: str, contract: Contract, inputs: Mapping[str, str], upcast: bool, outputs: Any, batch: Any
) -> tuple[Any, ...]:
    """Gather the tensors as the generated code does, at leisure.

    Returns:
        The tensors, in the order of the contract, when everything that is amiss could be converted.

    Raises:
        LossInputError: A tensor is missing, ambiguous, or of the wrong kind, rank, size or device.
        LossTypeError: Outputs or batch are no containers of named tensors.
    """
    call = _Call(owner, contract, inputs, outputs, batch)
    check_containers(owner, contract, outputs, batch)
    values = {tensor.name: call.find(tensor) for tensor in contract.tensors}
    device = next((value.device for value in values.values() if isinstance(value, torch.Tensor)), None)
    for tensor in contract.tensors:
        if values[tensor.name] is not None:
            values[tensor.name] = _as_kind(call, tensor, values[tensor.name], device, upcast)
    _check_sizes(call, contract, values)
    _check_devices(call, contract, values)
    floats = [tensor.name for tensor in contract.tensors if tensor.kind == "float" and values[tensor.name] is not None]
    if any(values[name].dtype is torch.float64 for name in floats):
        values.update({name: values[name].to(torch.float64) for name in floats})
    return tuple(values.values())


class _Call(NamedTuple):
    """What one call was given."""

    owner: str
    contract: Contract
    inputs: Mapping[str, str]
    outputs: Any
    batch: Any

    def find(self, tensor: TensorSpec) -> Any:
        place, keys = lookup_keys(tensor, self.inputs)
        for key in keys:
            found = make_reader(self.outputs)(key) if place != "batch" else None
            other = make_reader(self.batch)(key) if place != "outputs" else None
            if found is not None and other is not None and found is not other:
                self.fail(
                    tensor,
                    "ambiguous-tensor",
                    f"{shorten(key)} is in both outputs and batch.",
                    f"Say which in the spec: inputs: {{{tensor.name}: batch.{dotted((key,))}}}.",
                )
            if found is not None or other is not None:
                return found if found is not None else other
        if not tensor.optional:
            self._fail_missing(tensor, place, keys)
        return None

    def _fail_missing(self, tensor: TensorSpec, place: str | None, keys: tuple[str, ...]) -> NoReturn:
        found, hint = what_there_is(tensor, self.contract, self.inputs, self.outputs, self.batch)
        wanted = " or ".join(shorten(key) for key in keys)
        where = place or "outputs or batch"
        self.fail(tensor, "missing-tensor", f"{wanted} ({tensor}) must be in {where}; {found}.", hint)

    def fail(self, tensor: TensorSpec, code: str, message: str, hint: str | None = None) -> NoReturn:
        raise make_error(LossInputError, message, code=code, loss=self.owner, loc=(tensor.name,), hint=hint)


def what_there_is(
    tensor: TensorSpec, contract: Contract, inputs: Mapping[str, str], outputs: Any, batch: Any
) -> tuple[str, str | None]:
    """Say what outputs and batch hold instead of a tensor that is missing, and which key was probably meant."""
    place, keys = lookup_keys(tensor, inputs)
    sources = (
        {"outputs": outputs, "batch": batch} if place is None else {place: outputs if place == "outputs" else batch}
    )
    offered = {name: _items_of(source) for name, source in sources.items()}
    found = "; ".join(f"{name} has {_listed(items)}" for name, items in offered.items())
    if torch.compiler.is_compiling():  # it cannot trace difflib
        return found, None
    # what another tensor is looked up by is not a misspelling of this one
    taken = {*keys, *(key for other in contract.tensors for key in lookup_keys(other, inputs)[1])}
    nearest = near_miss(keys[0], [key for items in offered.values() for key in items if key not in taken])
    return found, (
        f"If {shorten(nearest)} is meant: inputs: {{{tensor.name}: {dotted((nearest,))}}}." if nearest else None
    )


def _items_of(source: Any) -> dict[str, Any]:
    if is_mapping(source):
        return {key_name(key): source[key] for key in list(source)[: _MOST_KEYS + 1]}
    public = [name for name in getattr(source, "__dict__", {}) if not name.startswith("_")]
    return {name: getattr(source, name) for name in public[: _MOST_KEYS + 1]}


def _listed(items: Mapping[str, Any]) -> str:
    keys = [key if key.isidentifier() and len(key) <= 60 else shorten(key, 60) for key in items]
    shown = [f"{key}=None" if items[name] is None else key for key, name in zip(keys, items, strict=True)]
    return ", ".join(shown[:_MOST_KEYS] + ["..."] * (len(shown) > _MOST_KEYS)) or "nothing"


def check_containers(owner: str, contract: Contract, outputs: Any, batch: Any) -> None:
    """Refuse outputs and batches that have no names to look tensors up by."""
    _check_container(owner, "outputs", outputs, contract)
    _check_container(owner, "batch", batch, contract)


def _check_container(owner: str, name: str, source: Any, contract: Contract) -> None:
    example = contract.tensors[0].name if contract.tensors else "logits"
    if isinstance(source, torch.Tensor):
        hint = f"Pass {{{example!r}: tensor}}."
    elif is_list(source):
        hint = "Name its parts, or have the model return a dict (return_dict=True)."
    elif source is None or isinstance(source, str | bytes | int | float):
        hint = f"Pass a mapping such as {{{example!r}: tensor}}."
    else:
        return
    raise make_error(
        LossTypeError,
        f"{name} must be a mapping or an object with attributes; got {type(source).__name__}.",
        code="not-a-container",
        loss=owner,
        loc=(name,),
        hint=hint,
    )


_KIND_HINTS = {
    ("float", "int"): "Convert it: x.float().",
    ("int", "float"): "These are ids: x.long().",
    ("int", "bool"): "These are ids: x.long().",
    ("bool", "int"): "Convert it: x.bool().",
    ("bool", "float"): "Convert it: x.bool().",
    ("num", "bool"): "Convert it: x.float().",
}


def _as_kind(call: _Call, tensor: TensorSpec, value: Any, device: Any, upcast: bool) -> Any:
    if isinstance(value, list | tuple | int | float):
        value = _convert(call, tensor, value, device)
    if not isinstance(value, torch.Tensor):
        call.fail(
            tensor,
            "not-a-tensor",
            f"{tensor.name!r} must be a tensor, {tensor}; got {type(value).__name__}.",
            "Convert it: torch.as_tensor(x).",
        )
    if value.is_nested or value.layout is not torch.strided:
        call.fail(
            tensor,
            "unsupported-layout",
            f"{tensor.name!r} must be a dense tensor, {tensor}; "
            f"got {'a nested one' if value.is_nested else f'layout {value.layout}'}.",
            "Convert it: x.to_padded_tensor(...) if nested, x.to_dense() if sparse.",
        )
    kind = _kind_of(value.dtype)
    if tensor.kind not in {"any", kind} and not (tensor.kind == "num" and kind in {"float", "int"}):
        message = f"{tensor.name!r} must be {tensor}; got {_describe(value)}."
        call.fail(tensor, "wrong-dtype", message, _KIND_HINTS.get((tensor.kind, kind)))
    if upcast and tensor.kind in {"float", "num"} and (value.dtype is torch.float16 or value.dtype is torch.bfloat16):
        return value.to(torch.float32)
    return value.to(torch.int64) if tensor.kind == "int" else value


def _convert(call: _Call, tensor: TensorSpec, value: Any, device: Any) -> Any:
    if is_list(value) and any(isinstance(item, torch.Tensor) for item in value):
        call.fail(
            tensor,
            "not-a-tensor",
            f"{tensor.name!r} must be {tensor}; a list of tensors would lose their graph.",
            "Stack them: torch.stack(x).",
        )
    try:
        # no dtype for ids: torch.tensor would cut 0.7 down to 0, where the dtype it infers is refused by name
        converted = torch.tensor(value, dtype=torch.float32 if tensor.kind == "float" else None, device=device)
    except (ValueError, TypeError, RuntimeError) as error:
        call.fail(
            tensor,
            "not-a-tensor",
            f"{tensor.name!r} must be {tensor}; this {type(value).__name__} cannot become a tensor: {error}.",
            "Rows must be equally long, and hold numbers.",
        )
    empty = {"int": torch.int64, "bool": torch.bool}.get(tensor.kind)
    return converted if converted.numel() or empty is None else converted.to(empty)


def _kind_of(dtype: Any) -> str:
    name = str(dtype).removeprefix("torch.")
    return next((kind for kind, names in DTYPES.items() if name in names), "other")


def _describe(value: Any) -> str:
    return f"{str(value.dtype).removeprefix('torch.')}{_plain(value.shape)}"


def _plain(sizes: Any) -> list[int]:
    """Return sizes in plain integers; `torch.compile` cannot put a size that varies into a message."""
    return [operator.index(size) for size in sizes]


_Sizes = Mapping[str, tuple[Any, str]]  # axis -> its size, and the tensor that set it
_Shapes = Mapping[str, list[Any]]


def _check_sizes(call: _Call, contract: Contract, values: Mapping[str, Any]) -> None:
    sizes: dict[str, tuple[Any, str]] = {}
    shapes = {name: list(value.shape) for name, value in values.items() if value is not None}
    for tensor in contract.tensors:
        if tensor.name not in shapes:
            continue
        value = values[tensor.name]
        found = match_axes(tensor, shapes[tensor.name])
        if found is None:
            _fail_shape(call, contract, shapes, tensor, value, sizes)
        for dim, size in found.items():
            known = sizes.setdefault(dim, (size, tensor.name))
            if known[0] != size:
                _fail_shape(call, contract, shapes, tensor, value, sizes, dim)
            if not is_variadic(dim) and dim not in MAY_BE_EMPTY and size < 1:
                call.fail(tensor, "empty-axis", f"{tensor.name!r} ({tensor}) has {dim}=0; expected at least 1.")


def _check_devices(call: _Call, contract: Contract, values: Mapping[str, Any]) -> None:
    first: tuple[Any, str] | None = None
    for tensor in contract.tensors:
        value = values[tensor.name]
        if value is None:
            continue
        if first is not None and first[0] != value.device:
            call.fail(
                tensor,
                "device-mismatch",
                f"{tensor.name!r} is on {value.device}, but {first[1]!r} is on {first[0]}.",
                f"Move it: {tensor.name}.to({str(first[0])!r}).",
            )
        first = first or (value.device, tensor.name)


def match_axes(tensor: TensorSpec, shape: Any) -> dict[str, Any] | None:
    """Bind the axes of one tensor to sizes; None if its rank or a fixed size is wrong."""
    sizes = list(shape)
    dims = list(tensor.dims)
    variadic = next((index for index, dim in enumerate(dims) if is_variadic(dim)), None)
    if variadic is not None:
        width = len(sizes) - len(dims) + 1
        if width < 0:
            return None
        sizes[variadic : variadic + width] = [tuple(sizes[variadic : variadic + width])]
    if len(sizes) != len(dims):
        return None
    bound: dict[str, Any] = {}
    for dim, size in zip(dims, sizes, strict=True):
        if dim in {"_", "..."}:
            continue
        wanted = dim if isinstance(dim, int) else bound.setdefault(dim, size)
        if size != wanted:
            return None
    return bound


def _fail_shape(
    call: _Call, contract: Contract, shapes: _Shapes, tensor: TensorSpec, value: Any, sizes: _Sizes, dim: str = ""
) -> NoReturn:
    bound = [
        f"{axis}={_plain(size) if is_list(size) else operator.index(size)} (set by {setter!r})"
        for axis, (size, setter) in sizes.items()
        if axis in tensor.dims and setter != tensor.name
    ]
    expected = f"{tensor} with {', '.join(bound)}" if bound else str(tensor)
    message = f"{tensor.name!r} must be {expected}; got {_describe(value)}."
    suspects = [tensor.name, *(setter for axis, (_, setter) in sizes.items() if axis in tensor.dims)]
    hint = _shape_hint(contract, shapes, suspects)
    if hint is None and dim and _off_by_one(match_axes(tensor, shapes[tensor.name]), sizes[dim][0], dim):
        hint = "They differ by one along seq: was one of them shifted already?"
    call.fail(tensor, "shape-mismatch", message, hint)


def _shape_hint(contract: Contract, shapes: _Shapes, suspects: list[str]) -> str | None:
    """Try the usual repairs on each suspect; the first that makes all shapes agree is the hint."""
    for name in suspects:
        shape = shapes[name]
        repairs = [("Add the batch axis", f"{name}.unsqueeze(0)", [1, *shape])]
        if len(shape) >= 2:
            swapped = [*shape[:-2], shape[-1], shape[-2]]
            repairs.append(("Its last two axes look swapped", f"{name}.transpose(-1, -2)", swapped))
        if shape and shape[-1] == 1:
            repairs.append(("Drop the last axis", f"{name}.squeeze(-1)", shape[:-1]))
        for advice, code, repaired in repairs:
            if _agree(contract, {**shapes, name: repaired}):
                return f"{advice}: {code}."
    return None


def _agree(contract: Contract, shapes: _Shapes) -> bool:
    sizes: dict[str, Any] = {}
    for tensor in contract.tensors:
        found = match_axes(tensor, shapes[tensor.name]) if tensor.name in shapes else {}
        if found is None or any(sizes.setdefault(dim, size) != size for dim, size in found.items()):
            return False
    return True


def _off_by_one(found: dict[str, Any] | None, theirs: Any, dim: str) -> bool:
    mine = found[dim] if found is not None else theirs
    if is_list(mine):
        return len(mine) == len(theirs) == 2 and mine[0] == theirs[0] and abs(mine[1] - theirs[1]) == 1
    return dim == "seq" and abs(mine - theirs) == 1

"""The tensors of a loss, read from the annotations of its `compute`: jaxtyping's notation, without torch or jaxtyping.

Of jaxtyping's notation a contract knows the axes `name`, `*name`, an integer, `_` and `...`, and the kinds `Float`,
`Int`, `Bool`, `Num` and `Shaped`. Annotations that are strings are evaluated with stand-ins, so that resolving a loss
imports neither library; annotations that are real jaxtyping types are read by their attributes.
"""

from __future__ import annotations

import inspect
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, NoReturn

from .errors import LossConfigError, make_error, near_miss

if TYPE_CHECKING:
    from .loss import Loss

__all__ = ["DTYPES", "Alias", "Contract", "TensorSpec", "Values", "is_variadic", "lookup_keys", "read_contract"]

KINDS = {
    "Float": "float",
    "Inexact": "float",
    "Int": "int",
    "Integer": "int",
    "Bool": "bool",
    "Num": "num",
    "Real": "num",
    "Shaped": "any",
}
"""jaxtyping's name to the kind of dtype; `int` takes every integer dtype and hands over int64."""

DTYPES: Mapping[str, tuple[str, ...]] = {
    "float": ("float32", "float64", "float16", "bfloat16"),
    "int": ("int64", "int32", "int16", "int8", "uint8"),
    "bool": ("bool",),
}
"""Kind to the names of its dtypes, the usual one first; `num` is float or int, `any` whatever there is."""

MAY_BE_EMPTY = frozenset({"batch", "seq", "group"})
"""Named axes that may have size 0: there is nothing to learn then. Any other named axis is at least 1."""


class Alias(NamedTuple):
    """Another key that a tensor is looked up by: `Annotated[Float[Tensor, " batch"], Alias("targets")]`."""

    key: str


class Values(NamedTuple):
    """What a tensor holds, where its name does not say so: `Annotated[Float[Tensor, " batch"], Values(0, 1)]`.

    Samples are made of such values, and pages show them. A call is not checked for them: on an accelerator that would
    wait for the device.

    Attributes:
        low: Least value.
        high: Largest value.
        among: The only values, where there are few.
        sums_to_one: Whether it holds probabilities along its last axis.
    """

    low: float | None = None
    high: float | None = None
    among: tuple[float, ...] = ()
    sums_to_one: bool = False

    def __str__(self) -> str:
        if self.among:
            return f"one of {', '.join(f'{value:g}' for value in self.among)}"
        if self.sums_to_one:
            return "probabilities, which sum to 1 along the last axis"
        if self.high is None:
            return ">= " + f"{self.low:g}" if self.low is not None else "any"
        return f"<= {self.high:g}" if self.low is None else f"in [{self.low:g}, {self.high:g}]"


class TensorSpec(NamedTuple):
    """One tensor of a contract.

    Attributes:
        name: Parameter of `compute`, and key in outputs or batch.
        kind: `float`, `int`, `bool`, `num` (float or int) or `any`.
        dims: Axes: a name, `*name`, an integer, `_` (any size) or `...` (any axes).
        optional: Whether it may be absent.
        aliases: Further keys, tried in order when `name` is absent.
        values: What it holds, where that is declared.
    """

    name: str
    kind: str
    dims: tuple[str | int, ...]
    optional: bool = False
    aliases: tuple[str, ...] = ()
    values: Values | None = None

    def __str__(self) -> str:
        return f"{self.kind}[{' '.join(str(dim) for dim in self.dims)}]"


class Contract(NamedTuple):
    """The tensors that a loss takes, in the order of `compute`."""

    tensors: tuple[TensorSpec, ...]

    def dim_names(self) -> list[str]:
        """Return the named axes in order of appearance; a variadic one keeps its star."""
        dims = (dim for tensor in self.tensors for dim in tensor.dims if isinstance(dim, str))
        return list(dict.fromkeys(dim for dim in dims if dim not in {"_", "..."}))


def is_variadic(dim: str | int) -> bool:
    """Whether an axis of a contract stands for any number of axes."""
    return isinstance(dim, str) and (dim == "..." or dim.startswith("*"))


def lookup_keys(tensor: TensorSpec, inputs: Mapping[str, str]) -> tuple[str | None, tuple[str, ...]]:
    """Return where a tensor is looked for (`outputs`, `batch`, or None for both) and the keys to try."""
    renamed = inputs.get(tensor.name)
    if renamed is None:
        return None, (tensor.name, *tensor.aliases)
    place, dot, key = renamed.partition(".")
    if dot and place in {"outputs", "batch"}:
        return place, (key,)
    return None, (renamed,)


@cache
def read_contract(loss: type[Loss]) -> Contract:
    """Read the tensors that `loss.compute` takes.

    Raises:
        LossConfigError: A parameter is not annotated with a tensor in the notation above; the message names it.
    """
    owner = loss._name or loss.__qualname__
    parameters = list(inspect.signature(loss.compute).parameters.values())[1:]
    if not parameters:
        raise make_error(LossConfigError, "compute() takes no tensors.", code="invalid-contract", loss=owner)
    return Contract(tuple(_read_parameter(parameter, loss, owner) for parameter in parameters))


def _read_parameter(parameter: inspect.Parameter, loss: type[Loss], owner: str) -> TensorSpec:
    if parameter.kind not in {parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY}:
        _refuse(owner, parameter, "collects what it is not told about", "Name each tensor.")
    if parameter.kind is parameter.KEYWORD_ONLY:
        _refuse(owner, parameter, "is keyword-only", "Drop the star: tensors are passed in the order of compute().")
    if parameter.default is not parameter.empty and parameter.default is not None:
        _refuse(owner, parameter, "has a default", "A tensor is required, or optional with `| None = None`.")
    if parameter.annotation is parameter.empty:
        _refuse(owner, parameter, "has no annotation", 'Write for instance Float[Tensor, "batch seq"].')
    notes = _Notes()
    _collect(_evaluate(parameter, loss, owner), notes)
    if len(notes.tensors) != 1 or notes.others:
        _refuse(owner, parameter, "is not annotated as one tensor", 'Write for instance Float[Tensor, "batch seq"].')
    tensor = notes.tensors[0]
    optional = parameter.default is None
    if optional is not notes.optional:
        _refuse(owner, parameter, "is half optional", "Write both `| None` and `= None`, or neither.")
    kind = KINDS.get(tensor.kind)
    if kind is None:
        _refuse(owner, parameter, f"has the unsupported kind {tensor.kind}", f"Supported: {', '.join(KINDS)}.")
    dims = _parse_dims(tensor.dims, parameter, owner)
    return TensorSpec(parameter.name, kind, dims, optional, tuple(notes.aliases), notes.values)


def _refuse(owner: str, parameter: inspect.Parameter, problem: str, hint: str) -> NoReturn:
    raise make_error(
        LossConfigError,
        f"parameter {parameter.name!r} of compute() {problem}.",
        code="invalid-contract",
        loss=owner,
        loc=(parameter.name,),
        hint=hint,
    ) from None


def _parse_dims(text: str, parameter: inspect.Parameter, owner: str) -> tuple[str | int, ...]:
    dims: list[str | int] = []
    for token in text.split():
        if token.isdecimal():
            dims.append(int(token))
        elif token in {"...", "_"} or _is_axis_name(token.removeprefix("*")):
            dims.append(token)
        else:
            _refuse(owner, parameter, f"has the axis {token!r}", "An axis is a name, *name, an integer, _ or '...'.")
    if sum(dim == "..." or str(dim).startswith("*") for dim in dims) > 1:
        _refuse(owner, parameter, "has more than one variadic axis", "At most one of *name and '...' per tensor.")
    return tuple(dims)


def _is_axis_name(token: str) -> bool:
    return token.isidentifier() and not token.startswith("_")  # to jaxtyping such a name is one that is not checked


@dataclass(frozen=True)
class _TensorNote:
    """Stand-in for `Float[Tensor, "batch"]`."""

    kind: str
    dims: str

    def __or__(self, other: Any) -> Any:
        return typing.Union[self, other]  # noqa: UP007  # `|` is what is being defined

    __ror__ = __or__


class _KindStandIn:
    """Stand-in for `jaxtyping.Float` and its kin."""

    def __init__(self, kind: str) -> None:
        self._kind = kind

    def __getitem__(self, item: Any) -> _TensorNote:
        array, dims = item
        if not isinstance(dims, str) or getattr(array, "__name__", "") not in {"Tensor", "Parameter"}:
            raise TypeError("expected [Tensor, 'axes']")
        return _TensorNote(self._kind, dims)


class _TensorStandIn:
    """Stand-in for `torch.Tensor`."""


_TensorStandIn.__name__ = "Tensor"
_KIND_STAND_INS = {name: _KindStandIn(name) for name in KINDS}
_STAND_INS = {
    **_KIND_STAND_INS,
    "Tensor": _TensorStandIn,
    "torch": types.SimpleNamespace(Tensor=_TensorStandIn),
    "jaxtyping": types.SimpleNamespace(**_KIND_STAND_INS),
    "Annotated": Annotated,
    "Alias": Alias,
    "Values": Values,
    "Optional": typing.Optional,
    "Union": typing.Union,
}


class _Namespace(Mapping[str, Any]):
    """What an annotation's names mean: the class's surroundings first, then the stand-ins."""

    def __init__(self, *scopes: Mapping[str, Any]) -> None:
        self._scopes = scopes

    def __getitem__(self, name: str) -> Any:
        from tensafe._lazy import torch as lazy_torch

        for scope in self._scopes:
            # a lazy torch stays asleep: its stand-in says as much
            if name in scope and scope[name] is not lazy_torch:
                return scope[name]
        return _STAND_INS[name]

    def __iter__(self) -> Iterator[str]:
        return iter({name for scope in (*self._scopes, _STAND_INS) for name in scope})

    def __len__(self) -> int:
        return len(set(self))


def _evaluate(parameter: inspect.Parameter, loss: type[Loss], owner: str) -> Any:
    annotation = parameter.annotation
    if not isinstance(annotation, str):
        return annotation
    function = inspect.unwrap(loss.compute)
    scopes = [getattr(function, "__globals__", {}), getattr(sys.modules.get(loss.__module__), "__dict__", {})]
    names = _Namespace(*(base.__dict__.get("_locals", {}) for base in loss.__mro__), *scopes)
    try:
        annotation = eval(annotation, {}, names)
        return eval(annotation, {}, names) if isinstance(annotation, str) else annotation  # quoted, though postponed
    except NameError as error:
        missing = error.name or ""
        nearest = near_miss(missing, [*KINDS, "Tensor"])
        cure = f"Did you mean {nearest}?" if nearest else "Import it outside TYPE_CHECKING, or use jaxtyping's names."
        _refuse(owner, parameter, f"is annotated with an unknown name {missing!r}", cure)
    except Exception as error:
        _refuse(
            owner, parameter, f"has an annotation that fails: {error}", 'Write for instance Float[Tensor, "batch"].'
        )


class _Notes:
    """What one annotation says."""

    def __init__(self) -> None:
        self.tensors: list[_TensorNote] = []
        self.others = False
        self.optional = False
        self.aliases: list[str] = []
        self.values: Values | None = None


def _collect(annotation: Any, notes: _Notes) -> None:
    origin = typing.get_origin(annotation)
    if annotation is None or annotation is type(None):
        notes.optional = True
    elif isinstance(annotation, _TensorNote):
        notes.tensors.append(annotation)
    elif origin is Annotated:
        inner, *extras = typing.get_args(annotation)
        notes.aliases.extend(extra.key for extra in extras if isinstance(extra, Alias))
        notes.values = next((extra for extra in extras if isinstance(extra, Values)), notes.values)
        _collect(inner, notes)
    elif origin in {typing.Union, types.UnionType}:
        for branch in typing.get_args(annotation):
            _collect(branch, notes)
    elif hasattr(annotation, "dim_str") and hasattr(annotation, "array_type"):  # a real jaxtyping type
        notes.tensors.append(_TensorNote(annotation.__name__.partition("[")[0], annotation.dim_str))
    else:
        notes.others = True

"""What hypothesis draws: tensors, batches of the built-in losses, and batches made from any contract."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor

from tensafe.training.losses.contract import Contract, TensorSpec, is_variadic

SMALL = 8.0
"""Bound of drawn scores: exp of it is far from what any dtype overflows at."""


def numbers(bound: float = SMALL) -> st.SearchStrategy[float]:
    return st.floats(-bound, bound, width=32, allow_subnormal=False)


@st.composite
def tensors(
    draw: st.DrawFn, shape: tuple[int, ...], bound: float = SMALL, dtype: torch.dtype = torch.float64
) -> Tensor:
    size = 1
    for axis in shape:
        size *= axis
    values = draw(st.lists(numbers(bound), min_size=size, max_size=size))
    return torch.tensor(values, dtype=torch.float64).reshape(shape).to(dtype)


class Tokens(NamedTuple):
    """A batch of `token_ce`."""

    logits: Tensor
    labels: Tensor

    @property
    def outputs(self) -> dict[str, Tensor]:
        return {"logits": self.logits}

    @property
    def batch(self) -> dict[str, Tensor]:
        return {"labels": self.labels}


@st.composite
def tokens(
    draw: st.DrawFn, *, least: int = 0, ignore_index: int = -100, dtype: torch.dtype = torch.float64, rows: int = 2
) -> Tokens:
    """Logits and labels with `rows` leading axes, each at least `least` long; some labels are ignored, perhaps all."""
    lead = tuple(draw(st.integers(least, 4)) for _ in range(rows))
    vocab = draw(st.integers(1, 5))
    labels = st.sampled_from([ignore_index, *range(vocab)])
    size = 1
    for axis in lead:
        size *= axis
    drawn = draw(st.lists(labels, min_size=size, max_size=size))
    return Tokens(draw(tensors((*lead, vocab), dtype=dtype)), torch.tensor(drawn, dtype=torch.int64).reshape(lead))


def formulas() -> st.SearchStrategy[dict[str, Any]]:
    """Kwargs that `token_ce` and `linear_ce` have in common: what is scored, and how."""
    return st.fixed_dictionaries(
        {
            "label_smoothing": st.sampled_from([0.0, 0.1, 1.0]),
            "z_loss": st.sampled_from([0.0, 0.01]),
            "softcap": st.sampled_from([None, 2.0, 30.0]),
            "logit_scale": st.sampled_from([1.0, 0.5, 3.0]),
        }
    )


@st.composite
def twins(draw: st.DrawFn, *, bound: float = SMALL, least: int = 0) -> tuple[Tensor, Tensor]:
    """Two tensors of one shape, of up to three axes."""
    shape = tuple(draw(st.lists(st.integers(least, 4), max_size=3)))
    return draw(tensors(shape, bound)), draw(tensors(shape, bound))


@st.composite
def embeddings(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Two tensors `[batch hidden]`; a row may be zero."""
    shape = (draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    return draw(tensors(shape)), draw(tensors(shape))


ACCEPTED: Mapping[str, tuple[torch.dtype, ...]] = {
    "float": (torch.float32, torch.float64, torch.float16, torch.bfloat16),
    "int": (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8),
    "bool": (torch.bool,),
    "num": (torch.float32, torch.float16, torch.int64),
    "any": (torch.float32, torch.bool, torch.int32),
}
REFUSED: Mapping[str, tuple[torch.dtype, ...]] = {
    "float": (torch.int64, torch.bool, torch.complex64),
    "int": (torch.float32, torch.bool, torch.uint16),
    "bool": (torch.uint8, torch.float32),
    "num": (torch.bool, torch.complex64),
    "any": (),
}
_AXES = ("batch", "seq", "vocab", "hidden")


@st.composite
def contracts(draw: st.DrawFn) -> Contract:
    """Up to three tensors over a few shared axes; those that may be absent come last."""
    count = draw(st.integers(1, 3))
    required = draw(st.integers(1, count))
    specs: list[TensorSpec] = []
    for index in range(count):
        dims: list[str | int] = draw(st.lists(st.sampled_from([*_AXES, "_", 2]), max_size=3))
        if draw(st.booleans()):
            dims.insert(draw(st.integers(0, len(dims))), draw(st.sampled_from(["*rows", "..."])))
        kind = draw(st.sampled_from(["float", *ACCEPTED]))
        specs.append(TensorSpec(f"tensor_{index}", kind, tuple(dims), optional=index >= required))
    return Contract(tuple(specs))


@st.composite
def batches(draw: st.DrawFn, contract: Contract) -> dict[str, Tensor]:
    """Tensors that a contract accepts."""
    sizes = {axis: draw(st.integers(0 if axis in {"batch", "seq"} else 1, 3)) for axis in _AXES}
    rows = draw(st.lists(st.integers(0, 3), max_size=2))
    made: dict[str, Tensor] = {}
    for spec in contract.tensors:
        if spec.optional and draw(st.booleans()):
            continue
        shape: list[int] = []
        for dim in spec.dims:
            if isinstance(dim, int):
                shape.append(dim)
            elif is_variadic(dim):
                shape += rows if dim == "*rows" else draw(st.lists(st.integers(0, 2), max_size=2))
            else:
                shape.append(sizes.get(dim, draw(st.integers(0, 3))))
        made[spec.name] = torch.ones(shape).to(draw(st.sampled_from(ACCEPTED[spec.kind])))
    return made


class Broken(NamedTuple):
    """A batch that a contract refuses."""

    tensors: dict[str, Any]
    changed: str
    """The tensor that was changed; one that shares an axis with it may be the one to be named."""


@st.composite
def broken_batches(draw: st.DrawFn, contract: Contract) -> Broken:
    """A batch that a contract accepts, but for one change of a dtype, a rank, an axis or a device."""
    made: dict[str, Any] = dict(draw(batches(contract)))
    changes = [
        (name, change, tensor) for name, tensor in made.items() for change in _changes(_spec(contract, name), tensor)
    ]
    if len(made) > 1:
        changes += [(name, "meta", tensor) for name, tensor in made.items()]
    changes += [(spec.name, "absent", None) for spec in contract.tensors if not spec.optional]
    name, change, tensor = draw(st.sampled_from(changes))
    if change == "absent":
        del made[name]
    elif change == "meta":
        made[name] = tensor.to("meta")
    elif isinstance(change, torch.dtype):
        made[name] = tensor.to(change)
    else:
        made[name] = tensor.new_ones(change)
    return Broken(made, name)


def _spec(contract: Contract, name: str) -> TensorSpec:
    return next(spec for spec in contract.tensors if spec.name == name)


def _changes(spec: TensorSpec, tensor: Tensor) -> list[Any]:
    changes: list[Any] = [*REFUSED[spec.kind]]
    shape = list(tensor.shape)
    if not any(is_variadic(dim) for dim in spec.dims):
        changes += [[*shape, 1], [1, *shape], *([shape[1:]] if shape else [])]
        changes += [[*shape[:i], 3, *shape[i + 1 :]] for i, dim in enumerate(spec.dims) if isinstance(dim, int)]
        changes += [[*shape[:i], 0, *shape[i + 1 :]] for i, dim in enumerate(spec.dims) if dim in {"vocab", "hidden"}]
    return changes

"""Calls of a resolved loss: valid batches with a few things wrong, and what is no batch at all."""

import warnings
from collections import OrderedDict, UserDict
from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType, SimpleNamespace
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from fuzz.specs import VALUES, Endless, Hostile, HostileMapping
from fuzz.watch import Case, HostileError
from tensafe.training.losses import LOSS_REGISTRY, ResolvedLoss, resolve_loss
from tensafe.training.losses.samples import SampleSettings, make_sample, sample_kwargs

__all__ = ["CALLS", "SECRET", "Call"]

SECRET: Final = 31337.0
"""A value in tensors that no message may show."""


class Call(NamedTuple):
    """What a loss is called with."""

    loss: ResolvedLoss
    outputs: Any
    batch: Any
    overrides: dict[str, Any]


class Raising:
    """Attributes, one of which raises."""

    def __init__(self, fields: dict[str, Any], broken: str) -> None:
        self.__dict__.update({f"{key}": value for key, value in fields.items()})
        self.__dict__.pop(broken, None)
        self._broken = broken

    def __getattr__(self, name: str) -> Any:
        raise HostileError if name == self._broken else AttributeError(name)


class Property:
    """Properties that raise."""

    def __init__(self, fields: dict[str, Any] | None = None) -> None:
        self.__dict__.update({f"{key}": value for key, value in (fields or {}).items()})

    @property
    def logits(self) -> Any:
        raise HostileError

    @property
    def num_items_in_batch(self) -> Any:
        raise HostileError


class Subclass(Tensor):
    pass


@dataclass
class Fields:
    logits: Any = None
    predictions: Any = None
    labels: Any = None
    targets: Any = None


def half_and_half(outputs: Any, batch: Any, weight: float = 1.0, num_items_in_batch: Any = None, **kwargs: Any) -> Any:
    """A loss that takes whatever is there."""
    given = kwargs.get("returned")
    return {"loss": torch.zeros(()) * weight} if given is None else given


_NAMES: Final = sorted(LOSS_REGISTRY)
_COMBINED: Final = (
    {"type": "weighted_sum", "kwargs": {"losses": ["mse", {"type": "token_ce", "weight": 0.5}]}},
    {
        "type": "weighted_sum",
        "kwargs": {"losses": [{"type": "mse", "weight": {"schedule": "linear", "start": 0, "end": 1, "steps": 3}}]},
    },
    {"type": "matryoshka", "kwargs": {"loss": "multiple_negatives", "dims": [2, 1]}},
    {"type": "token_ce", "kwargs": {"reduction": "sequence_mean"}, "inputs": {"labels": "batch.targets"}},
    {"type": "mse", "kwargs": {"reduction": "none"}, "inputs": {"targets": "outputs.predictions"}},
)


class _Sample(NamedTuple):
    loss: ResolvedLoss
    outputs: dict[str, Tensor]
    batch: dict[str, Any]


_samples: dict[tuple[str, int], _Sample] = {}
_SIZES: Final = ({"batch": 2, "seq": 3, "vocab": 5, "hidden": 64}, {"batch": 0, "seq": 3, "vocab": 5, "hidden": 64})


def _sample(name: str, size: int) -> _Sample:
    """A valid call of a built-in; made once, copied for each case."""
    if (name, size) not in _samples:
        loss = resolve_loss(name, **sample_kwargs(LOSS_REGISTRY[name]))
        made = make_sample(loss, SampleSettings(_SIZES[size], "float32"))
        outputs = {key: tensor.detach() for key, tensor in made.outputs.items()}
        _samples[name, size] = _Sample(loss, outputs, dict(made.batch))
    sample = _samples[name, size]
    return _Sample(sample.loss, *({key: _copy(value) for key, value in side.items()} for side in sample[1:]))


def _quietly(make: Callable[..., Any], *given: Any) -> Any:
    """Make a tensor of a kind that torch warns about: sparse, nested or quantized."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make(*given)


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _nested(value: Tensor) -> Tensor:
    return torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])


def _jagged(value: Tensor) -> Tensor:
    return torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(1, 3)], layout=torch.jagged)


_DTYPES: Final = (
    *(torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32, torch.int16, torch.uint8, torch.bool),
    *(torch.complex64, torch.complex128, torch.uint16, torch.uint64, torch.float8_e4m3fn, torch.complex32),
)
_CHANGES: Final[tuple[Callable[[Any], Any], ...]] = (
    *((lambda value, dtype=dtype: value.to(dtype)) for dtype in _DTYPES),
    *((lambda value, fill=fill: torch.full_like(value, fill)) for fill in (0, 1, 2, 100)),
    *(
        (lambda value, fill=fill: torch.full(value.shape, fill))
        for fill in (float("nan"), float("inf"), -float("inf"), 1e38, SECRET)
    ),
    *((lambda value, fill=fill: torch.full(value.shape, fill)) for fill in (-100, -1, 31337, 2**62, -(2**63))),
    *(
        lambda value: value.unsqueeze(0),
        lambda value: value.unsqueeze(-1),
        lambda value: value[..., :0],
        lambda value: value[:0],
    ),
    *(lambda value: value[..., :1], lambda value: value[:1], lambda value: value.flatten(), lambda value: value.sum()),
    *(
        lambda value: value.transpose(0, -1),
        lambda value: value.expand(3, *value.shape),
        lambda value: torch.cat([value, value]),
    ),
    *(
        lambda value: value.to("meta"),
        lambda value: value.to_sparse(),
        lambda value: value.to_sparse_csr(),
        _nested,
        _jagged,
    ),
    *(lambda value: value.to_mkldnn(), lambda value: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8)),
    *(
        lambda value: value.as_subclass(Subclass),
        torch.nn.Parameter,
        lambda value: value.requires_grad_(),
        lambda value: value.conj(),
    ),
    *(
        lambda value: value.tolist(),
        lambda value: tuple(value.tolist()),
        lambda value: value.numpy(),
        list,
        lambda value: value.item(),
    ),
    *(
        lambda value: [value.tolist(), 1],
        lambda value: [[1], [1, 2]],
        lambda value: [[[]]],
        lambda value: [],
        lambda value: "x",
    ),
    *(
        lambda value: [True, 1.5, None],
        lambda value: [SECRET, "a"],
        lambda value: [2**70],
        lambda value: np.array(["a"]),
        lambda value: {},
    ),
    *(
        lambda value: None,
        lambda value: 3,
        lambda value: SECRET,
        lambda value: Hostile(),
        lambda value: object(),
        lambda value: len,
    ),
    *(
        lambda value: range(3),
        lambda value: {"a": value},
        lambda value: np.zeros((2, 3)),
        lambda value: np.float32(1),
        lambda value: 1j,
    ),
    *(
        lambda value: float("nan"),
        lambda value: b"x",
        lambda value: torch.nn.Linear(1, 1),
        lambda value: torch.Size([1]),
        lambda value: int,
    ),
    lambda value: [Hostile()],
)
_KEYS: Final = (
    1,
    None,
    ("logits",),
    "x" * 300,
    "\n",
    "\x1b[31m",
    "\ud800",
    "labelz",
    "loss",
    1.5,
    b"logits",
    10**50,
    Ellipsis,
)
_CONTAINERS: Final[tuple[Callable[[dict[Any, Any]], Any], ...]] = (
    *(dict, dict, dict, MappingProxyType, UserDict, OrderedDict, Property),
    lambda data: SimpleNamespace(**{f"{key}": value for key, value in data.items()}),
    lambda data: Fields(**{key: data.get(key) for key in ("logits", "predictions", "labels", "targets")}),
    lambda data: Raising(data, next(map(str, data), "mask")),
    lambda data: Raising(data, "num_items_in_batch"),
    lambda data: HostileMapping(data, "item"),
    lambda data: HostileMapping(data, "iter"),
)
_NO_CONTAINERS: Final[tuple[Callable[[], Any], ...]] = (
    *(
        lambda: None,
        lambda: 3,
        lambda: "logits",
        list,
        tuple,
        lambda: torch.zeros(2, 3),
        lambda: torch.zeros(()),
        object,
    ),
    *(
        Hostile,
        Endless,
        dict,
        lambda: {"logits": None},
        lambda: len,
        lambda: dict,
        lambda: np.zeros(2),
        lambda: {1: 2},
        lambda: b"x",
    ),
    *(
        lambda: iter([]),
        lambda: float("nan"),
        lambda: torch,
        lambda: Raising({}, "logits"),
        Property,
        lambda: [torch.zeros(2)],
        set,
    ),
)
_COUNTS: Final[tuple[Callable[[], Any], ...]] = (
    *(
        lambda: 1,
        lambda: 0,
        lambda: -1,
        lambda: 2.5,
        lambda: float("nan"),
        lambda: float("inf"),
        lambda: True,
        lambda: 10**400,
    ),
    *(
        lambda: "3",
        lambda: None,
        lambda: torch.tensor(3),
        lambda: torch.tensor([3]),
        lambda: torch.tensor(0.0),
        lambda: 2**63,
    ),
    *(
        lambda: torch.tensor(True),
        lambda: torch.tensor(1j),
        lambda: torch.tensor(2, device="meta"),
        lambda: np.int64(3),
        Hostile,
    ),
    *(
        lambda: torch.tensor(2.0, dtype=torch.float16),
        lambda: torch.tensor(2).to_sparse(),
        lambda: 5e-324,
        lambda: [3],
        object,
    ),
    lambda: torch.quantize_per_tensor(torch.tensor(1.0), 0.1, 0, torch.qint8),
)
_OPTIONS: Final = (
    "reduction",
    "metrics",
    "label_smoothing",
    "temperature",
    "max_length",
    "beta",
    "reductoin",
    "ignore_index",
    "inputs",
)
_counts = st.sampled_from(_COUNTS).map(lambda make: _quietly(make))


@st.composite
def _overrides(draw: st.DrawFn) -> dict[str, Any]:
    overrides: dict[str, Any] = {}
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
        if draw(st.booleans()):
            name = draw(st.sampled_from(["num_items_in_batch", "num_sequences_in_batch", "step"]))
            overrides[name] = draw(_counts)
        else:
            value = st.sampled_from(["mean", "sum", "none", "sequence_mean", 0.5, 1e-45, 1e-39, 3, False]) | VALUES
            overrides[draw(st.sampled_from(_OPTIONS) | st.text(max_size=4))] = draw(value)
    return overrides


@st.composite
def _calls(draw: st.DrawFn) -> Case:
    loss, outputs, batch = _sample(draw(st.sampled_from(_NAMES)), draw(st.sampled_from([0, 0, 0, 1])))
    if draw(st.integers(0, 9)) == 0:
        loss = resolve_loss(draw(st.sampled_from([*_COMBINED, half_and_half])))
    for _ in range(draw(st.integers(0, 3))):
        side = draw(st.sampled_from([outputs, batch]))
        _spoil(draw, side)
    made = [_held(draw, side) for side in (outputs, batch)]
    return Case([loss, *made, draw(_overrides())])


def _spoil(draw: st.DrawFn, side: dict[Any, Any]) -> None:
    if not side or draw(st.integers(0, 5)) == 0:
        side[draw(st.sampled_from([*_KEYS, "num_items_in_batch", "num_sequences_in_batch", "step", "mask"]))] = draw(
            _counts
        )
        return
    key = draw(st.sampled_from(list(side)))
    change = draw(st.sampled_from(_CHANGES))
    value = side[key]
    try:
        side[key] = _quietly(change, value if isinstance(value, Tensor) else torch.ones(2))
    except (RuntimeError, NotImplementedError, TypeError, ValueError, IndexError):  # a tensor that there cannot be
        del side[key]


def _held(draw: st.DrawFn, side: dict[Any, Any]) -> Any:
    if draw(st.integers(0, 11)) == 0:
        return draw(st.sampled_from(_NO_CONTAINERS))()
    return draw(st.sampled_from(_CONTAINERS[:3] + _CONTAINERS))(side) if draw(st.booleans()) else side


CALLS: Final[st.SearchStrategy[Case]] = _calls()
"""A loss, its outputs and batch, and the keywords of the call."""

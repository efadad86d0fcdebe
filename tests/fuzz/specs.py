"""Specs that Python code could hand over: names and paths of odd forms, odd mappings, and objects that turn on you."""

from collections import OrderedDict, UserDict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from decimal import Decimal
from fractions import Fraction
from types import MappingProxyType, SimpleNamespace
from typing import Any, Final

import numpy as np
import torch
from hypothesis import strategies as st

from fuzz.watch import Case, HostileError, ShownError
from tensafe.training.losses import ElementLoss, Loss, LossSpec, TokenLoss, resolve_loss
from tensafe.training.losses.builtin.mse import MSE

__all__ = ["BAIT", "KWARGS", "NAMES", "SPECS", "VALUES", "Hostile"]

BAIT: Final = "fuzz_bait"
"""A module that is there to be imported, and must not be."""


class _Mute:
    """Gives no text of itself to anyone."""

    def __repr__(self) -> str:
        raise ShownError

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        raise ShownError


def _raise(*_: Any, **__: Any) -> Any:
    raise HostileError


class Hostile(_Mute):
    """Raises when it is compared, hashed, asked for an attribute, its length, its items or its number."""

    __eq__ = __hash__ = __len__ = __iter__ = __getitem__ = __contains__ = __float__ = __int__ = _raise
    __index__ = __bool__ = __lt__ = __call__ = _raise

    def __getattr__(self, name: str) -> Any:
        raise HostileError


class HostileHash(_Mute):
    __hash__ = _raise


class HostileEq(_Mute):
    __eq__ = _raise

    def __hash__(self) -> int:
        return hash("type")  # so that every dict compares it


class HostileMapping(_Mute, Mapping[Any, Any]):
    """A mapping of which one operation raises."""

    def __init__(self, data: dict[Any, Any], broken: str) -> None:
        self._data = data
        self._broken = broken

    def _do(self, name: str) -> dict[Any, Any]:
        if self._broken == name:
            raise HostileError
        return self._data

    def __getitem__(self, key: Any) -> Any:
        return self._do("item")[key]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._do("iter"))

    def __len__(self) -> int:
        return len(self._do("len"))


class Endless(_Mute, Mapping[Any, Any]):
    """A mapping that has every key, with itself for a value."""

    def __getitem__(self, key: Any) -> Any:
        return self

    def __iter__(self) -> Iterator[Any]:
        return iter(["type", "kwargs", "losses"])

    def __len__(self) -> int:
        return 3


class Text(str):
    __slots__ = ()


class Number(float):
    __slots__ = ()


class Whole(int):
    pass


class Table(dict[Any, Any]):
    pass


class AlmostLoss(Loss):
    """Has neither compute nor __call__."""


class OddCompute(ElementLoss):
    def compute(self, *things: Any) -> Any:
        return things


def plain(outputs: Any, batch: Any, weight: float = 1.0, **kwargs: Any) -> Any:
    return {"loss": torch.tensor(weight)}


def _sum_of_itself() -> Any:
    spec: dict[str, Any] = {"type": "weighted_sum", "kwargs": {"losses": []}}
    spec["kwargs"]["losses"].append(spec)
    return spec


def _own_type() -> Any:
    spec: dict[Any, Any] = {}
    spec["type"] = spec["kwargs"] = spec
    return spec


def _own_item() -> Any:
    row: list[Any] = []
    row.append(row)
    return row


def _deep_sum() -> Any:
    deep: Any = "mse"
    for _ in range(100):
        deep = {"type": "weighted_sum", "kwargs": {"losses": [deep]}}
    return deep


def _deep_list() -> Any:
    deep: Any = 1
    for _ in range(3000):
        deep = [deep]
    return deep


def _bomb() -> Any:
    bomb: Any = 1
    for _ in range(40):
        bomb = [bomb, bomb]
    return bomb


_ENDLESS: Final = (
    *(_sum_of_itself, _own_type, _own_item, _deep_sum, _deep_list, _bomb),
    lambda: {"type": "mse", "kwargs": {"a": _own_item()}},
    lambda: {"type": f"{BAIT}:fn", "kwargs": {"a": _own_item(), "b": _deep_list(), "c": _bomb()}},
)

NAMES: Final = (
    *("token_ce", "mse", "weighted_sum", "matryoshka", "contrastive", "grpo", "linear_ce", "f_dpo", "topk_kl", "kto"),
    *("tokn_ce", "MSE", " mse", "mse ", "mse\n", "token-ce", "", " ", "\0", "\ud800", "a" * 300, "__init__", "_x"),
    *("os:system", "os.system", "builtins:eval", "subprocess:Popen", "torch.hub:load", "torch:load", "torch.load"),
    *("importlib:import_module", "tensafe.config:Path", "tensafe._lazy:import_module", "torch:compile", "numpy:load"),
    *("tensafe.training.losses.builtin.mse:MSE", "tensafe.training.losses.builtin.mse.MSE", "tensafe:__name__"),
    *("tensafe.training.losses:Loss", "tensafe.training.losses.loss:ElementLoss", "tensafe.nowhere:fn", "a.b:c.d"),
    *(
        f"{BAIT}:fn",
        f"{BAIT}.fn",
        f"{BAIT}.sub:fn",
        f"{BAIT}:",
        f":{BAIT}",
        f"{BAIT}:fn:fn",
        f"..{BAIT}:fn",
        f".{BAIT}",
    ),
    *(f"./{BAIT}.py:fn", f"{BAIT}.py", f"{BAIT}:fn\n", f"{BAIT}\0:fn", f"{BAIT}:\ufb01n", f" {BAIT}:fn", BAIT, "a..b"),
    *(
        ":",
        ".",
        "..",
        "a:",
        ":a",
        "a.b.",
        "a:b:c",
        "1a:b",
        "a:1b",
        "lambda:x",
        "None.x",
        "\u00e9t\u00e9:\u00e9",
        "x:\u202e",
    ),
    *("antigravity:geohash", "this:d", "__main__:x", "sys:exit", "builtins.exec", "pickle:loads", "a" * 300 + ":b"),
)


def _make(maker: Any) -> Any:
    return maker()


def _table(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    made: dict[Any, Any] = {}
    for key, value in pairs:
        with suppress(HostileError):
            made[key] = value
    return made


_texts = st.text(max_size=8) | st.text(st.characters(), max_size=4)
_keys = st.one_of(
    st.sampled_from(
        ["type", "kwargs", "inputs", "losses", "loss", "weight", "reduction", "metrics", "schedule", "dims"]
    ),
    st.sampled_from(["label_smoothing", "temperature", "ignore_index", "max_length", "predictions", "labels", "step"]),
    st.sampled_from(
        ["kwarg", "typ", "self", "outputs", "batch", "num_items_in_batch", "model_config", "__class__", "*"]
    ),
    st.sampled_from([1, 0, -1, None, True, 1.5, float("nan"), (), ("type",), b"type", frozenset(), 2**2000, type, ...]),
    st.sampled_from([HostileEq, object, lambda: Text("kwargs"), lambda: 10**5000, lambda: Text("type")]).map(_make),
    _texts,
)
_scalars = st.one_of(
    st.none() | st.booleans() | st.floats() | _texts | st.binary(max_size=4) | st.complex_numbers(),
    st.integers() | st.sampled_from([2**63, -(2**63) - 1, 2**64]),
    st.sampled_from([5e-324, 1e-45, 1e-39, 1e39, 1e308, -0.0]),
    st.sampled_from(NAMES),
    st.sampled_from(["mean", "sum", "none", "sequence_mean", "sequence_sum_norm", "kl", "linear", "cosine"]),
)
_makers = (
    *(Hostile, HostileHash, HostileEq, Endless, object, SimpleNamespace, AlmostLoss, MSE, lambda: resolve_loss("mse")),
    *(
        lambda: Text("mse"),
        lambda: Number(0.5),
        lambda: Whole(3),
        lambda: Table(type="mse"),
        lambda: LossSpec(type="mse"),
    ),
    *(
        lambda: Decimal("0.1"),
        lambda: Fraction(1, 3),
        lambda: np.float32(0.5),
        lambda: np.int64(3),
        lambda: np.zeros(2),
    ),
    *(
        lambda: torch.zeros(()),
        lambda: torch.zeros(2, 2),
        lambda: iter([1]),
        lambda: {1, 2},
        lambda: range(3),
        lambda: ...,
    ),
    *(
        lambda: plain,
        lambda: len,
        lambda: print,
        lambda: MSE,
        lambda: Loss,
        lambda: TokenLoss,
        lambda: OddCompute,
        lambda: int,
    ),
    *(
        lambda: OddCompute(),
        lambda: lambda: None,
        lambda: torch.nn.Linear(1, 1),
        lambda: torch.nn.MSELoss(),
        lambda: type,
    ),
    *(
        lambda: MSE().compute,
        lambda: torch.float32,
        lambda: NotImplemented,
        lambda: HostileError,
        lambda: eval,
        lambda: np,
        lambda: 10**5000,
    ),
)
_objects = st.sampled_from(_makers).map(_make)


def _containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    tables = st.lists(st.tuples(_keys, inner), max_size=4).map(_table)
    return st.one_of(
        tables,
        tables,
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=3).map(tuple),
        st.builds(
            lambda name, kwargs, more: _table([("type", name), ("kwargs", kwargs), *more.items()]),
            st.sampled_from(NAMES),
            inner | tables,
            st.just({}) | tables | inner.map(lambda renames: {"inputs": renames}),
        ),
        st.lists(inner, max_size=3).map(lambda losses: {"type": "weighted_sum", "kwargs": {"losses": losses}}),
        inner.map(lambda loss: {"type": "matryoshka", "kwargs": {"loss": loss, "dims": [2, 1]}}),
        st.builds(HostileMapping, tables, st.sampled_from(["item", "iter", "len"])),
        tables.map(MappingProxyType),
        tables.map(UserDict),
        tables.map(OrderedDict),
        tables.map(Table),
    )


_cycles = st.sampled_from(_ENDLESS).map(_make)
VALUES: Final[st.SearchStrategy[Any]] = st.recursive(_scalars | _objects, _containers, max_leaves=10) | _cycles
"""Anything that may stand for a value."""

SPECS: Final[st.SearchStrategy[Case]] = st.one_of(st.sampled_from(NAMES), _containers(VALUES), VALUES, _texts).map(Case)
"""Anything that may stand for a spec."""

KWARGS: Final[st.SearchStrategy[Case]] = (
    st.lists(st.tuples(_keys.filter(lambda key: isinstance(key, str)), VALUES), max_size=3).map(_table).map(Case)
)
"""Kwargs of a call of `resolve_loss`."""

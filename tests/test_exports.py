"""The public promise: `__all__`, and what importing and resolving cost and leave alone."""

import importlib
import inspect
import json
import logging
import pkgutil
import random
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import tensafe
from support import run_child
from tensafe.training import losses

PUBLIC = {
    *["resolve_loss", "register_loss", "ResolvedLoss", "LossSpec", "LOSS_REGISTRY", "get_registered_losses"],
    *["Loss", "ElementLoss", "TokenLoss", "NestedLoss", "Elements", "Alias", "Traits", "Values", "missing_tensor"],
    *["LossFn", "LossReturn", "LossOutput", "validate_loss_return", "wrap_simple_loss"],
    *["TensafeError", "LossConfigError", "LossInputError", "LossReturnError", "LossTypeError", "UnknownLossError"],
    *["UnsafeTargetError", "Problem"],
}
HEAVY = ["torch", "numpy", "jaxtyping", "beartype", "yaml", "typer", "rich"]
LEFT = f"import json, sys; print(json.dumps([name for name in {HEAVY} if name in sys.modules]))"


def test_what_the_package_promises() -> None:
    assert set(losses.__all__) == PUBLIC
    assert len(losses.__all__) == len(PUBLIC)
    assert losses.__all__ == sorted(losses.__all__, key=lambda name: (not name.isupper(), name))


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_what_is_promised_is_there_and_documented(name: str) -> None:
    thing = getattr(losses, name)
    if inspect.isclass(thing) or inspect.isfunction(thing):
        assert inspect.getdoc(thing)
        assert thing.__module__.startswith("tensafe.training.losses.")


def test_star_import_brings_the_promise_and_nothing_else() -> None:
    names: dict[str, object] = {}
    exec("from tensafe.training.losses import *", names)
    assert names.keys() - {"__builtins__"} == PUBLIC


@pytest.mark.parametrize(
    "module", [name for _, name, _ in pkgutil.iter_modules(losses.__path__, f"{losses.__name__}.") if "._" not in name]
)
def test_every_module_says_what_it_exports(module: str) -> None:
    loaded = importlib.import_module(module)
    assert loaded.__doc__
    assert all(hasattr(loaded, name) for name in getattr(loaded, "__all__", ()))


def test_the_package_is_typed_and_has_a_version() -> None:
    assert (Path(tensafe.__file__).parent / "py.typed").is_file()
    assert tensafe.__version__


# What an import costs, and leaves alone


def test_importing_tensafe_is_next_to_nothing() -> None:
    measure = """
import sys, time
before, started = set(sys.modules), time.perf_counter()
import tensafe
elapsed = time.perf_counter() - started
print(sorted(set(sys.modules) - before), elapsed < 0.04)
"""
    assert run_child(measure) == "['tensafe'] True"


def test_importing_the_losses_leaves_the_process_as_it_was() -> None:
    compare = """
import logging, os, random, signal, sys, threading, warnings

# pydantic's own doing is not ours
import pydantic, pydantic.errors, pydantic_core

def state():
    return {
        "filters": list(warnings.filters),
        "showwarning": warnings.showwarning,
        "handlers": list(logging.getLogger().handlers),
        "level": logging.getLogger().level,
        "library handlers": list(logging.getLogger("tensafe").handlers),
        "random": random.getstate(),
        "threads": threading.active_count(),
        "switch interval": sys.getswitchinterval(),
        "recursion limit": sys.getrecursionlimit(),
        "environment": dict(os.environ),
        "path": list(sys.path),
        "meta path": list(sys.meta_path),
        "hook": (sys.excepthook, sys.displayhook),
        "signals": [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)],
        "directory": os.getcwd(),
    }

before = state()
import tensafe.training.losses
import tensafe.training.losses.base, tensafe.training.losses.registry
tensafe.training.losses.resolve_loss("token_ce", label_smoothing=0.1)
after = state()
print([name for name in before if before[name] != after[name]])
"""
    assert run_child(compare) == "[]"


@pytest.mark.parametrize(
    "use",
    [
        pytest.param("import tensafe.training.losses", id="import"),
        pytest.param("from tensafe.training.losses import *", id="star import"),
        pytest.param("from tensafe.training.losses.registry import resolve_loss; resolve_loss('mse')", id="resolve"),
        pytest.param(
            "from tensafe.training.losses import LossSpec; LossSpec(type='token_ce', kwargs={'shift': False})",
            id="spec",
        ),
        pytest.param(
            "from tensafe.training.losses import resolve_loss, LossConfigError\n"
            "try: resolve_loss('token_ce', label_smoothing=2.0, shift=1)\n"
            "except LossConfigError: pass\n"
            "else: raise AssertionError",
            id="wrong kwargs",
        ),
        pytest.param(
            "from tensafe.training.losses import LossSpec\n"
            "terms = ['mse', {'type': 'contrastive', 'weight': 0.5}, 'nowhere.losses:fn']\n"
            "LossSpec(type='weighted_sum', kwargs={'losses': terms})",
            id="nested spec",
        ),
    ],
)
def test_validating_a_config_does_not_pay_for_torch(use: str) -> None:
    assert json.loads(run_child(f"{use}\n{LEFT}")) == []


USERS = """
from __future__ import annotations
from typing import TYPE_CHECKING
from pydantic import Field
from tensafe.training.losses import ElementLoss, Elements, register_loss
if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

class Mine(ElementLoss, name="mine"):
    scale: float = Field(default=1.0, gt=0)
    def compute(self, predictions: Float[Tensor, " batch"], targets: Float[Tensor, " batch"]) -> Elements:
        return Elements(self.scale * (predictions - targets))

@register_loss("mine_too")
def fn(outputs: dict[str, Tensor], batch: dict[str, Tensor], scale: float = 1.0) -> Tensor:
    return scale * outputs["predictions"].mean()
"""


def test_a_users_loss_need_not_pay_for_torch_either(tmp_path: Path) -> None:
    (tmp_path / "users.py").write_text(USERS, encoding="utf-8")
    use = "import users; from tensafe.training.losses import resolve_loss as r; r('mine', scale=2); r('mine_too')"
    assert json.loads(run_child(f"{use}\n{LEFT}", tmp_path)) == []


@pytest.mark.parametrize("name", ["mse", "token_ce"])
def test_one_loss_is_one_file(name: str) -> None:
    use = f"""
import sys
from tensafe.training.losses import LOSS_REGISTRY, resolve_loss
prefix = "tensafe.training.losses.builtin."
assert not [module for module in sys.modules if module.startswith(prefix)]
assert "{name}" in LOSS_REGISTRY
assert len(list(LOSS_REGISTRY)) >= 5
assert not [module for module in sys.modules if module.startswith(prefix)]
resolve_loss("{name}", metrics=False)
print([module.removeprefix(prefix) for module in sys.modules if module.startswith(prefix)])
"""
    assert run_child(use) == f"['{name}']"


def test_using_losses_leaves_global_state_alone() -> None:
    def state() -> list[object]:
        generators = [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]  # type: ignore[index]
        switches = [torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled(), warnings.filters[:]]
        return [*generators, *switches, logging.getLogger().handlers[:], logging.getLogger().level]

    tensors = {
        "logits": torch.zeros(2, 3, 4, requires_grad=True),
        "labels": torch.zeros(2, 3).long(),
        "predictions": torch.zeros(2),
        "targets": torch.ones(2),
        "embeddings_a": torch.eye(2),
        "embeddings_b": torch.eye(2),
        "chosen_scores": torch.zeros(2),
        "rejected_scores": torch.zeros(2),
    }
    before = state()
    for name in ("token_ce", "mse", "contrastive", "margin_ranking"):
        losses.resolve_loss(name)(tensors, {}, reduction="sum")
    losses.resolve_loss("weighted_sum", losses=["token_ce", "mse"])(tensors, {})
    with pytest.raises(losses.LossInputError):
        losses.resolve_loss("mse")({}, {})
    assert state() == before

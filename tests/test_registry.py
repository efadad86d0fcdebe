"""Names: who owns one, what redefining it does, plug-ins good and broken, threads."""

import importlib
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from support import run_child, write_modules, write_plugin
from tensafe.training.losses import (
    LOSS_REGISTRY,
    ElementLoss,
    Elements,
    Loss,
    LossConfigError,
    LossTypeError,
    TensafeError,
    UnknownLossError,
    get_registered_losses,
    register_loss,
    registry,
    resolve_loss,
)
from tensafe.training.losses.redefinition import is_same

pytestmark = pytest.mark.usefixtures("isolated_registry")

BUILTINS = ["contrastive", "linear_ce", "margin_ranking", "mse", "token_ce"]
PREDICTIONS = {"predictions": torch.tensor([1.0, 4.0])}
TARGETS = {"targets": torch.tensor([1.0, 2.0])}


def half(outputs: Any, batch: Any) -> float:
    return 0.5


def quarter(outputs: Any, batch: Any) -> float:
    return 0.25


class Plain:
    """A class that is no Loss."""

    def __init__(self, value: float = 1.0) -> None:
        self.value = value

    def __call__(self, outputs: Any, batch: Any) -> float:
        return self.value


class Slotted:
    """An instance of it has no __dict__ to compare."""

    __slots__ = ("value",)

    def __init__(self, value: float) -> None:
        self.value = value

    def __call__(self, outputs: Any, batch: Any) -> float:
        return self.value


class Unnamed(ElementLoss):
    """A Loss without a name of its own."""

    def compute(self, predictions: "torch.Tensor") -> Elements:
        return Elements(predictions)


# The registry as a mapping


@pytest.mark.parametrize(
    "register", [register_loss, lambda name, fn: register_loss(name)(fn)], ids=["function", "decorator"]
)
@pytest.mark.parametrize("loss", [half, Plain(), torch.nn.Identity(), Unnamed, lambda outputs, batch: 1.0])
def test_what_is_registered_comes_back_as_it_is(register: Callable[..., Any], loss: Any) -> None:
    assert register("mine", loss) is loss
    assert LOSS_REGISTRY["mine"] is loss
    assert LOSS_REGISTRY.get("mine") is loss
    assert get_registered_losses()["mine"] is loss
    assert "mine" in list(LOSS_REGISTRY)


def test_a_registered_loss_resolves_by_its_name() -> None:
    register_loss("mine", half)
    assert resolve_loss("mine").name == "mine"
    assert resolve_loss("mine")({}, {})["loss"] == 0.5


def test_the_registry_is_live_and_read_only() -> None:
    before = list(LOSS_REGISTRY)
    assert set(BUILTINS) <= set(before)
    assert before == sorted(before)
    register_loss("a_new_one", half)
    assert set(LOSS_REGISTRY) - set(before) == {"a_new_one"}
    assert len(LOSS_REGISTRY) == len(before) + 1
    assert "a_new_one" in repr(LOSS_REGISTRY)
    with pytest.raises(TypeError, match="item assignment"):
        LOSS_REGISTRY["another"] = half  # type: ignore[index]


def test_a_copy_of_the_registry_changes_nothing() -> None:
    get_registered_losses().clear()
    assert set(BUILTINS) <= set(get_registered_losses())


@pytest.mark.parametrize("missing", ["nothing_like_it", "os:system", "", 3, None])
def test_a_name_that_is_not_there(missing: Any) -> None:
    assert missing not in LOSS_REGISTRY
    assert LOSS_REGISTRY.get(missing) is None
    assert LOSS_REGISTRY.get(missing, half) is half


# What cannot be registered


@pytest.mark.parametrize(
    ("thing", "parts"),
    [
        pytest.param(Plain, ["Plain is a class", "register_loss('mine', Plain())"], id="plain class"),
        pytest.param(ElementLoss, ["has no compute()"], id="abstract Loss"),
        pytest.param(3, ["int is not callable", "(outputs, batch, **kwargs)"], id="number"),
        pytest.param({"type": "mse"}, ["dict is not callable"], id="spec"),
    ],
)
def test_what_is_no_loss_is_refused_with_advice(thing: Any, parts: list[str]) -> None:
    with pytest.raises(LossTypeError) as caught:
        register_loss("mine", thing)
    assert all(part in str(caught.value) for part in ["mine", *parts])
    assert caught.value.code == "not-a-loss"
    assert "mine" not in LOSS_REGISTRY


def test_a_named_loss_class_has_one_name() -> None:
    class Named(ElementLoss, name="named"):
        """Registered by its class line."""

        def compute(self, predictions: "torch.Tensor") -> Elements:
            return Elements(predictions)

    assert LOSS_REGISTRY["named"] is Named
    with pytest.raises(LossTypeError, match=r"Named is registered as 'named' by its class line already"):
        register_loss("mine", Named)
    assert "mine" not in LOSS_REGISTRY


@pytest.mark.parametrize("name", ["my-loss", "my loss", "", "1st", "pkg.losses:fn", "a\nb", "x" * 9 + "-" * 10_000])
def test_a_name_is_an_identifier(name: str) -> None:
    with pytest.raises(LossConfigError, match="cannot name a loss") as caught:
        register_loss(name, half)
    assert caught.value.code == "invalid-name"
    assert len(str(caught.value)) < 300
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("register", [register_loss, lambda fn: register_loss(fn, half)], ids=["bare", "two callables"])
def test_a_decorator_without_its_name_is_noticed_at_once(register: Callable[[Any], Any]) -> None:
    with pytest.raises(LossTypeError, match=r"Write @register_loss\('name'\)") as caught:
        register(half)
    assert caught.value.code == "invalid-name"


# Second owners of a name

FUNCTION = (
    "@register_loss('thing')\ndef thing(outputs, batch, power=2, *, weight=1.0):\n    return weight * 2.0 ** power\n"
)
INSTANCE = """
class Thing:
    def __init__(self, gamma):
        self.gamma = gamma
    def __call__(self, outputs, batch):
        return self.gamma
register_loss('thing', Thing(2.0))
"""
LOSS = """
class Thing(ElementLoss, name='thing'):
    beta: float = Field(default=0.1, gt=0)
    @field_validator('beta')
    @classmethod
    def _small(cls, beta):
        if beta > 5:
            raise ValueError('too large')
        return beta
    def compute(self, predictions):
        return Elements(self.beta * predictions)
"""
WRAPPED = """
def doubled(fn):
    @functools.wraps(fn)
    def inner(outputs, batch):
        return 2 * fn(outputs, batch)
    return inner
@register_loss('thing')
@doubled
def thing(outputs, batch):
    return 1.0
"""
HELPERS = "def one(outputs, batch, by=1.0): return by\ndef two(outputs, batch, by=1.0): return 2 * by\n"
PARTIAL = HELPERS + "register_loss('thing', functools.partial(one, by=3.0))"
BOUND = INSTANCE.replace("Thing(2.0)", "Thing(2.0).__call__")
MODULE = """
class Thing(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.rand(3))
    def forward(self, outputs, batch):
        return self.weight.sum()
register_loss('thing', Thing())
"""


def define(source: str, module: str) -> Any:
    """Run the source of a module, as an import, a reload or a notebook cell does."""
    names = {
        **{name: globals()[name] for name in ("ElementLoss", "Elements", "register_loss", "torch")},
        **{name: getattr(importlib.import_module("pydantic"), name) for name in ("Field", "field_validator")},
        "functools": importlib.import_module("functools"),
        "__name__": module,
    }
    exec(compile(source, f"<{module}>", "exec"), names)
    return LOSS_REGISTRY["thing"]


@pytest.mark.parametrize(
    ("first", "module"),
    [
        pytest.param(FUNCTION, "plugin", id="function"),
        pytest.param(INSTANCE, "plugin", id="instance"),
        pytest.param(LOSS, "plugin", id="Loss"),
        pytest.param(WRAPPED, "plugin", id="decorated function"),
        pytest.param(PARTIAL, "plugin", id="partial"),
        pytest.param(BOUND, "plugin", id="bound method"),
        pytest.param(MODULE, "plugin", id="module with weights"),
        pytest.param(FUNCTION, "__main__", id="function of a notebook"),
        pytest.param(INSTANCE, "__main__", id="instance of a notebook"),
        pytest.param(LOSS, "__main__", id="Loss of a notebook"),
    ],
)
def test_the_same_source_again_replaces_silently(first: str, module: str, caplog: pytest.LogCaptureFixture) -> None:
    old = define(first, module)
    new = define("\n\n# moved down by an edit above it\n" + first, module)
    assert new is not old
    assert caplog.records == []


@pytest.mark.parametrize(
    ("first", "was", "becomes"),
    [
        pytest.param(FUNCTION, "2.0 **", "3.0 **", id="body"),
        pytest.param(FUNCTION, "power=2", "power=3", id="default"),
        pytest.param(FUNCTION, "weight=1.0", "weight=0.5", id="keyword default"),
        pytest.param(FUNCTION, "outputs, batch", "outputs, batch, extra=None", id="signature"),
        pytest.param(WRAPPED, "return 1.0", "return 3.0", id="body under a decorator"),
        pytest.param(INSTANCE, "return self.gamma", "return -self.gamma", id="class of an instance"),
        pytest.param(PARTIAL, "by=3.0)", "by=4.0)", id="argument of a partial"),
        pytest.param(PARTIAL, "partial(one", "partial(two", id="function of a partial"),
        pytest.param(LOSS, "default=0.1", "default=0.2", id="default of a field"),
        pytest.param(LOSS, "gt=0", "ge=0", id="range of a field"),
        pytest.param(LOSS, "beta > 5", "beta > 6", id="validator of a field"),
        pytest.param(LOSS, "self.beta *", "self.beta +", id="compute"),
    ],
)
def test_a_changed_source_is_a_second_owner(first: str, was: str, becomes: str) -> None:
    old = define(first, "plugin")
    assert was in first
    with pytest.raises(LossConfigError, match="already registered") as caught:
        define(first.replace(was, becomes), "plugin")
    assert caught.value.code == "name-taken"
    assert LOSS_REGISTRY["thing"] is old


@pytest.mark.parametrize(
    ("first", "was", "becomes"),
    [
        pytest.param(FUNCTION, "2.0 **", "3.0 **", id="function"),
        pytest.param(INSTANCE, "return self.gamma", "return -self.gamma", id="instance"),
        pytest.param(INSTANCE, "Thing(2.0)", "Thing(3.0)", id="state of an instance"),
        pytest.param(LOSS, "self.beta *", "self.beta +", id="Loss"),
    ],
)
def test_a_notebook_may_change_what_it_owns(first: str, was: str, becomes: str) -> None:
    old = define(first, "__main__")
    assert define(first.replace(was, becomes), "__main__") is not old


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param(half, quarter, id="two functions"),
        pytest.param(lambda outputs, batch: 1.0, lambda outputs, batch: 1.0, id="lambdas"),
        pytest.param(Plain(1.0), Plain(2.0), id="instances that differ"),
        pytest.param(Plain().__call__, Plain(2.0).__call__, id="methods of instances that differ"),
        pytest.param(Slotted(1.0), Slotted(2.0), id="instances with slots"),
        pytest.param(torch.nn.Linear(2, 1), torch.nn.Linear(2, 1), id="modules with weights"),
        pytest.param(half, Plain(), id="a function and an instance"),
        pytest.param(half, Unnamed, id="a function and a Loss"),
        pytest.param(Unnamed(), Unnamed(reduction="sum"), id="Loss values that differ"),
    ],
)
def test_a_second_owner_is_refused_and_both_are_named(old: Any, new: Any) -> None:
    register_loss("thing", old)
    register_loss("thing", old)
    with pytest.raises(LossConfigError, match="already registered") as caught:
        register_loss("thing", new)
    for loss in (old, new):
        owner = loss if hasattr(loss, "__qualname__") else type(loss)
        assert f"{owner.__module__}.{owner.__qualname__}" in str(caught.value)
    assert "overwrite=True" in (caught.value.hint or "")
    assert LOSS_REGISTRY["thing"] is old
    register_loss("thing", new, overwrite=True)
    assert LOSS_REGISTRY["thing"] is new


def test_a_local_function_is_never_the_same_as_one_before() -> None:
    def make() -> Callable[..., float]:
        def inner(outputs: Any, batch: Any) -> float:
            return 1.0

        return inner

    register_loss("thing", make())
    with pytest.raises(LossConfigError, match="already registered"):
        register_loss("thing", make())


def test_an_instance_that_says_the_same_is_the_same() -> None:
    register_loss("thing", Plain(1.0))
    again = register_loss("thing", Plain(1.0))
    assert LOSS_REGISTRY["thing"] is again


def test_reloading_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    head = "import functools\nfrom pydantic import Field, field_validator\nfrom tensafe.training.losses import *\n"
    write_modules(tmp_path, monkeypatch, {"reloaded": head + LOSS})
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    module = importlib.import_module("reloaded")
    first = module.Thing
    importlib.reload(module)
    assert LOSS_REGISTRY["thing"] is module.Thing is not first
    (tmp_path / "reloaded.py").write_text(head + LOSS.replace("default=0.1", "default=0.25"), encoding="utf-8")
    with pytest.raises(LossConfigError, match=r"already registered by reloaded\.Thing"):
        importlib.reload(module)


# Built-ins


def test_a_built_in_keeps_its_name() -> None:
    with pytest.raises(LossConfigError, match="already registered") as caught:
        register_loss("mse", half)
    assert "tensafe.training.losses.builtin.mse.MSE" in str(caught.value)
    with pytest.raises(LossConfigError, match="already registered"):

        class Impostor(ElementLoss, name="token_ce"):
            """A second owner by class line."""

            def compute(self, logits: "torch.Tensor") -> Elements:
                return Elements(logits)

    assert LOSS_REGISTRY["token_ce"].__name__ == "TokenCE"


@pytest.mark.parametrize("seen_before", [True, False])
def test_overwriting_a_built_in_is_logged_and_lasts(seen_before: bool, caplog: pytest.LogCaptureFixture) -> None:
    if seen_before:
        resolve_loss("mse")
    with caplog.at_level(logging.WARNING, logger="tensafe"):
        register_loss("mse", half, overwrite=True)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "mse" in caplog.text
    assert "half" in caplog.text
    for name in BUILTINS:
        resolve_loss(name)
    assert get_registered_losses()["mse"] is half
    assert resolve_loss("mse")({}, {})["loss"] == 0.5


# Unknown names


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        *[(name, "token_ce") for name in ("Token_CE", "token-ce", " token_ce", "token_ce\n", "token ce", "tokence")],
        *[("MSE", "mse"), ("contrastiv", "contrastive")],
    ],
)
def test_a_near_miss_is_suggested_never_taken(name: str, meant: str) -> None:
    with pytest.raises(UnknownLossError, match=f"did you mean {meant}") as caught:
        resolve_loss(name)
    assert caught.value.hint == caught.value.problems[0].suggestion == meant
    assert caught.value.code == "unknown-loss"


@pytest.mark.parametrize("name", ["", "?", "zzz", "x" * 10_000, "a\nb" * 1000])
def test_an_unknown_name_lists_what_there_is(name: str) -> None:
    with pytest.raises(UnknownLossError, match="Cannot resolve loss") as caught:
        resolve_loss(name)
    text = str(caught.value)
    listed, rest = text.partition("Available built-in losses: ")[2].split(" more ")[0].split(" and ")
    assert set(listed.split(", ")) < set(registry.builtin_names())
    assert len(listed.split(", ")) + int(rest) == len(registry.builtin_names())
    assert "tensafe list" in text
    assert len(text) < 600
    assert "\n" not in text
    assert isinstance(caught.value, LookupError)


# Threads


def together(acts: Sequence[Callable[[], Any]]) -> list[Any]:
    """Run each in a thread, all at once; a TensafeError is a result."""
    barrier = threading.Barrier(len(acts))

    def start(act: Callable[[], Any]) -> Any:
        barrier.wait()
        try:
            return act()
        except TensafeError as error:
            return error

    with ThreadPoolExecutor(len(acts)) as pool:
        return list(pool.map(start, acts, timeout=60))


@pytest.fixture
def quick_switches() -> Any:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_of_many_threads_one_wins_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def slowly(old: Any, new: Any) -> bool:
        time.sleep(0.002)  # between looking and writing, every other thread gets its turn
        return is_same(old, new)

    monkeypatch.setattr(registry, "is_same", slowly)
    for name in ("first", "second", "third"):
        losses = [Plain(float(index)) for index in range(8)]
        results = together([partial(register_loss, name, loss) for loss in losses])
        winners = [result for result in results if isinstance(result, Plain)]
        assert winners == [LOSS_REGISTRY[name]]
        assert all("already registered" in str(result) for result in results if result not in winners)


@pytest.mark.usefixtures("quick_switches")
def test_registering_while_others_list_loses_nothing() -> None:
    def act(index: int) -> int:
        for step in range(15):
            register_loss(f"threaded_{index}_{step}", half)
            assert f"threaded_{index}_{step}" in LOSS_REGISTRY
        return len(get_registered_losses())

    assert all(isinstance(result, int) for result in together([partial(act, index) for index in range(8)]))
    assert sum(name.startswith("threaded_") for name in LOSS_REGISTRY) == 120


# Plug-ins

GOOD = """
from tensafe.training.losses import ElementLoss, Elements, register_loss

def plugged(outputs, batch, weight=1.0):
    return weight

class Instance:
    def __call__(self, outputs, batch, weight=1.0):
        return weight

instance = Instance()

class Plugged(ElementLoss):
    weight: float = 1.0
    def compute(self, predictions: "Float[Tensor, ' batch']") -> Elements:
        return Elements(0 * predictions + self.weight)

class Named(ElementLoss, name="plug_named"):
    weight: float = 1.0
    def compute(self, predictions: "Float[Tensor, ' batch']") -> Elements:
        return Elements(0 * predictions + self.weight)

@register_loss("plug_registered")
def registered(outputs, batch, weight=1.0):
    return weight
"""


@pytest.mark.parametrize(
    ("name", "attribute"),
    [
        *[("plug_fn", "plugged"), ("plug_instance", "instance"), ("plug_class", "Plugged")],
        *[("plug_named", "Named"), ("plug_registered", "registered")],
    ],
)
def test_a_plug_in_is_found_by_name_and_imported_when_asked_for(
    name: str, attribute: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_modules(tmp_path, monkeypatch, {"goodplug.losses": GOOD})
    write_plugin(tmp_path, monkeypatch, {name: f"goodplug.losses:{attribute}"})
    assert name in LOSS_REGISTRY
    assert name in list(LOSS_REGISTRY)
    resolve_loss("mse")
    assert "goodplug" not in sys.modules
    loss_fn = resolve_loss(name, weight=3.0)
    assert loss_fn.name == name or attribute == "Plugged"
    assert loss_fn(PREDICTIONS, {})["loss"] == 3.0
    assert LOSS_REGISTRY[name] is getattr(sys.modules["goodplug.losses"], attribute)
    with pytest.raises(LossConfigError, match="did you mean weight"):
        resolve_loss(name, wieght=3.0)


REENTRANT = """
import threading
from tensafe.training.losses import LOSS_REGISTRY, get_registered_losses, register_loss, resolve_loss

def plugged(outputs, batch):
    return 1.0

def from_another_thread():
    register_loss("plug_threaded", plugged)
    resolve_loss("mse")
    list(LOSS_REGISTRY)

register_loss("plug_loss", plugged)
worker = threading.Thread(target=from_another_thread, daemon=True)
worker.start()
worker.join(20)
assert not worker.is_alive(), "the registry is locked while a plug-in is imported"
assert "token_ce" in get_registered_losses()
"""


def test_a_plug_in_may_use_the_registry_while_it_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_modules(tmp_path, monkeypatch, {"reentrant": REENTRANT})
    write_plugin(tmp_path, monkeypatch, {"plug_loss": "reentrant:plugged"})
    use = "from tensafe.training.losses import LOSS_REGISTRY, resolve_loss; print(resolve_loss('plug_loss'))"
    assert run_child(f"{use}; print('plug_threaded' in LOSS_REGISTRY)", tmp_path) == "plug_loss()\nTrue"


def test_a_plug_in_and_tensafe_may_be_imported_in_either_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_modules(tmp_path, monkeypatch, {"goodplug.losses": GOOD})
    write_plugin(tmp_path, monkeypatch, {"plug_registered": "goodplug.losses:registered"})
    use = "import tensafe.training.losses as losses; print(losses.resolve_loss('plug_registered', weight=2.0))"
    expected = "plug_registered(weight=2.0)"
    assert run_child(f"import goodplug.losses; {use}", tmp_path) == expected
    assert run_child(use, tmp_path) == expected


def test_a_plug_in_cannot_take_a_built_in_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_modules(tmp_path, monkeypatch, {"goodplug.losses": GOOD})
    write_plugin(tmp_path, monkeypatch, {"mse": "goodplug.losses:plugged"})
    assert resolve_loss("mse")(PREDICTIONS, TARGETS)["loss"] == 2.0
    assert "goodplug" not in sys.modules


def test_two_plug_ins_of_one_name_are_a_conflict_that_names_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_modules(tmp_path, monkeypatch, {"goodplug.losses": GOOD})
    write_plugin(tmp_path / "one", monkeypatch, {"plug_loss": "goodplug.losses:plugged"}, package="one")
    write_plugin(tmp_path / "two", monkeypatch, {"plug_loss": "goodplug.losses:instance"}, package="two")
    with pytest.raises(LossConfigError) as caught:
        resolve_loss("plug_loss")
    assert "goodplug.losses:plugged" in str(caught.value)
    assert "goodplug.losses:instance" in str(caught.value)


BROKEN = {
    "raises": ("raise RuntimeError('no licence\\n' * 1000)", "broken:fn", ["RuntimeError", "no licence"]),
    "exits": ("import sys; sys.exit(3)", "broken:fn", ["SystemExit", "3"]),
    "misses a dependency": (
        "import not_installed_anywhere",
        "broken:fn",
        ["ModuleNotFoundError", "not_installed_anywhere"],
    ),
    "has no such attribute": ("", "broken:fn", ["AttributeError", "fn"]),
    "is not there": ("", "absent_module:fn", ["ModuleNotFoundError", "absent_module"]),
    "is malformed": ("", "not a path!", []),
    "is a plain class": ("class fn: pass", "broken:fn", ["fn is a class"]),
    "is a number": ("fn = 3", "broken:fn", ["int is not callable"]),
    "is named otherwise": (GOOD, "broken:Named", ["plug_named"]),
}


@pytest.fixture(params=list(BROKEN.values()), ids=list(BROKEN))
def broken(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Install a plug-in that does not work; the parts that its error must have."""
    source, value, parts = request.param
    write_modules(tmp_path, monkeypatch, {"broken": source, "goodplug.losses": GOOD})
    write_plugin(tmp_path, monkeypatch, {"plug_broken": value, "plug_fn": "goodplug.losses:plugged"})
    return ["plug_broken", *parts]


def test_a_broken_plug_in_is_one_error_with_its_cause(broken: list[str]) -> None:
    with pytest.raises(LossConfigError) as caught:
        resolve_loss("plug_broken")
    text = str(caught.value)
    assert all(part in text for part in broken)
    assert len(text) < 1000
    assert "\n" not in text
    assert caught.value.__cause__ is not None


@pytest.mark.usefixtures("broken")
def test_a_broken_plug_in_breaks_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    assert resolve_loss("mse")(PREDICTIONS, TARGETS)["loss"] == 2.0
    assert resolve_loss("plug_fn", weight=2.0)({}, {})["loss"] == 2.0
    assert {"plug_broken", "plug_fn", *BUILTINS} <= set(LOSS_REGISTRY)
    losses = get_registered_losses()
    assert {"plug_fn", *BUILTINS} <= set(losses)
    assert "plug_broken" not in losses
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    with pytest.raises(UnknownLossError, match="did you mean plug_fn"):
        resolve_loss("plug_fm")
    with pytest.raises(LossConfigError, match="nonsense: unknown argument of mse"):
        resolve_loss("mse", nonsense=1)  # type: ignore[arg-type]


def test_ctrl_c_while_a_plug_in_is_imported_stops_the_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_modules(tmp_path, monkeypatch, {"interrupted": "raise KeyboardInterrupt"})
    write_plugin(tmp_path, monkeypatch, {"plug_loss": "interrupted:fn"})
    with pytest.raises(KeyboardInterrupt):
        resolve_loss("plug_loss")


def test_packages_are_searched_once_until_there_is_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_modules(tmp_path, monkeypatch, {"searched": "def loss(outputs, batch): ..."})
    with pytest.raises(UnknownLossError):
        resolve_loss("searched_loss")
    with monkeypatch.context() as patched:
        patched.setattr("importlib.metadata.entry_points", None)
        for name in ("searched_loss", "another_loss"):
            with pytest.raises(UnknownLossError):
                resolve_loss(name)
    write_plugin(tmp_path, monkeypatch, {"searched_loss": "searched:loss"}, package="searched")
    assert resolve_loss("searched_loss").name == "searched_loss"


def test_a_plug_in_that_works_again_is_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = "import os\nif 'PLUG_BROKEN' in os.environ:\n    raise OSError('no disk')\n" + GOOD
    write_modules(tmp_path, monkeypatch, {"goodplug.losses": source})
    write_plugin(tmp_path, monkeypatch, {"plug_fn": "goodplug.losses:plugged"})
    monkeypatch.setitem(os.environ, "PLUG_BROKEN", "1")
    with pytest.raises(LossConfigError, match="no disk"):
        resolve_loss("plug_fn")
    monkeypatch.delenv("PLUG_BROKEN")
    assert resolve_loss("plug_fn")({}, {})["loss"] == 1.0


def test_a_class_is_forgotten_when_its_definition_fails() -> None:
    with pytest.raises(LossConfigError, match="neither compute"):

        class Incomplete(Loss, name="incomplete"):
            """It computes nothing."""

    assert "incomplete" not in LOSS_REGISTRY

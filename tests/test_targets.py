"""Dotted paths: what they reach, and everything that a hostile config might have them reach."""

import importlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support import write_modules
from tensafe.training.losses import (
    LossConfigError,
    LossInputError,
    LossSpec,
    UnknownLossError,
    UnsafeTargetError,
    register_loss,
    resolve_loss,
)
from tensafe.training.losses.resolve import check_spec, resolving_under
from tensafe.training.losses.targets import Policy

pytestmark = pytest.mark.usefixtures("isolated_registry")

LOSSES = """
import collections, functools, math, operator, os, pickle, subprocess, types
import torch
from tensafe.training.losses import ElementLoss, Elements, resolve_loss

def fn(outputs, batch, weight=1.0):
    return weight

class Focal:
    def __init__(self, gamma=2.0):
        open_marker()
        self.gamma = gamma
    def __call__(self, outputs, batch, weight=1.0):
        return weight
    def method(self, outputs, batch, weight=1.0):
        return weight

def open_marker():
    raise AssertionError("a plain class was constructed")

instance = Focal.__new__(Focal)
method = instance.method
half = functools.partial(fn, weight=0.5)

def doubling(function):
    @functools.wraps(function)
    def inner(*args, **kwargs):
        return 2 * function(*args, **kwargs)
    return inner

doubled = doubling(fn)
resolved = resolve_loss(fn, weight=0.25)

class Mean(ElementLoss):
    weight: float = 1.0
    def compute(self, x: "Float[Tensor, ' n']") -> Elements:
        return Elements(0 * x + self.weight)

mean = Mean(weight=0.125)

system = os.system
run_later = functools.partial(os.system, "touch pwned")
run_nested = functools.partial(functools.partial(os.system), "touch pwned")
run_wrapped = doubling(os.system)
run_cached = functools.lru_cache(os.system)
run_disguised = functools.update_wrapper(lambda *args: os.system("touch pwned"), os.system, assigned=())
run_bound = types.MethodType(os.system, "touch pwned")
Popen = subprocess.Popen
loads = pickle.loads
caller = operator.methodcaller("system", "touch pwned")
getter = operator.attrgetter("system")
joiner = ",".join
counter = collections.Counter()
evaluate = eval
exponent = math.exp
load = torch.load
hub = torch.hub.load
number = 3
text = "fn"
nothing = None
class NoCall:
    pass
plain = NoCall()
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of a user's own, `pkg.losses`, some neighbours of it, and a module that shows when it is run."""
    evil = "import os\nos.environ['TENSAFE_TEST_PWNED'] = '1'\ndef fn(outputs, batch):\n    return 1.0\n"
    monkeypatch.delenv("TENSAFE_TEST_PWNED", raising=False)
    monkeypatch.setenv("TENSAFE_TEST_PWNED", "")
    modules = {
        "pkg.losses": LOSSES,
        "pkg.losses_evil": evil,
        "pkg.other": "def fn(outputs, batch):\n    return 2.0\nvalue = fn\n",
        "pkg.reexport": "from pkg.other import fn\nfrom os import system\nimport pkg.other as other\n",
        "pkg.deep.inner": "def fn(outputs, batch):\n    return 3.0\n",
        "pkg.deep.reexport": "from pkg.other import fn\n",
        "pkgtwo": evil,
        "evil": evil,
        "pkg.raises": "raise RuntimeError('secret\\n' * 1000)",
        "pkg.exits": "raise SystemExit(2)",
        "pkg.needs": "import not_installed_anywhere",
        "pkg.syntax": "def broken(:",
    }
    write_modules(tmp_path, monkeypatch, modules)
    return tmp_path


@pytest.fixture
def imported(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record what is imported by name; nothing but tensafe's own files may be when no path was approved."""
    names: list[str] = []
    real = importlib.import_module

    def record(name: str, package: str | None = None) -> Any:
        if not name.startswith("tensafe.") and name not in {"torch", "torch.nn.functional"}:
            names.append(name)
        return real(name, package)

    for module in ("tensafe.training.losses.targets", "tensafe.training.losses.registry", "importlib"):
        monkeypatch.setattr(f"{module}.import_module", record)
    return names


def refused(path: str, **kwargs: Any) -> UnsafeTargetError:
    with pytest.raises(UnsafeTargetError) as caught:
        resolve_loss(path, **kwargs)
    assert_readable(caught.value)
    return caught.value


def assert_readable(error: LossConfigError, limit: int = 700) -> None:
    """One line, not long, whatever the config said."""
    text = str(error)
    assert text.isprintable(), repr(text)
    assert len(text) < limit
    assert all(len(problem.message) < limit for problem in error.problems)


# What a path of one's own may lead to


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize("separator", [":", "."])
@pytest.mark.parametrize(
    ("name", "value"),
    [("fn", 1.0), ("instance", 1.0), ("method", 1.0), ("half", 0.5), ("doubled", 2.0), ("resolved", 0.25)],
)
def test_a_callable_of_ones_own(separator: str, name: str, value: float) -> None:
    assert resolve_loss(f"pkg.losses{separator}{name}")({}, {})["loss"] == value
    assert resolve_loss(f"pkg.losses{separator}{name}").kwargs == resolve_loss(f"pkg.losses:{name}").kwargs
    assert resolve_loss(f"pkg.losses{separator}{name}", weight=0.75).kwargs["weight"] == 0.75
    with pytest.raises(LossConfigError, match="did you mean weight"):
        resolve_loss(f"pkg.losses{separator}{name}", wieght=0.75)


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize(("name", "value"), [("Mean", 1.0), ("mean", 0.125)])
def test_a_loss_by_path(name: str, value: float) -> None:
    assert resolve_loss(f"pkg.losses:{name}")({"x": [1.0, 2.0]}, {})["loss"] == value
    assert resolve_loss(f"pkg.losses:{name}", weight=3.0)({"x": [1.0, 2.0]}, {})["loss"] == 3.0


@pytest.mark.usefixtures("package")
def test_a_path_in_a_spec_takes_its_kwargs() -> None:
    loss_fn = resolve_loss({"type": "pkg.losses:fn", "kwargs": {"weight": 0.5}})
    assert loss_fn({}, {})["loss"] == 0.5
    assert resolve_loss(LossSpec(type="pkg.losses:fn", kwargs={"weight": 0.5})) == loss_fn


# What lies nowhere


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize(
    ("path", "code", "parts"),
    [
        pytest.param("nowhere.losses:fn", "unknown-module", ["there is no 'nowhere'"], id="no package"),
        pytest.param("pkg.nowhere:fn", "unknown-module", ["there is no 'pkg.nowhere'"], id="no module"),
        pytest.param("pkg.lossses:fn", "unknown-module", ["did you mean pkg.losses?"], id="near module"),
        pytest.param("pkg.losses:instnce", "unknown-attribute", ["did you mean instance?"], id="near attribute"),
        pytest.param("pkg.losses:zzzzz", "unknown-attribute", ["no attribute 'zzzzz'"], id="no attribute"),
        pytest.param("pkg.raises:fn", "broken-module", ["RuntimeError", "secret"], id="module raises"),
        pytest.param("pkg.exits:fn", "broken-module", ["SystemExit", "2"], id="module exits"),
        pytest.param(
            "pkg.needs:fn", "broken-module", ["ModuleNotFoundError", "not_installed_anywhere"], id="dependency"
        ),
        pytest.param("pkg.syntax:fn", "broken-module", ["SyntaxError"], id="syntax error"),
    ],
)
def test_a_path_that_leads_nowhere_says_why(path: str, code: str, parts: list[str]) -> None:
    with pytest.raises(UnknownLossError, match="Cannot resolve loss") as caught:
        resolve_loss(path)
    assert caught.value.code == code
    assert all(part in str(caught.value) for part in [path, *parts])
    assert_readable(caught.value)
    assert (caught.value.__cause__ is not None) == (code == "broken-module")
    assert resolve_loss("pkg.losses:fn")({}, {})["loss"] == 1.0


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize("name", ["number", "text", "nothing", "plain", "Focal", "NoCall"])
def test_what_is_no_loss_is_refused_at_resolve(name: str) -> None:
    with pytest.raises(LossConfigError) as caught:
        resolve_loss(f"pkg.losses:{name}")
    assert_readable(caught.value)


@pytest.mark.usefixtures("package")
def test_a_plain_class_is_never_constructed() -> None:
    with pytest.raises(LossConfigError, match=r"pkg\.losses\.Focal is a class, and no loss") as caught:
        resolve_loss("pkg.losses:Focal", gamma=1.0)
    assert caught.value.code == "not-a-loss"


@pytest.mark.parametrize(
    "path",
    [
        *["a:", ":b", ":", ".", "..", "a.", ".b", "a..b", "a:b:c", "a:b.c", "pkg.losses:os.system", "pkg:fn()"],
        *[
            "../losses:fn",
            "./losses:fn",
            ".losses:fn",
            "/etc/losses.py",
            "/etc/losses.py:fn",
            "losses.py:fn:x",
            "~/l:fn",
        ],
        *["C:\\losses.py", "file:///losses.py", "https://example.org/losses.py:fn", "pkg/losses:fn", "-m.os:fn"],
        *[" pkg.losses:fn", "pkg.losses:fn ", "pkg.losses: fn", "pkg.losses:fn\n", "pkg\n.losses:fn", "pkg.los ses:fn"],
        *["pkg.losses:fn\x00", "pkg.losses:1st", "1pkg.losses:fn", "pkg.losses:", "pkg.losses:fn;x", "pkg-x.losses:fn"],
        *["a." * 10_000, "\n.\n" * 1000 + ":x", "\x1b[31m.red:fn", "pkg.losses:\u202efn"],
    ],
)
def test_what_is_no_dotted_path_is_refused_without_an_import(path: str, imported: list[str]) -> None:
    for resolve in (resolve_loss, lambda type: LossSpec(type=type), lambda type: resolve_loss({"type": type})):
        with pytest.raises(LossConfigError) as caught:
            resolve(path)
        assert "malformed-target" in {problem.code for problem in caught.value.problems}
        assert_readable(caught.value)
    assert imported == []


@pytest.mark.parametrize("word", ["evil", "os", "pickle", "this", "antigravity", "__main__", "losses", "torch", "mse"])
def test_a_plain_word_is_never_imported(word: str, imported: list[str], package: Path) -> None:
    if word == "mse":
        resolve_loss(word)
    else:
        with pytest.raises(UnknownLossError):
            resolve_loss(word)
    assert imported == []
    assert not os.environ["TENSAFE_TEST_PWNED"]


# T1, T2, T5, T6: gadgets


STDLIB = [
    *["os:system", "os.system", "posix:system", "os.path:join", "subprocess:run", "subprocess.Popen", "builtins:eval"],
    *["builtins:exec", "builtins.__import__", "pickle:loads", "_pickle:loads", "marshal:loads", "runpy:run_path"],
    *["importlib:import_module", "ctypes:CDLL", "code:interact", "pdb:run", "shutil:rmtree", "webbrowser:open"],
    *["multiprocessing.process:Process", "functools:partial", "operator:methodcaller", "antigravity:fly", "sys:exit"],
]
TORCH = [
    *["torch:load", "torch.load", "torch:save", "torch.serialization:load", "torch.serialization:os", "torch.hub:load"],
    *[
        "torch.hub.load",
        "torch.hub:load_state_dict_from_url",
        "torch.utils.model_zoo:load_url",
        "torch.package:PackageImporter",
    ],
    *[
        "torch.utils.cpp_extension:load",
        "torch.utils.cpp_extension:load_inline",
        "torch.jit:load",
        "torch.ops:load_library",
    ],
]
SPECS: dict[str, Callable[[str], Any]] = {
    "path": lambda path: path,
    "spec": lambda path: {"type": path, "kwargs": {"command": "touch pwned"}},
    "term": lambda path: {"type": "weighted_sum", "kwargs": {"losses": [{"type": path}]}},
    "term of a term": lambda path: {
        "type": "weighted_sum",
        "kwargs": {"losses": ["mse", {"type": "weighted_sum", "kwargs": {"losses": [{"type": path}]}}]},
    },
    "bare term": lambda path: {"type": "weighted_sum", "kwargs": {"losses": [path]}},
}


@pytest.mark.parametrize("shape", SPECS)
@pytest.mark.parametrize("path", STDLIB)
def test_the_standard_library_holds_no_loss(path: str, shape: str, imported: list[str]) -> None:
    error = refused_spec(SPECS[shape](path))
    assert "unsafe-target" in {problem.code for problem in error.problems}
    assert imported == []


@pytest.mark.parametrize("shape", SPECS)
@pytest.mark.parametrize("path", TORCH)
def test_loaders_of_torch_are_no_losses(path: str, shape: str) -> None:
    error = refused_spec(SPECS[shape](path))
    assert {problem.code for problem in error.problems} & {"unsafe-target", "unknown-module"}


def refused_spec(spec: Any) -> LossConfigError:
    with pytest.raises(LossConfigError) as caught:
        resolve_loss(spec)
    assert_readable(caught.value)
    return caught.value


@pytest.mark.parametrize("path", [path for path in STDLIB if ":" in path])
def test_a_spec_that_is_only_validated_refuses_the_standard_library_too(path: str, imported: list[str]) -> None:
    with pytest.raises(LossConfigError, match="nothing in"):
        LossSpec(type=path)
    assert [problem.code for problem in check_spec({"type": "weighted_sum", "kwargs": {"losses": [path]}})] == [
        "unsafe-target"
    ]
    assert imported == []


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize(
    "name",
    [
        *[
            "system",
            "run_later",
            "run_nested",
            "run_wrapped",
            "run_cached",
            "run_disguised",
            "run_bound",
            "Popen",
            "loads",
            "caller",
        ],
        *["getter", "joiner", "counter", "evaluate", "exponent", "load", "hub", "functools", "subprocess"],
    ],
)
def test_a_module_of_ones_own_does_not_launder_a_gadget(name: str) -> None:
    error = refused(f"pkg.losses:{name}")
    assert error.code == "unsafe-target"
    assert f"'pkg.losses:{name}' is really" in str(error)
    assert {problem.code for problem in refused_spec(SPECS["term of a term"](f"pkg.losses:{name}")).problems} == {
        "unsafe-target"
    }


@pytest.mark.usefixtures("package")
def test_a_gadget_in_a_nested_spec_is_reported_at_its_path() -> None:
    error = refused_spec(SPECS["term of a term"]("os:system"))
    assert error.loc == ("kwargs", "losses", 1, "kwargs", "losses", 0, "type")


# T3, T11: an allowlist


@pytest.fixture
def approved(package: Path) -> Iterator[None]:
    """Only `pkg.losses` may be imported."""
    with resolving_under(Policy(allow=("pkg.losses",))):
        yield


@pytest.mark.usefixtures("approved")
@pytest.mark.parametrize("name", ["fn", "instance", "method", "half", "doubled", "Mean", "mean"])
def test_what_is_allowed_resolves(name: str) -> None:
    assert resolve_loss(f"pkg.losses:{name}").kwargs["weight"] > 0


@pytest.mark.usefixtures("approved")
@pytest.mark.parametrize("shape", SPECS)
@pytest.mark.parametrize("path", ["evil:fn", "pkgtwo:fn", "pkg.losses_evil:fn", "pkg.losses_evil.fn", "pkg:losses"])
def test_what_is_not_allowed_is_not_even_imported(path: str, shape: str, imported: list[str]) -> None:
    error = refused_spec(SPECS[shape](path))
    assert [problem.code for problem in error.problems] == ["target-not-allowed"]
    assert f"--allow {path.replace(':', '.').rpartition('.')[0]}" in str(error)
    assert not os.environ["TENSAFE_TEST_PWNED"]
    assert imported == []


@pytest.mark.usefixtures("approved")
@pytest.mark.parametrize("path", STDLIB)
def test_the_standard_library_is_refused_whatever_is_allowed(path: str) -> None:
    module = path.replace(":", ".").rpartition(".")[0]
    for allow in [(), ("pkg",), (module,), (path,), (path.replace(".", ":"),)]:
        with resolving_under(Policy(allow=allow)):
            refused_spec(path)


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize(
    ("allow", "path", "value"),
    [
        pytest.param(("pkg",), "pkg.losses:fn", 1.0, id="package covers its modules"),
        pytest.param(("pkg.deep",), "pkg.deep.inner:fn", 3.0, id="package covers deeper ones"),
        pytest.param(("pkg.other",), "pkg.other.fn", 2.0, id="module, dotted form"),
        pytest.param(("pkg.other:fn",), "pkg.other:fn", 2.0, id="one target"),
        pytest.param(("pkg.reexport:fn",), "pkg.reexport:fn", 2.0, id="one target, re-exported"),
        pytest.param(("pkg.reexport", "pkg.other"), "pkg.reexport:fn", 2.0, id="both homes"),
        pytest.param(("pkg.other:fn",), "pkg.other:value", None, id="another name of an allowed target"),
        pytest.param(("pkg.other:fn",), "pkg.other:zzz", None, id="another name of an allowed module"),
        pytest.param(("pkg.reexport",), "pkg.reexport:fn", None, id="re-export from elsewhere"),
        pytest.param(("pkg.deep",), "pkg.deep.reexport:fn", None, id="re-export by a submodule"),
        pytest.param(("pkg.other",), "pkg.reexport:fn", None, id="home allowed, module not"),
        pytest.param(("pkg.losses",), "pkg.losses_evil:fn", None, id="look-alike"),
        pytest.param(("pkg",), "pkgtwo:fn", None, id="look-alike package"),
        pytest.param(("pkg.losses:f",), "pkg.losses:fn", None, id="look-alike target"),
        pytest.param(("*",), "pkg.losses:fn", None, id="no wildcards"),
        pytest.param(("",), "pkg.losses:fn", None, id="empty entry"),
        pytest.param(("PKG.LOSSES",), "pkg.losses:fn", None, id="another case"),
        pytest.param((), "pkg.losses:fn", None, id="nothing"),
    ],
)
def test_what_an_allowlist_lets_through(allow: tuple[str, ...], path: str, value: float | None) -> None:
    with resolving_under(Policy(allow=allow)):
        if value is not None:
            assert resolve_loss(path)({}, {})["loss"] == value
            assert resolve_loss({"type": "weighted_sum", "kwargs": {"losses": [path]}})({}, {})["loss"] == value
        else:
            assert refused(path).code == "target-not-allowed"


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize("allow", [("pkg",), ("pkg.reexport:system",), ("pkg.reexport", "posix", "os")])
def test_an_allowed_module_still_may_not_pass_on_a_gadget(allow: tuple[str, ...]) -> None:
    with resolving_under(Policy(allow=allow)):
        assert refused("pkg.reexport:system").code == "unsafe-target"


def test_approval_ends_with_its_block(package: Path) -> None:
    with resolving_under(Policy(allow=())):
        refused("evil:fn")
        with resolving_under(Policy(allow=("pkg.losses",))):
            resolve_loss("pkg.losses:fn")
        refused("pkg.losses:fn")
        with pytest.raises(ZeroDivisionError), resolving_under(Policy(allow=("evil",))):
            raise ZeroDivisionError
        refused("evil:fn")
    assert resolve_loss("evil:fn")({}, {})["loss"] == 1.0


def test_approval_is_not_shared_by_threads(package: Path) -> None:
    outcomes: list[str] = []

    def other_config() -> None:
        with resolving_under(Policy(allow=())):
            entered.set()
            allowed.wait(10)
            outcomes.append(refused("pkg.losses:fn").code)

    entered, allowed = threading.Event(), threading.Event()
    thread = threading.Thread(target=other_config)
    thread.start()
    entered.wait(10)
    with resolving_under(Policy(allow=("pkg.losses",))):
        allowed.set()
        thread.join(10)
        resolve_loss("pkg.losses:fn")
    assert outcomes == ["target-not-allowed"]


def test_a_module_may_not_lift_the_policy_that_it_is_imported_under(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = "from tensafe.training.losses import resolve_loss\nfn = resolve_loss('evil:fn')\n"
    write_modules(package, monkeypatch, {"pkg.lifts": source})
    with resolving_under(Policy(allow=("pkg.lifts",))):
        refused_spec("pkg.lifts:fn")
    assert not os.environ["TENSAFE_TEST_PWNED"]


def test_registered_names_need_no_approval(imported: list[str], package: Path) -> None:
    register_loss("mine", importlib.import_module("pkg.other").fn)
    del imported[:]
    with resolving_under(Policy(allow=())):
        assert resolve_loss("mine")({}, {})["loss"] == 2.0
        assert resolve_loss("weighted_sum", losses=["mine", "mse"]).name == "weighted_sum"
    assert imported == []


def test_looking_at_a_spec_imports_nothing(imported: list[str], package: Path) -> None:
    spec = {"type": "weighted_sum", "kwargs": {"losses": ["evil:fn", {"type": "nowhere.at_all:fn", "weight": 2}]}}
    assert check_spec(spec) == []
    assert LossSpec.model_validate(spec).kwargs == spec["kwargs"]
    assert imported == []
    assert not os.environ["TENSAFE_TEST_PWNED"]


# T4: where modules come from


def test_resolving_leaves_the_search_path_alone(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (package / "beside").mkdir()
    (package / "beside" / "neighbour.py").write_text("def fn(outputs, batch):\n    return 1.0\n", encoding="utf-8")
    monkeypatch.chdir(package / "beside")
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in {"", "."}])
    before = list(sys.path)
    with pytest.raises(UnknownLossError, match="there is no 'neighbour'"):
        resolve_loss("neighbour:fn")
    with pytest.raises(LossConfigError):
        resolve_loss("neighbour.py")
    resolve_loss("pkg.losses:fn")
    assert sys.path == before


# T10: what a config says does not spill into the terminal


HOSTILE = "\n".join(["x\x1b[2J"] * 2000)


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize(
    "spec",
    [
        pytest.param(HOSTILE, id="name"),
        pytest.param("a" * 10_000 + ":b", id="module"),
        pytest.param("pkg.losses:" + "b" * 10_000, id="attribute"),
        pytest.param("os:" + "b" * 10_000, id="attribute of the standard library"),
        pytest.param({"type": HOSTILE}, id="type"),
        pytest.param({"type": [HOSTILE]}, id="type of another kind"),
        pytest.param({"type": "mse", HOSTILE: 1}, id="key"),
        pytest.param({"type": "mse", "kwargs": HOSTILE}, id="kwargs"),
        pytest.param({"type": "mse", "kwargs": {HOSTILE: 1}}, id="kwarg"),
        pytest.param({"type": "mse", "kwargs": {"reduction": HOSTILE}}, id="value"),
        pytest.param({"type": "mse", "kwargs": {"reduction": 10**10_000}}, id="huge integer"),
        pytest.param({"type": "token_ce", "kwargs": {"ignore_index": 10**10_000}}, id="huge integer for an integer"),
        pytest.param({"type": "mse", "inputs": {HOSTILE: "x"}}, id="tensor"),
        pytest.param({"type": "mse", "inputs": {"targets": [HOSTILE]}}, id="key of a tensor"),
        pytest.param({"type": "mse", "inputs": HOSTILE}, id="inputs"),
        pytest.param({"type": "pkg.losses:fn", "kwargs": {HOSTILE: 1}}, id="kwarg of a function"),
        pytest.param({"type": "weighted_sum", "kwargs": {"losses": [{"type": HOSTILE}]}}, id="type of a term"),
        pytest.param({"type": "weighted_sum", "kwargs": {"losses": [{"type": "mse", HOSTILE: 1}]}}, id="key of a term"),
        pytest.param(
            {"type": "weighted_sum", "kwargs": {"losses": [{"type": "mse", "name": HOSTILE}] * 2}},
            id="name of two terms",
        ),
        pytest.param({"type": "mse", "kwargs": {f"k{index}": 1 for index in range(1000)}}, id="a thousand kwargs"),
    ],
)
def test_hostile_text_stays_short_and_printable(spec: Any) -> None:
    with pytest.raises(LossConfigError) as caught:
        resolve_loss(spec)
    lines = str(caught.value).split("\n")
    assert len(lines) <= 10
    assert all(line.isprintable() and len(line) < 700 for line in lines), lines
    assert all(problem.message.isprintable() and len(problem.message) < 700 for problem in check_spec(spec))


@pytest.mark.parametrize(
    ("inputs", "batch"),
    [
        pytest.param({"targets": HOSTILE + "y"}, {}, id="renamed to"),
        pytest.param({"targets": f"batch.{HOSTILE}"}, {}, id="renamed with its place"),
        pytest.param({"targets": HOSTILE}, {HOSTILE: [1.0]}, id="in both"),
        pytest.param({}, {HOSTILE: 1}, id="key of the batch"),
        pytest.param({}, {f"{key}\n{'x' * 100}": 1 for key in range(1000)}, id="a thousand keys of the batch"),
        pytest.param({"targets": "target"}, {"target\n\x1b[2J": 1}, id="near miss"),
        pytest.param({}, {"targets": [HOSTILE]}, id="text for numbers"),
    ],
)
def test_hostile_text_in_a_call_stays_short_and_printable(inputs: dict[str, str], batch: dict[str, Any]) -> None:
    loss_fn = resolve_loss({"type": "mse", "inputs": inputs})
    with pytest.raises(LossInputError) as caught:
        loss_fn({"predictions": [1.0], HOSTILE: [2.0]}, batch)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 2000


@pytest.mark.usefixtures("package")
def test_many_mistakes_do_not_take_long() -> None:
    started = time.perf_counter()
    problems = check_spec({"type": "mse", "kwargs": {f"k{index}": 1 for index in range(2000)}})
    assert len(problems) == 101
    assert time.perf_counter() - started < 2

"""`resolve_loss`: every form of a spec, kwargs validated at once, precedence, overrides, copies, pickles."""

import copy
import decimal
import gc
import pickle
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from support import run_child, write_modules
from tensafe.training.losses import (
    ElementLoss,
    Elements,
    Loss,
    LossConfigError,
    LossInputError,
    LossSpec,
    LossTypeError,
    ResolvedLoss,
    TokenLoss,
    register_loss,
    resolve_loss,
)
from tensafe.training.losses.builtin.mse import MSE
from tensafe.training.losses.builtin.token_ce import TokenCE

pytestmark = pytest.mark.usefixtures("isolated_registry")

OUTPUTS = {"predictions": torch.tensor([1.0, 4.0]), "logits": torch.zeros(1, 3, 4)}
BATCH = {"targets": torch.tensor([1.0, 2.0]), "labels": torch.tensor([[0, 1, 2]])}


def weighted(outputs: Any, batch: Any, weight: float = 1.0, items: Any = None) -> dict[str, Any]:
    return {"loss": weight, "auxiliary": {"weight": weight, "items": items}}


def seen(loss_fn: ResolvedLoss, name: str = "weight", **overrides: Any) -> Any:
    """What `weighted` was called with."""
    return loss_fn({}, {}, **overrides)["auxiliary"][name]


# Forms of a spec


@pytest.mark.parametrize(
    "spec",
    [
        pytest.param("mse", id="name"),
        pytest.param({"type": "mse"}, id="mapping"),
        pytest.param({"type": "mse", "kwargs": None, "inputs": None}, id="mapping with empty keys"),
        pytest.param(MappingProxyType({"type": "mse", "kwargs": MappingProxyType({})}), id="another mapping"),
        pytest.param(LossSpec(type="mse"), id="LossSpec"),
        pytest.param(MSE, id="class"),
        pytest.param(MSE(), id="value"),
        pytest.param("tensafe.training.losses.builtin.mse:MSE", id="path"),
        pytest.param("tensafe.training.losses.builtin.mse.MSE", id="dotted path"),
        pytest.param(resolve_loss("mse"), id="resolved"),
    ],
)
def test_every_form_gives_the_same_loss(spec: Any) -> None:
    loss_fn = resolve_loss(spec)
    assert isinstance(loss_fn, ResolvedLoss)
    assert loss_fn == resolve_loss("mse")
    assert loss_fn.name == "mse"
    assert loss_fn(OUTPUTS, BATCH)["loss"] == 2.0
    assert loss_fn(outputs=OUTPUTS, batch=BATCH)["loss"] == 2.0
    summed = resolve_loss(spec, reduction="sum")
    assert summed.kwargs == {"metrics": True, "reduction": "sum"}
    assert summed(OUTPUTS, BATCH)["loss"] == 4.0
    with pytest.raises(LossConfigError, match="did you mean reduction"):
        resolve_loss(spec, reductoin="sum")


@pytest.mark.parametrize("spec", [3, None, 1.5, b"mse", ["mse"], ("mse", {}), object()])
def test_what_is_no_spec(spec: Any) -> None:
    with pytest.raises(LossTypeError, match=f"got {type(spec).__name__}") as caught:
        resolve_loss(spec)
    assert caught.value.code == "not-a-spec"


@pytest.mark.parametrize("kind", [Loss, ElementLoss, TokenLoss, dict, Exception])
def test_a_class_that_computes_nothing(kind: Any) -> None:
    with pytest.raises(LossConfigError, match="is a class, and no loss") as caught:
        resolve_loss(kind)
    assert caught.value.code == "not-a-loss"


# Mistakes in a spec


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        pytest.param({}, {("type",): "required key is missing"}, id="no type"),
        pytest.param({"typ": "mse"}, {("typ",): "did you mean type?"}, id="misspelt type"),
        pytest.param({"type": 3}, {("type",): "expected the name of a loss"}, id="type of another kind"),
        pytest.param({"type": "mze"}, {("type",): "did you mean mse?"}, id="unknown name"),
        pytest.param({"type": "mse", "kwarg": {}}, {("kwarg",): "did you mean kwargs?"}, id="misspelt kwargs"),
        pytest.param({"type": "mse", "kwargs": [1]}, {("kwargs",): "expected a mapping"}, id="kwargs of another kind"),
        pytest.param(
            {"type": "mse", "kwargs": {1: 2}}, {("kwargs", "1"): "must be a string"}, id="key of another kind"
        ),
        pytest.param(
            {"type": "mse", "reduction": "sum"}, {("reduction",): "belongs under kwargs"}, id="misplaced kwarg"
        ),
        pytest.param(
            {"type": "mse", "reductin": "sum"}, {("reductin",): "reduction, which belongs under kwargs"}, id="both"
        ),
        pytest.param({"type": "mse", "weight_decay": 1}, {("weight_decay",): "unknown key"}, id="stray key"),
        pytest.param(
            {"type": "mse", "kwargs": {"reduction": "avg"}},
            {("kwargs", "reduction"): "expected one of none, sum, mean, got 'avg'"},
            id="value",
        ),
        pytest.param(
            {"type": "mse", "kwargs": {"reduction": "meen"}},
            {("kwargs", "reduction"): "did you mean mean?"},
            id="near value",
        ),
        pytest.param(
            {"type": "mse", "kwargs": {"temperature": 1.0}},
            {("kwargs", "temperature"): "is a kwarg of ce_kd, contrastive"},
            id="kwarg of another loss",
        ),
        pytest.param(
            {"type": "mse", "inputs": {"target": "y"}},
            {("inputs", "target"): "did you mean targets?"},
            id="unknown tensor",
        ),
        pytest.param(
            {"type": "mse", "inputs": {"zzz": "y"}},
            {("inputs", "zzz"): "its tensors are predictions, targets"},
            id="unlike any tensor",
        ),
        pytest.param({"type": "mse", "inputs": {"targets": 3}}, {("inputs", "targets"): "expected a key"}, id="no key"),
        pytest.param(
            {"type": "tests.nowhere:fn", "kwargs": {"a": 1}}, {("type",): "Cannot resolve loss"}, id="path to nowhere"
        ),
        pytest.param(
            {"type": weighted.__module__ + ":weighted", "inputs": {"a": "b"}},
            {("inputs",): "has no effect"},
            id="inputs of a function",
        ),
        pytest.param(
            {"type": "token_ce", "shift": True, "kwargs": {"label_smothing": 0.1, "ignore_index": 0.5, "margin": 1}},
            {
                ("shift",): "belongs under kwargs",
                ("kwargs", "label_smothing"): "did you mean label_smoothing?",
                ("kwargs", "ignore_index"): "expected an integer",
                ("kwargs", "margin"): "is a kwarg of batch_hard_triplet, bradley_terry",
            },
            id="all at once",
        ),
        pytest.param(
            {
                "type": "weighted_sum",
                "kwargs": {"losses": [{"type": "mse"}, {"type": "contrastive", "kwargs": {"margn": 1}}]},
            },
            {("kwargs", "losses", 1, "kwargs", "margn"): "did you mean margin?"},
            id="in a term",
        ),
    ],
)
def test_every_mistake_of_a_spec_is_reported_at_its_place(spec: Any, expected: dict[tuple[Any, ...], str]) -> None:
    with pytest.raises(LossConfigError) as caught:
        resolve_loss(spec)
    found = {problem.loc: problem.message for problem in caught.value.problems}
    assert found.keys() == expected.keys()
    assert all(part in found[loc] for loc, part in expected.items()), found
    assert caught.value.loc == caught.value.problems[0].loc
    for loc in expected:
        assert ".".join(map(str, loc)) in str(caught.value)


class Mute:
    def __repr__(self) -> str:
        raise AssertionError("a message shows no object")

    __str__ = __repr__


@pytest.mark.parametrize("key", [10**5000, Mute(), None, (), 1.5], ids=["huge", "mute", "None", "tuple", "float"])
@pytest.mark.parametrize("place", ["spec", "kwargs", "term"])
def test_a_key_may_be_anything_and_is_never_asked_for_its_text(place: str, key: Any) -> None:
    spec: dict[Any, Any] = {"type": "mse", "kwargs": {}}
    (spec["kwargs"] if place == "kwargs" else spec)[key] = 1
    if place == "term":
        spec = {"type": "weighted_sum", "kwargs": {"losses": [spec]}}
    with pytest.raises(LossConfigError) as caught:
        resolve_loss(spec)
    assert len(caught.value.problems) == 1
    assert isinstance(caught.value.loc[-1], str)


def test_data_that_holds_itself_is_looked_at_once() -> None:
    class Holds(Loss):
        rows: list[Any]

        def compute(self, predictions: Float[Tensor, "*shape"]) -> Elements:
            raise NotImplementedError

    rows: list[Any] = [1, 2.5]
    rows.append(rows)
    assert resolve_loss(Holds(rows=rows)).kwargs["rows"][:2] == [1, 2.5]
    with pytest.raises(LossConfigError, match=r"rows\.1: expected an integer that fits 64 bits"):
        Holds(rows=[rows, 2**64])


def test_the_error_of_nested_kwargs_given_in_python_has_their_path() -> None:
    with pytest.raises(LossConfigError) as caught:
        resolve_loss("weighted_sum", losses=["mse", {"type": "contrastive", "kwargs": {"margn": 1}}])
    assert caught.value.loc == ("losses", 1, "kwargs", "margn")


def test_an_argument_of_the_call_is_reported_as_one() -> None:
    with pytest.raises(LossConfigError) as caught:
        resolve_loss({"type": "mse", "kwargs": {"reductin": "sum"}}, metrics="yes")
    assert {problem.loc for problem in caught.value.problems} == {("kwargs", "reductin"), ("metrics",)}


# Values of kwargs


@pytest.mark.parametrize(
    ("name", "kwarg", "value", "part"),
    [
        *[
            pytest.param("token_ce", "label_smoothing", value, "a number in [0, 1], got", id=f"label_smoothing {value}")
            for value in (-0.1, 1.5, "0.1", None, [0.1], {"a": 0.1}, -1)
        ],
        *[
            pytest.param(
                "token_ce", "label_smoothing", value, "label_smoothing: expected", id=f"label_smoothing {value}"
            )
            for value in (True, False, float("nan"), float("inf"), 1j)
        ],
        *[
            pytest.param("token_ce", "label_smoothing", value, "plain data, got", id=f"a {type(value).__name__}")
            for value in (torch.tensor(0.125), decimal.Decimal("0.125"), np.float32(0.125), np.array(0.125))
        ],
        pytest.param(
            "token_ce", "ignore_index", torch.tensor(0), "an integer, got Tensor", id="a Tensor for an integer"
        ),
        *[
            pytest.param("contrastive", "temperature", value, "temperature: expected", id=f"temperature {value}")
            for value in (0, 0.0, -0.0, -1.0, float("inf"), float("-inf"), float("nan"), True, "warm")
        ],
        *[
            pytest.param(
                "token_ce", "ignore_index", value, "ignore_index: expected an integer", id=f"ignore_index {value}"
            )
            for value in (1.0, -100.0, "0", None, True, 2**63, -(2**63) - 1, float("nan"))
        ],
        *[
            pytest.param("token_ce", "shift", value, "shift: expected true or false", id=f"shift {value}")
            for value in (1, 0, "true", None, "no")
        ],
        *[
            pytest.param(
                "mse", "reduction", value, "reduction: expected one of none, sum, mean", id=f"reduction {value}"
            )
            for value in ("avg", "Mean", "sequence_mean", None, 1, True, "")
        ],
        pytest.param("token_ce", "max_length", 10, "has no effect with reduction mean", id="max_length alone"),
    ],
)
def test_a_wrong_value_is_refused_at_resolve_and_named(name: str, kwarg: str, value: Any, part: str) -> None:
    with pytest.raises(LossConfigError) as caught:
        resolve_loss(name, **{kwarg: value})
    assert f"{name}: {kwarg}: " in str(caught.value)
    assert part in str(caught.value)
    assert caught.value.loc == (kwarg,)
    assert "0.125" not in str(caught.value)
    with pytest.raises(LossConfigError, match=kwarg):
        resolve_loss(name)(OUTPUTS, BATCH, **{kwarg: value})


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("token_ce", {"label_smoothing": 1}),
        ("token_ce", {"label_smoothing": 0}),
        ("token_ce", {"label_smoothing": np.float64(0.5)}),
        ("token_ce", {"ignore_index": -(2**63), "shift": False}),
        ("token_ce", {"reduction": "sequence_sum_norm", "max_length": 1}),
        ("contrastive", {"temperature": 5e-324, "margin": 0}),
        ("margin_ranking", {"margin": 0.0, "metrics": False}),
    ],
)
def test_a_value_at_the_end_of_its_range_is_accepted(name: str, kwargs: dict[str, Any]) -> None:
    assert resolve_loss(name, **kwargs).kwargs.items() >= kwargs.items()


def test_denominators_belong_to_a_call() -> None:
    for spec in ("token_ce", weighted):
        with pytest.raises(LossConfigError, match="num_items_in_batch"):
            resolve_loss(spec, num_items_in_batch=3)  # type: ignore[arg-type]


# Precedence and overrides


@pytest.mark.parametrize("spec_form", [dict, lambda fields: LossSpec(**fields)], ids=["mapping", "LossSpec"])
def test_call_beats_resolve_beats_spec_beats_default(spec_form: Callable[[dict[str, Any]], Any]) -> None:
    register_loss("weighted", weighted)
    spec = spec_form({"type": "weighted", "kwargs": {"weight": 2.0}})
    assert seen(resolve_loss("weighted")) == 1.0
    assert seen(resolve_loss(spec)) == 2.0
    assert seen(resolve_loss(spec, weight=3.0)) == 3.0
    assert seen(resolve_loss(resolve_loss(spec, weight=3.0), weight=3.5)) == 3.5
    loss_fn = resolve_loss(spec, weight=3.0, items=[1])
    assert seen(loss_fn, weight=4.0) == 4.0
    assert seen(loss_fn, "items", weight=4.0) == [1]
    assert seen(loss_fn) == 3.0
    assert seen(resolve_loss(spec)) == 2.0


def test_typed_losses_have_the_same_precedence() -> None:
    spec = {"type": "token_ce", "kwargs": {"label_smoothing": 0.25, "reduction": "sum"}}
    loss_fn = resolve_loss(spec, label_smoothing=0.5)
    assert loss_fn.kwargs == {**resolve_loss("token_ce").kwargs, "label_smoothing": 0.5, "reduction": "sum"}
    assert loss_fn(OUTPUTS, BATCH)["loss"].item() == pytest.approx(2 * torch.tensor(4.0).log().item())
    assert loss_fn(OUTPUTS, BATCH, reduction="none")["loss"].shape == (1, 3)
    assert loss_fn(OUTPUTS, BATCH)["loss"].ndim == 0
    assert resolve_loss(TokenCE(label_smoothing=0.75), reduction="sum").kwargs["label_smoothing"] == 0.75


def test_an_override_that_is_wrong_changes_nothing() -> None:
    loss_fn = resolve_loss("mse", reduction="sum")
    for overrides in ({"reduction": "avg"}, {"reductoin": "mean"}, {"metrics": 1}):
        with pytest.raises(LossConfigError):
            loss_fn(OUTPUTS, BATCH, **overrides)
    assert loss_fn(OUTPUTS, BATCH)["loss"] == 4.0
    assert loss_fn == resolve_loss("mse", reduction="sum")


def test_numbers_that_are_equal_are_not_confused() -> None:
    loss_fn = resolve_loss(weighted)
    for value in (1, 1.0, 0, 0.0):
        assert type(seen(loss_fn, "items", items=value)) is type(value)
    for value in (True, False):
        assert seen(loss_fn, "items", items=value) is value
    typed = resolve_loss("mse")
    assert typed(OUTPUTS, BATCH, metrics=True)["loss"] == 2.0
    with pytest.raises(LossConfigError, match="metrics: expected true or false"):
        typed(OUTPUTS, BATCH, metrics=1)


@pytest.mark.parametrize("value", [[1, 2], {"a": [1]}, {1, 2}, torch.tensor([1.0]), object(), np.ones(2), float("nan")])
def test_an_override_need_not_be_hashable(value: Any) -> None:
    loss_fn = resolve_loss(weighted)
    for _ in range(2):
        found = seen(loss_fn, "items", items=value)
        assert type(found) is type(value)
        assert repr(found) == repr(value)
    assert seen(loss_fn, "items") is None


def test_a_schedule_does_not_fill_the_memory() -> None:
    def alive() -> int:
        gc.collect()
        return sum(issubclass(type(each), ResolvedLoss) for each in gc.get_objects())

    typed, plain = resolve_loss("token_ce"), resolve_loss(weighted)
    before = alive()
    for step in range(1000):
        typed(OUTPUTS, BATCH, label_smoothing=step / 1000)
        assert seen(plain, weight=step / 1000) == step / 1000
    assert alive() - before < 200


def test_threads_may_override_one_loss_at_once() -> None:
    loss_fn = resolve_loss(weighted)

    def act(thread: int) -> bool:
        barrier.wait()
        steps = [thread * 1000 + step % 40 for step in range(300)]
        return all(seen(loss_fn, weight=float(step)) == step for step in steps)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    barrier = threading.Barrier(8)
    try:
        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(act, range(8), timeout=60))
    finally:
        sys.setswitchinterval(before)


@pytest.mark.parametrize("at", [1, 2])
def test_overrides_may_be_forgotten_while_they_are_looked_up(at: int) -> None:
    class Interrupting(str):
        """When two of it are compared for the nth time, another thread gets its turn."""

        comparisons = 0
        __hash__ = str.__hash__

        def __eq__(self, other: object) -> bool:
            Interrupting.comparisons += 1
            if Interrupting.comparisons == at:
                for step in range(100):
                    loss_fn({}, {}, weight=float(step))
            return True

    loss_fn = resolve_loss(weighted)
    for _ in range(3):
        assert str(seen(loss_fn, "items", items=Interrupting("a"))) == "a"
    assert Interrupting.comparisons >= at


# What is bound is one's own


@pytest.mark.parametrize(
    "resolve",
    [
        pytest.param(lambda kwargs: resolve_loss(weighted, **kwargs), id="function"),
        pytest.param(lambda kwargs: resolve_loss({"type": f"{__name__}:weighted", "kwargs": kwargs}), id="spec"),
        pytest.param(lambda kwargs: resolve_loss(annotated, **kwargs), id="annotated function"),
        pytest.param(lambda kwargs: resolve_loss(resolve_loss(weighted), **kwargs), id="resolved"),
        pytest.param(lambda kwargs: resolve_loss(LossSpec(type=f"{__name__}:weighted", kwargs=kwargs)), id="LossSpec"),
    ],
)
def test_kwargs_are_copied(resolve: Callable[[dict[str, Any]], ResolvedLoss]) -> None:
    kwargs: dict[str, Any] = {"items": {"names": ["a"], "rows": [[1]]}}
    loss_fn = resolve(kwargs)
    kwargs["items"]["names"].append("b")
    kwargs["items"]["rows"][0].append(2)
    kwargs["items"]["more"] = 3
    kwargs["weight"] = 5.0
    assert seen(loss_fn, "items") == {"names": ["a"], "rows": [[1]]}
    assert seen(loss_fn) == 1.0


def annotated(outputs: Any, batch: Any, *, items: dict[str, Any] | None = None, weight: float = 1.0) -> dict[str, Any]:
    return weighted(outputs, batch, weight, items)


def test_a_spec_is_a_copy_too() -> None:
    terms: list[Any] = ["mse"]
    spec = LossSpec(type="weighted_sum", kwargs={"losses": terms})
    loss_fn = resolve_loss("weighted_sum", losses=terms)
    terms.append("nonsense")
    assert spec.kwargs == {"losses": ["mse"]}
    assert resolve_loss(spec) == loss_fn


def test_two_losses_share_nothing() -> None:
    first = resolve_loss(weighted, items=[1])
    second = resolve_loss(first, weight=2.0)
    first.kwargs["items"].append(2)
    assert seen(second, "items") == [1]


@pytest.mark.parametrize("function", [weighted, annotated])
def test_what_a_container_holds_is_not_copied(function: Callable[..., Any]) -> None:
    teacher, needs_grad = torch.nn.Linear(1, 1), torch.ones(1, requires_grad=True) * 2
    loss_fn = resolve_loss(function, items={"teachers": [teacher], "pair": (needs_grad, [1])})
    items = seen(resolve_loss(loss_fn, weight=2.0), "items")
    assert items["teachers"][0] is teacher
    assert items["pair"][0] is needs_grad


def test_a_container_that_holds_itself_is_copied_once() -> None:
    shared: list[Any] = [1]
    items: dict[str, Any] = {"one": shared, "two": shared}
    items["self"] = items
    copy_of_it = seen(resolve_loss(weighted, items=items), "items")
    assert copy_of_it["self"] is copy_of_it is not items
    assert copy_of_it["one"] is copy_of_it["two"] is not shared


# As a value


LOSSES: dict[str, Callable[[], ResolvedLoss]] = {
    "typed": lambda: resolve_loss("token_ce", label_smoothing=0.25, shift=False),
    "renamed": lambda: resolve_loss({"type": "mse", "inputs": {"targets": "batch.y"}}),
    "plain": lambda: resolve_loss(weighted, weight=2.0, items=[1]),
    "combined": lambda: resolve_loss("weighted_sum", losses=["mse", {"type": "contrastive", "weight": 0.5}]),
}


@pytest.fixture(params=list(LOSSES.values()), ids=list(LOSSES))
def loss_fn(request: pytest.FixtureRequest) -> ResolvedLoss:
    return request.param()  # type: ignore[no-any-return]


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda loss: pickle.loads(pickle.dumps(loss))])
def test_copies_are_equal(loss_fn: ResolvedLoss, duplicate: Callable[[ResolvedLoss], ResolvedLoss]) -> None:
    again = duplicate(loss_fn)
    assert again == loss_fn
    assert again.kwargs == loss_fn.kwargs
    assert repr(again) == repr(loss_fn)
    assert again != resolve_loss("mse", reduction="sum")
    assert loss_fn != "mse"


def test_a_loss_prints_its_name_and_kwargs(loss_fn: ResolvedLoss) -> None:
    assert repr(loss_fn).startswith(f"{loss_fn.name}(")
    assert all(f"{name}={value!r}" in repr(loss_fn) for name, value in loss_fn.kwargs.items())


@pytest.mark.parametrize("name", ["typed", "renamed", "combined"])
def test_plain_data_carries_a_loss_where_a_pickle_may_not(name: str) -> None:
    loss_fn = LOSSES[name]()
    assert resolve_loss(loss_fn.to_config()) == loss_fn
    assert LossSpec(**loss_fn.to_config()).type == loss_fn.name


def test_a_renamed_input_is_found() -> None:
    renamed = LOSSES["renamed"]()
    assert renamed(OUTPUTS, {"y": torch.tensor([1.0, 2.0]), "targets": "not this"})["loss"] == 2.0
    with pytest.raises(LossInputError, match="'y'"):
        renamed({**OUTPUTS, "y": BATCH["targets"]}, BATCH)


PICKLED = """
import torch
from tensafe.training.losses import ElementLoss, Elements, register_loss, resolve_loss

class Scaled(ElementLoss, name="pickled_scaled"):
    scale: float = 1.0
    def compute(self, predictions: "Float[Tensor, ' n']", targets: "Float[Tensor, ' n']") -> Elements:
        return Elements(self.scale * (predictions - targets))

@register_loss("pickled_fn")
def fn(outputs, batch, *, weight=1.0):
    return weight * (outputs["predictions"] - batch["targets"]).sum()

class Instance:
    def __init__(self, power):
        self.power = power
    def __call__(self, outputs, batch, **kwargs):
        return outputs["predictions"].sum() ** self.power + kwargs.get("extra", 0)

def losses():
    yield resolve_loss("pickled_scaled", scale=3.0)
    yield resolve_loss("pickled_fn", weight=0.5)
    yield resolve_loss(Instance(2), extra=1)
    yield resolve_loss("mse", reduction="sum")
    terms = [{"type": "pickled_fn", "weight": 2.0, "kwargs": {"weight": 4.0}}, {"type": "mse", "name": "main"}]
    yield resolve_loss("weighted_sum", losses=terms)

def values(losses):
    outputs, batch = {"predictions": torch.tensor([1.0, 4.0])}, {"targets": torch.tensor([1.0, 2.0])}
    return [loss(outputs, batch)["loss"].item() for loss in losses]
"""


def test_resolved_losses_are_unpickled_by_a_fresh_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_modules(tmp_path, monkeypatch, {"pickled": PICKLED})
    pickled = __import__("pickled")
    losses = list(pickled.losses())
    expected = [3.0, 1.0, 26.0, 4.0, 18.0]
    assert pickled.values(losses) == expected
    (tmp_path / "losses.pickle").write_bytes(pickle.dumps(losses))
    use = "import pickle, pathlib, sys; losses = pickle.loads(pathlib.Path(sys.argv[1]).read_bytes())"
    use += "; import pickled; print(pickled.values(losses))"
    assert run_child(use, tmp_path, arguments=(str(tmp_path / "losses.pickle"),)) == str(expected)


def test_equal_losses_have_equal_hashes() -> None:
    losses = [resolve_loss("mse"), resolve_loss("mse"), resolve_loss("mse", reduction="sum")]
    assert len(set(losses)) == 2


def test_renames_given_as_a_kwarg_are_told_their_place() -> None:
    with pytest.raises(LossConfigError, match="renames of tensors stand beside it"):
        resolve_loss("mse", inputs={"targets": "y"})  # type: ignore[arg-type]

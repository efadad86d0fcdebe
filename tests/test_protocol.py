"""Losses written as plain callables `(outputs, batch, **kwargs)`: their signature is their contract."""

import dataclasses
import functools
import inspect
import warnings
from collections import UserDict
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Annotated, Any, Literal

import pytest
import torch
from annotated_types import Gt
from pydantic import BaseModel, Field
from torch import Tensor, nn

from tensafe.training.losses import LossConfigError, LossFn, register_loss, resolve_loss, wrap_simple_loss

pytestmark = pytest.mark.usefixtures("isolated_registry")

OUTPUTS, BATCH = {"x": torch.tensor([1.0, 4.0])}, {"y": torch.tensor([1.0, 2.0])}


# What may be a loss


def function(outputs: Any, batch: Any, *, weight: float = 1.0) -> Any:
    return weight * (outputs["x"] - batch["y"]).sum()


def with_more(outputs: Any, batch: Any, weight: float = 1.0, extra: Any = None) -> Any:
    return function(outputs, batch, weight=weight)


def other_names(predicted: Any, wanted: Any, weight: float = 1.0, /, **others: Any) -> Any:
    return function(predicted, wanted, weight=others.get("weight", weight))


class Instance:
    def __call__(self, outputs: Any, batch: Any, *, weight: float = 1.0) -> Any:
        return function(outputs, batch, weight=weight)

    def method(self, outputs: Any, batch: Any, *, weight: float = 1.0) -> Any:
        return function(outputs, batch, weight=weight)

    @classmethod
    def of_class(cls, outputs: Any, batch: Any, *, weight: float = 1.0) -> Any:
        return function(outputs, batch, weight=weight)

    @staticmethod
    def static(outputs: Any, batch: Any, *, weight: float = 1.0) -> Any:
        return function(outputs, batch, weight=weight)


class Module(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, outputs: Any, batch: Any, *, weight: float = 1.0) -> Any:
        return self.scale * function(outputs, batch, weight=weight)


def doubled(fn: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(fn)
    def inner(*args: Any, **kwargs: Any) -> Any:
        return 2 * fn(*args, **kwargs) / 2

    return inner


FORMS: dict[str, Callable[..., Any]] = {
    "function": function,
    "lambda": lambda outputs, batch, weight=1.0: function(outputs, batch, weight=weight),
    "instance": Instance(),
    "method": Instance().method,
    "class method": Instance.of_class,
    "static method": Instance.static,
    "module": Module(),
    "partial": functools.partial(with_more, extra=1),
    "partial of the weight": functools.partial(function, weight=1.0),
    "decorated": doubled(function),
    "wrapped": wrap_simple_loss(function),
    "scripted": torch.no_grad()(function),
}


@pytest.mark.parametrize("fn", FORMS.values(), ids=FORMS)
def test_any_callable_is_a_loss(fn: Callable[..., Any]) -> None:
    assert isinstance(fn, LossFn)
    loss_fn = resolve_loss(fn)
    assert loss_fn(OUTPUTS, BATCH)["loss"] == 2.0
    assert loss_fn(OUTPUTS, BATCH, weight=3.0)["loss"] == 6.0
    assert resolve_loss(fn, weight=0.5)(OUTPUTS, BATCH)["loss"] == 1.0
    assert loss_fn.kwargs["weight"] == 1.0
    register_loss("mine", fn)
    assert resolve_loss("mine", weight=0.5)(OUTPUTS, BATCH)["loss"] == 1.0
    for mistake in ({"wieght": 1.0}, {"nonsense": 1}):
        with pytest.raises(LossConfigError, match="unknown argument"):
            resolve_loss(fn, **mistake)


def test_positional_names_do_not_matter() -> None:
    assert resolve_loss(other_names, weight=3.0)(OUTPUTS, BATCH)["loss"] == 6.0


def test_a_module_stays_reachable_and_is_called_with_its_hooks() -> None:
    module = Module()
    loss_fn = resolve_loss(module, weight=2.0)
    calls: list[str] = []
    module.register_forward_hook(lambda *_: calls.append("hook"))
    torch.autograd.backward(loss_fn(OUTPUTS, BATCH)["loss"])
    assert calls == ["hook"]
    assert loss_fn.fn is module  # type: ignore[attr-defined]
    assert module.scale.grad == 4.0


@pytest.mark.parametrize(
    ("fn", "name"),
    [(function, "function"), (Instance(), "Instance"), (FORMS["lambda"], "<lambda>"), (Module(), "Module")],
)
def test_a_callable_lends_its_name_and_documentation(fn: Any, name: str) -> None:
    assert resolve_loss(fn).name == name
    assert resolve_loss(fn).__doc__ == fn.__doc__
    with pytest.raises(LossConfigError, match=f"^{name}: nonsense: "):
        resolve_loss(fn, nonsense=1)


@pytest.mark.parametrize(
    "source",
    [
        *["lambda: 1.0", "lambda outputs: 1.0", "lambda *, outputs, batch: 1.0", "lambda **kwargs: 1.0", "len"],
        "lambda outputs, batch, weight, /: 1.0",
    ],
)
def test_a_callable_that_cannot_be_called_with_outputs_and_batch(source: str) -> None:
    with pytest.raises(LossConfigError) as caught:
        resolve_loss(eval(source))
    assert caught.value.code == "not-a-loss"
    assert "(outputs, batch, **kwargs)" in str(caught.value)


@pytest.mark.parametrize(
    ("outputs", "batch"),
    [(object(), object()), (torch.ones(2), (1, 2)), (SimpleNamespace(x=1), UserDict(y=2)), (None, "text")],
)
def test_outputs_and_batch_arrive_as_they_are(outputs: Any, batch: Any) -> None:
    seen: list[Any] = []

    def fn(outputs: Any, batch: Any) -> float:
        seen.extend([outputs, batch])
        return 0.0

    resolve_loss(fn)(outputs, batch)
    assert seen[0] is outputs
    assert seen[1] is batch


def test_what_a_callable_raises_comes_out_as_it_is() -> None:
    error = KeyError("labels")

    def fn(outputs: Any, batch: Any) -> float:
        raise error

    with pytest.raises(KeyError) as caught:
        resolve_loss(fn)({}, {})
    assert caught.value is error


# Kwargs: defaults, required ones, unknown ones


def required(outputs: Any, batch: Any, alpha: float, beta: float = 2.0, *, gamma: float) -> float:
    return alpha + beta + gamma


def test_required_kwargs_are_missed_at_resolve() -> None:
    with pytest.raises(LossConfigError) as caught:
        resolve_loss(required, beta=1.0)
    assert {problem.loc: problem.code for problem in caught.value.problems} == {
        ("alpha",): "missing-kwarg",
        ("gamma",): "missing-kwarg",
    }
    assert resolve_loss(required, alpha=1.0, gamma=4.0)({}, {})["loss"] == 7.0


def test_every_mistake_is_reported_at_once() -> None:
    with pytest.raises(LossConfigError) as caught:
        resolve_loss(required, alpha="1", bet=1.0, num_items_in_batch=2)
    found = {problem.loc[0]: problem.message for problem in caught.value.problems}
    assert found.keys() == {"alpha", "bet", "gamma", "num_items_in_batch"}
    assert "expected a number, got '1'" in found["alpha"]
    assert "did you mean beta?" in found["bet"]
    assert "required" in found["gamma"]
    assert "belongs to a call" in found["num_items_in_batch"]


def test_a_required_kwarg_of_a_partial_is_given() -> None:
    assert resolve_loss(functools.partial(required, alpha=1.0, gamma=1.0))({}, {})["loss"] == 4.0
    with pytest.raises(LossConfigError, match="gamma: required"):
        resolve_loss(functools.partial(required, alpha=1.0))


def lenient(outputs: Any, batch: Any, temperature: float = 1.0, **kwargs: Any) -> dict[str, Any]:
    return {"loss": temperature, "auxiliary": kwargs}


def test_a_callable_with_kwargs_receives_what_it_does_not_name() -> None:
    loss_fn = resolve_loss(lenient, anything=[1], reduction="none")
    assert loss_fn({}, {}, other=2)["auxiliary"] == {"anything": [1], "reduction": "none", "other": 2}
    assert loss_fn({}, {})["auxiliary"] == {"anything": [1], "reduction": "none"}
    assert loss_fn.kwargs == {"temperature": 1.0, "anything": [1], "reduction": "none"}


@pytest.mark.parametrize(
    "use",
    [
        pytest.param(lambda: resolve_loss(lenient, temprature=2.0), id="resolve"),
        pytest.param(lambda: resolve_loss(resolve_loss(lenient), temprature=2.0), id="resolve again"),
        pytest.param(lambda: resolve_loss(lenient)({}, {}, temprature=2.0), id="call"),
        pytest.param(lambda: resolve_loss({"type": f"{__name__}:lenient", "kwargs": {"temprature": 2.0}}), id="spec"),
    ],
)
def test_a_near_miss_is_passed_on_with_a_warning_at_the_line_that_has_it(use: Callable[[], Any]) -> None:
    message = r"lenient: 'temprature' goes to \*\*kwargs; did you mean 'temperature'\?"
    with pytest.warns(UserWarning, match=message) as caught:
        use()
    assert [warning.filename for warning in caught] == [__file__]


def test_what_is_unlike_any_name_is_passed_on_in_silence() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert resolve_loss(lenient, unrelated=2)({}, {})["auxiliary"] == {"unrelated": 2}


@pytest.mark.parametrize("name", ["outputs", "batch"])
def test_kwargs_cannot_stand_for_outputs_or_batch(name: str) -> None:
    for fn in (function, lenient):
        with pytest.raises(LossConfigError) as caught:
            resolve_loss(fn, **{name: 1})
        assert caught.value.loc == (name,)


def test_a_mutable_default_is_not_shared_by_losses() -> None:
    def collecting(outputs: Any, batch: Any, names: Any = None) -> dict[str, Any]:
        names.append(len(names))
        return {"loss": 0.0, "auxiliary": {"names": list(names)}}

    first, second = resolve_loss(collecting, names=[]), resolve_loss(collecting, names=[])
    first({}, {})
    assert second({}, {})["auxiliary"]["names"] == [0]


# Annotations


class Schedule(BaseModel):
    start: float = Field(gt=0)
    end: float = 1.0


@dataclasses.dataclass
class Window:
    size: int


ANNOTATED: list[tuple[Any, list[Any], list[Any]]] = [
    (float, [0.5, 1, -2], ["0.5", True, None, float("nan"), float("inf"), torch.tensor(0.5), [0.5]]),
    (int, [1, -1], [1.0, "1", True, None, torch.tensor(1)]),
    (bool, [True, False], [1, 0, "true", None]),
    (str, ["a", ""], [1, None, b"a"]),
    (float | None, [None, 0.5], ["0.5", True, float("nan"), torch.tensor(0.5)]),
    (Literal["a", "b"], ["a"], ["A", "c", None, 1]),
    (list[float], [[], [1.0, 2]], [1.0, ["1"], [True], (1.0,), [float("nan")], [torch.tensor(1.0)]]),
    (dict[str, float], [{}, {"a": 1.0}], [{"a": "1"}, {1: 1.0}, [], {"a": torch.tensor(1.0)}]),
    (tuple[int, int], [(1, 2)], [(1,), (1, 2, 3), ("1", 2)]),
    (Annotated[float, Gt(0)], [0.1], [0.0, -1.0, "1"]),
    (Annotated[int, Field(ge=1, le=3)], [1, 3], [0, 4, True]),
    (Tensor, [torch.ones(2)], [[1.0], 1.0, None]),
    (Tensor | None, [None, torch.ones(2)], [[1.0], 1.0]),
    (nn.Module, [nn.Identity()], [nn.Identity, 1]),
    (Callable[..., Any], [len], [3]),
    (Schedule, [Schedule(start=1.0), {"start": 1.0}], [{"start": 0}, {}, 1.0]),
    (Window, [Window(3)], [3]),
    (Iterable[float], [[1.0, 2]], [1.0, ["1"]]),
    (Annotated[float, ["of no use, and not hashable"]], [0.5], ["0.5"]),
    (list["NotDefinedAnywhere"], [[1]], []),  # type: ignore[name-defined]  # noqa: F821
    (Any, [1, "a", None, SimpleNamespace()], []),
    (inspect.Parameter.empty, [1, "a", None, SimpleNamespace()], []),
]


def annotated_with(annotation: Any) -> Callable[..., Any]:
    def fn(outputs: Any, batch: Any, arg: Any) -> dict[str, Any]:
        return {"loss": 0.0, "auxiliary": {"arg": arg}}

    fn.__annotations__ = {} if annotation is inspect.Parameter.empty else {"arg": annotation}
    return fn


@pytest.mark.parametrize(
    ("annotation", "value"), [(annotation, value) for annotation, values, _ in ANNOTATED for value in values], ids=str
)
def test_what_an_annotation_accepts(annotation: Any, value: Any) -> None:
    loss_fn = resolve_loss(annotated_with(annotation), arg=value)
    found = loss_fn({}, {})["auxiliary"]["arg"]
    assert type(loss_fn({}, {})["auxiliary"]["arg"]) is type(found)
    if isinstance(value, Tensor):
        assert torch.equal(found, value)
    else:
        assert found == (annotation(**value) if annotation is Schedule and isinstance(value, dict) else value)


@pytest.mark.parametrize(
    ("annotation", "value"), [(annotation, value) for annotation, _, values in ANNOTATED for value in values], ids=str
)
def test_what_an_annotation_refuses(annotation: Any, value: Any) -> None:
    fn = annotated_with(annotation)
    with pytest.raises(LossConfigError, match="arg") as caught:
        resolve_loss(fn, arg=value)
    assert caught.value.loc[0] == "arg"
    assert "tensor(" not in str(caught.value)
    fn.__defaults__ = (None,)
    with pytest.raises(LossConfigError, match="arg"):
        resolve_loss(fn)({}, {}, arg=value)


STRINGS = """
from __future__ import annotations
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from somewhere import Unknown
LIMIT = float

def function(outputs: Unknown, batch: Unknown, limit: LIMIT | None = None, other: Unknown = None):
    return 1.0

class Instance:
    def __call__(self, outputs, batch, limit: LIMIT | None = None, other: Unknown = None):
        return 1.0
    def method(self, outputs, batch, limit: LIMIT | None = None, other: Unknown = None):
        return 1.0

instance = Instance()
method = instance.method
import functools, torch
partial = functools.partial(function, other=1)

class Module(torch.nn.Module):
    def forward(self, outputs, batch, limit: LIMIT | None = None, other: Unknown = None):
        return 1.0
module = Module()
"""


@pytest.mark.parametrize("name", ["function", "instance", "method", "partial", "module"])
def test_annotations_that_are_strings_are_evaluated_where_they_stand(name: str) -> None:
    names: dict[str, Any] = {"__name__": "strings"}
    exec(compile(STRINGS, "<strings>", "exec", dont_inherit=True), names)
    loss_fn = resolve_loss(names[name], limit=2, other=object())
    assert loss_fn({}, {})["loss"] == 1.0
    with pytest.raises(LossConfigError, match="limit: expected a number or null, got 'high'"):
        resolve_loss(names[name], limit="high")


# Denominators


def counting(outputs: Any, batch: Any, num_items_in_batch: Any = None, **kwargs: Any) -> dict[str, Any]:
    return {"loss": 0.0, "auxiliary": {"items": num_items_in_batch, **kwargs}}


def test_a_callable_that_names_a_denominator_receives_it() -> None:
    loss_fn = resolve_loss(counting)
    assert loss_fn({}, {}, num_items_in_batch=3)["auxiliary"] == {"items": 3}
    assert loss_fn({}, {})["auxiliary"] == {"items": None}
    assert loss_fn({}, {"num_items_in_batch": 4})["auxiliary"] == {"items": 4}
    assert loss_fn({}, {"num_items_in_batch": 4}, num_items_in_batch=3)["auxiliary"] == {"items": 3}
    assert "num_items_in_batch" not in loss_fn.kwargs


@pytest.mark.parametrize("fn", [function, lenient, counting])
def test_a_callable_that_does_not_name_a_denominator_refuses_it(fn: Any) -> None:
    for name in ("num_items_in_batch", "num_sequences_in_batch"):
        if name in inspect.signature(fn).parameters:
            continue
        with pytest.raises(LossConfigError, match=f"does not declare {name}") as caught:
            resolve_loss(fn)(OUTPUTS, BATCH, **{name: 3})
        assert caught.value.loc == (name,)
        assert f"{name}=None" in (caught.value.hint or "")
        resolve_loss(fn)(OUTPUTS, BATCH, **{name: None})


def test_a_default_reduction_of_none_may_return_axes() -> None:
    def unreduced(outputs: Any, batch: Any, reduction: str = "none") -> Any:
        return outputs["x"]

    assert resolve_loss(unreduced)({"x": torch.ones(3)}, {})["loss"].shape == (3,)


def test_a_denominator_in_the_batch_is_left_to_the_callable() -> None:
    assert resolve_loss(function)(OUTPUTS, {**BATCH, "num_items_in_batch": 3})["loss"] == 2.0

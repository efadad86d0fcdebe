"""What one call of a typed loss does around `compute`: it looks and hands over, and does no work of its own."""

from collections import UserDict
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch._dynamo.exc import Unsupported
from torch.utils._python_dispatch import TorchDispatchMode

from support import run_child
from tensafe.training.losses import (
    ElementLoss,
    Elements,
    LossInputError,
    LossReturnError,
    ResolvedLoss,
    TensafeError,
    TokenLoss,
    resolve_loss,
)

ONE = torch.tensor(1.0)


class Constant(ElementLoss):
    """Two tensors in, one number out."""

    def compute(self, logits: Float[Tensor, "batch seq vocab"], labels: Int[Tensor, "batch seq"]) -> Elements:
        return Elements(ONE)


class Broken(ElementLoss):
    def compute(self, logits: Float[Tensor, "batch seq vocab"], labels: Int[Tensor, "batch seq"]) -> Elements:
        return {"loss": ONE}  # type: ignore[return-value]  # that is what is wrong


class Total(TokenLoss):
    def compute(self, logits: Float[Tensor, "batch seq vocab"], labels: Int[Tensor, "batch seq"]) -> Elements:
        return Elements(logits.sum())


class PerToken(TokenLoss):
    def compute(self, logits: Float[Tensor, "batch seq vocab"]) -> Elements:
        return Elements(logits[..., 0])


@pytest.fixture(autouse=True)
def _fresh_compiler(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "compiled" in request.node.name:
        torch._dynamo.reset()


def good() -> tuple[dict[str, Any], dict[str, Any]]:
    return {"logits": torch.zeros(2, 3, 4)}, {"labels": torch.zeros(2, 3, dtype=torch.int64)}


class Fault(NamedTuple):
    """A change of a good call, and what is said about it."""

    error: type[TensafeError]
    message: str
    change: Callable[[dict[str, Any], dict[str, Any]], Any]
    loss: type[ElementLoss] = Constant


FAULTS = {
    "dtype": Fault(
        LossInputError,
        "'labels' must be int[batch seq]; got float32[2, 3]. These are ids: x.long().",
        lambda outputs, batch: batch.update(labels=torch.zeros(2, 3)),
    ),
    "rank": Fault(
        LossInputError,
        "'logits' must be float[batch seq vocab]; got float32[2, 3].",
        lambda outputs, batch: outputs.update(logits=torch.zeros(2, 3)),
    ),
    "shared dim": Fault(
        LossInputError,
        "'labels' must be int[batch seq] with batch=2 (set by 'logits'), seq=3 (set by 'logits'); got int64[2, 4].",
        lambda outputs, batch: batch.update(labels=torch.zeros(2, 4, dtype=torch.int64)),
    ),
    "missing key": Fault(
        LossInputError,
        "'labels' (int[batch seq]) must be in outputs or batch; outputs has logits; batch has nothing.",
        lambda outputs, batch: batch.clear(),
    ),
    "not a tensor": Fault(
        LossInputError,
        "'logits' must be a tensor, float[batch seq vocab]; got str. Convert it: torch.as_tensor(x).",
        lambda outputs, batch: outputs.update(logits="text"),
    ),
    "wrong return": Fault(
        LossReturnError, "compute() must return Elements(values, ...); got dict.", lambda outputs, batch: None, Broken
    ),
}
every_fault = pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)


@every_fault
def test_a_fault_is_told(fault: Fault) -> None:
    outputs, batch = good()
    fault.change(outputs, batch)
    with pytest.raises(fault.error) as caught:
        resolve_loss(fault.loss)(outputs, batch)
    assert str(caught.value).startswith(f"{fault.loss.__qualname__}: {fault.message}")


@every_fault
def test_compiled_a_fault_is_told_at_trace_in_the_same_words(fault: Fault) -> None:
    outputs, batch = good()
    fault.change(outputs, batch)
    with pytest.raises(Unsupported) as caught:
        torch.compile(resolve_loss(fault.loss), fullgraph=True, backend="eager")(outputs, batch)
    text = str(caught.value).replace("\\'", "'")
    assert fault.message in text
    assert fault.error.__name__ in text


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch does not annotate it
    """Counts what torch is asked to do."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


def test_the_counter_of_operations_counts() -> None:
    with Operations() as operations:
        ONE.mean()
    assert operations.seen == ["aten.mean.default"]


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_what_fits_costs_no_operation_and_a_number_is_handed_on(reduction: str) -> None:
    loss_fn, (outputs, batch) = resolve_loss(Constant, reduction=reduction), good()
    with Operations() as operations:
        result = loss_fn(outputs, batch)
    assert operations.seen == []
    assert result == {"loss": ONE, "metrics": {}}
    assert result["loss"] is ONE


def giving(elements: Elements) -> ResolvedLoss:
    """A loss whose `compute` returns this."""

    class Given(ElementLoss):
        __qualname__ = "Given"

        def compute(self, logits: Float[Tensor, "batch seq vocab"]) -> Elements:
            return elements

    return resolve_loss(Given)


SEVERAL = torch.tensor([1.0, 2.0, 6.0])


@pytest.mark.parametrize(
    ("elements", "loss", "metrics"),
    [
        pytest.param(Elements(ONE.double()), 1.0, {}, id="float64"),
        pytest.param(Elements(ONE, torch.tensor(False)), 0.0, {}, id="a weight"),
        pytest.param(Elements(ONE, metrics={"half": 0.5}), 1.0, {"half": 0.5}, id="a metric"),
        pytest.param(Elements(SEVERAL), 3.0, {}, id="several values"),
        pytest.param(Elements(lambda: SEVERAL), 3.0, {}, id="values to be made"),
        pytest.param(Elements(lambda: SEVERAL, SEVERAL, dot=lambda c: c.sum()), 1.0, {}, id="fused"),
    ],
)
def test_what_is_more_than_a_number_is_reduced(elements: Elements, loss: float, metrics: dict[str, float]) -> None:
    assert giving(elements)(*good()) == {"loss": loss, "metrics": metrics}


@pytest.mark.parametrize("elements", [Elements(torch.tensor(1)), Elements(ONE, dot=torch.sum)], ids=["int", "dot"])
def test_what_is_no_number_is_refused(elements: Elements) -> None:
    with pytest.raises(LossReturnError, match=r"^Given: "):
        giving(elements)(*good())


def test_a_number_is_no_sequence() -> None:
    with pytest.raises(LossInputError, match="reduction sequence_mean averages over sequences"):
        resolve_loss(Total, reduction="sequence_mean")(*good())


@pytest.mark.parametrize("where", ["call", "batch", "call before batch"])
@pytest.mark.parametrize(
    ("reduction", "name"), [("mean", "num_items_in_batch"), ("sequence_sum", "num_sequences_in_batch")]
)
def test_a_denominator_comes_from_the_call_else_from_the_batch(reduction: str, name: str, where: str) -> None:
    loss_fn = resolve_loss(PerToken, reduction=reduction)
    outputs, expected = {"logits": torch.ones(2, 3, 4)}, 6 / 8
    if where == "call":
        assert loss_fn(outputs, {}, **{name: 8})["loss"] == expected
    elif where == "batch":
        assert loss_fn(outputs, {name: 8})["loss"] == expected
    else:
        assert loss_fn(outputs, {name: 100}, **{name: 8})["loss"] == expected
        assert loss_fn(outputs, {name: 100}, **{name: None})["loss"] == loss_fn(outputs, {})["loss"]


def test_a_call_leaves_the_loss_as_it_was() -> None:
    loss_fn = resolve_loss(Constant)
    before = {name: id(value) for name, value in vars(loss_fn).items()}
    outputs, batch = good()
    loss_fn(outputs, batch)
    loss_fn({"logits": outputs["logits"].tolist()}, batch, num_items_in_batch=2)
    with torch.autocast("cpu"):
        loss_fn(outputs, batch)
    assert {name: id(value) for name, value in vars(loss_fn).items()} == before


CONTAINERS = {"UserDict": UserDict, "namespace": lambda items: SimpleNamespace(**items)}


@pytest.mark.parametrize("wrap", CONTAINERS.values(), ids=CONTAINERS)
def test_compiled_it_reads_any_mapping_or_object(wrap: Callable[[dict[str, Any]], Any]) -> None:
    outputs, batch = good()
    outputs["logits"] += 1
    loss_fn = resolve_loss(Total)
    compiled = torch.compile(loss_fn, fullgraph=True, backend="eager")
    for count in ({}, {"num_items_in_batch": torch.tensor(6)}):
        given = wrap(outputs), wrap({**batch, **count})
        assert compiled(*given)["loss"] == loss_fn(*given)["loss"]


class Product(ElementLoss):
    """What autocast would compute in 16 bits."""

    def compute(self, logits: Float[Tensor, "batch seq vocab"]) -> Elements:
        product = logits @ logits.mT
        return Elements(product, metrics={"autocast": float(torch.is_autocast_enabled("cpu"))})


LOGITS = torch.linspace(0, 1, 24).reshape(2, 3, 4)


@pytest.mark.parametrize("logits", [LOGITS, LOGITS.tolist()], ids=["tensor", "list"])
def test_autocast_is_off_inside_and_as_it_was_outside(logits: Any) -> None:
    loss_fn = resolve_loss(Product)
    expected = loss_fn({"logits": LOGITS}, {})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert loss_fn({"logits": logits}, {}) == expected
        assert torch.is_autocast_enabled("cpu")
    assert expected["metrics"] == {"autocast": 0.0}


def test_compiled_autocast_is_off_inside_whatever_came_first() -> None:
    loss_fn = resolve_loss(Product)
    compiled = torch.compile(loss_fn, fullgraph=True, backend="eager")
    expected = loss_fn({"logits": LOGITS}, {})
    for enabled in (False, True, False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            assert compiled({"logits": LOGITS}, {}) == expected


@pytest.fixture
def _autocast_elsewhere() -> Iterator[None]:
    torch.set_autocast_enabled("cuda", True)
    yield
    torch.set_autocast_enabled("cuda", False)


@pytest.mark.usefixtures("_autocast_elsewhere")
def test_autocast_of_another_device_makes_no_difference() -> None:
    loss_fn = resolve_loss(Product)
    loss = loss_fn({"logits": LOGITS}, {})["loss"]
    assert loss == (LOGITS @ LOGITS.mT).mean()
    assert loss_fn({"logits": LOGITS.to("meta")}, {})["loss"].dtype is torch.float32


@pytest.mark.parametrize("error", [KeyError("x"), IndexError("x"), RuntimeError("x"), ZeroDivisionError()], ids=repr)
def test_what_compute_raises_comes_out_as_it_is(error: Exception) -> None:
    class Raises(ElementLoss):
        def compute(self, logits: Float[Tensor, "batch seq vocab"]) -> Elements:
            raise error

    with pytest.raises(type(error)) as caught:
        resolve_loss(Raises)(*good())
    assert caught.value is error
    assert error.__context__ is None


class Picky(ElementLoss):
    """Fails where its `Elements` are reduced."""

    def compute(self, logits: Float[Tensor, "batch seq vocab"]) -> Elements:
        def fail(*coefficients: Tensor) -> Tensor:
            raise IndexError("deep inside")

        return Elements(fail, torch.ones(2, 3), dot=fail)

    def explain(self, logits: Float[Tensor, "batch seq vocab"]) -> str:
        return "the values do not fit."


@pytest.mark.parametrize("logits", [LOGITS, LOGITS.tolist()], ids=["tensor", "list"])
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_what_fails_in_the_reduction_is_explained_like_what_fails_in_compute(reduction: str, logits: Any) -> None:
    with pytest.raises(LossInputError, match=r"^Picky: the values do not fit\.$") as caught:
        resolve_loss(Picky, reduction=reduction)({"logits": logits}, {})
    assert caught.value.code == "invalid-values"
    assert isinstance(caught.value.__cause__, IndexError)


LATE = """
import sys
from tensafe.training.losses import resolve_loss

first, second = resolve_loss("mse"), resolve_loss("token_ce", shift=False)
assert "torch" not in sys.modules

import torch
from torch._dynamo.testing import CompileCounterWithBackend

values = torch.arange(6.0).reshape(2, 3)
print(first({"predictions": values}, {"targets": values + 2})["loss"].item())
print(first({"predictions": values}, {"targets": values + 2})["loss"].item())

counter = CompileCounterWithBackend("eager")
compiled = torch.compile(second, fullgraph=True, backend=counter)
for size in (3, 3, 4, 6, 9, 13, 20):
    logits, labels = torch.zeros(size, size + 1, 4), torch.zeros(size, size + 1, dtype=torch.int64)
    loss = compiled({"logits": logits}, {"labels": labels})["loss"].item()
    assert abs(loss - 1.3862944) < 1e-6
    print(counter.frame_count)
assert second({"logits": logits}, {"labels": labels})["loss"].item() == loss
"""


def test_a_loss_that_was_resolved_before_torch_was_imported_is_whole() -> None:
    assert run_child(LATE).split() == ["4.0", "4.0", "1", "1", "2", "2", "2", "2", "2"]

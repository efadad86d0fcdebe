"""Numbers that change with the step, and how a call tells the step to the losses inside."""

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from reference import loss_and_gradients
from tensafe.training.losses import (
    LOSS_REGISTRY,
    Loss,
    LossConfigError,
    LossInputError,
    ResolvedLoss,
    register_loss,
    resolve_loss,
)
from tensafe.training.losses.schedules import Constant, Cosine, Linear, Schedule, Step
from tensafe.training.losses.schema import loss_schema

P, Q = {"predictions": torch.tensor([1.0, 4.0])}, {"targets": torch.tensor([1.0, 2.0])}
MSE = 2.0
RISE = {"schedule": "linear", "start": 0.0, "end": 1.0, "steps": 10}


def term(**schedule: Any) -> dict[str, Any]:
    return {"type": "mse", "weight": schedule}


def weighted(*terms: Any) -> ResolvedLoss:
    return resolve_loss("weighted_sum", losses=list(terms))


# The formulas

TABLE: dict[str, tuple[Schedule, dict[int, float]]] = {
    "constant": (Constant(start=-2.0), {0: -2.0, 10**9: -2.0}),
    "linear": (Linear(start=1.0, end=3.0, steps=4), {0: 1.0, 1: 1.5, 3: 2.5, 4: 3.0, 5: 3.0, 10**12: 3.0}),
    "linear, down": (Linear(start=1.0, end=-1.0, steps=4), {0: 1.0, 2: 0.0, 4: -1.0}),
    "linear, warmup": (Linear(start=0.0, end=1.0, steps=4, warmup=3), {0: 0.0, 3: 0.0, 4: 0.25, 7: 1.0, 8: 1.0}),
    "cosine": (Cosine(start=1.0, end=3.0, steps=4), {0: 1.0, 1: 2 - math.sqrt(0.5), 2: 2.0, 4: 3.0, 9: 3.0}),
    "cosine, warmup": (Cosine(start=1.0, end=0.0, steps=2, warmup=1), {0: 1.0, 1: 1.0, 2: 0.5, 3: 0.0, 4: 0.0}),
    "step": (Step(start=0.0, end=5.0, steps=3), {0: 0.0, 2: 0.0, 3: 5.0, 4: 5.0}),
    "at once": (Linear(start=0.0, end=1.0, steps=1), {0: 0.0, 1: 1.0}),
}


@pytest.mark.parametrize(
    ("schedule", "step", "expected"),
    [
        pytest.param(each, step, it, id=f"{name}-{step}")
        for name, (each, at) in TABLE.items()
        for step, it in at.items()
    ],
)
def test_a_number_by_hand(schedule: Schedule, step: int, expected: float) -> None:
    assert schedule.at(step) == pytest.approx(expected, abs=1e-15)
    for dtype in (torch.float64, torch.float32):
        as_tensor = schedule.at(torch.tensor(step), dtype)
        assert float(as_tensor) == pytest.approx(expected, abs=2 * torch.finfo(dtype).eps)
        assert not isinstance(as_tensor, Tensor) or as_tensor.dtype is dtype


@given(
    st.sampled_from([Linear, Cosine]),
    st.floats(-1e3, 1e3),
    st.floats(-1e3, 1e3),
    st.integers(1, 10**6),
    st.integers(0, 10**6),
    st.integers(0, 3 * 10**6),
)
def test_a_ramp_is_that_of_the_formula(kind: Any, start: float, end: float, steps: int, warmup: int, step: int) -> None:
    progress = min(1.0, max(0.0, (step - warmup) / steps))
    share = progress if kind is Linear else 0.5 * (1 - math.cos(math.pi * progress))
    number = kind(start=start, end=end, steps=steps, warmup=warmup).at(step)
    assert number == pytest.approx(start + (end - start) * share, abs=1e-9)
    assert number == start if step <= warmup else min(start, end) - 1e-9 <= number <= max(start, end) + 1e-9
    assert number == end or step < warmup + steps


# In a weighted sum


def test_the_weight_of_a_term_follows_its_schedule() -> None:
    loss_fn = weighted(term(**RISE), {"type": "mse", "name": "whole"})
    for step in (0, 3, 10, 50):
        result = loss_fn(P, Q, step=step)
        share = min(step / 10, 1.0)
        assert result["loss"].item() == pytest.approx((1 + share) * MSE)
        assert result["metrics"]["mse/weight"] == pytest.approx(share)
        assert result["metrics"]["whole/weight"] == 1.0
        assert result["metrics"]["mse/loss"] == MSE


@pytest.mark.parametrize(
    "step", [7, torch.tensor(7), torch.tensor(7, dtype=torch.int32)], ids=["int", "int64", "int32"]
)
def test_a_step_may_be_a_number_or_a_tensor_in_the_call_or_in_the_batch(step: Any) -> None:
    loss_fn = weighted(term(**RISE))
    in_call, in_batch = loss_fn(P, Q, step=step), loss_fn(P, {**Q, "step": step})
    assert in_call["loss"].item() == pytest.approx(0.7 * MSE)
    assert torch.equal(in_call["loss"], in_batch["loss"])
    assert in_call["loss"].dtype is torch.float32
    assert float(in_call["metrics"]["mse/weight"]) == pytest.approx(0.7)


def test_the_call_goes_before_the_batch() -> None:
    assert weighted(term(**RISE))(P, {**Q, "step": 10}, step=0)["loss"] == 0.0
    assert weighted(term(**RISE))(P, {**Q, "step": 10}, step=None)["loss"] == MSE


def test_float64_stays_exact() -> None:
    outputs, batch = ({name: value.double() for name, value in side.items()} for side in (P, Q))
    schedule = {"schedule": "linear", "start": 0.0, "end": 1.0, "steps": 3}
    assert weighted(term(**schedule))(outputs, batch, step=torch.tensor(1))["loss"].item() == MSE / 3


@pytest.mark.parametrize("step", [0, torch.tensor(0)], ids=["int", "tensor"])
@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_a_weight_that_is_0_just_now_adds_nothing_even_where_the_term_is_infinite(bad: float, step: Any) -> None:
    loss_fn = weighted(term(**RISE), {"type": "margin_ranking"})
    outputs = {
        "predictions": torch.tensor([bad, 0.0]),
        "chosen_scores": torch.zeros(1),
        "rejected_scores": torch.ones(1),
    }
    loss, gradients = loss_and_gradients(loss_fn, outputs, Q, step=step)
    assert loss == 2.0
    assert gradients["predictions"][1] == 0.0


@pytest.mark.parametrize("step", [4, torch.tensor(4)], ids=["int", "tensor"])
def test_the_gradient_is_scaled_too(step: Any) -> None:
    _, whole = loss_and_gradients(resolve_loss("mse"), P, Q)
    _, scaled = loss_and_gradients(weighted(term(**RISE)), P, Q, step=step)
    torch.testing.assert_close(scaled["predictions"], 0.4 * whole["predictions"])


def test_sums_inside_are_told_the_step() -> None:
    inner = {"type": "weighted_sum", "weight": 2.0, "kwargs": {"losses": [term(**RISE), "mse"]}}
    loss_fn = weighted("mse", inner, {"type": "weighted_sum", "kwargs": {"losses": ["mse"]}})
    expected = MSE + 2 * (0.5 * MSE + MSE) + MSE
    for result in (loss_fn(P, Q, step=5), loss_fn(P, {**Q, "step": torch.tensor(5)})):
        assert result["loss"].item() == pytest.approx(expected)
        assert float(result["metrics"]["weighted_sum_1/mse_0/weight"]) == 0.5


def test_a_sum_inside_does_not_take_the_counts_of_the_one_around_it() -> None:
    inner = {"type": "weighted_sum", "kwargs": {"losses": ["mse", "mse"]}}
    loss_fn = weighted(inner, "mse")
    for counts in ([None, 8], [[8, 8], None]):
        expected = 2 * MSE + 4 / 8 if counts[1] else 4 / 8 + 4 / 8 + MSE
        assert loss_fn(P, Q, num_items_in_batch=counts)["loss"] == expected
        assert loss_fn(P, {**Q, "num_items_in_batch": counts})["loss"] == expected


# Without a step, with a wrong one, with one too many


def test_a_schedule_without_a_step_is_refused() -> None:
    with pytest.raises(LossInputError, match=r"^weighted_sum: a schedule needs the step .* step=\.\.\.") as caught:
        weighted(term(**RISE))(P, Q)
    assert (caught.value.code, caught.value.loc) == ("missing-step", ("step",))


@pytest.mark.parametrize(
    ("step", "got"),
    [
        (-1, "-1"),
        (True, "True"),
        (1.0, "1.0"),
        ("1", "'1'"),
        (torch.tensor(1.0), "a tensor of shape [], float32"),
        (torch.tensor([1]), "a tensor of shape [1], int64"),
        (torch.tensor(True), "a tensor of shape [], bool"),
    ],
    ids=str,
)
def test_a_step_that_is_none_is_refused(step: Any, got: str) -> None:
    for call in ({}, {"step": step}):
        with pytest.raises(LossInputError, match=r"^weighted_sum: step must be an int >= 0 or a 0-d") as caught:
            weighted(term(**RISE))(P, Q if call else {**Q, "step": step}, **call)
        assert str(caught.value).endswith(f"got {got}.")


@pytest.mark.parametrize("loss", [weighted("mse"), weighted(weighted("mse"))], ids=["sum", "sum of sums"])
def test_a_step_that_nothing_takes_is_refused_in_a_call_and_ignored_in_a_batch(loss: ResolvedLoss) -> None:
    with pytest.raises(LossConfigError, match=r"^weighted_sum: nothing in it has a schedule, so step has no effect"):
        loss(P, Q, step=1)
    assert loss(P, {**Q, "step": "of another kind"})["loss"] == MSE
    assert loss(P, Q, step=None)["loss"] == MSE


def test_other_losses_take_no_step() -> None:
    with pytest.raises(LossConfigError, match=r"^mse: step: unknown argument of mse"):
        resolve_loss("mse")(P, Q, step=1)
    assert resolve_loss("mse")(P, {**Q, "step": 1})["loss"] == MSE


def test_step_is_no_kwarg() -> None:
    with pytest.raises(LossConfigError, match="unknown argument of weighted_sum"):
        resolve_loss("weighted_sum", losses=["mse"], step=1)  # type: ignore[arg-type]


class Doubling(Loss):
    """A combinator that takes a step and knows no counts."""

    def __call__(self, outputs: Any, batch: Any, *, step: int = 0) -> Any:
        return {"loss": torch.tensor(2.0) ** step}


class Deaf(Loss):
    """A combinator that takes no step."""

    def __call__(self, outputs: Any, batch: Any) -> Any:
        return {"loss": torch.tensor(1.0)}


def test_a_combinator_of_ones_own_may_declare_it() -> None:
    assert resolve_loss(Doubling())(P, Q, step=3)["loss"] == 8.0
    assert resolve_loss(Doubling())(P, Q)["loss"] == 1.0
    with pytest.raises(LossConfigError, match="does not declare num_items_in_batch"):
        resolve_loss(Doubling())(P, Q, num_items_in_batch=3)
    with pytest.raises(LossConfigError, match="step: unknown argument of Deaf"):
        resolve_loss(Deaf())(P, Q, step=3)


# What a config says

REFUSED = [
    ("no name", {"start": 1}, ("schedule",), "one of constant, linear, cosine, step"),
    ("unknown", {"schedule": "linaer", "start": 1}, ("schedule",), "did you mean linear?"),
    ("no string", {"schedule": ["linear"], "start": 1}, ("schedule",), "got list"),
    ("no start", {"schedule": "constant"}, ("start",), "required argument of the schedule constant"),
    ("no end", {"schedule": "step", "start": 1, "steps": 2}, ("end",), "required argument of the schedule step"),
    ("no steps", {"schedule": "linear", "start": 1, "end": 0}, ("steps",), "an integer >= 1"),
    ("steps 0", {**RISE, "steps": 0}, ("steps",), "expected an integer >= 1, got 0"),
    ("half a step", {**RISE, "steps": 1.5}, ("steps",), "got 1.5"),
    ("warmup < 0", {**RISE, "warmup": -1}, ("warmup",), "expected an integer >= 0, got -1"),
    ("inf", {**RISE, "end": math.inf}, ("end",), "expected a finite number, got inf"),
    ("nan", {**RISE, "start": math.nan}, ("start",), "got nan"),
    ("bool", {**RISE, "start": True}, ("start",), "got True"),
    ("typo", {**RISE, "wramup": 1}, ("wramup",), "did you mean warmup?"),
    (
        "constant with an end",
        {"schedule": "constant", "start": 1, "end": 2},
        ("end",),
        "unknown argument of the schedule constant",
    ),
    (
        "step with a warmup",
        {**RISE, "schedule": "step", "warmup": 1},
        ("warmup",),
        "unknown argument of the schedule step",
    ),
    ("no mapping", "linear", (), "expected a number or a mapping, got 'linear'"),
]


@pytest.mark.parametrize(("weight", "loc", "part"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_a_wrong_schedule_is_refused_at_its_path(weight: Any, loc: tuple[str, ...], part: str) -> None:
    with pytest.raises(LossConfigError) as caught:
        weighted("mse", {"type": "mse", "weight": weight})
    assert caught.value.loc == ("losses", 1, "weight", *loc)
    assert len(caught.value.problems) == 1
    assert part in str(caught.value)


def test_every_mistake_is_reported_at_once() -> None:
    with pytest.raises(LossConfigError) as caught:
        weighted(term(**{**RISE, "start": "x", "steps": 0}), {"type": "msee"})
    places = [problem.loc[1:] for problem in caught.value.problems]
    assert places == [(0, "weight", "start"), (0, "weight", "steps"), (1, "type")]


@pytest.mark.parametrize(
    "weight",
    [
        RISE,
        {**RISE, "schedule": "cosine", "warmup": 5},
        {**RISE, "schedule": "step"},
        {"schedule": "constant", "start": 2},
    ],
    ids=lambda weight: weight["schedule"],
)
def test_a_loss_with_a_schedule_is_a_value(weight: dict[str, Any]) -> None:
    loss_fn = weighted(term(**weight), "mse")
    assert loss_fn.to_config()["kwargs"]["losses"][0]["weight"] == weight
    for again in (resolve_loss(loss_fn.to_config()), pickle.loads(pickle.dumps(loss_fn)), copy.deepcopy(loss_fn)):
        assert again == loss_fn
        assert again(P, Q, step=4)["loss"] == loss_fn(P, Q, step=4)["loss"]
    assert loss_fn != weighted(term(**{**weight, "start": 3}), "mse")


def test_a_schedule_may_be_given_as_an_object() -> None:
    made = weighted({"type": "mse", "weight": Linear(start=0.0, end=1.0, steps=10)})
    assert made(P, Q, step=5)["loss"] == MSE / 2
    assert made.to_config() == weighted(term(**RISE)).to_config()


def test_the_schema_knows_each_schedule_and_its_keys() -> None:
    weight = loss_schema("weighted_sum")["definitions"]["weighted_sum.WeightedTerm"]["properties"]["weight"]
    assert weight["type"] == ["number", "object"]
    assert set(weight["properties"]) == {"schedule", "start", "end", "steps", "warmup"}
    names = [each["const"] for each in weight["properties"]["schedule"]["anyOf"]]
    assert names == ["constant", "linear", "cosine", "step"]
    assert weight["default"] == 1.0


# Registered under a name of its own


@pytest.mark.usefixtures("isolated_registry")
def test_a_composition_may_be_registered() -> None:
    instance: Any = LOSS_REGISTRY["weighted_sum"](losses=[term(**RISE), "mse"])
    register_loss("an_instance", instance)
    register_loss("resolved", weighted(term(**RISE), "mse"))
    for name in ("an_instance", "resolved"):
        assert resolve_loss(name)(P, Q, step=5)["loss"] == 1.5 * MSE
        assert resolve_loss(name, metrics=False)(P, Q, step=5)["metrics"] == {}
        assert resolve_loss(resolve_loss(name).to_config())(P, Q, step=5)["loss"] == 1.5 * MSE
        outer = weighted({"type": name, "weight": 2.0}, "mse")
        assert outer(P, Q, step=5)["loss"] == 4 * MSE
        assert loss_schema(name)["title"] == name
        assert "required" not in loss_schema(name)


# Compiled


@pytest.mark.parametrize(
    ("as_step", "most_graphs"), [pytest.param(int, 2, id="int"), pytest.param(torch.tensor, 1, id="tensor")]
)
def test_one_graph_serves_all_steps(as_step: Any, most_graphs: int) -> None:
    loss_fn = weighted(term(**{**RISE, "schedule": "cosine"}))
    graphs: list[Any] = []

    def keep(graph: Any, example_inputs: Any) -> Any:
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    compiled: Any = torch.compile(loss_fn, fullgraph=True, backend=keep)
    for step in (0, 4, 11):
        torch.testing.assert_close(compiled(P, Q, step=as_step(step))["loss"], loss_fn(P, Q, step=step)["loss"])
    torch._dynamo.reset()
    assert 1 <= len(graphs) <= most_graphs


def test_it_runs_under_vmap() -> None:
    loss_fn = weighted(term(**RISE), "mse")
    outputs, batch = {"predictions": torch.ones(3, 2)}, {"targets": torch.zeros(3, 2)}

    def of_one(outputs: Any, batch: Any, step: Tensor) -> Any:
        return loss_fn(outputs, batch, step=step)["loss"]

    steps = torch.tensor([0, 5, 20])
    losses = torch.vmap(of_one)(outputs, batch, steps)
    torch.testing.assert_close(losses, torch.tensor([1.0, 1.5, 2.0]))

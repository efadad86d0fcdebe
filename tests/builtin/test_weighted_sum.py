import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from reference import elements, loss_and_gradients, mse, reduced, token_ce
from strategies import Tokens, tokens, twins
from tensafe.training.losses import LossConfigError, LossInputError, ResolvedLoss, resolve_loss

P, Q = torch.tensor([1.0, 4.0]), torch.tensor([1.0, 2.0])
PAIRS = {"chosen_scores": torch.tensor([0.0]), "rejected_scores": torch.tensor([2.0])}
OUTPUTS, BATCH = {"predictions": P, **PAIRS}, {"targets": Q}
MSE, RANKING = 2.0, 3.0


def resolve(*terms: Any, **kwargs: Any) -> ResolvedLoss:
    return resolve_loss("weighted_sum", losses=list(terms), **kwargs)


@pytest.mark.parametrize(
    ("terms", "expected"),
    [
        pytest.param(["mse"], MSE, id="one name"),
        pytest.param(["mse", "margin_ranking"], MSE + RANKING, id="two names"),
        pytest.param([{"type": "mse", "weight": 0.5}, "margin_ranking"], MSE / 2 + RANKING, id="weight"),
        pytest.param([{"type": "mse", "weight": 2}, {"type": "mse", "weight": -1}], MSE, id="negative weight"),
        pytest.param([{"type": "mse", "weight": 0}, "margin_ranking"], RANKING, id="weight 0"),
        pytest.param([{"type": "mse", "weight": 0.0}], 0.0, id="only weight 0"),
        pytest.param([{"type": "mse", "kwargs": {"reduction": "sum"}}], 2 * MSE, id="kwargs"),
        pytest.param([{"type": "margin_ranking", "kwargs": {"margin": 0}, "weight": 3}], 6.0, id="all keys"),
        pytest.param([{"type": "mse", "inputs": {"predictions": "targets"}}], 0.0, id="inputs"),
        pytest.param([resolve_loss("mse"), resolve_loss("margin_ranking")], MSE + RANKING, id="resolved losses"),
        pytest.param([{"loss": resolve_loss("mse"), "weight": 2.0}], 2 * MSE, id="a resolved loss with a weight"),
        pytest.param(
            [{"type": "weighted_sum", "weight": 2.0, "kwargs": {"losses": ["mse", {"type": "mse", "weight": 0.5}]}}],
            3 * MSE,
            id="nested",
        ),
    ],
)
def test_a_loss_by_hand(terms: list[Any], expected: float) -> None:
    loss = resolve(*terms)(OUTPUTS, BATCH)["loss"]
    assert loss.shape == ()
    assert loss == expected


@given(tokens(), twins(), st.floats(-3, 3), st.floats(-3, 3))
def test_the_sum_of_the_formulas(drawn: Tokens, pair: tuple[Tensor, Tensor], first: float, second: float) -> None:
    loss_fn = resolve({"type": "token_ce", "weight": first}, {"type": "mse", "weight": second})
    # the last alias of targets is labels, and the first of predictions is logits
    outputs, batch = {**drawn.outputs, "predictions": pair[0]}, {**drawn.batch, "targets": pair[1]}
    expected = first * reduced(token_ce(*drawn), "mean") + second * reduced(elements(mse(*pair)), "mean")
    assert loss_fn(outputs, batch)["loss"].item() == pytest.approx(expected, rel=1e-10, abs=1e-10)


def test_the_gradient_is_the_weighted_sum_of_gradients() -> None:
    _, alone = loss_and_gradients(resolve_loss("mse"), {"predictions": P}, BATCH)
    _, both = loss_and_gradients(
        resolve({"type": "mse", "weight": 0.5}, {"type": "mse", "kwargs": {"reduction": "sum"}, "weight": 3.0}),
        {"predictions": P},
        BATCH,
    )
    torch.testing.assert_close(both["predictions"], 0.5 * alone["predictions"] + 6.0 * alone["predictions"])


# Metrics


def test_metrics_say_what_each_term_gave() -> None:
    terms = [{"type": "mse", "weight": 0.5}, "margin_ranking", {"type": "mse", "name": "aux"}]
    metrics = resolve(*terms)(OUTPUTS, BATCH)["metrics"]
    assert metrics == {
        "mse/loss": MSE,
        "mse/weight": 0.5,
        "margin_ranking/loss": RANKING,
        "margin_ranking/weight": 1.0,
        "margin_ranking/accuracy": 0.0,
        "aux/loss": MSE,
        "aux/weight": 1.0,
    }
    assert all(not value.requires_grad for value in metrics.values() if isinstance(value, Tensor))


def test_terms_of_one_name_are_numbered_and_metrics_may_be_left_out() -> None:
    metrics = resolve("mse", "margin_ranking", "mse")(OUTPUTS, BATCH)["metrics"]
    losses = [name for name in metrics if name.endswith("/loss")]
    assert losses == ["mse_0/loss", "margin_ranking/loss", "mse_2/loss"]
    assert resolve("mse", "margin_ranking", metrics=False)(OUTPUTS, BATCH)["metrics"] == {}
    quiet = resolve({"type": "margin_ranking", "kwargs": {"metrics": False}})(OUTPUTS, BATCH)["metrics"]
    assert set(quiet) == {"margin_ranking/loss", "margin_ranking/weight"}


def test_metrics_hold_no_graph() -> None:
    leaf = P.clone().requires_grad_()
    result = resolve("mse", "margin_ranking")({**OUTPUTS, "predictions": leaf}, BATCH)
    assert result["loss"].requires_grad
    assert not any(isinstance(value, Tensor) and value.requires_grad for value in result["metrics"].values())


# Terms that are off, infinite, of other dtypes


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_a_term_of_weight_0_adds_nothing_even_where_it_is_infinite(bad: float) -> None:
    outputs = {**OUTPUTS, "predictions": torch.tensor([bad, 0.0])}
    loss_fn = resolve({"type": "mse", "weight": 0.0}, "margin_ranking")
    loss, gradients = loss_and_gradients(loss_fn, outputs, BATCH)
    assert loss == RANKING
    assert gradients["predictions"][1] == 0.0
    assert not loss_fn(outputs, BATCH)["metrics"]["mse/loss"] < math.inf


def test_a_term_that_is_not_finite_is_passed_on() -> None:
    outputs = {**OUTPUTS, "predictions": torch.tensor([math.nan, 0.0])}
    assert resolve({"type": "mse", "weight": 1e-30}, "margin_ranking")(outputs, BATCH)["loss"].isnan()


@pytest.mark.parametrize("order", [1, -1])
def test_terms_of_different_widths_add_up_in_the_wider_one(order: int) -> None:
    outputs = {**OUTPUTS, "predictions": P.double() + 1e-12}
    loss = resolve(*["mse", "margin_ranking"][::order])(outputs, {"targets": Q.double()})["loss"]
    assert loss.dtype is torch.float64
    assert loss.item() == pytest.approx(MSE + RANKING, rel=1e-11)
    assert resolve("mse", "margin_ranking")({**OUTPUTS, "predictions": P.half()}, BATCH)["loss"].dtype is torch.float32


def test_every_term_may_have_nothing_to_learn() -> None:
    outputs = {"logits": torch.ones(1, 1, 3), "predictions": torch.ones(0)}
    batch = {"labels": torch.zeros(1, 1).long(), "targets": torch.ones(0)}
    loss, gradients = loss_and_gradients(resolve("token_ce", "mse"), outputs, batch)
    assert loss == 0.0
    assert torch.equal(gradients["logits"], torch.zeros(1, 1, 3))


# Denominators


def test_each_term_has_its_own_count() -> None:
    loss_fn = resolve("mse", "margin_ranking")
    for items in ([8, 6], (8, 6), [torch.tensor(8), 6.0]):
        assert loss_fn(OUTPUTS, BATCH, num_items_in_batch=items)["loss"] == 4 / 8 + RANKING / 6
        assert loss_fn(OUTPUTS, {**BATCH, "num_items_in_batch": items})["loss"] == 4 / 8 + RANKING / 6
    assert loss_fn(OUTPUTS, BATCH, num_items_in_batch=[None, 6])["loss"] == MSE + RANKING / 6
    assert loss_fn(OUTPUTS, BATCH, num_items_in_batch=None)["loss"] == MSE + RANKING


def test_sequences_are_counted_apart() -> None:
    loss_fn = resolve({"type": "token_ce", "kwargs": {"reduction": "sequence_sum"}}, "mse")
    outputs, batch = {"logits": torch.zeros(1, 2, 4), "predictions": P}, {"labels": torch.zeros(1, 2).long(), **BATCH}
    loss = loss_fn(outputs, batch, num_sequences_in_batch=[2, None], num_items_in_batch=[None, 4])["loss"]
    assert loss.item() == pytest.approx(math.log(4) / 2 + 4 / 4)


@pytest.mark.parametrize("name", ["num_items_in_batch", "num_sequences_in_batch"])
@pytest.mark.parametrize(
    ("count", "parts"),
    [
        (8, ["one entry per term", "got one number", "=[...]"]),
        (torch.tensor(8), ["one entry per term", "got one number"]),
        ([8], ["one entry per term, 2; got 1"]),
        ([8, 6, 4], ["one entry per term, 2; got 3"]),
    ],
    ids=["number", "tensor", "too few", "too many"],
)
def test_one_count_for_terms_that_count_different_things_is_refused(name: str, count: Any, parts: list[str]) -> None:
    for call in ({}, {name: count}):
        batch = BATCH if call else {**BATCH, name: count}
        with pytest.raises(LossInputError, match=f"^weighted_sum: {name} must") as caught:
            resolve("mse", "margin_ranking")(OUTPUTS, batch, **call)
        assert [part for part in parts if part not in str(caught.value)] == []


def test_a_bad_count_of_a_term_is_refused_by_the_term() -> None:
    with pytest.raises(LossInputError, match=r"^margin_ranking: num_items_in_batch must be a number >= 0.*got -1"):
        resolve("mse", "margin_ranking")(OUTPUTS, BATCH, num_items_in_batch=[None, -1])


# Refusals


REFUSED = [
    ("no term", [], ("losses",), "at least 1"),
    ("unknown", ["msee"], ("losses", 0), "did you mean mse?"),
    ("unknown type", ["mse", {"type": "msee"}], ("losses", 1, "type"), "did you mean mse?"),
    ("typo", ["mse", {"type": "mse", "kwargs": {"margn": 1}}], ("losses", 1, "kwargs", "margn"), "unknown argument"),
    ("typo in a key", [{"type": "mse", "wieght": 1}], ("losses", 0, "wieght"), "did you mean weight?"),
    ("inf", [{"type": "mse", "weight": math.inf}], ("losses", 0, "weight"), "got inf"),
    ("nan", [{"type": "mse", "weight": math.nan}], ("losses", 0, "weight"), "got nan"),
    ("True", [{"type": "mse", "weight": True}], ("losses", 0, "weight"), "got True"),
    ("tensor", [{"type": "mse", "weight": torch.tensor(1.0)}], ("losses", 0, "weight"), "got Tensor"),
    ("none", [{"type": "mse", "kwargs": {"reduction": "none"}}], ("losses", 0, "kwargs", "reduction"), "one number"),
    (
        "logits overwritten",
        ["mse", {"type": "token_ce", "kwargs": {"overwrite_logits": True}}],
        ("losses", 1, "kwargs", "overwrite_logits"),
        "another may need them",
    ),
    (
        "logits overwritten by a resolved loss",
        [resolve_loss("token_ce", overwrite_logits=True)],
        ("losses", 0, "kwargs", "overwrite_logits"),
        "cannot overwrite the logits",
    ),
    ("name twice", [{"type": "mse", "name": "a"}, {"type": "mse", "name": "a"}], ("losses", 1, "name"), "'a' already"),
]


@pytest.mark.parametrize(("terms", "loc", "part"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_a_wrong_term_is_refused_at_its_path(terms: list[Any], loc: tuple[Any, ...], part: str) -> None:
    with pytest.raises(LossConfigError) as caught:
        resolve(*terms)
    assert caught.value.loc == loc
    assert part in str(caught.value)


def test_what_a_term_misses_is_said_by_the_term() -> None:
    with pytest.raises(LossInputError, match=r"^margin_ranking: 'chosen_scores'.*outputs has predictions; batch has"):
        resolve("mse", "margin_ranking")({"predictions": P}, BATCH)


def test_an_override_reaches_only_its_own_fields() -> None:
    loss_fn = resolve("mse")
    assert loss_fn(OUTPUTS, BATCH, metrics=False)["metrics"] == {}
    with pytest.raises(LossConfigError, match="unknown argument of weighted_sum"):
        loss_fn(OUTPUTS, BATCH, reduction="sum")

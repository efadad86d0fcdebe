import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reference import loss_and_gradients
from references.tokens import (
    LN3,
    Weighted,
    assert_nothing_where_nothing_counts,
    assert_reduced,
    assert_slopes,
    focal,
    resolve,
    weighted_tokens,
)
from tensafe.training.losses import LossConfigError, LossInputError

pytestmark = pytest.mark.usefixtures("path")
kwargs_of = st.fixed_dictionaries(
    {"gamma": st.sampled_from([0.0, 0.5, 1.0, 2.0, 5.0]), "alpha": st.sampled_from([None, 0.0, 0.25, 1.0])}
)


@pytest.mark.parametrize(
    ("logits", "labels", "kwargs", "expected"),
    [
        pytest.param([[0.0, 0.0]], [1], {}, 0.25 * math.log(2), id="uniform"),
        pytest.param([[0.0, LN3]], [1], {}, math.log(4 / 3) / 16, id="the likely one"),
        pytest.param([[0.0, LN3]], [0], {}, 9 / 16 * math.log(4), id="the unlikely one"),
        pytest.param([[0.0, LN3]], [0], {"gamma": 1}, 0.75 * math.log(4), id="slower"),
        pytest.param([[0.0, LN3]], [0], {"gamma": 0.0}, math.log(4), id="cross-entropy"),
        pytest.param([[0.0, LN3]], [0], {"alpha": 0.25}, 9 / 64 * math.log(4), id="alpha"),
        pytest.param([[0.0, LN3]], [0], {"alpha": 0}, 0.0, id="nothing"),
        pytest.param([[0.0]], [0], {"gamma": 0.5}, 0.0, id="one class"),
        pytest.param([[0.0, 1e4]], [0], {}, 1e4, id="hopeless"),
        pytest.param([[[0.0, LN3], [5.0, 1.0]]], [[9, 0]], {}, 9 / 16 * math.log(4), id="shifted"),
    ],
)
def test_a_loss_by_hand(logits: Any, labels: Any, kwargs: Any, expected: float) -> None:
    outputs = {"logits": torch.tensor(logits, dtype=torch.float64)}
    found = resolve("focal", **kwargs)(outputs, {"labels": torch.tensor(labels)})["loss"]
    assert found.item() == pytest.approx(expected, rel=1e-14, abs=1e-15)


@given(weighted_tokens(), kwargs_of)
def test_every_reduction_is_that_of_the_formula(drawn: Weighted, kwargs: dict[str, Any]) -> None:
    rows = drawn.rows(lambda scores, label: focal(scores, label, **kwargs))
    assert_reduced(resolve("focal", **kwargs), {"logits": drawn.logits}, drawn.batch, rows)


@given(weighted_tokens(classes=2), kwargs_of)
def test_the_gradient_is_that_of_the_formula(drawn: Weighted, kwargs: dict[str, Any]) -> None:
    assert_slopes(resolve("focal", **kwargs), drawn, lambda scores, label: focal(scores, label, **kwargs))


@given(weighted_tokens())
def test_without_focus_it_is_token_ce(drawn: Weighted) -> None:
    for mode in ("mean", "none"):
        found, expected = (
            loss_and_gradients(resolve(name, reduction=mode, **kwargs), {"logits": drawn.logits}, drawn.batch)
            for name, kwargs in (("focal", {"gamma": 0.0, "alpha": 1.0}), ("token_ce", {}))
        )
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("gamma", [0.0, 0.25, 0.5, 1.0, 2.0, 100.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_certain_token_costs_nothing_and_has_no_gradient(gamma: float, dtype: torch.dtype) -> None:
    logits = torch.tensor([[0.0, 1e4], [1e4, 0.0]], dtype=dtype)
    labels = torch.tensor([1, -100])
    loss, gradients = loss_and_gradients(resolve("focal", gamma=gamma), {"logits": logits}, {"labels": labels})
    assert loss == 0.0
    assert not gradients["logits"].any()


def test_what_is_ignored_may_hold_anything() -> None:
    logits = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    assert_nothing_where_nothing_counts("focal", {"logits": logits}, {"labels": torch.tensor([[0, -100, 3]] * 2)})


def test_metrics() -> None:
    outputs = {"logits": torch.tensor([[0.0, LN3], [0.0, 0.0], [9.0, 0.0]])}
    metrics = resolve("focal")(outputs, {"labels": torch.tensor([0, 1, -100])})["metrics"]
    assert {name: float(value) for name, value in metrics.items()} == pytest.approx(
        {"num_tokens": 2, "nll": (math.log(4) + math.log(2)) / 2, "probability": 0.375}
    )


@pytest.mark.parametrize(
    "kwargs",
    [{"gamma": -0.1}, {"gamma": math.inf}, {"gamma": None}, {"gamma": "2"}, {"alpha": -0.1}, {"alpha": 1.1}],
    ids=str,
)
def test_a_kwarg_out_of_range_is_refused(kwargs: dict[str, Any]) -> None:
    with pytest.raises(LossConfigError, match=f"^focal: {next(iter(kwargs))}: expected a "):
        resolve("focal", **kwargs)


def test_a_label_out_of_range_is_named() -> None:
    with pytest.raises(LossInputError, match=r"^focal: 'shift_labels' must lie in \[0, 2\)"):
        resolve("focal")({"logits": torch.zeros(1, 2)}, {"shift_labels": torch.tensor([2])})

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
    entropy,
    resolve,
    weighted_tokens,
)
from tensafe.training.losses import LossConfigError

pytestmark = pytest.mark.usefixtures("path")
OF_QUARTER = math.log(4) - 0.75 * LN3
"""The entropy of (1/4, 3/4)."""


@pytest.mark.parametrize(
    ("logits", "batch", "kwargs", "expected"),
    [
        pytest.param([[0.0] * 4], {}, {}, -0.01 * math.log(4), id="uniform"),
        pytest.param([[0.0, LN3]], {}, {"coef": 1.0}, -OF_QUARTER, id="unequal"),
        pytest.param([[0.0, 2 * LN3]], {}, {"coef": 1.0, "temperature": 2.0}, -OF_QUARTER, id="temperature"),
        pytest.param([[0.0, LN3]], {}, {"coef": 0}, 0.0, id="no bonus"),
        pytest.param([[0.0, 1e4]], {}, {"coef": 1}, 0.0, id="certain"),
        pytest.param([[0.0, 0.0, -math.inf]], {}, {"coef": 1}, -math.log(2), id="a class less"),
        pytest.param([[0.0, LN3], [0.0, 0.0]], {"labels": [0, -100]}, {"coef": 1}, -OF_QUARTER, id="one ignored"),
        pytest.param([[0.0, LN3], [0.0, 0.0]], {"mask": [True, False]}, {"coef": 1}, -OF_QUARTER, id="one masked"),
        pytest.param([[[0.0, LN3], [0.0, 0.0]]], {"labels": [[-100, 7]]}, {"coef": 1}, -OF_QUARTER, id="shifted"),
        pytest.param(
            [[[0.0, LN3], [0.0, 0.0]]], {"labels": [[7, -100]]}, {"coef": 1, "shift": False}, -OF_QUARTER, id="aligned"
        ),
        pytest.param(
            [[[0.0, LN3], [0.0, 0.0]]], {"shift_labels": [[7, -100]]}, {"coef": 1}, -OF_QUARTER, id="shift_labels"
        ),
        pytest.param([[[0.0, LN3], [0.0, 0.0]]], {"mask": [[True, False]]}, {"coef": 1}, -OF_QUARTER, id="no shift"),
        pytest.param(
            [[0.0, LN3], [0.0, 0.0], [3.0, 0.0]],
            {"mask": [True, True, False], "labels": [0, -100, 0]},
            {"coef": 1},
            -OF_QUARTER,
            id="both must count",
        ),
        pytest.param(
            [[[0.0, LN3], [0.0, 0.0]]],
            {"token_weights": [[3, 1]]},
            {"coef": 4},
            -3 * OF_QUARTER - math.log(2),
            id="weights",
        ),
    ],
)
def test_a_loss_by_hand(logits: Any, batch: Any, kwargs: Any, expected: float) -> None:
    outputs = {"logits": torch.tensor(logits, dtype=torch.float64)}
    found = resolve("entropy", **kwargs)(outputs, {name: torch.tensor(value) for name, value in batch.items()})["loss"]
    assert found.item() == pytest.approx(expected, rel=1e-14, abs=1e-15)


@given(weighted_tokens(), st.sampled_from([0.0, 0.5, 2.0]), st.sampled_from([0.5, 1.0, 3.0]))
def test_every_reduction_is_that_of_the_formula(drawn: Weighted, coef: float, temperature: float) -> None:
    rows = drawn.rows(lambda scores, _: -coef * entropy(scores, temperature))
    loss_fn = resolve("entropy", coef=coef, temperature=temperature)
    assert_reduced(loss_fn, {"logits": drawn.logits}, drawn.batch, rows)


@given(weighted_tokens(), st.sampled_from([0.5, 1.0, 3.0]))
def test_the_gradient_is_that_of_the_formula(drawn: Weighted, temperature: float) -> None:
    loss_fn = resolve("entropy", coef=2.0, temperature=temperature)
    assert_slopes(loss_fn, drawn, lambda scores, _: -2 * entropy(scores, temperature))


@given(weighted_tokens())
def test_it_lies_between_certain_and_uniform(drawn: Weighted) -> None:
    values = resolve("entropy", coef=1.0, reduction="none")({"logits": drawn.logits}, {})["loss"]
    assert (values <= 1e-12).all()
    assert (values >= -math.log(drawn.logits.shape[-1]) - 1e-12).all()


@pytest.mark.parametrize("ignore_index", [-100, 0, 3])
def test_only_whether_a_label_is_ignored_matters(ignore_index: int) -> None:
    logits = torch.randn(1, 3, 4, generator=torch.Generator().manual_seed(0))
    loss_fn = resolve("entropy", ignore_index=ignore_index, shift=False)
    found = loss_fn({"logits": logits}, {"labels": torch.tensor([[1, ignore_index, 10**6]])})["loss"]
    assert found == loss_fn({"logits": logits}, {"mask": torch.tensor([[True, False, True]])})["loss"]


def test_what_is_ignored_may_hold_anything() -> None:
    logits = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    assert_nothing_where_nothing_counts("entropy", {"logits": logits}, {"labels": torch.tensor([[0, -100, 3]] * 2)})


def test_a_step_along_minus_the_gradient_makes_the_model_less_certain() -> None:
    outputs = {"logits": torch.tensor([[0.0, 1.0, 3.0]])}
    _, gradients = loss_and_gradients(resolve("entropy", coef=1.0), outputs)
    after = resolve("entropy")({"logits": outputs["logits"] - 0.1 * gradients["logits"]}, {})["metrics"]["entropy"]
    assert after > resolve("entropy")(outputs, {})["metrics"]["entropy"]


def test_metrics_are_without_the_coefficient() -> None:
    outputs = {"logits": torch.tensor([[0.0, LN3], [0.0, 0.0], [9.0, 0.0]])}
    metrics = resolve("entropy", coef=0)(outputs, {"labels": torch.tensor([0, 1, -100])})["metrics"]
    assert {name: float(value) for name, value in metrics.items()} == pytest.approx(
        {"num_tokens": 2, "entropy": (OF_QUARTER + math.log(2)) / 2}
    )


@pytest.mark.parametrize(
    "kwargs", [{"coef": -1}, {"coef": math.nan}, {"temperature": 0}, {"temperature": True}], ids=str
)
def test_a_kwarg_out_of_range_is_refused(kwargs: dict[str, Any]) -> None:
    with pytest.raises(LossConfigError, match=f"^entropy: {next(iter(kwargs))}: expected a "):
        resolve("entropy", **kwargs)

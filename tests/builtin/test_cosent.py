import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from reference import loss_and_gradients
from references.ranking import cosent
from references.slopes import slopes
from strategies import tensors
from tensafe.training.losses import LossConfigError, LossInputError, resolve_loss

scales = st.sampled_from([0.5, 1.0, 20.0])


@st.composite
def similarities(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Cosines and targets, some of which are the same."""
    size = draw(st.integers(0, 6))
    targets = draw(st.lists(st.sampled_from([0.0, 0.2, 1.0]), min_size=size, max_size=size))
    return draw(tensors((size,), bound=1.0)), torch.tensor(targets, dtype=torch.float64)


def loss_of(scores: Any, targets: Any, **kwargs: Any) -> Tensor:
    outputs, batch = {"scores": torch.as_tensor(scores)}, {"targets": torch.as_tensor(targets)}
    return resolve_loss("cosent", **kwargs)(outputs, batch)["loss"]


@pytest.mark.parametrize(
    ("scores", "targets", "kwargs", "expected"),
    [
        pytest.param([0.5, 0.5], [1.0, 0.0], {}, math.log(2), id="alike"),
        pytest.param([0.5, 0.0], [1.0, 0.0], {"scale": 2.0}, math.log1p(math.exp(-1)), id="the right order"),
        pytest.param([0.0, 0.5], [1.0, 0.0], {"scale": 2.0}, math.log1p(math.exp(1)), id="the wrong order"),
        pytest.param([0.0, 0.5], [0.3, 0.2], {"scale": 2}, math.log1p(math.exp(1)), id="only the order of targets"),
        pytest.param([0.0, 0.0, 0.0], [2.0, 0.0, 1.0], {}, math.log(4), id="three pairs"),
        pytest.param([0.0, 0.0, 0.0], [1.0, 0.0, 1.0], {}, math.log(3), id="a tie is not compared"),
        pytest.param([0.9, -0.9], [1.0, 1.0], {}, 0.0, id="nothing to compare"),
        pytest.param([0.9], [1.0], {}, 0.0, id="one"),
        pytest.param([], [], {}, 0.0, id="none"),
        pytest.param([-1.0, 1.0], [1.0, 0.0], {"scale": 1e4}, 2e4, id="far wrong"),
    ],
)
def test_a_loss_by_hand(scores: Any, targets: Any, kwargs: Any, expected: float) -> None:
    assert loss_of(scores, targets, **kwargs).item() == pytest.approx(expected, rel=1e-6)


@given(similarities(), scales)
def test_value_and_gradient_are_those_of_the_formula(it: tuple[Tensor, Tensor], scale: float) -> None:
    scores, targets = it
    loss, gradients = loss_and_gradients(resolve_loss("cosent", scale=scale), {"scores": scores}, {"targets": targets})

    def formula(at: list[float]) -> float:
        return cosent(at, targets.tolist(), scale=scale)

    assert loss.shape == ()
    assert loss.item() == pytest.approx(formula(scores.tolist()), rel=1e-10, abs=1e-12)
    torch.testing.assert_close(gradients["scores"], slopes(formula, scores), rtol=1e-6, atol=1e-6)


@given(similarities(), scales, st.randoms())
def test_the_order_of_the_batch_does_not_matter(it: tuple[Tensor, Tensor], scale: float, random: Any) -> None:
    scores, targets = it
    order = random.sample(range(len(scores)), len(scores))
    moved = loss_of(scores[order], targets[order], scale=scale)
    torch.testing.assert_close(moved, loss_of(scores, targets, scale=scale))


@given(similarities(), st.floats(-2, 2))
def test_only_differences_of_scores_and_the_order_of_targets_matter(it: tuple[Tensor, Tensor], by: float) -> None:
    scores, targets = it
    torch.testing.assert_close(loss_of(scores + by, torch.exp(3 * targets)), loss_of(scores, targets))


def test_nothing_to_compare_keeps_the_graph() -> None:
    for scores, targets in ((torch.zeros(0), torch.zeros(0)), (torch.ones(3), torch.ones(3))):
        loss, gradients = loss_and_gradients(resolve_loss("cosent"), {"scores": scores}, {"targets": targets})
        assert loss == 0.0
        assert not gradients["scores"].any()


def test_targets_get_no_gradient() -> None:
    tensors = {"scores": torch.tensor([0.1, 0.2], requires_grad=True), "targets": torch.ones(2, requires_grad=True)}
    torch.autograd.backward(resolve_loss("cosent")(tensors, {})["loss"])
    assert tensors["targets"].grad is None


def test_it_has_no_reduction() -> None:
    with pytest.raises(LossConfigError, match=r"^cosent: reduction: unknown argument"):
        resolve_loss("cosent", reduction="mean")  # type: ignore[arg-type]


def test_embeddings_instead_of_scores_are_refused() -> None:
    with pytest.raises(LossInputError, match=r"^cosent: 'scores' must be float\[batch\]"):
        loss_of(torch.zeros(2, 3), torch.zeros(2))


@pytest.mark.parametrize("scale", [0.0, -20.0, math.nan, math.inf, True, "20", None], ids=str)
def test_a_scale_out_of_range_is_refused(scale: Any) -> None:
    with pytest.raises(LossConfigError, match=r"^cosent: scale: "):
        resolve_loss("cosent", scale=scale)


@pytest.mark.parametrize("where", ["call", "batch"])
def test_a_number_of_items_has_nothing_to_divide(where: str) -> None:
    outputs, batch = {"scores": torch.tensor([0.5, 0.5])}, {"targets": torch.tensor([1.0, 0.0])}
    count = {"num_items_in_batch": 4}
    with pytest.raises(LossConfigError, match="one value for the whole batch"):
        resolve_loss("cosent")(
            outputs, {**batch, **(count if where == "batch" else {})}, **(count if where == "call" else {})
        )

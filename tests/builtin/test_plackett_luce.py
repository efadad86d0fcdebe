import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from reference import loss_and_gradients, reduced
from references.ranking import Lists, lists
from references.slopes import slopes
from strategies import tensors
from tensafe.training.losses import LossConfigError, resolve_loss

LN2, LN3 = math.log(2), math.log(3)
tops = st.sampled_from([None, 1, 2, 9])


def call(scores: Any, mask: Any = None, **kwargs: Any) -> Any:
    batch = {"mask": None if mask is None else torch.as_tensor(mask)}
    return resolve_loss("plackett_luce", **kwargs)({"scores": torch.as_tensor(scores)}, batch)


def loss_of(scores: Any, mask: Any = None, **kwargs: Any) -> Tensor:
    loss: Tensor = call(scores, mask, **kwargs)["loss"]
    return loss


@pytest.mark.parametrize(
    ("scores", "mask", "kwargs", "expected"),
    [
        pytest.param([[0.0, 0.0, 0.0]], None, {}, LN3 + LN2, id="any order is as likely"),
        pytest.param([[0.0, 0.0, 0.0]], None, {"top_k": 1}, LN3, id="only the best"),
        pytest.param([[0.0, 0.0, 0.0]], None, {"top_k": 2}, LN3 + LN2, id="the last is what is left"),
        pytest.param([[0.0, 0.0, 0.0]], None, {"top_k": 9}, LN3 + LN2, id="more than there are"),
        pytest.param([[LN3, 0.0]], None, {}, math.log(4 / 3), id="the right order"),
        pytest.param([[0.0, LN3]], None, {}, math.log(4), id="the wrong order"),
        pytest.param([[LN3, LN2, 0.0]], None, {}, LN2 + math.log(3 / 2), id="odds of 3 to 2 to 1"),
        pytest.param([[LN3, 7.0, 0.0]], [[True, False, True]], {}, math.log(4 / 3), id="one is missing"),
        pytest.param(
            [[7.0, LN3, 0.0]], [[False, True, True]], {"top_k": 1}, math.log(4 / 3), id="the first is missing"
        ),
        pytest.param([[5.0]], None, {}, 0.0, id="a list of one"),
        pytest.param([[0.0, 0.0], [LN3, 0.0]], None, {}, math.log(8 / 3) / 2, id="mean over lists"),
        pytest.param([[0.0, 0.0], [LN3, 0.0]], None, {"reduction": "sum"}, math.log(8 / 3), id="sum"),
        pytest.param([[0.0, 0.0], [1.0, 2.0]], [[True, True], [False, False]], {}, LN2, id="an empty list"),
        pytest.param([[0.0, 0.0]], [[False, False]], {}, 0.0, id="only empty lists"),
        pytest.param([[0.0, 1e4, 3e4]], None, {}, 5e4, id="far wrong"),
    ],
)
def test_a_loss_by_hand(scores: Any, mask: Any, kwargs: Any, expected: float) -> None:
    scores = torch.tensor(scores, dtype=torch.float64)
    assert loss_of(scores, mask, **kwargs).item() == pytest.approx(expected, rel=1e-12)


@given(lists(), tops, st.sampled_from(["sum", "mean"]))
def test_every_reduction_is_that_of_the_formula(it: Lists, top_k: int | None, mode: Any) -> None:
    def formula(scores: list[float]) -> float:
        return reduced(it.rows(scores, ranked=True, top_k=top_k), mode)

    loss_fn = resolve_loss("plackett_luce", top_k=top_k, reduction=mode)
    loss, gradients = loss_and_gradients(loss_fn, {"scores": it.scores}, {"mask": it.mask})
    assert loss.item() == pytest.approx(formula(it.scores.reshape(-1).tolist()), rel=1e-9, abs=1e-10)
    torch.testing.assert_close(gradients["scores"], slopes(formula, it.scores), rtol=1e-6, atol=1e-8)


@given(lists(), tops, st.sampled_from(["none", "mean"]))
def test_what_is_not_there_has_no_effect(it: Lists, top_k: int | None, mode: Any) -> None:
    loss_fn = resolve_loss("plackett_luce", top_k=top_k, reduction=mode)
    loss, gradients = loss_and_gradients(loss_fn, {"scores": it.scores}, {"mask": it.mask})
    spoilt, spoilt_gradients = loss_and_gradients(loss_fn, {"scores": it.spoilt().scores}, {"mask": it.mask})
    assert torch.equal(spoilt, loss)
    assert torch.equal(spoilt_gradients["scores"], gradients["scores"])


@given(tensors((3, 4)), tops)
def test_a_mask_of_all_changes_nothing(scores: Tensor, top_k: int | None) -> None:
    mask = torch.ones(3, 4, dtype=torch.bool)
    plain = loss_of(scores, top_k=top_k, reduction="none")
    torch.testing.assert_close(loss_of(scores, mask, top_k=top_k, reduction="none"), plain, rtol=0, atol=0)


@given(tensors((3, 2)))
def test_two_completions_are_a_pair_of_bradley_terry(scores: Tensor) -> None:
    pairs = {"chosen_rewards": scores[:, 0], "rejected_rewards": scores[:, 1]}
    torch.testing.assert_close(loss_of(scores), resolve_loss("bradley_terry")(pairs, {})["loss"])


@given(tensors((2, 4)))
def test_probabilities_of_all_orders_add_up_to_one(scores: Tensor) -> None:
    orders = torch.cartesian_prod(*[torch.arange(4)] * 4)
    orders = orders[[len(set(order)) == 4 for order in orders.tolist()]]
    costs = torch.stack([loss_of(scores[:, order], reduction="none") for order in orders])
    torch.testing.assert_close(torch.exp(-costs).sum(0), torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize("offset", [-1e4, 0.0, 1e4])
def test_the_gradient_is_exact_wherever_the_scores_lie(offset: float) -> None:
    scores = torch.tensor([[0.5, 2.0, -1.0, 0.25]])
    _, expected = loss_and_gradients(resolve_loss("plackett_luce"), {"scores": scores.double()})
    _, gradients = loss_and_gradients(resolve_loss("plackett_luce"), {"scores": scores + offset})
    torch.testing.assert_close(gradients["scores"], expected["scores"].float(), rtol=1e-5, atol=1e-6)


def test_a_missing_completion_of_a_hopeless_list_has_no_gradient() -> None:
    scores, mask = torch.tensor([[0.0, 1e4, 3e4, torch.inf]]), torch.tensor([[True, True, True, False]])
    loss, gradients = loss_and_gradients(resolve_loss("plackett_luce"), {"scores": scores}, {"mask": mask})
    assert loss.item() == 5e4
    torch.testing.assert_close(gradients["scores"], torch.tensor([[-1.0, -1.0, 2.0, 0.0]]), rtol=0, atol=0.01)


def test_accuracy_is_the_share_with_the_best_on_top() -> None:
    scores = [[3.0, 1.0, 2.0], [2.0, 2.0, 0.0], [0.0, 1.0, 0.0], [9.0, 1.0, 0.0]]
    assert call(scores)["metrics"]["accuracy"] == pytest.approx(0.5)
    mask = [[True] * 3, [True, False, True], [False, False, False], [False, False, True]]
    assert call(scores, mask)["metrics"]["accuracy"] == pytest.approx(1.0)
    assert call(scores, metrics=False)["metrics"] == {}


@pytest.mark.parametrize("top_k", [0, -1, 1.5, True, "1"], ids=str)
def test_a_top_k_out_of_range_is_refused(top_k: Any) -> None:
    with pytest.raises(LossConfigError, match=r"^plackett_luce: top_k: "):
        resolve_loss("plackett_luce", top_k=top_k)

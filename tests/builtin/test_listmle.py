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
from tensafe.training.losses import LossConfigError, LossInputError, resolve_loss

LN2, LN3 = math.log(2), math.log(3)
tops = st.sampled_from([None, 1, 2, 9])


def call(scores: Any, relevance: Any, mask: Any = None, **kwargs: Any) -> Any:
    batch = {"relevance": torch.as_tensor(relevance), "mask": None if mask is None else torch.as_tensor(mask)}
    return resolve_loss("listmle", **kwargs)({"scores": torch.as_tensor(scores)}, batch)


def loss_of(scores: Any, relevance: Any, mask: Any = None, **kwargs: Any) -> Tensor:
    loss: Tensor = call(scores, relevance, mask, **kwargs)["loss"]
    return loss


@pytest.mark.parametrize(
    ("scores", "relevance", "mask", "kwargs", "expected"),
    [
        pytest.param([[0.0, 0.0, 0.0]], [[0, 2, 1]], None, {}, LN3 + LN2, id="undecided"),
        pytest.param([[0.0, 0.0, 0.0]], [[0, 2, 1]], None, {"top_k": 1}, LN3, id="only the best"),
        pytest.param([[0.0, LN3]], [[0, 1]], None, {}, math.log(4 / 3), id="the right order"),
        pytest.param([[0.0, LN3]], [[1, 0]], None, {}, math.log(4), id="the wrong order"),
        pytest.param([[0.0, LN3, LN2]], [[-5.0, 0.1, 0.0]], None, {}, LN2 + math.log(3 / 2), id="only order matters"),
        pytest.param([[0.0, LN3]], [[1, 1]], None, {}, math.log(4), id="a tie is taken in the order given"),
        pytest.param([[LN3, 0.0]], [[1, 1]], None, {}, math.log(4 / 3), id="and so the other way round"),
        pytest.param(
            [[7.0, 0.0, LN3]], [[9, 0, 1]], [[False, True, True]], {}, math.log(4 / 3), id="the best is missing"
        ),
        pytest.param([[5.0]], [[1]], None, {}, 0.0, id="a list of one"),
        pytest.param(
            [[0.0, 0.0], [1.0, 2.0]], [[1, 0], [0, 1]], [[True, True], [False, False]], {}, LN2, id="an empty list"
        ),
        pytest.param([[0.0, 0.0], [0.0, LN3]], [[0, 1], [0, 1]], None, {"reduction": "sum"}, math.log(8 / 3), id="sum"),
    ],
)
def test_a_loss_by_hand(scores: Any, relevance: Any, mask: Any, kwargs: Any, expected: float) -> None:
    scores = torch.tensor(scores, dtype=torch.float64)
    assert loss_of(scores, relevance, mask, **kwargs).item() == pytest.approx(expected, rel=1e-12)


@given(lists(), tops, st.sampled_from(["sum", "mean"]))
def test_every_reduction_is_that_of_the_formula(it: Lists, top_k: int | None, mode: Any) -> None:
    def formula(scores: list[float]) -> float:
        return reduced(it.rows(scores, ranked=False, top_k=top_k), mode)

    loss_fn = resolve_loss("listmle", top_k=top_k, reduction=mode)
    batch = {"relevance": it.relevance, "mask": it.mask}
    loss, gradients = loss_and_gradients(loss_fn, {"scores": it.scores}, batch)
    assert loss.item() == pytest.approx(formula(it.scores.reshape(-1).tolist()), rel=1e-9, abs=1e-10)
    torch.testing.assert_close(gradients["scores"], slopes(formula, it.scores), rtol=1e-6, atol=1e-8)


@given(lists(), tops, st.sampled_from(["none", "mean"]))
def test_what_is_not_there_has_no_effect(it: Lists, top_k: int | None, mode: Any) -> None:
    loss_fn, spoilt = resolve_loss("listmle", top_k=top_k, reduction=mode), it.spoilt()
    loss, gradients = loss_and_gradients(loss_fn, {"scores": it.scores}, {"relevance": it.relevance, "mask": it.mask})
    same, same_gradients = loss_and_gradients(
        loss_fn, {"scores": spoilt.scores}, {"relevance": spoilt.relevance, "mask": it.mask}
    )
    torch.testing.assert_close(same, loss)
    torch.testing.assert_close(same_gradients["scores"], gradients["scores"])


@given(tensors((3, 4)), st.permutations(range(4)))
def test_the_order_of_the_items_does_not_matter_where_none_is_tied(scores: Tensor, order: list[int]) -> None:
    relevance = torch.tensor([[3, 0, 1, 2]]).expand(3, 4)
    moved = loss_of(scores[:, order], relevance[:, order], reduction="none")
    torch.testing.assert_close(moved, loss_of(scores, relevance, reduction="none"))


@given(tensors((3, 4)))
def test_sorted_lists_are_those_of_plackett_luce(scores: Tensor) -> None:
    relevance = torch.tensor([[9, 5, 5, 0]]).expand(3, 4)
    torch.testing.assert_close(
        loss_of(scores, relevance), resolve_loss("plackett_luce")({"scores": scores}, {})["loss"]
    )


def test_accuracy_is_the_share_with_one_of_the_best_on_top() -> None:
    scores = [[1.0, 3.0, 2.0], [2.0, 2.0, 0.0], [0.0, 1.0, 0.5], [1.0, 2.0, 3.0]]
    relevance = [[0, 1, 0], [1, 0, 0], [0, 2, 2], [1, 1, 0]]
    assert call(scores, relevance)["metrics"]["accuracy"] == pytest.approx(0.5)
    mask = [[True] * 3, [True, False, True], [False] * 3, [True, True, False]]
    assert call(scores, relevance, mask)["metrics"]["accuracy"] == pytest.approx(1.0)
    assert call(scores, relevance, metrics=False)["metrics"] == {}


def test_relevance_of_another_shape_is_refused() -> None:
    with pytest.raises(LossInputError, match=r"^listmle: 'relevance' must be num\[batch k\]"):
        loss_of([[1.0, 2.0]], [1, 0])


@pytest.mark.parametrize("top_k", [0, -1, 1.5, True, "1"], ids=str)
def test_a_top_k_out_of_range_is_refused(top_k: Any) -> None:
    with pytest.raises(LossConfigError, match=r"^listmle: top_k: "):
        resolve_loss("listmle", top_k=top_k)

import math
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from reference import cross_entropy, loss_and_gradients
from references.tokens import IGNORED, LN3, MODES, Weighted, resolve, weighted_tokens
from strategies import tensors
from tensafe.training.losses import LossConfigError, LossInputError

pytestmark = pytest.mark.usefixtures("path")

Cell = tuple[float, float]
"""The value of one head at one position, and what it counts for."""


class Heads(NamedTuple):
    """A batch of several heads, and what they weigh."""

    logits: Tensor
    tokens: Weighted
    weights: list[float]

    def cells(self) -> list[list[list[Cell]]]:
        """By sequence and head."""
        sequences = []
        for scores, ahead in zip(self.logits.tolist(), self.tokens.positions(shift=True), strict=True):
            heads = []
            for head in range(len(self.weights)):
                targets = [*ahead[head:], *[(IGNORED, 0.0)] * head][: len(ahead)]
                heads.append(
                    [
                        (cross_entropy(row[head], label), weight) if weight else (0.0, 0.0)
                        for row, (label, weight) in zip(scores, targets, strict=True)
                    ]
                )
            sequences.append(heads)
        return sequences


@st.composite
def heads(draw: st.DrawFn) -> Heads:
    tokens, count = draw(weighted_tokens()), draw(st.integers(1, 4))
    *lead, vocab = tokens.logits.shape
    weights = draw(st.lists(st.sampled_from([0.0, 0.3, 1.0, 2.0]), min_size=count, max_size=count))
    return Heads(draw(tensors((*lead, count, vocab))), tokens, weights)


def mean_of_means(weights: list[float], heads: list[list[Cell]]) -> float:
    found = 0.0
    for weight, cells in zip(weights, heads, strict=True):
        total = math.fsum(count for _, count in cells)
        found += weight * math.fsum(value * count for value, count in cells) / total if total else 0.0
    return found


def expected(drawn: Heads, mode: str) -> float:
    cells = drawn.cells()
    sums = [
        math.fsum(w * value * count for w, head in zip(drawn.weights, heads, strict=True) for value, count in head)
        for heads in cells
    ]
    if mode == "mean":
        by_head = [[cell for heads in cells for cell in heads[head]] for head in range(len(drawn.weights))]
        return mean_of_means(drawn.weights, by_head)
    if mode == "sum":
        return math.fsum(sums)
    # a sequence counts where a head of some weight has anything to predict
    counted = [
        any(w * count for w, head in zip(drawn.weights, heads, strict=True) for _, count in head) for heads in cells
    ]
    if mode == "sequence_mean":
        return math.fsum(mean_of_means(drawn.weights, each) for each in cells) / max(sum(counted), 1)
    return math.fsum(sums) / max(sum(counted), 1) / (7 if mode == "sequence_sum_norm" else 1)


@pytest.mark.parametrize(
    ("logits", "labels", "kwargs", "expected"),
    [
        pytest.param([[[[0.0, LN3]], [[0.0, 0.0]]]], [[9, 0]], {}, math.log(4), id="one head"),
        pytest.param(
            [[[[0.0, LN3], [0.0, 0.0]], [[0.0, 0.0], [9.0, 0.0]], [[5.0, 0.0], [5.0, 0.0]]]],
            [[9, 0, 1]],
            {},
            (math.log(4) + math.log(2)) / 2 + math.log(2),
            id="two heads",
        ),
        pytest.param(
            [[[[0.0, LN3], [0.0, 0.0]], [[0.0, 0.0], [9.0, 0.0]], [[5.0, 0.0], [5.0, 0.0]]]],
            [[9, 0, 1]],
            {"weights": [2, 0.5]},
            math.log(4) + math.log(2) + 0.5 * math.log(2),
            id="weights",
        ),
        pytest.param(
            [[[[0.0, LN3], [0.0, 0.0]], [[0.0, 0.0], [9.0, 0.0]], [[5.0, 0.0], [5.0, 0.0]]]],
            [[9, 0, 1]],
            {"weights": [2, 0.5], "reduction": "sum"},
            2 * (math.log(4) + math.log(2)) + 0.5 * math.log(2),
            id="sum",
        ),
        pytest.param(
            [[[[0.0, 0.0], [0.0, LN3]], [[0.0, 0.0], [9.0, 0.0]]]],
            [[1, 0]],
            {"shift": False},
            math.log(2) + math.log(4),
            id="aligned",
        ),
        pytest.param([[[[0.0, 0.0], [0.0, LN3]]]], [[1]], {}, 0.0, id="nothing to predict"),
        pytest.param(
            [[[[0.0, 0.0], [0.0, LN3]], [[0.0, 0.0]] * 2]], [[0, 1]], {}, math.log(2), id="one head has nothing"
        ),
    ],
)
def test_a_loss_by_hand(logits: Any, labels: Any, kwargs: Any, expected: float) -> None:
    outputs = {"logits": torch.tensor(logits, dtype=torch.float64)}
    found = resolve("mtp", **kwargs)(outputs, {"labels": torch.tensor(labels)})["loss"]
    assert found.item() == pytest.approx(expected, rel=1e-14, abs=1e-15)


@given(heads(), st.sampled_from(MODES))
def test_every_reduction_is_that_of_the_formula(drawn: Heads, mode: str) -> None:
    loss_fn = resolve("mtp", weights=drawn.weights, reduction=mode)
    found = loss_fn({"logits": drawn.logits}, drawn.tokens.batch)["loss"].item()
    assert found == pytest.approx(expected(drawn, mode), rel=1e-9, abs=1e-10)


@given(heads())
def test_none_gives_one_value_per_head_and_position(drawn: Heads) -> None:
    found = resolve("mtp", weights=drawn.weights, reduction="none")({"logits": drawn.logits}, drawn.tokens.batch)[
        "loss"
    ]
    by_sequence = [
        [[w * value * count for value, count in head] for w, head in zip(drawn.weights, each, strict=True)]
        for each in drawn.cells()
    ]
    batch, seq, count, _ = drawn.logits.shape
    values = torch.tensor(by_sequence, dtype=torch.float64).reshape(batch, count, seq).transpose(1, 2)
    torch.testing.assert_close(found, values)


@given(heads())
def test_it_is_token_ce_of_each_head(drawn: Heads) -> None:
    found = loss_and_gradients(resolve("mtp", weights=drawn.weights), {"logits": drawn.logits}, drawn.tokens.batch)
    leaf = drawn.logits.clone().requires_grad_()
    labels, weights = drawn.tokens.labels, drawn.tokens.token_weights
    total = leaf.sum() * 0
    for head, weight in enumerate(drawn.weights):
        ahead = {**drawn.tokens.batch, "labels": _later(labels, head, IGNORED)}
        if weights is not None:
            ahead["token_weights"] = _later(weights, head, 0.0)
        total = total + weight * resolve("token_ce")({"logits": leaf[:, :, head]}, ahead)["loss"]
    torch.testing.assert_close(found[0], total.detach())
    torch.testing.assert_close(found[1]["logits"], torch.autograd.grad(total, leaf)[0])


def _later(tensor: Tensor, steps: int, fill: float) -> Tensor:
    """What stands `steps` further on in each sequence."""
    columns = [tensor[:, index : index + 1] for index in range(steps, tensor.shape[1])]
    missing = [torch.full_like(tensor[:, :1], fill)] * (tensor.shape[1] - len(columns))
    return torch.cat([*columns, *missing], 1) if tensor.shape[1] else tensor


def test_one_head_is_token_ce() -> None:
    logits = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[0, 1, -100, 2], [1, 1, 0, -100]])
    for mode in (*MODES, "none"):
        found = resolve("mtp", reduction=mode)({"logits": logits.unsqueeze(2)}, {"labels": labels})["loss"]
        expected = resolve("token_ce", reduction=mode)({"logits": logits}, {"labels": labels})["loss"]
        torch.testing.assert_close(found.squeeze(-1) if mode == "none" else found, expected)


def test_shift_labels_are_those_of_head_0() -> None:
    logits, labels = torch.randn(1, 4, 3, 5, generator=torch.Generator().manual_seed(0)), torch.tensor([[4, 1, 2, 3]])
    shifted = torch.tensor([[1, 2, 3, -100]])
    expected = resolve("mtp")({"logits": logits}, {"labels": labels})
    assert resolve("mtp")({"logits": logits}, {"shift_labels": shifted}) == expected
    assert resolve("mtp", shift=False)({"logits": logits}, {"labels": shifted}) == expected


@given(heads(), st.sampled_from([list, tuple, lambda counts: torch.tensor(counts, dtype=torch.float64)]))
def test_each_head_may_have_a_count_of_its_own(drawn: Heads, kind: Any) -> None:
    counts = [float(2 + head) for head in range(len(drawn.weights))]
    expected = math.fsum(
        w * value * count / n
        for heads in drawn.cells()
        for w, n, head in zip(drawn.weights, counts, heads, strict=True)
        for value, count in head
    )
    loss_fn = resolve("mtp", weights=drawn.weights)
    found = loss_fn({"logits": drawn.logits}, drawn.tokens.batch, num_items_in_batch=kind(counts))["loss"]
    assert found.item() == pytest.approx(expected, rel=1e-9, abs=1e-10)


@given(heads(), st.integers(1, 9))
def test_one_count_divides_the_sums_of_all_heads(drawn: Heads, count: int) -> None:
    total = resolve("mtp", weights=drawn.weights, reduction="sum")({"logits": drawn.logits}, drawn.tokens.batch)
    loss_fn = resolve("mtp", weights=drawn.weights)
    found = loss_fn({"logits": drawn.logits}, {**drawn.tokens.batch, "num_items_in_batch": count})
    assert found["loss"].item() == pytest.approx(total["loss"].item() / count, rel=1e-9, abs=1e-10)


@pytest.mark.parametrize(
    ("count", "part"),
    [
        ([1], "one for each of the 2 means; got 1"),
        (torch.ones(3), "one for each of the 2 means; got 3"),
        (torch.ones(1, 2), r"one for each of the 2 means; got a tensor of shape \[1, 2\], float32"),
        ([1, -1], "a number >= 0 or a 0-d tensor; got -1"),
        ([1, "2"], "a number >= 0 or a 0-d tensor; got '2'"),
    ],
)
def test_counts_must_be_one_for_each_head(count: Any, part: str) -> None:
    outputs, batch = {"logits": torch.zeros(1, 3, 2, 4)}, {"labels": torch.tensor([[1, 2, 3]])}
    with pytest.raises(LossInputError, match=part):
        resolve("mtp")(outputs, batch, num_items_in_batch=count)


@pytest.mark.parametrize("mode", ["mean", "sequence_mean", "sum", "none"])
def test_what_is_ignored_may_hold_anything(mode: str) -> None:
    logits = torch.randn(2, 4, 2, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[0, 1, -100, 2], [-100] * 4])
    loss_fn = resolve("mtp", reduction=mode)
    expected, right = loss_and_gradients(loss_fn, {"logits": logits}, {"labels": labels})
    spoilt = torch.where(right["logits"] == 0, math.nan, logits)
    assert spoilt.isnan().any(-1).sum() == 13
    loss, gradients = loss_and_gradients(loss_fn, {"logits": spoilt}, {"labels": labels})
    assert torch.equal(loss, expected)
    assert torch.equal(gradients["logits"], right["logits"])


def test_metrics_are_the_heads_without_their_weights() -> None:
    logits = torch.tensor([[[[0.0, LN3], [0.0, LN3]]] * 3])
    metrics = resolve("mtp", weights=[5, 7])({"logits": logits}, {"labels": torch.tensor([[9, 0, 1]])})["metrics"]
    assert {name: float(value) for name, value in metrics.items()} == pytest.approx(
        {"num_tokens": 2, "loss_head_0": math.log(16 / 3) / 2, "loss_head_1": math.log(4 / 3)}
    )


def test_there_is_a_weight_for_each_head() -> None:
    with pytest.raises(LossInputError, match=r"^mtp: weights must hold one number per head, 2; it holds 3\."):
        resolve("mtp", weights=[1, 1, 1])({"logits": torch.zeros(1, 2, 2, 3)}, {"labels": torch.zeros(1, 2).long()})


@pytest.mark.parametrize("weights", [[-1.0], [], 1.0, [math.inf], [True], "1", [1, None]], ids=str)
def test_weights_that_are_no_numbers_from_0_on_are_refused(weights: Any) -> None:
    with pytest.raises(LossConfigError, match=r"^mtp: weights"):
        resolve("mtp", weights=weights)


def test_a_label_out_of_range_is_named() -> None:
    with pytest.raises(LossInputError, match=r"^mtp: 'labels' must lie in \[0, 3\)"):
        resolve("mtp")({"logits": torch.zeros(1, 2, 2, 3)}, {"labels": torch.tensor([[0, 3]])})

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from reference import loss_and_gradients, reduced
from references.embedding import supcon
from references.slopes import slopes
from strategies import tensors
from tensafe.training.losses import LossConfigError, LossInputError, resolve_loss


def result_of(embeddings: Any, labels: Any, **kwargs: Any) -> Any:
    batch = {"labels": torch.as_tensor(labels, dtype=torch.int64)}
    return resolve_loss("supcon", **kwargs)({"embeddings": torch.as_tensor(embeddings)}, batch)


@st.composite
def classes(draw: st.DrawFn) -> tuple[Tensor, list[int]]:
    size = draw(st.integers(0, 6))
    labels = draw(st.lists(st.sampled_from([-1, 3, 8]), min_size=size, max_size=size))
    return draw(tensors((size, 3))), labels


TWO_AND_ONE = [[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]]


@pytest.mark.parametrize(
    ("embeddings", "labels", "temperature", "expected"),
    [
        pytest.param(TWO_AND_ONE, [5, 5, 7], 1.0, math.log(1 + 1 / math.e), id="who is alone does not count"),
        pytest.param(TWO_AND_ONE, [5, 7, 5], 1.0, (math.log(1 + math.e) + math.log(2)) / 2, id="the wrong way"),
        pytest.param(TWO_AND_ONE, [1, 2, 3], 1.0, 0.0, id="all alone"),
        pytest.param(2 * [[1.0, 0.0]], [4, 4], 0.1, 0.0, id="no negative"),
        pytest.param([[1.0, 0.0]], [4], 0.1, 0.0, id="one"),
        pytest.param(torch.zeros(0, 3), [], 0.1, 0.0, id="none"),
    ],
)
def test_a_loss_by_hand(embeddings: Any, labels: Any, temperature: float, expected: float) -> None:
    assert result_of(embeddings, labels, temperature=temperature)["loss"].item() == pytest.approx(expected, abs=1e-6)


@given(classes(), st.sampled_from([0.1, 1.0, 5.0]), st.sampled_from(["sum", "mean"]))
def test_every_reduction_is_that_of_the_formula(drawn: Any, temperature: float, mode: str) -> None:
    values = supcon(*drawn, temperature=temperature)
    found = result_of(*drawn, temperature=temperature, reduction="none")["loss"].tolist()
    assert found == pytest.approx([value for value, _ in values], rel=1e-9, abs=1e-9)
    loss = result_of(*drawn, temperature=temperature, reduction=mode)["loss"].item()
    assert loss == pytest.approx(reduced([values], mode), rel=1e-9, abs=1e-9)


def test_the_gradient_is_that_of_the_formula() -> None:
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = [0, 1, 0, 0, 2]
    loss_fn = resolve_loss("supcon", temperature=0.5, reduction="sum")
    _, gradients = loss_and_gradients(loss_fn, {"embeddings": x}, {"labels": torch.tensor(labels)})

    def total(numbers: list[float]) -> float:
        moved = torch.tensor(numbers, dtype=torch.float64).reshape(5, 3)
        return sum(value for value, _ in supcon(moved, labels, temperature=0.5))

    torch.testing.assert_close(gradients["embeddings"], slopes(total, x), rtol=1e-6, atol=1e-8)


def test_the_metric_is_the_cosine_within_classes() -> None:
    metrics = result_of([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], [0, 0, 0])["metrics"]
    assert list(metrics) == ["positive_similarity"]
    assert metrics["positive_similarity"].item() == pytest.approx((0.5 + 0.5 + 0.0) / 3)


def test_one_label_for_each_embedding() -> None:
    with pytest.raises(LossInputError, match="batch=3"):
        result_of(TWO_AND_ONE, [1, 2])


@pytest.mark.parametrize("temperature", [0, -1.0, float("inf"), "0.1"])
def test_a_temperature_out_of_range_is_refused(temperature: Any) -> None:
    with pytest.raises(LossConfigError, match="temperature"):
        resolve_loss("supcon", temperature=temperature)

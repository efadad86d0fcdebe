import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from reference import elements, loss_and_gradients, reduced
from references.embedding import nt_xent
from references.slopes import slopes
from strategies import embeddings
from tensafe.training.losses import LossConfigError, LossInputError, resolve_loss

Pair = tuple[Tensor, Tensor]


def result_of(a: Any, b: Any, **kwargs: Any) -> Any:
    views = {"embeddings_a": torch.as_tensor(a), "embeddings_b": torch.as_tensor(b)}
    return resolve_loss("nt_xent", **kwargs)(views, {})


@pytest.mark.parametrize(
    ("a", "b", "temperature", "expected"),
    [
        pytest.param([[1.0, 0.0]], [[0.0, 1.0]], 1.0, 0.0, id="one sample has no negative"),
        pytest.param(torch.eye(2), torch.eye(2), 1.0, math.log(1 + 2 / math.e), id="told apart"),
        pytest.param(torch.eye(2), torch.eye(2), 0.5, math.log(1 + 2 / math.exp(2)), id="the colder, the surer"),
        pytest.param(torch.eye(2), torch.eye(2).flip(0), 1.0, math.log(2 + math.e), id="taken for the other"),
        pytest.param(3 * torch.eye(2), 7 * torch.eye(2), 1.0, math.log(1 + 2 / math.e), id="lengths do not matter"),
        pytest.param(torch.zeros(0, 3), torch.zeros(0, 3), 1.0, 0.0, id="no sample"),
    ],
)
def test_a_loss_by_hand(a: Any, b: Any, temperature: float, expected: float) -> None:
    assert result_of(a, b, temperature=temperature)["loss"].item() == pytest.approx(expected, abs=1e-6)


@given(embeddings(), st.sampled_from([0.1, 1.0, 5.0]), st.sampled_from(["sum", "mean"]))
def test_every_reduction_is_that_of_the_formula(pair: Pair, temperature: float, mode: str) -> None:
    values = nt_xent(*pair, temperature=temperature)
    found = result_of(*pair, temperature=temperature, reduction="none")["loss"].tolist()
    assert found == pytest.approx(values, rel=1e-9, abs=1e-9)
    loss = result_of(*pair, temperature=temperature, reduction=mode)["loss"].item()
    assert loss == pytest.approx(reduced(elements(values), mode), rel=1e-9, abs=1e-9)


def test_the_gradient_is_that_of_the_formula() -> None:
    views = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    outputs = {"embeddings_a": views[0], "embeddings_b": views[1]}
    _, gradients = loss_and_gradients(resolve_loss("nt_xent", temperature=0.5, reduction="sum"), outputs)

    def total(numbers: list[float]) -> float:
        a, b = torch.tensor(numbers, dtype=torch.float64).reshape(2, 4, 3)
        return sum(nt_xent(a, b, temperature=0.5))

    found = torch.stack([gradients["embeddings_a"], gradients["embeddings_b"]])
    torch.testing.assert_close(found, slopes(total, views), rtol=1e-6, atol=1e-8)


@given(embeddings())
def test_the_views_may_change_places(pair: Pair) -> None:
    torch.testing.assert_close(result_of(*pair)["loss"], result_of(*reversed(pair))["loss"])


def test_the_metric_is_the_cosine_of_the_views() -> None:
    metrics = result_of([[1.0, 0.0], [0.0, 2.0]], [[5.0, 0.0], [3.0, 0.0]])["metrics"]
    assert list(metrics) == ["positive_similarity"]
    assert metrics["positive_similarity"].item() == pytest.approx(0.5)


def test_views_of_other_samples_are_refused() -> None:
    with pytest.raises(LossInputError, match="batch=2"):
        result_of(torch.eye(2), torch.ones(3, 2))


@pytest.mark.parametrize("temperature", [0, -1.0, float("nan"), "0.1", True])
def test_a_temperature_out_of_range_is_refused(temperature: Any) -> None:
    with pytest.raises(LossConfigError, match="temperature"):
        resolve_loss("nt_xent", temperature=temperature)

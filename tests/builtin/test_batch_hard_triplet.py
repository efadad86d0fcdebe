from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from reference import loss_and_gradients, reduced
from references.embedding import batch_hard_triplet
from references.slopes import slopes
from strategies import tensors
from tensafe.training.losses import LossConfigError, resolve_loss

DISTANCES = ["euclidean", "cosine", "squared"]


def result_of(embeddings: Any, labels: Any, **kwargs: Any) -> Any:
    batch = {"labels": torch.as_tensor(labels, dtype=torch.int64)}
    return resolve_loss("batch_hard_triplet", **kwargs)({"embeddings": torch.as_tensor(embeddings)}, batch)


@st.composite
def classes(draw: st.DrawFn) -> tuple[Tensor, list[int]]:
    size = draw(st.integers(0, 6))
    labels = draw(st.lists(st.sampled_from([-1, 3]), min_size=size, max_size=size))
    return draw(tensors((size, 3))), labels


LINE = [[0.0], [2.0], [3.0], [7.0]]


@pytest.mark.parametrize(
    ("embeddings", "labels", "kwargs", "expected"),
    [
        pytest.param(LINE, [0, 0, 1, 1], {}, (0 + 2 + 4 + 0) / 4, id="the furthest and the nearest"),
        pytest.param(LINE, [0, 0, 1, 1], {"margin": 0.0}, (0 + 1 + 3 + 0) / 4, id="only the order"),
        pytest.param(LINE, [0, 0, 1, 1], {"distance": "squared"}, (0 + 4 + 16 + 0) / 4, id="squared"),
        pytest.param(LINE, [0, 0, 0, 1], {"margin": 0.0}, 0.0, id="who is alone is only a negative"),
        pytest.param(LINE, [0, 0, 0, 0], {}, 0.0, id="one class"),
        pytest.param(LINE, [0, 1, 2, 3], {}, 0.0, id="all alone"),
        pytest.param(torch.zeros(0, 2), [], {}, 0.0, id="none"),
    ],
)
def test_a_loss_by_hand(embeddings: Any, labels: Any, kwargs: Any, expected: float) -> None:
    assert result_of(embeddings, labels, **kwargs)["loss"].item() == pytest.approx(expected, abs=1e-5)


@given(classes(), st.floats(0, 10), st.sampled_from(DISTANCES), st.sampled_from(["sum", "mean"]))
def test_every_reduction_is_that_of_the_formula(drawn: Any, margin: float, kind: Any, mode: Any) -> None:
    values = batch_hard_triplet(*drawn, margin=margin, kind=kind)
    kwargs: dict[str, Any] = {"margin": margin, "distance": kind}
    found = result_of(*drawn, reduction="none", **kwargs)["loss"].tolist()
    # which of two that are as far is taken is a matter of rounding, and the distance of each has its own
    assert found == pytest.approx([value for value, _ in values], rel=1e-9, abs=2e-5)
    loss = result_of(*drawn, reduction=mode, **kwargs)["loss"].item()
    assert loss == pytest.approx(reduced([values], mode), rel=1e-9, abs=2e-4)


@pytest.mark.parametrize("kind", DISTANCES)
def test_the_gradient_is_that_of_the_formula(kind: Any) -> None:
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = [0, 1, 0, 1, 1, 2]
    loss_fn = resolve_loss("batch_hard_triplet", distance=kind, reduction="sum")
    _, gradients = loss_and_gradients(loss_fn, {"embeddings": x}, {"labels": torch.tensor(labels)})

    def total(numbers: list[float]) -> float:
        moved = torch.tensor(numbers, dtype=torch.float64).reshape(6, 3)
        return sum(value for value, _ in batch_hard_triplet(moved, labels, margin=1.0, kind=kind))

    torch.testing.assert_close(gradients["embeddings"], slopes(total, x), rtol=1e-5, atol=1e-7)


def test_metrics_are_those_of_the_hardest_triplets() -> None:
    metrics = result_of(LINE, [0, 0, 1, 1])["metrics"]
    expected = {"accuracy": 0.5, "positive_distance": (2 + 2 + 4 + 4) / 4, "negative_distance": (3 + 1 + 1 + 5) / 4}
    assert {name: metric.item() for name, metric in metrics.items()} == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("kwargs", [{"margin": -1.0}, {"distance": "manhattan"}])
def test_kwargs_out_of_range_are_refused(kwargs: Any) -> None:
    with pytest.raises(LossConfigError, match=next(iter(kwargs))):
        resolve_loss("batch_hard_triplet", **kwargs)

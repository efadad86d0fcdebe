import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from reference import elements, loss_and_gradients, reduced
from references.embedding import distance, rows, triplet
from strategies import tensors
from tensafe.training.losses import LossConfigError, resolve_loss

DISTANCES = ["euclidean", "cosine", "squared"]


def result_of(anchor: Any, positive: Any, negative: Any, **kwargs: Any) -> Any:
    outputs = {"anchor": torch.as_tensor(anchor), "positive": torch.as_tensor(positive)}
    return resolve_loss("triplet", **kwargs)(outputs, {"negative": torch.as_tensor(negative)})


@st.composite
def triplets(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    shape = (draw(st.integers(1, 4)), draw(st.integers(1, 3)))
    return draw(tensors(shape)), draw(tensors(shape)), draw(tensors(shape))


ORIGIN, RIGHT, UP = [[0.0, 0.0]], [[3.0, 4.0]], [[0.0, 5.0]]


@pytest.mark.parametrize(
    ("anchor", "positive", "negative", "kwargs", "expected"),
    [
        pytest.param(ORIGIN, RIGHT, UP, {}, 1.0, id="as far"),
        pytest.param(ORIGIN, RIGHT, [[0.0, 6.0]], {}, 0.0, id="by the margin"),
        pytest.param(ORIGIN, RIGHT, [[0.0, 2.0]], {}, 4.0, id="the wrong way"),
        pytest.param(ORIGIN, RIGHT, [[0.0, 5.5]], {"margin": 0.0}, 0.0, id="only the order"),
        pytest.param(ORIGIN, RIGHT, UP, {"distance": "squared"}, 1.0, id="squared, as far"),
        pytest.param(ORIGIN, RIGHT, [[0.0, 4.0]], {"distance": "squared"}, 10.0, id="squared"),
        pytest.param([[1.0, 0.0]], [[9.0, 0.0]], [[0.0, 2.0]], {"distance": "cosine"}, 0.0, id="cosine, right angle"),
        pytest.param([[1.0, 0.0]], [[0.0, 2.0]], [[9.0, 0.0]], {"distance": "cosine"}, 2.0, id="cosine, the wrong way"),
        pytest.param([[1.0, 0.0]], [[0.0, 0.0]], [[1.0, 0.0]], {"distance": "cosine"}, 2.0, id="cosine of zero"),
        pytest.param(2 * ORIGIN, 2 * RIGHT, [*UP, [0.0, 7.0]], {"reduction": "sum"}, 1.0, id="sum"),
        pytest.param(torch.ones(0, 2), torch.ones(0, 2), torch.ones(0, 2), {}, 0.0, id="no triplet"),
    ],
)
def test_a_loss_by_hand(anchor: Any, positive: Any, negative: Any, kwargs: Any, expected: float) -> None:
    assert result_of(anchor, positive, negative, **kwargs)["loss"].item() == pytest.approx(expected, abs=2e-5)


@given(triplets(), st.floats(0, 10), st.sampled_from(DISTANCES), st.sampled_from(["sum", "mean"]))
def test_every_reduction_is_that_of_the_formula(drawn: Any, margin: float, kind: Any, mode: Any) -> None:
    values = triplet(*drawn, margin=margin, kind=kind)
    kwargs: dict[str, Any] = {"margin": margin, "distance": kind}
    assert result_of(*drawn, reduction="none", **kwargs)["loss"].tolist() == pytest.approx(values, rel=1e-9, abs=1e-9)
    expected = reduced(elements(values), mode)
    assert result_of(*drawn, reduction=mode, **kwargs)["loss"].item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("margin", [0.1, 1.0, 5.0])
def test_it_is_torchs_triplet_margin_loss(margin: float) -> None:
    drawn = torch.randn(3, 9, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    names = ("anchor", "positive", "negative")
    loss_fn = resolve_loss("triplet", margin=margin)
    loss, gradients = loss_and_gradients(loss_fn, dict(zip(names, drawn, strict=True)))
    leaves = [tensor.clone().requires_grad_() for tensor in drawn]
    expected = torch.nn.functional.triplet_margin_loss(leaves[0], leaves[1], leaves[2], margin=margin)
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(tuple(gradients.values()), torch.autograd.grad(expected, leaves))


@given(triplets(), st.sampled_from(DISTANCES))
def test_metrics(drawn: Any, kind: Any) -> None:
    anchor, positive, negative = (rows(tensor) for tensor in drawn)
    near = [distance(a, p, kind) for a, p in zip(anchor, positive, strict=True)]
    far = [distance(a, n, kind) for a, n in zip(anchor, negative, strict=True)]
    metrics = result_of(*drawn, distance=kind)["metrics"]
    assert list(metrics) == ["accuracy", "positive_distance", "negative_distance"]
    assert metrics["positive_distance"].item() == pytest.approx(sum(near) / len(near), abs=1e-9)
    assert metrics["negative_distance"].item() == pytest.approx(sum(far) / len(far), abs=1e-9)


def test_accuracy_is_the_share_whose_positive_is_nearer() -> None:
    metrics = result_of([[0.0], [0.0], [0.0]], [[1.0], [2.0], [2.0]], [[2.0], [1.0], [2.0]])["metrics"]
    assert metrics["accuracy"].item() == pytest.approx(1 / 3)


def test_the_gradient_stops_at_the_margin() -> None:
    outputs = {
        "anchor": torch.zeros(2, 1),
        "positive": torch.tensor([[1.0], [1.0]]),
        "negative": torch.tensor([[5.0], [1.5]]),
    }
    _, gradients = loss_and_gradients(resolve_loss("triplet", reduction="sum"), outputs)
    assert gradients["positive"].tolist() == [[0.0], [1.0]]
    assert gradients["negative"].tolist() == [[0.0], [-1.0]]


@pytest.mark.parametrize("kind", DISTANCES)
def test_embeddings_that_coincide_have_finite_gradients(kind: Any) -> None:
    outputs = {name: torch.zeros(1, 3) for name in ("anchor", "positive", "negative")}
    loss, gradients = loss_and_gradients(resolve_loss("triplet", distance=kind), outputs)
    assert loss == 1.0
    assert all(gradient.isfinite().all() for gradient in gradients.values())


@pytest.mark.parametrize(
    "kwargs", [{"margin": -1.0}, {"margin": math.inf}, {"margin": True}, {"distance": "manhattan"}], ids=str
)
def test_a_kwarg_out_of_range_is_refused(kwargs: dict[str, Any]) -> None:
    with pytest.raises(LossConfigError, match=f"^triplet: {next(iter(kwargs))}: "):
        resolve_loss("triplet", **kwargs)

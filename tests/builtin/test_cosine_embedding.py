import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from reference import elements, loss_and_gradients, reduced
from references.embedding import cosine_embedding
from strategies import tensors
from tensafe.training.losses import LossConfigError, LossInputError, resolve_loss

EYE, DIAGONAL = torch.eye(2), torch.ones(2, 2)


def result_of(a: Tensor, b: Tensor, targets: Any, **kwargs: Any) -> Any:
    outputs = {"embeddings_a": a, "embeddings_b": b}
    return resolve_loss("cosine_embedding", **kwargs)(outputs, {"targets": torch.as_tensor(targets)})


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Tensor, Tensor, list[int]]:
    shape = (draw(st.integers(1, 4)), draw(st.integers(1, 3)))
    targets = draw(st.lists(st.sampled_from([1, -1]), min_size=shape[0], max_size=shape[0]))
    return draw(tensors(shape)), draw(tensors(shape)), targets


@pytest.mark.parametrize(
    ("b", "targets", "kwargs", "expected"),
    [
        pytest.param(EYE, [1, 1], {}, [0.0, 0.0], id="alike, and they are"),
        pytest.param(EYE, [-1, -1], {}, [1.0, 1.0], id="unlike, but they are not"),
        pytest.param(-EYE, [1, -1], {}, [2.0, 0.0], id="opposites"),
        pytest.param(7 * DIAGONAL, [1, -1], {}, [1 - math.sqrt(0.5), math.sqrt(0.5)], id="halfway"),
        pytest.param(DIAGONAL, [-1, -1], {"margin": 0.5}, [math.sqrt(0.5) - 0.5] * 2, id="margin"),
        pytest.param(DIAGONAL, [1, -1], {"margin": 1}, [1 - math.sqrt(0.5), 0.0], id="margin 1"),
        pytest.param(-EYE, [-1, -1], {"margin": -1.0}, [0.0, 0.0], id="margin -1"),
        pytest.param(0 * EYE, [1, -1], {}, [1.0, 0.0], id="zeros"),
        pytest.param(EYE, [1.0, -1.0], {}, [0.0, 1.0], id="targets are floats"),
        pytest.param(EYE, torch.tensor([1, -1], dtype=torch.int8), {}, [0.0, 1.0], id="targets are bytes"),
    ],
)
def test_values_by_hand(b: Tensor, targets: Any, kwargs: Any, expected: list[float]) -> None:
    values = result_of(EYE, b, targets, reduction="none", **kwargs)["loss"]
    assert values.tolist() == pytest.approx(expected, abs=1e-6)


@given(pairs(), st.floats(-1, 1), st.sampled_from(["sum", "mean"]))
def test_every_reduction_is_that_of_the_formula(drawn: Any, margin: float, mode: str) -> None:
    values = cosine_embedding(*drawn, margin=margin)
    found = result_of(*drawn, margin=margin, reduction="none")["loss"]
    assert found.tolist() == pytest.approx(values, rel=1e-9, abs=1e-9)
    expected = reduced(elements(values), mode)
    assert result_of(*drawn, margin=margin, reduction=mode)["loss"].item() == pytest.approx(
        expected, rel=1e-9, abs=1e-9
    )


@pytest.mark.parametrize("margin", [-0.5, 0.0, 0.3])
def test_it_is_torchs_cosine_embedding_loss(margin: float) -> None:
    drawn = torch.randn(2, 9, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    targets = torch.tensor([1, -1, 1, -1, 1, -1, 1, -1, -1])
    outputs = {"embeddings_a": drawn[0], "embeddings_b": drawn[1]}
    loss, gradients = loss_and_gradients(resolve_loss("cosine_embedding", margin=margin), outputs, {"targets": targets})
    leaves = [tensor.clone().requires_grad_() for tensor in drawn]
    expected = torch.nn.functional.cosine_embedding_loss(leaves[0], leaves[1], targets, margin=margin)
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(tuple(gradients.values()), torch.autograd.grad(expected, leaves), rtol=1e-9, atol=1e-9)


def test_accuracy_is_the_share_on_the_right_side_of_the_margin() -> None:
    a = torch.tensor([[1.0, 0.0]] * 4)
    b = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    assert result_of(a, b, [1, 1, -1, -1])["metrics"] == {"accuracy": 0.5}
    assert result_of(a, b, [1, -1, 1, -1], margin=0.9)["metrics"] == {"accuracy": 1.0}


def test_a_zero_embedding_has_a_bounded_gradient() -> None:
    outputs = {"embeddings_a": torch.zeros(2, 3), "embeddings_b": torch.ones(2, 3)}
    _, gradients = loss_and_gradients(resolve_loss("cosine_embedding"), outputs, {"targets": torch.tensor([1, -1])})
    assert all(gradient.abs().max() <= 1 for gradient in gradients.values())


@pytest.mark.parametrize(("targets", "count"), [([1, 0], 1), ([0.5, 2.0], 2), ([1.0, math.nan], 1)], ids=str)
def test_a_target_that_is_neither_is_refused(targets: Any, count: int) -> None:
    with pytest.raises(LossInputError) as caught:
        result_of(EYE, EYE, targets)
    expected = f"cosine_embedding: 'targets' must be 1 (alike) or -1 (unlike); {count} of 2 are neither."
    assert str(caught.value) == expected


@pytest.mark.parametrize("margin", [-1.1, 1.1, math.nan, True], ids=str)
def test_a_margin_out_of_range_is_refused(margin: Any) -> None:
    with pytest.raises(LossConfigError, match=r"^cosine_embedding: margin: "):
        resolve_loss("cosine_embedding", margin=margin)

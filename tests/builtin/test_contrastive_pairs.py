import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from reference import elements, loss_and_gradients, reduced
from references.embedding import contrastive_pairs
from strategies import tensors
from tensafe.training.losses import LossConfigError, LossInputError, resolve_loss

EYE = torch.eye(2)


def result_of(a: Tensor, b: Tensor, targets: Any, **kwargs: Any) -> Any:
    outputs = {"embeddings_a": a, "embeddings_b": b}
    return resolve_loss("contrastive_pairs", **kwargs)(outputs, {"targets": torch.as_tensor(targets)})


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Tensor, Tensor, list[int]]:
    shape = (draw(st.integers(1, 4)), draw(st.integers(1, 3)))
    targets = draw(st.lists(st.sampled_from([1, 0]), min_size=shape[0], max_size=shape[0]))
    return draw(tensors(shape)), draw(tensors(shape)), targets


@pytest.mark.parametrize(
    ("b", "targets", "kwargs", "expected"),
    [
        pytest.param(EYE, [1, 1], {}, [0.0, 0.0], id="alike, and they are"),
        pytest.param(EYE, [0, 0], {}, [0.125, 0.125], id="unlike, but they are not"),
        pytest.param(-EYE, [1, 0], {}, [2.0, 0.0], id="opposites"),
        pytest.param(EYE.flip(0), [1, 0], {"margin": 1.5}, [0.5, 0.125], id="right angles"),
        pytest.param(EYE.flip(0), [0, 0], {"margin": 0.0}, [0.0, 0.0], id="no margin"),
        pytest.param(4 * EYE, [1, 0], {"distance": "euclidean", "margin": 4.0}, [4.5, 0.5], id="euclidean"),
        pytest.param(0 * EYE, [1.0, 0.0], {}, [0.5, 0.0], id="zeros"),
    ],
)
def test_values_by_hand(b: Tensor, targets: Any, kwargs: Any, expected: list[float]) -> None:
    values = result_of(EYE, b, targets, reduction="none", **kwargs)["loss"]
    assert values.tolist() == pytest.approx(expected, abs=1e-5)


@given(pairs(), st.floats(0, 5), st.sampled_from(["cosine", "euclidean"]), st.sampled_from(["sum", "mean"]))
def test_every_reduction_is_that_of_the_formula(drawn: Any, margin: float, kind: Any, mode: Any) -> None:
    values = contrastive_pairs(*drawn, margin=margin, kind=kind)
    kwargs: dict[str, Any] = {"margin": margin, "distance": kind}
    assert result_of(*drawn, reduction="none", **kwargs)["loss"].tolist() == pytest.approx(values, rel=1e-9, abs=1e-9)
    expected = reduced(elements(values), mode)
    assert result_of(*drawn, reduction=mode, **kwargs)["loss"].item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_the_gradient_is_that_of_the_formula() -> None:
    drawn = torch.randn(2, 9, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    targets = torch.tensor([1, 0, 1, 0, 1, 0, 1, 0, 0])
    outputs = {"embeddings_a": drawn[0], "embeddings_b": drawn[1]}
    loss_fn = resolve_loss("contrastive_pairs", margin=4.0, distance="euclidean")
    _, gradients = loss_and_gradients(loss_fn, outputs, {"targets": targets})
    leaves = [tensor.clone().requires_grad_() for tensor in drawn]
    apart = torch.nn.functional.pairwise_distance(leaves[0], leaves[1])
    expected = torch.where(targets == 1, apart**2, torch.relu(4 - apart) ** 2).mean() / 2
    torch.testing.assert_close(tuple(gradients.values()), torch.autograd.grad(expected, leaves))


def test_accuracy_is_the_share_on_the_right_side_of_the_margin() -> None:
    a = torch.tensor([[1.0, 0.0]] * 4)
    b = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    assert result_of(a, b, [1, 1, 0, 0])["metrics"] == {"accuracy": 0.5}
    assert result_of(a, b, [1, 0, 1, 0])["metrics"] == {"accuracy": 1.0}
    assert result_of(a, b, [1, 0, 1, 0], margin=1.5)["metrics"] == {"accuracy": 0.5}


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_embeddings_that_are_zero_have_bounded_gradients(distance: Any) -> None:
    outputs = {"embeddings_a": torch.zeros(2, 3), "embeddings_b": torch.zeros(2, 3)}
    loss_fn = resolve_loss("contrastive_pairs", distance=distance)
    _, gradients = loss_and_gradients(loss_fn, outputs, {"targets": torch.tensor([1, 0])})
    assert all(gradient.abs().max() <= 1 for gradient in gradients.values())


@pytest.mark.parametrize("targets", [[1, -1], [0.5, 0.0]], ids=str)
def test_a_target_that_is_neither_is_refused(targets: Any) -> None:
    with pytest.raises(LossInputError) as caught:
        result_of(EYE, EYE, targets)
    assert str(caught.value) == "contrastive_pairs: 'targets' must be 1 (alike) or 0 (unlike); 1 of 2 are neither."


@pytest.mark.parametrize(
    "kwargs", [{"margin": -0.1}, {"margin": math.inf}, {"distance": "squared"}, {"margin": True}], ids=str
)
def test_a_kwarg_out_of_range_is_refused(kwargs: dict[str, Any]) -> None:
    with pytest.raises(LossConfigError, match=f"^contrastive_pairs: {next(iter(kwargs))}: "):
        resolve_loss("contrastive_pairs", **kwargs)

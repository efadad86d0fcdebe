import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from reference import elements, loss_and_gradients, reduced
from references.embedding import siglip
from strategies import embeddings
from tensafe.training.losses import LossConfigError, LossInputError, resolve_loss

EYE = torch.eye(2, dtype=torch.float64)
Pair = tuple[Tensor, Tensor]


def result_of(a: Tensor, b: Tensor, more: Any = None, **kwargs: Any) -> Any:
    return resolve_loss("siglip", **kwargs)({"embeddings_a": a, "embeddings_b": b, **(more or {})}, {})


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


@pytest.mark.parametrize(
    ("a", "b", "kwargs", "expected"),
    [
        pytest.param(EYE, EYE, {"logit_scale": 1.0, "logit_bias": 0.0}, softplus(-1) + softplus(0), id="partners"),
        pytest.param(EYE, EYE, {}, softplus(0) + softplus(-10), id="as it starts"),
        pytest.param(EYE, EYE.flip(0), {}, softplus(10) + softplus(0), id="the other one's partners"),
        pytest.param(EYE, -EYE, {"logit_scale": 2.0, "logit_bias": 1.0}, softplus(1) + softplus(1), id="opposites"),
        pytest.param(5 * EYE, EYE / 5, {}, softplus(0) + softplus(-10), id="length does not matter"),
        pytest.param(EYE[:1], EYE[:1], {}, softplus(0), id="one pair"),
        pytest.param(0 * EYE, EYE, {}, softplus(10) + softplus(-10), id="zeros"),
        pytest.param(EYE[:0], EYE[:0], {}, 0.0, id="no pair"),
        pytest.param(EYE, EYE, {"logit_bias": -100.0}, 90.0, id="far off"),
    ],
)
def test_a_loss_by_hand(a: Tensor, b: Tensor, kwargs: Any, expected: float) -> None:
    assert result_of(a, b, **kwargs)["loss"].item() == pytest.approx(expected, rel=1e-12)


@given(embeddings(), st.floats(0.1, 100), st.floats(-50, 50), st.sampled_from(["sum", "mean"]))
def test_every_reduction_is_that_of_the_formula(pair: Pair, scale: float, bias: float, mode: Any) -> None:
    values = siglip(*pair, scale=scale, bias=bias)
    kwargs: dict[str, Any] = {"logit_scale": scale, "logit_bias": bias}
    assert result_of(*pair, reduction="none", **kwargs)["loss"].tolist() == pytest.approx(values, rel=1e-9, abs=1e-12)
    expected = reduced(elements(values), mode)
    assert result_of(*pair, reduction=mode, **kwargs)["loss"].item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@given(embeddings(), st.floats(0.1, 30), st.floats(-30, 30))
def test_outputs_of_the_names_of_the_kwargs_are_used_instead(pair: Pair, scale: float, bias: float) -> None:
    numbers = {"logit_scale": scale, "logit_bias": bias}
    learnt = {name: torch.tensor(number, dtype=torch.float64) for name, number in numbers.items()}
    given_as_kwargs = result_of(*pair, logit_scale=scale, logit_bias=bias)["loss"]
    torch.testing.assert_close(result_of(*pair, learnt)["loss"], given_as_kwargs)
    only_scale = result_of(*pair, {"logit_scale": learnt["logit_scale"]}, logit_bias=bias)["loss"]
    torch.testing.assert_close(only_scale, given_as_kwargs)


@pytest.mark.parametrize("mode", ["mean", "sum"])
def test_the_gradient_is_that_of_the_formula(mode: Any) -> None:
    drawn = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    outputs = {
        "embeddings_a": drawn[0],
        "embeddings_b": drawn[1],
        "logit_scale": torch.tensor(3.0).double(),
        "logit_bias": torch.tensor(-1.0).double(),
    }
    _, gradients = loss_and_gradients(resolve_loss("siglip", reduction=mode), outputs)
    leaves = [tensor.clone().requires_grad_() for tensor in outputs.values()]
    a, b = (torch.nn.functional.normalize(leaf, dim=-1) for leaf in leaves[:2])
    signs = 2 * torch.eye(5).double() - 1
    values = -torch.nn.functional.logsigmoid(signs * (leaves[2] * a @ b.T + leaves[3])).sum(1)
    expected = torch.autograd.grad(values.mean() if mode == "mean" else values.sum(), leaves)
    torch.testing.assert_close(tuple(gradients.values()), expected, rtol=1e-10, atol=1e-12)


def test_the_mean_is_the_sum_over_all_pairs_divided_by_the_rows() -> None:
    loss = result_of(torch.ones(3, 2), torch.ones(3, 2), logit_bias=-10.0)["loss"]
    assert loss.item() == pytest.approx(9 * math.log(2) / 3)


def test_its_only_metric_is_the_mean_cosine_of_partners() -> None:
    metrics = result_of(torch.stack([EYE[0], -EYE[0]]), EYE)["metrics"]
    assert list(metrics) == ["positive_similarity"]
    assert metrics["positive_similarity"].item() == 0.5


def test_a_zero_embedding_has_a_bounded_gradient() -> None:
    outputs = {"embeddings_a": torch.zeros(3, 2), "embeddings_b": torch.ones(3, 2)}
    _, gradients = loss_and_gradients(resolve_loss("siglip"), outputs)
    assert all(gradient.abs().max() <= 10 for gradient in gradients.values())


def test_a_scale_with_an_axis_is_refused() -> None:
    with pytest.raises(LossInputError, match=r"^siglip: 'logit_scale' must be float\[\]"):
        result_of(EYE, EYE, {"logit_scale": torch.ones(1).double()})


@pytest.mark.parametrize(
    "kwargs", [{"logit_scale": 0.0}, {"logit_scale": -1.0}, {"logit_bias": math.inf}, {"logit_bias": True}], ids=str
)
def test_a_kwarg_out_of_range_is_refused(kwargs: dict[str, Any]) -> None:
    with pytest.raises(LossConfigError, match=f"^siglip: {next(iter(kwargs))}: "):
        resolve_loss("siglip", **kwargs)

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from reference import elements, loss_and_gradients, reduced
from references.embedding import info_nce
from strategies import tensors
from tensafe.training.losses import LossConfigError, LossInputError, resolve_loss

pytestmark = pytest.mark.usefixtures("path")

EYE = torch.eye(2, dtype=torch.float64)
LOG_ODDS = math.log1p(math.exp(-1))


def outputs_of(a: Tensor, b: Tensor, negatives: Tensor | None = None) -> dict[str, Tensor]:
    more = {} if negatives is None else {"embeddings_negative": negatives}
    return {"embeddings_a": a, "embeddings_b": b, **more}


def loss_of(a: Tensor, b: Tensor, negatives: Tensor | None = None, **kwargs: Any) -> Tensor:
    return resolve_loss("multiple_negatives", **kwargs)(outputs_of(a, b, negatives), {})["loss"]


@st.composite
def batches(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor | None]:
    count, width, k = draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.integers(0, 2))
    a, b = draw(tensors((count, width))), draw(tensors((count, width)))
    return a, b, draw(tensors((count, k, width))) if k else None


@pytest.mark.parametrize(
    ("a", "b", "negatives", "kwargs", "expected"),
    [
        pytest.param(EYE, EYE, None, {"scale": 1.0}, LOG_ODDS, id="partners"),
        pytest.param(EYE, EYE, None, {}, math.log1p(math.exp(-20)), id="scale 20"),
        pytest.param(EYE, EYE.flip(0), None, {"scale": 1.0}, math.log1p(math.e), id="the other one's partners"),
        pytest.param(3 * EYE, EYE, None, {"scale": 1.0}, LOG_ODDS, id="length does not matter"),
        pytest.param(3 * EYE, EYE, None, {"scale": 1.0, "similarity": "dot"}, math.log1p(math.exp(-3)), id="dot"),
        pytest.param(EYE, EYE, EYE.unsqueeze(1), {"scale": 1.0}, LOG_ODDS + math.log(2), id="partners as negatives"),
        pytest.param(
            EYE, EYE, -EYE.view(2, 1, 2), {"scale": 1.0}, math.log(math.e + 2 + math.exp(-1)) - 1, id="all negatives"
        ),
        pytest.param(
            EYE, EYE, EYE.unsqueeze(1), {"scale": 1.0, "symmetric": True}, LOG_ODDS + math.log(2) / 2, id="symmetric"
        ),
        pytest.param(EYE[:1], EYE[:1], None, {}, 0.0, id="one pair"),
        pytest.param(EYE[:1], EYE[:1], EYE[:1].unsqueeze(1), {}, math.log(2), id="one pair and its negative"),
        pytest.param(EYE[:0], EYE[:0], None, {}, 0.0, id="no pair"),
        pytest.param(EYE[:0], EYE[:0], torch.ones(0, 3, 2), {}, 0.0, id="no pair, with negatives"),
        pytest.param(0 * EYE, EYE, None, {}, math.log(2), id="zeros"),
    ],
)
def test_a_loss_by_hand(a: Tensor, b: Tensor, negatives: Tensor | None, kwargs: Any, expected: float) -> None:
    assert loss_of(a, b, negatives, **kwargs).item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@given(
    batches(), st.floats(0.1, 20), st.booleans(), st.sampled_from(["cosine", "dot"]), st.sampled_from(["sum", "mean"])
)
def test_every_reduction_is_that_of_the_formula(
    batch: Any, scale: float, symmetric: bool, similarity: str, mode: Any
) -> None:
    kwargs: dict[str, Any] = {"scale": scale, "symmetric": symmetric, "similarity": similarity}
    values = info_nce(*batch, **kwargs)
    assert loss_of(*batch, reduction="none", **kwargs).tolist() == pytest.approx(values, rel=1e-9, abs=1e-9)
    expected = reduced(elements(values), mode)
    assert loss_of(*batch, reduction=mode, **kwargs).item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("mode", ["mean", "none"])
@pytest.mark.parametrize("symmetric", [False, True])
def test_the_gradient_is_that_of_the_formula(mode: Any, symmetric: bool) -> None:
    drawn = torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    outputs = outputs_of(drawn[:, 0], drawn[:, 1], drawn[:, 2:])
    loss_fn = resolve_loss("multiple_negatives", scale=3.0, symmetric=symmetric, reduction=mode)
    _, gradients = loss_and_gradients(loss_fn, outputs)
    leaves = [tensor.clone().requires_grad_() for tensor in outputs.values()]
    a, b, n = (torch.nn.functional.normalize(leaf, dim=-1) for leaf in leaves)
    scores = 3 * a @ torch.cat([b, n.reshape(-1, 3)]).T
    values = scores.logsumexp(1) - scores.diagonal()
    if symmetric:
        values = (values + scores[:, :5].logsumexp(0) - scores.diagonal()) / 2
    expected = torch.autograd.grad(values.mean() if mode == "mean" else values.sum(), leaves)
    torch.testing.assert_close(tuple(gradients.values()), expected, rtol=1e-10, atol=1e-12)


def test_negatives_of_one_row_are_candidates_of_all() -> None:
    negatives = torch.stack([EYE, 0 * EYE])
    leaf = negatives.clone().requires_grad_()
    values = loss_of(EYE, EYE, leaf, reduction="none")
    torch.autograd.backward(values[1])
    assert leaf.grad is not None
    assert leaf.grad[0].any()


@given(batches())
def test_a_negative_more_never_costs_less(batch: Any) -> None:
    a, b, negatives = batch
    assert (loss_of(a, b, negatives, reduction="none") >= loss_of(a, b, reduction="none") - 1e-12).all()


@given(batches())
def test_with_both_directions_it_is_contrastive(batch: Any) -> None:
    a, b, negatives = batch
    both = resolve_loss("contrastive", temperature=0.05)(outputs_of(a, b, negatives), {})["loss"]
    torch.testing.assert_close(loss_of(a, b, negatives, symmetric=True), both)


def test_positive_similarity() -> None:
    outputs = outputs_of(2 * EYE, EYE)
    assert resolve_loss("multiple_negatives")(outputs, {})["metrics"] == {"positive_similarity": 1.0}
    dot = resolve_loss("multiple_negatives", similarity="dot")(outputs, {})["metrics"]
    assert dot == {"positive_similarity": 2.0}


def test_zero_embeddings_have_bounded_gradients() -> None:
    drawn = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0))
    drawn[0] = 0.0
    loss, gradients = loss_and_gradients(
        resolve_loss("multiple_negatives"), outputs_of(drawn[:, 0], drawn[:, 1], drawn[:, 2:])
    )
    assert loss.isfinite()
    assert all(gradient.abs().max() <= 20 for gradient in gradients.values())


@pytest.mark.parametrize(
    ("negatives", "part"),
    [
        (torch.ones(2, 2), "float[batch k hidden]"),
        (torch.ones(3, 1, 2), "batch"),
        (torch.ones(2, 0, 2), "k"),
        (torch.ones(2, 1, 3), "hidden"),
    ],
    ids=["two axes", "another batch", "none each", "another width"],
)
def test_negatives_that_do_not_fit_are_refused(negatives: Tensor, part: str) -> None:
    with pytest.raises(LossInputError, match=r"^multiple_negatives: 'embeddings_negative'") as caught:
        loss_of(EYE.float(), EYE.float(), negatives)
    assert part in str(caught.value)


@pytest.mark.parametrize(
    "kwargs",
    [{"scale": 0.0}, {"scale": -1.0}, {"scale": math.inf}, {"similarity": "euclidean"}, {"symmetric": 1}],
    ids=str,
)
def test_a_kwarg_out_of_range_is_refused(kwargs: dict[str, Any]) -> None:
    with pytest.raises(LossConfigError, match=f"^multiple_negatives: {next(iter(kwargs))}: "):
        resolve_loss("multiple_negatives", **kwargs)

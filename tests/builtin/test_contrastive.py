import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from reference import contrastive, elements, loss_and_gradients, reduced
from references.embedding import info_nce
from strategies import embeddings
from tensafe.training.losses import LossConfigError, resolve_loss

pytestmark = pytest.mark.usefixtures("path")

Pair = tuple[Tensor, Tensor]


def result_of(a: Any, b: Any, **kwargs: Any) -> Any:
    pairs = {"embeddings_a": torch.as_tensor(a), "embeddings_b": torch.as_tensor(b)}
    return resolve_loss("contrastive", **kwargs)(pairs, {})


def loss_of(a: Any, b: Any, **kwargs: Any) -> Tensor:
    loss: Tensor = result_of(a, b, **kwargs)["loss"]
    return loss


def pairs(seed: int = 0, rows: int = 4, dtype: torch.dtype = torch.float32) -> Pair:
    drawn = torch.randn(2, rows, 8, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return drawn[0], drawn[1]


EYE = torch.eye(2, dtype=torch.float64)


@pytest.mark.parametrize(
    ("a", "b", "kwargs", "expected"),
    [
        pytest.param(EYE, EYE, {"temperature": 1.0}, math.log1p(math.exp(-1)), id="partners"),
        pytest.param(EYE, EYE.flip(0), {"temperature": 1.0}, math.log1p(math.e), id="the other one's partners"),
        pytest.param(EYE, EYE, {"temperature": 0.5}, math.log1p(math.exp(-2)), id="temperature"),
        pytest.param(EYE, EYE, {"temperature": 1.0, "margin": 0.25}, math.log1p(math.exp(-0.75)), id="margin"),
        pytest.param(EYE, EYE, {"temperature": 0.5, "margin": 0.25}, math.log1p(math.exp(-1.5)), id="both"),
        pytest.param(EYE, EYE, {"temperature": 1.0, "reduction": "sum"}, 2 * math.log1p(math.exp(-1)), id="sum"),
        pytest.param(3 * EYE, 0.1 * EYE, {"temperature": 1.0}, math.log1p(math.exp(-1)), id="lengths"),
        pytest.param(EYE, -EYE, {"temperature": 1.0}, math.log1p(math.e), id="opposites"),
        pytest.param(torch.ones(3, 2), torch.ones(3, 2), {}, math.log(3), id="all alike"),
        pytest.param(torch.ones(1, 2), -torch.ones(1, 2), {}, 0.0, id="one pair has no negatives"),
        pytest.param(torch.zeros(2, 2), torch.zeros(2, 2), {}, math.log(2), id="zeros"),
        pytest.param(torch.ones(0, 2), torch.ones(0, 2), {}, 0.0, id="no pair"),
    ],
)
def test_a_loss_by_hand(a: Tensor, b: Tensor, kwargs: Any, expected: float) -> None:
    assert loss_of(a, b, **kwargs).item() == pytest.approx(expected, rel=1e-6, abs=1e-12)


@given(embeddings(), st.floats(0.05, 5), st.floats(0, 2), st.sampled_from(["sum", "mean"]))
def test_every_reduction_is_that_of_the_formula(pair: Pair, temperature: float, margin: float, mode: Any) -> None:
    expected = reduced(elements(contrastive(*pair, temperature=temperature, margin=margin)), mode)
    loss = loss_of(*pair, temperature=temperature, margin=margin, reduction=mode)
    assert loss.item() == pytest.approx(expected, rel=1e-10, abs=1e-10)


@given(embeddings(), st.floats(0, 2))
def test_none_gives_one_value_per_pair(pair: Pair, margin: float) -> None:
    expected = torch.tensor(contrastive(*pair, margin=margin), dtype=torch.float64)
    torch.testing.assert_close(loss_of(*pair, margin=margin, reduction="none"), expected, rtol=1e-9, atol=1e-9)


def by_torch(a: Tensor, b: Tensor, temperature: float, margin: float, mode: Any) -> Tensor:
    """The loss in operations that autograd differentiates."""
    cosines = torch.nn.functional.normalize(a) @ torch.nn.functional.normalize(b).T
    scores = (cosines - margin * torch.eye(len(a), dtype=a.dtype)) / temperature
    values = (scores.logsumexp(0) + scores.logsumexp(1)) / 2 - scores.diagonal()
    return values.mean() if mode == "mean" else values.sum()


@given(st.integers(1, 9), st.integers(0, 2**32), st.floats(0.05, 5), st.floats(0, 2), st.sampled_from(["sum", "mean"]))
def test_the_gradient_is_that_of_the_formula(
    rows: int, seed: int, temperature: float, margin: float, mode: Any
) -> None:
    sides = [x.requires_grad_() for x in pairs(seed, rows, torch.float64)]
    expected = torch.autograd.grad(by_torch(sides[0], sides[1], temperature, margin, mode), sides)
    outputs = {"embeddings_a": sides[0], "embeddings_b": sides[1]}
    for reduction in (mode, *(["none"] if mode == "sum" else [])):
        loss_fn = resolve_loss("contrastive", temperature=temperature, margin=margin, reduction=reduction)
        _, gradients = loss_and_gradients(loss_fn, outputs)
        torch.testing.assert_close(tuple(gradients.values()), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mode", ["mean", "none"])
def test_narrower_embeddings_are_computed_in_float32(dtype: torch.dtype, mode: Any) -> None:
    sides = pairs(rows=9, dtype=dtype)
    outputs = dict(zip(("embeddings_a", "embeddings_b"), sides, strict=True))
    loss_fn = resolve_loss("contrastive", temperature=0.5, margin=0.1, reduction=mode)
    loss, gradients = loss_and_gradients(loss_fn, outputs)
    leaves = [x.double().requires_grad_() for x in sides]
    expected = by_torch(leaves[0], leaves[1], 0.5, 0.1, mode)
    assert loss.dtype is torch.float32
    torch.testing.assert_close(loss.sum().double(), expected.detach(), rtol=1e-5, atol=1e-6)
    for gradient, reference in zip(gradients.values(), torch.autograd.grad(expected, leaves), strict=True):
        assert gradient.dtype is dtype
        torch.testing.assert_close(gradient.double(), reference, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize("wanted", ["embeddings_a", "embeddings_b"])
def test_one_side_may_be_a_constant(wanted: str) -> None:
    outputs = dict(zip(("embeddings_a", "embeddings_b"), pairs(rows=5), strict=True))
    _, both = loss_and_gradients(resolve_loss("contrastive"), outputs)
    leaves = {name: x.clone().requires_grad_(name == wanted) for name, x in outputs.items()}
    torch.autograd.backward(resolve_loss("contrastive")(leaves, {})["loss"])
    torch.testing.assert_close(leaves[wanted].grad, both[wanted])


def test_hard_negatives_by_hand() -> None:
    """Two pairs at right angles; each has its own partner and the other's as negatives: all come thrice."""
    negatives = torch.stack([EYE, EYE])
    outputs = {"embeddings_a": EYE, "embeddings_b": EYE, "embeddings_negative": negatives}
    loss = resolve_loss("contrastive", temperature=1.0)(outputs, {})["loss"]
    alone = math.log1p(math.exp(-1))
    assert loss.item() == pytest.approx((alone + math.log(3) + alone) / 2)


@pytest.mark.parametrize("mode", ["mean", "none"])
def test_hard_negatives_of_all_are_candidates_in_the_first_direction(mode: Any) -> None:
    drawn = torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    outputs = dict(zip(("embeddings_a", "embeddings_b"), drawn.unbind(1)[:2], strict=True))
    outputs["embeddings_negative"] = drawn[:, 2:]
    loss_fn = resolve_loss("contrastive", temperature=0.5, margin=0.2, reduction=mode)
    loss, gradients = loss_and_gradients(loss_fn, outputs)
    values = info_nce(*outputs.values(), scale=2.0, margin=0.2, symmetric=True)
    assert loss.reshape(-1).tolist() == pytest.approx(values if mode == "none" else [sum(values) / 5])
    leaves = [tensor.clone().requires_grad_() for tensor in outputs.values()]
    a, b, n = (torch.nn.functional.normalize(leaf, dim=-1) for leaf in leaves)
    scores = (a @ torch.cat([b, n.reshape(-1, 3)]).T - 0.2 * torch.eye(5, 15).double()) / 0.5
    expected = (scores.logsumexp(1) + scores[:, :5].logsumexp(0)).sum() / 2 - scores.diagonal().sum()
    expected = expected / 5 if mode == "mean" else expected
    torch.testing.assert_close(tuple(gradients.values()), torch.autograd.grad(expected, leaves), rtol=1e-9, atol=1e-12)


@given(embeddings())
def test_the_sides_are_alike(pair: Pair) -> None:
    a, b = pair
    torch.testing.assert_close(loss_of(a, b), loss_of(b, a))


@given(embeddings(), st.randoms(use_true_random=False))
def test_the_order_of_pairs_does_not_matter(pair: Pair, random: Any) -> None:
    a, b = pair
    order = list(range(len(a)))
    random.shuffle(order)
    torch.testing.assert_close(loss_of(a[order], b[order]), loss_of(a, b))
    values = loss_of(a, b, reduction="none")
    torch.testing.assert_close(loss_of(a[order], b[order], reduction="none"), values[order])


@given(embeddings(), st.floats(1e-3, 1e3))
def test_the_length_of_an_embedding_does_not_matter(pair: Pair, scale: float) -> None:
    a, b = pair
    torch.testing.assert_close(loss_of(scale * a, b), loss_of(a, b))


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e20, 1e30])
def test_lengths_whose_squares_do_not_fit_lose_nothing(scale: float) -> None:
    a, b = pairs()
    expected, reference = loss_and_gradients(resolve_loss("contrastive"), {"embeddings_a": a, "embeddings_b": b})
    loss, gradients = loss_and_gradients(resolve_loss("contrastive"), {"embeddings_a": scale * a, "embeddings_b": b})
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradients["embeddings_b"], reference["embeddings_b"])
    torch.testing.assert_close(gradients["embeddings_a"] * scale, reference["embeddings_a"])


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("sides", [("embeddings_a",), ("embeddings_a", "embeddings_b")], ids=["one side", "both"])
def test_a_zero_embedding_has_a_bounded_gradient(sides: tuple[str, ...], rows: int) -> None:
    outputs = dict(zip(("embeddings_a", "embeddings_b"), pairs(rows=rows), strict=True))
    for side in sides:
        outputs[side] = outputs[side].clone()
        outputs[side][0] = 0.0
    loss, gradients = loss_and_gradients(resolve_loss("contrastive", temperature=0.07), outputs)
    assert loss.isfinite()
    assert all(gradient.abs().max() <= 1 / 0.07 for gradient in gradients.values())


def test_a_zero_embedding_is_equally_far_from_all() -> None:
    a, b = pairs()
    a[1] = 0.0
    found = loss_of(a, b, reduction="none")[1].item()
    expected = contrastive(a, b)[1]
    assert found == pytest.approx(expected, rel=1e-5)


@given(embeddings())
def test_a_high_temperature_tells_nothing_apart(pair: Pair) -> None:
    assert loss_of(*pair, temperature=1e9).item() == pytest.approx(math.log(len(pair[0])), abs=1e-6)


def test_a_low_temperature_looks_at_the_hardest_negative_alone() -> None:
    a, b = pairs(dtype=torch.float64)
    unit_a, unit_b = (x / x.norm(dim=1, keepdim=True) for x in (a, b))
    similarity = unit_a @ unit_b.T
    positive = similarity.diagonal()
    hardest = [similarity.amax(axis) - positive for axis in (0, 1)]
    values = loss_of(a, b, temperature=1e-4, reduction="none")
    torch.testing.assert_close(values * 1e-4, (hardest[0] + hardest[1]) / 2, rtol=0, atol=1e-3)
    assert loss_of(a, a, temperature=1e-3).item() == pytest.approx(0.0, abs=1e-12)


@given(embeddings(), st.floats(0, 1), st.floats(0.01, 1))
def test_a_margin_makes_it_harder(pair: Pair, margin: float, more: float) -> None:
    assert (loss_of(*pair, margin=margin + more) >= loss_of(*pair, margin=margin) - 1e-12).all()
    assert torch.equal(loss_of(*pair, margin=0.0), loss_of(*pair))


@given(embeddings())
def test_positive_similarity_is_the_mean_cosine_of_the_pairs(pair: Pair) -> None:
    a, b = pair
    metrics = result_of(a, b, temperature=1.0)["metrics"]
    cosines = [
        (u @ v / (u.norm() * v.norm())).item() if u.any() and v.any() else 0.0 for u, v in zip(a, b, strict=True)
    ]
    assert list(metrics) == ["positive_similarity"]
    assert metrics["positive_similarity"].item() == pytest.approx(sum(cosines) / len(cosines), abs=1e-12)


def test_one_pair_teaches_nothing() -> None:
    outputs = dict(zip(("embeddings_a", "embeddings_b"), pairs(rows=1), strict=True))
    loss, gradients = loss_and_gradients(resolve_loss("contrastive", margin=0.5), outputs)
    assert loss == 0.0
    assert not any(gradient.any() for gradient in gradients.values())


def test_the_samples_of_a_batch_are_coupled() -> None:
    a, b = pairs()
    leaf = a.clone().requires_grad_()
    values = loss_of(leaf, b, reduction="none")
    (gradient,) = torch.autograd.grad(values[0], leaf)
    assert (gradient[1:] != 0).any()
    halves = (loss_of(a[:2], b[:2]) + loss_of(a[2:], b[2:])) / 2
    assert not torch.isclose(halves, loss_of(a, b), rtol=0.1)


def test_both_directions_count() -> None:
    """A batch in which each a finds its b, but two b's are nearest to the same a."""
    a = torch.tensor([[1.0, 0.0], [0.6, 0.8]], dtype=torch.float64)
    b = torch.tensor([[1.0, 0.0], [0.8, 0.6]], dtype=torch.float64)
    similarity = a @ b.T
    forth = similarity.logsumexp(1) - similarity.diagonal()
    back = similarity.logsumexp(0) - similarity.diagonal()
    assert not torch.isclose(forth.mean(), back.mean(), rtol=1e-3)
    torch.testing.assert_close(loss_of(a, b, temperature=1.0), (forth + back).mean() / 2)


@pytest.mark.parametrize("seed", range(5))
def test_a_partner_that_comes_nearer_costs_less(seed: int) -> None:
    a, b = pairs(seed, dtype=torch.float64)
    nearer = [loss_of(a, b + share * (a - b), temperature=1.0).item() for share in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert nearer == sorted(nearer, reverse=True)


def test_sides_of_different_widths_meet_in_the_wider_one() -> None:
    a, b = pairs()
    for outputs in ((a.double(), b), (a, b.double())):
        loss = loss_of(*outputs)
        assert loss.dtype is torch.float64
        torch.testing.assert_close(loss, loss_of(a.double(), b.double()))


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_what_is_not_finite_is_passed_on(bad: float) -> None:
    a, b = pairs()
    a[1, 2] = bad
    assert loss_of(a, b).isnan()
    assert result_of(a, b)["metrics"]["positive_similarity"].isnan()


@pytest.mark.parametrize(
    "kwargs",
    [
        {"temperature": 0.0},
        {"temperature": -1.0},
        {"temperature": math.inf},
        {"temperature": math.nan},
        {"temperature": True},
        {"temperature": torch.tensor(0.1)},
        {"margin": -0.1},
        {"margin": math.inf},
    ],
    ids=str,
)
def test_a_kwarg_out_of_range_is_refused(kwargs: dict[str, Any]) -> None:
    with pytest.raises(LossConfigError, match=f"^contrastive: {next(iter(kwargs))}: "):
        resolve_loss("contrastive", **kwargs)

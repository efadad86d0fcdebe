import math
from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import Float
from torch import Tensor

from reference import Rows, reduced
from strategies import tensors
from tensafe.training.losses import (
    Elements,
    Loss,
    LossConfigError,
    LossInputError,
    LossReturnError,
    TensafeError,
    resolve_loss,
)
from tensafe.training.losses.reduction import Reduction, coefficients, reduce_elements

VALUES = torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0], [64.0, 128.0, 256.0]], dtype=torch.float64)
COUNTS = torch.tensor([[True, True, False], [False, False, True], [False, False, False]])
SHARES = torch.tensor([[0.5, 1.5, 0.0], [0.0, 0.0, 3.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
BY_SEQUENCE = ("sequence_mean", "sequence_sum", "sequence_sum_norm")
MODES = ("sum", "mean", *BY_SEQUENCE)


def reduce(elements: Any, mode: str = "mean", *, with_metrics: Any = True, **counts: Any) -> Any:
    length = 5 if mode == "sequence_sum_norm" else None
    return reduce_elements("test", elements, Reduction(mode, length, **counts), with_metrics=with_metrics)


def rows_of(values: Tensor, weights: Tensor | None) -> Rows:
    weights = torch.ones_like(values) if weights is None else weights.to(values.dtype)
    pairs = zip(values.flatten(1).tolist(), weights.flatten(1).tolist(), strict=True)
    return [list(zip(*row, strict=True)) for row in pairs]


# Values worked out by hand


@pytest.mark.parametrize(
    ("mode", "weights", "counts", "expected"),
    [
        ("sum", None, {}, 511.0),
        ("mean", None, {}, 511 / 9),
        ("sequence_mean", None, {}, 511 / 9),
        ("sequence_sum", None, {}, 511 / 3),
        ("sequence_sum_norm", None, {}, 511 / 15),
        ("sum", COUNTS, {}, 1 + 2 + 32),
        ("mean", COUNTS, {}, 35 / 3),
        ("sequence_mean", COUNTS, {}, (1.5 + 32) / 2),
        ("sequence_sum", COUNTS, {}, (3 + 32) / 2),
        ("sequence_sum_norm", COUNTS, {}, (3 + 32) / 5 / 2),
        ("sum", SHARES, {}, 0.5 + 3 + 96),
        ("mean", SHARES, {}, 99.5 / 5),
        ("sequence_mean", SHARES, {}, (3.5 / 2 + 32) / 2),
        ("sequence_sum", SHARES, {}, (3.5 + 96) / 2),
        ("sequence_sum_norm", SHARES, {}, (3.5 + 96) / 5 / 2),
        ("mean", COUNTS, {"num_items": 7}, 35 / 7),
        ("mean", None, {"num_items": 7.0}, 511 / 7),
        ("mean", COUNTS, {"num_items": torch.tensor(7)}, 35 / 7),
        ("mean", COUNTS, {"num_items": 0}, 0.0),
        ("mean", COUNTS, {"num_items": torch.tensor(0)}, 0.0),
        ("mean", COUNTS, {"num_items": torch.tensor(0.0)}, 0.0),
        ("sequence_mean", COUNTS, {"num_sequences": 4}, (1.5 + 32) / 4),
        ("sequence_sum", COUNTS, {"num_sequences": torch.tensor(4.0)}, 35 / 4),
        ("sequence_sum_norm", COUNTS, {"num_sequences": 4}, 35 / 5 / 4),
        ("sequence_sum", COUNTS, {"num_sequences": 0}, 0.0),
    ],
)
def test_a_reduction_by_hand(mode: str, weights: Tensor | None, counts: Any, expected: float) -> None:
    loss = reduce(Elements(VALUES, weights), mode, **counts)["loss"]
    assert loss.shape == ()
    assert loss.dtype is torch.float64
    assert loss.item() == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize(
    ("weights", "expected"),
    [(None, VALUES), (COUNTS, VALUES * COUNTS), (SHARES, VALUES * SHARES)],
    ids=["no weights", "bool", "float"],
)
def test_none_leaves_the_values_and_applies_the_weights(weights: Tensor | None, expected: Tensor) -> None:
    assert torch.equal(reduce(Elements(VALUES, weights), "none")["loss"], expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("mode", ["none", "sum", "mean"])
def test_one_number_is_its_own_reduction(mode: str, dtype: torch.dtype) -> None:
    value = torch.tensor(0.3, dtype=dtype)
    assert reduce(Elements(value), mode)["loss"] is value


# Against the loop


@st.composite
def values_and_weights(draw: st.DrawFn) -> tuple[Tensor, Tensor | None]:
    shape = tuple(draw(st.lists(st.integers(0, 3), min_size=2, max_size=3)))
    values = draw(tensors(shape))
    kind = draw(st.sampled_from(["none", "bool", "float"]))
    weights = draw(tensors(shape)) * 0.25
    return values, {"none": None, "bool": weights > 0, "float": weights.clamp(min=0)}[kind]


@given(values_and_weights(), st.sampled_from(MODES), st.sampled_from([None, 0, 3, 2.5, torch.tensor(4)]))
def test_every_reduction_is_that_of_the_loop(drawn: Any, mode: str, count: Any) -> None:
    values, weights = drawn
    name = {"mean": "num_items", "sum": None}.get(mode, "num_sequences")
    counts = {} if name is None or count is None else {name: count}
    loss = reduce(Elements(values, weights), mode, **counts)["loss"]
    numbers = {key: float(value) for key, value in counts.items()}
    length = 5 if mode == "sequence_sum_norm" else None
    expected = reduced(rows_of(values, weights), mode, max_length=length, **numbers)
    assert loss.item() == pytest.approx(expected, rel=1e-12, abs=1e-12)


@given(values_and_weights(), st.sampled_from(MODES))
def test_the_gradient_is_the_coefficients(drawn: Any, mode: str) -> None:
    values, weights = drawn
    leaf = values.clone().requires_grad_()
    torch.autograd.backward(reduce(Elements(leaf, weights), mode)["loss"])
    length = 5 if mode == "sequence_sum_norm" else None
    used = torch.ones_like(values) if weights is None else weights.to(values.dtype)
    assert leaf.grad is not None
    torch.testing.assert_close(leaf.grad, coefficients(used, Reduction(mode, length)))


@given(values_and_weights(), st.sampled_from(["mean", "sequence_mean"]))
def test_the_coefficients_of_a_mean_add_up_to_one(drawn: Any, mode: str) -> None:
    _, weights = drawn
    if weights is not None:
        total = coefficients(weights.double(), Reduction(mode)).sum().item()
        assert total == pytest.approx(1.0 if weights.any() else 0.0)


@given(values_and_weights(), st.sampled_from(["none", *MODES]))
def test_a_fused_loss_reduces_like_a_dense_one(drawn: Any, mode: str) -> None:
    values, weights = drawn
    weights = torch.ones_like(values, dtype=torch.bool) if weights is None else weights
    fused = Elements(lambda: values, weights, dot=lambda c: (c * torch.where(weights != 0, values, 0.0)).sum())
    expected = reduce(Elements(values, weights), mode)["loss"]
    tolerance = 1e-14 if weights.dtype is torch.float64 else 1e-6
    torch.testing.assert_close(reduce(fused, mode)["loss"], expected, rtol=tolerance, atol=10 * tolerance)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (torch.bool, torch.float32),
        (torch.int64, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
    ids=str,
)
@pytest.mark.parametrize("mode", MODES)
def test_a_fused_loss_gets_coefficients_as_wide_as_its_weights(
    mode: str, given: torch.dtype, expected: torch.dtype
) -> None:
    fused = Elements(lambda: VALUES, torch.ones(2, 3, dtype=given), dot=lambda c: c.sum())
    assert reduce(fused, mode)["loss"].dtype is expected


def test_a_fused_loss_makes_its_values_only_when_they_are_asked_for() -> None:
    def refuse() -> Tensor:
        raise AssertionError("made")

    elements = Elements(refuse, torch.ones(2, 3), dot=lambda c: c.sum() * 7)
    for mode in MODES:
        reduce(elements, mode)
    with pytest.raises(AssertionError, match="made"):
        reduce(elements, "none")


# What does not count


@pytest.mark.parametrize("shape", [(0,), (0, 3), (2, 0), (2, 3)], ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_nothing_counted_is_zero_and_still_attached(mode: str, shape: tuple[int, ...]) -> None:
    if len(shape) == 1 and mode in BY_SEQUENCE:
        shape = (0, 0)
    values = torch.ones(shape, requires_grad=True)
    loss = reduce(Elements(values, torch.zeros(shape, dtype=torch.bool)), mode)["loss"]
    assert loss == 0.0
    torch.autograd.backward(loss)
    assert values.grad is not None
    assert torch.equal(values.grad, torch.zeros(shape))


@pytest.mark.parametrize("shape", [(0,), (0, 3), (2, 0)], ids=str)
@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_no_values_are_zero_and_still_attached(mode: str, shape: tuple[int, ...]) -> None:
    values = torch.ones(shape, requires_grad=True)
    loss = reduce(Elements(values), mode)["loss"]
    assert loss == 0.0
    torch.autograd.backward(loss)
    assert values.grad is not None


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("weights", [COUNTS, SHARES], ids=["bool", "float"])
@pytest.mark.parametrize("mode", ["none", *MODES])
def test_what_has_no_weight_has_no_effect_even_if_it_is_nan(mode: str, weights: Tensor, bad: float) -> None:
    spoilt = torch.where(weights != 0, VALUES, bad).requires_grad_()
    metrics = {"metric": spoilt}
    result = reduce(Elements(spoilt, weights, metrics), mode)
    expected = reduce(Elements(VALUES, weights, {"metric": VALUES}), mode)
    assert torch.equal(result["loss"], expected["loss"])
    assert result["metrics"] == expected["metrics"]
    torch.autograd.backward(result["loss"].sum())
    assert spoilt.grad is not None
    assert (spoilt.grad[weights == 0] == 0).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("mode", ["none", *MODES])
def test_what_counts_is_passed_on_even_if_it_is_not_finite(mode: str, bad: float) -> None:
    values = VALUES.clone()
    values[0, 0] = bad
    for weights in (None, COUNTS, SHARES):
        assert not reduce(Elements(values, weights), mode)["loss"].isfinite().all()


# Denominators over accumulation steps and ranks


@given(
    st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=6), st.randoms(use_true_random=False)
)
def test_micro_batches_add_up_to_the_full_batch(counted: list[list[bool]], random: Any) -> None:
    weights = torch.tensor(counted)
    values = torch.tensor([[random.uniform(0, 9) for _ in row] for row in counted], dtype=torch.float64)
    cuts = sorted(random.choices(range(len(counted) + 1), k=random.randint(0, 3)))
    spans = list(zip([0, *cuts], [*cuts, len(counted)], strict=True))
    sequences = int(weights.any(1).sum())
    for mode in ("mean", *BY_SEQUENCE):
        counts = {"num_items": int(weights.sum())} if mode == "mean" else {"num_sequences": sequences}
        parts = [reduce(Elements(values[i:j], weights[i:j]), mode, **counts)["loss"].item() for i, j in spans]
        full = reduce(Elements(values, weights), mode)["loss"].item()
        assert math.fsum(parts) == pytest.approx(full, rel=1e-12)


def test_micro_batches_in_float32_lean_to_neither_side() -> None:
    generator = torch.Generator().manual_seed(0)
    errors = []
    for _ in range(100):
        values = torch.rand(64, 32, generator=generator)
        weights = torch.rand(64, 32, generator=generator) < 0.7
        total = int(weights.sum())
        cuts = sorted(torch.randint(0, 65, (7,), generator=generator).tolist())
        spans = zip([0, *cuts], [*cuts, 64], strict=True)
        losses = [reduce(Elements(values[i:j], weights[i:j]), num_items=total)["loss"].item() for i, j in spans]
        errors.append(math.fsum(losses) - values.double()[weights].mean().item())
    assert max(map(abs, errors)) < 1e-6
    assert 30 < sum(error > 0 for error in errors) < 70


def test_a_mean_of_means_is_not_the_mean() -> None:
    halves = [Elements(VALUES[:1], COUNTS[:1]), Elements(VALUES[1:], COUNTS[1:])]
    naive = sum(reduce(half)["loss"].item() for half in halves) / 2
    full = reduce(Elements(VALUES, COUNTS))["loss"].item()
    assert naive != pytest.approx(full, rel=0.1)
    assert sum(reduce(half, num_items=3)["loss"].item() for half in halves) == pytest.approx(full, rel=1e-15)


@pytest.mark.parametrize(
    ("count", "parts"),
    [
        (-1, ["got -1"]),
        (True, ["got True"]),
        (math.nan, ["got nan"]),
        (math.inf, ["got inf"]),
        ("8", ["got '8'"]),
        ([8], ["got list"]),
        (torch.tensor([8]), ["shape [1], int64"]),
        (torch.tensor(True), ["shape [], bool"]),
        (torch.tensor(1j), ["shape [], complex64"]),
        (torch.tensor(2).to_sparse(), ["shape [], int64"]),
        (torch.tensor(2.0).to(torch.float8_e4m3fn), ["shape [], float8_e4m3fn"]),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    ("name", "keyword", "mode"),
    [
        ("num_items_in_batch", "num_items", "mean"),
        ("num_sequences_in_batch", "num_sequences", "sequence_sum"),
    ],
)
def test_a_count_is_a_number_from_0_or_a_0d_tensor(
    count: Any, parts: list[str], name: str, keyword: str, mode: str
) -> None:
    with pytest.raises(LossInputError, match=f"^test: {name} must be a number >= 0 or a 0-d tensor") as caught:
        reduce(Elements(VALUES), mode, **{keyword: count})
    assert [part for part in parts if part not in str(caught.value)] == []
    assert caught.value.loc == (name,)
    assert caught.value.code == "invalid-count"


def test_a_count_is_where_the_loss_is_or_on_the_cpu() -> None:
    with pytest.raises(
        LossInputError, match="num_items_in_batch is on meta, but the loss is computed on cpu"
    ) as caught:
        reduce(Elements(VALUES), "mean", num_items=torch.tensor(2.0, device="meta"))
    assert caught.value.code == "device-mismatch"
    on_meta = reduce(Elements(VALUES.to("meta")), "mean", num_items=torch.tensor(2.0))
    assert on_meta["loss"].is_meta


@pytest.mark.parametrize(
    ("keyword", "mode"),
    [("num_items", mode) for mode in ("none", "sum", *BY_SEQUENCE)]
    + [("num_sequences", mode) for mode in ("none", "sum", "mean")],
)
def test_a_count_that_could_have_no_effect_is_refused(keyword: str, mode: str) -> None:
    with pytest.raises(
        LossConfigError, match=f"{keyword}_in_batch is the denominator .* no effect with {mode}"
    ) as caught:
        reduce(Elements(VALUES), mode, **{keyword: 3})
    assert caught.value.code == "unused-count"


def test_both_counts_are_refused_together() -> None:
    with pytest.raises(LossConfigError, match="num_sequences_in_batch"):
        reduce(Elements(VALUES), "mean", num_items=3, num_sequences=3)


# Metrics


def test_metrics_are_averaged_with_the_same_weights() -> None:
    metrics = {"mean": VALUES, "share": VALUES > 16, "ids": VALUES.long(), "max": VALUES.max()}
    for weights, mean, share in ((None, 511 / 9, 4 / 9), (COUNTS, 35 / 3, 1 / 3), (SHARES, 99.5 / 5, 3 / 5)):
        for mode in ("none", "sum", "mean", "sequence_mean"):
            found = reduce(Elements(VALUES, weights, metrics), mode)["metrics"]
            assert list(found) == list(metrics)
            assert found["mean"].item() == pytest.approx(mean)
            assert found["ids"].item() == pytest.approx(mean)
            assert found["share"].item() == pytest.approx(share)
            assert found["max"].item() == 256.0


def test_a_metric_that_is_a_number_is_passed_on() -> None:
    assert reduce(Elements(VALUES, COUNTS, metrics={"half": 0.5, "two": 2}))["metrics"] == {"half": 0.5, "two": 2}


def test_metrics_are_detached_scalars_and_may_be_left_out() -> None:
    leaf = VALUES.clone().requires_grad_()
    elements = Elements(leaf * 2, COUNTS, {"mean": leaf, "sum": leaf.sum(), "count": COUNTS.sum()})
    found = reduce(elements, num_items=100)["metrics"]
    assert all(metric.shape == () and not metric.requires_grad for metric in found.values())
    assert found["mean"].item() == pytest.approx(35 / 3)
    assert found["count"].dtype is torch.int64
    assert reduce(elements, with_metrics=False)["metrics"] == {}
    assert reduce(Elements(leaf))["metrics"] == {}


@pytest.mark.parametrize("weights", [None, torch.zeros(0, 3)], ids=["no weights", "weights"])
def test_a_metric_of_nothing_is_zero(weights: Tensor | None) -> None:
    empty = torch.zeros(0, 3)
    assert reduce(Elements(empty, weights, {"accuracy": empty > 0}))["metrics"] == {"accuracy": 0.0}


# Dtypes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("weights", [None, COUNTS, SHARES, SHARES.float()], ids=["none", "bool", "float64", "float32"])
@pytest.mark.parametrize("mode", MODES)
def test_the_loss_has_the_dtype_of_the_values(mode: str, weights: Tensor | None, dtype: torch.dtype) -> None:
    counts = {"num_items": torch.tensor(4, dtype=torch.int64)} if mode == "mean" else {}
    assert reduce(Elements(VALUES.to(dtype), weights), mode, **counts)["loss"].dtype is dtype


# What compute() may not return


@pytest.mark.parametrize(
    ("elements", "parts"),
    [
        pytest.param(VALUES, ["must return Elements", "got Tensor", "unreduced"], id="a tensor"),
        pytest.param({"loss": VALUES}, ["must return Elements", "got dict"], id="a dict"),
        pytest.param(None, ["must return Elements", "got NoneType"], id="nothing"),
        pytest.param((VALUES, None), ["must return Elements", "got tuple"], id="a tuple"),
        pytest.param(
            Elements(VALUES, COUNTS[0]), ["weights must be a tensor shaped", "[3, 3]", "got [3]"], id="weights"
        ),
        pytest.param(Elements(VALUES, [1, 0, 1]), ["weights must be a tensor", "got list"], id="a list of weights"),  # type: ignore[arg-type]
        pytest.param(Elements(VALUES.long()), ["floating-point tensor", "got int64"], id="integer values"),
        pytest.param(Elements(VALUES.to(torch.complex64)), ["floating-point", "got complex64"], id="complex values"),
        pytest.param(Elements(1.0), ["floating-point tensor", "got float"], id="a number for values"),  # type: ignore[arg-type]
        pytest.param(Elements(VALUES, metrics=[1]), ["metrics must be a dict", "got list"], id="a list of metrics"),  # type: ignore[arg-type]
        pytest.param(Elements(VALUES, metrics={"m": None}), ["metrics['m']", "got NoneType"], id="a metric of None"),  # type: ignore[dict-item]
        pytest.param(Elements(VALUES, metrics={"m": VALUES[0]}), ["metrics['m']", "got [3]"], id="metrics"),
        pytest.param(Elements(lambda: VALUES, dot=lambda c: c.sum()), ["dot must have weights"], id="fused"),
    ],
)
def test_what_is_no_elements_is_refused(elements: Any, parts: list[str]) -> None:
    with pytest.raises(LossReturnError, match=r"^test: ") as caught:
        reduce(elements)
    assert [part for part in parts if part not in str(caught.value)] == []


def test_a_reduction_of_ones_own_is_refused_before_any_tensor() -> None:
    class BatchMean(Loss):
        reduction: Literal["batchmean"] = "batchmean"
        max_length: int = 512

        def compute(self, predictions: Float[Tensor, "batch seq"]) -> Elements:
            return Elements(predictions)

    with pytest.raises(LossConfigError, match="'batchmean' is no reduction; there are mean, none, sequence_mean"):
        resolve_loss(BatchMean)


@pytest.mark.parametrize("mode", BY_SEQUENCE)
@pytest.mark.parametrize(
    "make", [lambda v: Elements(v), lambda v: Elements(v, v > 0), lambda v: Elements(lambda: v, v > 0, dot=torch.sum)]
)
def test_one_axis_has_no_sequences(mode: str, make: Callable[[Tensor], Elements]) -> None:
    with pytest.raises(LossInputError, match=f"reduction {mode} .* one axis.*\\[batch seq\\]") as caught:
        reduce(make(VALUES[0]), mode)
    assert caught.value.code not in {TensafeError.code, LossInputError.code}

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from reference import cross_entropy, loss_and_gradients, reduced, token_ce
from references.tokens import Weighted, assert_reduced, assert_slopes, weighted_tokens
from strategies import Tokens, formulas, tokens
from tensafe.training.losses import LossConfigError, LossInputError, ResolvedLoss, resolve_loss

pytestmark = pytest.mark.usefixtures("path")

MODES = ("sum", "mean", "sequence_mean", "sequence_sum", "sequence_sum_norm")
LN3 = math.log(3)


def resolve(**kwargs: Any) -> ResolvedLoss:
    if kwargs.get("reduction") == "sequence_sum_norm":
        kwargs["max_length"] = 7
    return resolve_loss("token_ce", **kwargs)


def loss_of(logits: Any, labels: Any, **kwargs: Any) -> Tensor:
    return resolve(**kwargs)({"logits": torch.as_tensor(logits)}, {"labels": torch.as_tensor(labels)})["loss"]


# Values worked out by hand


@pytest.mark.parametrize(
    ("logits", "labels", "kwargs", "expected"),
    [
        pytest.param([[0.0, 0.0, 0.0, 0.0]], [2], {}, math.log(4), id="uniform"),
        pytest.param([[0.0, LN3]], [1], {}, math.log(4 / 3), id="the likely one"),
        pytest.param([[0.0, LN3]], [0], {}, math.log(4), id="the unlikely one"),
        pytest.param([[0.0, LN3], [0.0, LN3]], [0, 1], {}, math.log(16 / 3) / 2, id="mean of two"),
        pytest.param([[0.0, LN3], [0.0, LN3]], [0, 1], {"reduction": "sum"}, math.log(16 / 3), id="sum of two"),
        pytest.param([[0.0, LN3], [0.0, LN3]], [0, -100], {}, math.log(4), id="one ignored"),
        pytest.param([[0.0, LN3]], [0], {"label_smoothing": 0.5}, math.log(4) - 0.25 * LN3, id="half smoothed"),
        pytest.param([[0.0, LN3]], [0], {"label_smoothing": 1.0}, math.log(4) - 0.5 * LN3, id="all smoothed"),
        pytest.param([[0.0, LN3]], [1], {"z_loss": 0.5}, math.log(4 / 3) + 0.5 * math.log(4) ** 2, id="z-loss"),
        pytest.param([[0.0, math.atanh(0.5)]], [1], {"softcap": 1.0}, math.log1p(math.exp(-0.5)), id="softcap"),
        pytest.param([[0.0, 1e30]], [1], {"softcap": 2.0}, math.log1p(math.exp(-2)), id="at the cap"),
        pytest.param([[0.0, LN3 / 2]], [1], {"logit_scale": 2.0}, math.log(4 / 3), id="scaled"),
        pytest.param([[0.0, 2.0]], [1], {"logit_scale": 1e30, "softcap": 2.0}, math.log1p(math.exp(-2)), id="all"),
        pytest.param([[[0.0, LN3], [5.0, 1.0]]], [[9, 0]], {}, math.log(4), id="shifted"),
        pytest.param([[[0.0, LN3], [5.0, 5.0]]], [[0, 1]], {"shift": False}, math.log(8) / 2, id="aligned"),
        pytest.param([[0.0]], [0], {}, 0.0, id="one class"),
        pytest.param([0.0, LN3], 1, {}, math.log(4 / 3), id="one row without an axis"),
    ],
)
def test_a_loss_by_hand(logits: Any, labels: Any, kwargs: Any, expected: float) -> None:
    logits = torch.tensor(logits, dtype=torch.float64)
    assert loss_of(logits, labels, **kwargs).item() == pytest.approx(expected, rel=1e-14, abs=1e-15)


# Against the formula


@given(st.one_of(tokens(rows=1), tokens(rows=2)), st.booleans(), formulas(), st.sampled_from(MODES))
def test_every_reduction_is_that_of_the_formula(drawn: Tokens, shift: bool, formula: Any, mode: Any) -> None:
    if drawn.labels.ndim == 1 and mode.startswith("sequence"):
        mode = "mean"
    loss = resolve(shift=shift, reduction=mode, **formula)(drawn.outputs, drawn.batch)["loss"]
    rows = token_ce(drawn.logits, drawn.labels, shift=shift, **formula)
    assert loss.item() == pytest.approx(reduced(rows, mode, max_length=7), rel=1e-10, abs=1e-12)


@given(tokens(), st.booleans(), formulas())
def test_none_gives_one_value_per_label(drawn: Tokens, shift: bool, formula: Any) -> None:
    loss = resolve(shift=shift, reduction="none", **formula)(drawn.outputs, drawn.batch)["loss"]
    rows = token_ce(drawn.logits, drawn.labels, shift=shift, **formula)
    expected = torch.tensor([[value for value, _ in row] for row in rows], dtype=torch.float64)
    torch.testing.assert_close(loss, expected.reshape(drawn.labels.shape))
    total = resolve(shift=shift, reduction="sum", **formula)(drawn.outputs, drawn.batch)["loss"]
    torch.testing.assert_close(loss.sum(), total)


@given(tokens(), st.booleans())
def test_num_tokens_is_what_counts(drawn: Tokens, shift: bool) -> None:
    metrics = resolve(shift=shift)(drawn.outputs, drawn.batch)["metrics"]
    counted = sum(weight for row in token_ce(drawn.logits, drawn.labels, shift=shift) for _, weight in row)
    assert list(metrics) == ["num_tokens"]
    assert metrics["num_tokens"] == counted


@given(tokens(least=1), st.sampled_from([0.0, 0.3]))
def test_the_gradient_is_probability_minus_target(drawn: Tokens, smoothing: float) -> None:
    loss_fn = resolve(shift=False, label_smoothing=smoothing, reduction="sum")
    _, gradients = loss_and_gradients(loss_fn, drawn.outputs, drawn.batch)
    vocab = drawn.logits.shape[-1]
    counts = (drawn.labels != -100).unsqueeze(-1)
    target = (drawn.labels.unsqueeze(-1) == torch.arange(vocab)) * (1 - smoothing) + smoothing / vocab
    exp = drawn.logits.exp()
    expected = torch.where(counts, exp / exp.sum(-1, keepdim=True) - target, 0.0)
    torch.testing.assert_close(gradients["logits"], expected)


def by_torch(logits: Tensor, labels: Tensor, kwargs: Any) -> Tensor:
    """The sum over what counts, in operations that autograd differentiates."""
    scores = logits * kwargs["logit_scale"]
    if kwargs["softcap"] is not None:
        scores = kwargs["softcap"] * torch.tanh(scores / kwargs["softcap"])
    norm, vocab = torch.logsumexp(scores, -1, keepdim=True), logits.shape[-1]
    target = (labels.unsqueeze(-1) == torch.arange(vocab)).to(scores.dtype) * (1 - kwargs["label_smoothing"])
    costs = (target + kwargs["label_smoothing"] / vocab) * (norm - scores)
    values = costs.sum(-1) + norm.squeeze(-1).square() * kwargs["z_loss"]
    return torch.where(labels == -100, 0.0, values).sum()


@given(tokens(least=1), formulas(), st.sampled_from(["sum", "none"]))
def test_the_gradient_is_that_of_the_formula(drawn: Tokens, formula: Any, mode: Any) -> None:
    loss_fn = resolve(shift=False, reduction=mode, **formula)
    _, gradients = loss_and_gradients(loss_fn, drawn.outputs, drawn.batch)
    leaf = drawn.logits.clone().requires_grad_()
    (expected,) = torch.autograd.grad(by_torch(leaf, drawn.labels, formula), leaf)
    torch.testing.assert_close(gradients["logits"], expected, rtol=1e-10, atol=1e-12)


# The shift


def test_position_t_is_scored_against_label_t_plus_1() -> None:
    logits = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[0, 1, 2, -100, 1], [2, 2, 1, 0, 0]])
    expected = loss_of(logits[:, :-1].reshape(-1, 3), labels[:, 1:].reshape(-1))
    backwards = loss_of(logits[:, 1:].reshape(-1, 3), labels[:, :-1].reshape(-1))
    found = loss_of(logits, labels)
    torch.testing.assert_close(found, expected)
    assert found != backwards
    aligned = resolve()(
        {"logits": logits}, {"shift_labels": torch.nn.functional.pad(labels, (0, 1), value=-100)[:, 1:]}
    )
    assert aligned["loss"] == found


@pytest.mark.parametrize("junk", [0.0, 1e4, math.inf, -math.inf, math.nan])
def test_the_last_position_has_nothing_to_predict(junk: float) -> None:
    logits = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[0, 1, 2, 1], [2, 2, 1, 0]])
    spoilt = logits.clone()
    spoilt[:, -1] = junk
    loss, gradients = loss_and_gradients(resolve(), {"logits": spoilt}, {"labels": labels})
    assert loss == loss_of(logits, labels)
    assert torch.equal(gradients["logits"][:, -1], torch.zeros(2, 3))
    assert (gradients["logits"][:, :-1] != 0).all()


def test_the_first_label_is_never_a_target() -> None:
    logits = torch.zeros(1, 3, 4)
    for first in (0, -100, 999):
        assert loss_of(logits, [[first, 1, 2]]).item() == pytest.approx(math.log(4))


def test_rows_without_a_sequence_are_never_shifted() -> None:
    logits, labels = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), [0, 1, 2, 1]
    assert loss_of(logits, labels, shift=True) == loss_of(logits, labels, shift=False)


def test_more_axes_shift_along_the_last_but_vocab() -> None:
    logits = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(0, 5, (2, 3, 4), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(loss_of(logits, labels), loss_of(logits.flatten(0, 1), labels.flatten(0, 1)))


def test_shift_labels_win_over_labels_and_are_never_shifted() -> None:
    logits = torch.randn(1, 3, 4, generator=torch.Generator().manual_seed(0))
    wrong, right = torch.tensor([[0, 0, 0]]), torch.tensor([[1, 2, 3]])
    for shift in (True, False):
        found = resolve(shift=shift)({"logits": logits}, {"labels": wrong, "shift_labels": right})["loss"]
        assert found == loss_of(logits, right, shift=False)


# What does not count


@given(tokens(), st.sampled_from([math.nan, math.inf, -math.inf, 1e30, 0.0]), st.sampled_from([0.0, 0.5]))
def test_what_is_ignored_may_hold_anything(drawn: Tokens, junk: float, smoothing: float) -> None:
    ignored = (drawn.labels == -100).unsqueeze(-1)
    loss_fn = resolve(shift=False, label_smoothing=smoothing)
    clean, _ = loss_and_gradients(loss_fn, drawn.outputs, drawn.batch)
    spoilt, gradients = loss_and_gradients(
        loss_fn, {"logits": torch.where(ignored, junk, drawn.logits)}, {"labels": drawn.labels}
    )
    assert torch.equal(spoilt, clean)
    assert (torch.where(ignored, gradients["logits"], 0.0) == 0).all()
    assert gradients["logits"].isfinite().all()


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (2, 1, 4), (2, 3, 4), (0, 4), (3, 4)], ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_nothing_to_learn_is_zero_with_a_zero_gradient(shape: tuple[int, ...], mode: Any) -> None:
    if len(shape) == 2 and mode.startswith("sequence"):
        shape = (1, *shape)
    labels = torch.full(shape[:-1], -100)
    logits = torch.full(shape, math.nan)
    loss, gradients = loss_and_gradients(resolve(reduction=mode), {"logits": logits}, {"labels": labels})
    assert loss == 0.0
    assert torch.equal(gradients["logits"], torch.zeros(shape))
    assert resolve()({"logits": logits}, {"labels": labels})["metrics"]["num_tokens"] == 0


def test_one_token_has_nothing_to_predict() -> None:
    loss, gradients = loss_and_gradients(
        resolve(), {"logits": torch.ones(2, 1, 3)}, {"labels": torch.ones(2, 1).long()}
    )
    assert loss == 0.0
    assert torch.equal(gradients["logits"], torch.zeros(2, 1, 3))


@given(tokens(), st.integers(1, 3))
def test_padding_has_no_effect(drawn: Tokens, extra: int) -> None:
    padded = torch.nn.functional.pad(drawn.logits, (0, 0, 0, extra), value=99.0)
    labels = torch.nn.functional.pad(drawn.labels, (0, extra), value=-100)
    for mode in MODES:
        loss_fn = resolve(reduction=mode)
        expected = loss_fn(drawn.outputs, drawn.batch)["loss"]
        torch.testing.assert_close(loss_fn({"logits": padded}, {"labels": labels})["loss"], expected)


@pytest.mark.parametrize("ignore_index", [-1, 0, 255, 10**6])
def test_ignore_index_may_be_any_id(ignore_index: int) -> None:
    logits = torch.randn(1, 3, 4, generator=torch.Generator().manual_seed(0))
    found = loss_of(logits, [[1, ignore_index, 2]], shift=False, ignore_index=ignore_index)
    assert found == loss_of(logits, [[1, -100, 2]], shift=False)


# Extreme numbers


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [1e4, -1e4])
def test_large_logits_give_exact_values_and_finite_gradients(scale: float, dtype: torch.dtype) -> None:
    logits = torch.tensor([[scale, -scale, 0.0]], dtype=dtype)
    exact = [cross_entropy(logits[0].tolist(), label, 0.0) for label in range(3)]
    for label, expected in enumerate(exact):
        loss, gradients = loss_and_gradients(resolve(), {"logits": logits}, {"labels": torch.tensor([label])})
        assert loss.item() == pytest.approx(expected, rel=1e-6)
        assert gradients["logits"].isfinite().all()


@given(tokens(least=1), st.floats(-1000, 1000))
def test_a_constant_added_to_a_row_has_no_effect(drawn: Tokens, constant: float) -> None:
    torch.testing.assert_close(
        loss_of(drawn.logits + constant, drawn.labels), loss_of(drawn.logits, drawn.labels), rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("bad", [math.inf, math.nan])
@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_what_is_not_finite_is_passed_on(bad: float, label: int, smoothing: float) -> None:
    logits = torch.tensor([[bad, 1.0], [1.0, 2.0]])
    for mode in ("sum", "mean"):
        loss = loss_of(logits, [label, 1], label_smoothing=smoothing, reduction=mode)
        assert not loss.isfinite()
    values = loss_of(logits, [label, 1], label_smoothing=smoothing, reduction="none")
    assert values.isfinite().tolist() == [False, True]


def test_a_vocabulary_mask_is_fine_without_smoothing() -> None:
    logits = torch.tensor([[-math.inf, 1.0, 2.0]])
    loss, gradients = loss_and_gradients(resolve(), {"logits": logits}, {"labels": torch.tensor([1])})
    assert loss.item() == pytest.approx(math.log(1 + math.e))
    assert gradients["logits"].isfinite().all()
    assert gradients["logits"][0, 0] == 0.0
    assert loss_of(logits, [1], label_smoothing=0.1) == math.inf
    assert loss_of(logits, [0]) == math.inf


@pytest.mark.parametrize(("dtype", "value"), [(torch.bfloat16, 0.1), (torch.float16, 0.1), (torch.float16, 0.0)])
def test_a_long_sum_in_16_bits_is_not_biased(dtype: torch.dtype, value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tensafe.training.losses.ops.lean.CHUNK_ON_CPU", 1000)
    rows = 70_000 if value == 0.0 else 4096
    logits = torch.full((rows, 3), value, dtype=dtype)
    for mode, expected in (("sum", rows * LN3), ("mean", LN3)):
        loss = loss_of(logits, torch.zeros(rows, dtype=torch.int64), reduction=mode)
        assert loss.dtype is torch.float32
        assert loss.item() == pytest.approx(expected, rel=1e-6)


# Limits and invariances


@given(tokens())
def test_the_ends_of_label_smoothing(drawn: Tokens) -> None:
    plain = loss_of(drawn.logits, drawn.labels)
    assert torch.equal(loss_of(drawn.logits, drawn.labels, label_smoothing=0.0), plain)
    uniform = loss_of(drawn.logits, drawn.labels, label_smoothing=1.0)
    other = torch.where(drawn.labels == -100, drawn.labels, 0)
    torch.testing.assert_close(loss_of(drawn.logits, other, label_smoothing=1.0), uniform)
    half = loss_of(drawn.logits, drawn.labels, label_smoothing=0.5)
    torch.testing.assert_close(half, (plain + uniform) / 2)


@given(tokens(), st.floats(0.1, 10))
def test_logit_scale_is_a_factor_of_the_logits(drawn: Tokens, scale: float) -> None:
    for softcap in (None, 2.0):
        found = loss_of(drawn.logits, drawn.labels, logit_scale=scale, softcap=softcap)
        torch.testing.assert_close(found, loss_of(scale * drawn.logits, drawn.labels, softcap=softcap))


@given(tokens())
def test_the_ends_of_softcap(drawn: Tokens) -> None:
    plain = loss_of(drawn.logits, drawn.labels)
    torch.testing.assert_close(loss_of(drawn.logits, drawn.labels, softcap=1e9), plain)
    values = loss_of(1e6 * drawn.logits, drawn.labels, softcap=0.5, reduction="none")
    assert (values <= 2 * 0.5 + math.log(drawn.logits.shape[-1]) + 1e-12).all()


@given(tokens())
def test_z_loss_is_what_it_adds(drawn: Tokens) -> None:
    without, small, large = (
        loss_of(drawn.logits, drawn.labels, shift=False, z_loss=weight, reduction="none") for weight in (0.0, 0.1, 1.0)
    )
    squares = torch.where(drawn.labels == -100, 0.0, torch.logsumexp(drawn.logits, -1).square())
    torch.testing.assert_close(large - without, squares)
    torch.testing.assert_close(small - without, 0.1 * squares)


@given(tokens(), st.randoms(use_true_random=False))
def test_the_order_of_sequences_does_not_matter(drawn: Tokens, random: Any) -> None:
    order = list(range(len(drawn.labels)))
    random.shuffle(order)
    for mode in MODES:
        loss_fn = resolve(reduction=mode)
        shuffled = loss_fn({"logits": drawn.logits[order]}, {"labels": drawn.labels[order]})["loss"]
        torch.testing.assert_close(shuffled, loss_fn(drawn.outputs, drawn.batch)["loss"])


@given(tokens())
def test_sequences_do_not_mix(drawn: Tokens) -> None:
    values = resolve(reduction="none")(drawn.outputs, drawn.batch)["loss"]
    for index in range(len(drawn.labels)):
        one = slice(index, index + 1)
        alone = resolve(reduction="none")({"logits": drawn.logits[one]}, {"labels": drawn.labels[one]})["loss"]
        torch.testing.assert_close(alone, values[one])


# Denominators over accumulation steps


@given(tokens(), st.randoms(use_true_random=False), st.booleans())
def test_micro_batches_add_up_to_the_full_batch(drawn: Tokens, random: Any, in_batch: bool) -> None:
    full = resolve()(drawn.outputs, drawn.batch)
    total = full["metrics"]["num_tokens"]
    size = len(drawn.labels)
    cuts = sorted(random.choices(range(size + 1), k=2))
    losses = []
    for start, stop in zip([0, *cuts], [*cuts, size], strict=True):
        outputs, batch = {"logits": drawn.logits[start:stop]}, {"labels": drawn.labels[start:stop]}
        if in_batch:
            losses.append(resolve()(outputs, {**batch, "num_items_in_batch": total})["loss"])
        else:
            losses.append(resolve()(outputs, batch, num_items_in_batch=total)["loss"])
    torch.testing.assert_close(torch.stack(losses).sum(), full["loss"])


def test_the_count_of_a_call_wins_over_that_of_the_batch() -> None:
    outputs, batch = {"logits": torch.zeros(2, 4)}, {"labels": torch.tensor([0, 1]), "num_items_in_batch": 8}
    assert resolve()(outputs, batch)["loss"].item() == pytest.approx(2 * math.log(4) / 8)
    assert resolve()(outputs, batch, num_items_in_batch=4)["loss"].item() == pytest.approx(2 * math.log(4) / 4)
    assert resolve()(outputs, batch, num_items_in_batch=None)["loss"].item() == pytest.approx(math.log(4))


def test_the_sequences_of_other_ranks_count_too() -> None:
    outputs, batch = {"logits": torch.zeros(2, 3, 4)}, {"labels": torch.tensor([[0, 1, 2], [0, -100, -100]])}
    for mode, value in (("sequence_mean", 1.0), ("sequence_sum", 2.0), ("sequence_sum_norm", 2 / 7)):
        loss_fn = resolve(reduction=mode)
        assert loss_fn(outputs, batch)["loss"].item() == pytest.approx(value * math.log(4))
        shared = loss_fn(outputs, batch, num_sequences_in_batch=5)["loss"]
        assert shared.item() == pytest.approx(value * math.log(4) / 5)


@pytest.mark.parametrize("mode", ["sum", "none", "sequence_mean"])
def test_a_count_that_the_reduction_does_not_use_is_refused(mode: Any) -> None:
    loss_fn, outputs = resolve(reduction=mode), {"logits": torch.zeros(1, 2, 4)}
    batch = {"labels": torch.tensor([[0, 1]])}
    message = r"^token_ce: num_items_in_batch is the denominator of reduction mean"
    with pytest.raises(LossConfigError, match=message):
        loss_fn(outputs, batch, num_items_in_batch=2)
    with pytest.raises(LossConfigError, match=message):
        loss_fn(outputs, {**batch, "num_items_in_batch": 2})


# Refusals


@pytest.mark.parametrize(
    "kwargs",
    [
        {"label_smoothing": -0.1},
        {"label_smoothing": 1.1},
        {"label_smoothing": math.nan},
        {"label_smoothing": True},
        {"label_smoothing": "0.1"},
        {"label_smoothing": torch.tensor(0.1)},
        {"z_loss": -1e-4},
        {"z_loss": math.inf},
        {"z_loss": math.nan},
        {"z_loss": "1e-4"},
        {"softcap": 0.0},
        {"softcap": -30.0},
        {"softcap": math.inf},
        {"softcap": False},
        {"logit_scale": 0.0},
        {"logit_scale": -1.0},
        {"logit_scale": math.nan},
        {"overwrite_logits": 1},
        {"ignore_index": 0.5},
        {"ignore_index": True},
        {"shift": 1},
        {"reduction": "average"},
        {"max_length": 3},
        {"max_length": 0, "reduction": "sequence_sum_norm"},
    ],
    ids=str,
)
def test_a_kwarg_out_of_range_is_refused_at_resolve_and_in_a_call(kwargs: dict[str, Any]) -> None:
    name = next(iter(kwargs))
    with pytest.raises(LossConfigError, match=f"^token_ce: {name}: "):
        resolve_loss("token_ce", **kwargs)
    with pytest.raises(LossConfigError, match=f"^token_ce: {name}: "):
        resolve_loss("token_ce")({"logits": torch.zeros(1, 2)}, {"labels": torch.tensor([0])}, **kwargs)


def test_sequences_need_an_axis() -> None:
    with pytest.raises(LossInputError, match=r"^token_ce: reduction sequence_mean .* one axis"):
        loss_of(torch.zeros(2, 3), [0, 1], reduction="sequence_mean")


def test_probabilities_are_no_labels() -> None:
    with pytest.raises(LossInputError, match=r"'labels' must be int\[\*rows\]; got float32\[2, 3\]"):
        loss_of(torch.zeros(2, 3), torch.full((2, 3), 1 / 3))


def test_every_kwarg_that_is_wrong_is_named_at_once() -> None:
    wrong = {"z_loss": -1, "softcap": 0, "logit_scale": "1", "overwrite_logits": None, "z_los": 0}
    with pytest.raises(LossConfigError) as caught:
        resolve_loss("token_ce", **wrong)
    assert [name for name in wrong if f"{name}: " not in str(caught.value)] == []
    assert "did you mean z_loss?" in str(caught.value)


@pytest.mark.parametrize("bad", [3, -1, 2**40])
@pytest.mark.parametrize("mode", ["mean", "sequence_sum", "none"])
@pytest.mark.parametrize("learn", [True, False], ids=["to learn", "to evaluate"])
def test_a_label_out_of_range_is_named(bad: int, mode: Any, learn: bool) -> None:
    outputs = {"logits": torch.zeros(2, 4, 3, requires_grad=learn)}
    labels = torch.tensor([[0, 0, bad, -100], [0, 1, bad, 2]])
    for name in ("labels", "shift_labels"):
        with pytest.raises(LossInputError) as caught:
            resolve(reduction=mode)(outputs, {name: labels})
        assert f"token_ce: {name!r} must lie in [0, 3) (vocab=3) or be ignore_index=-100; 2 of 8" in str(caught.value)
        assert caught.value.code == "invalid-values"
        assert isinstance(caught.value.__cause__, IndexError | RuntimeError)


# The gradient over the logits


class Overwritten(NamedTuple):
    """A step of a model of one layer."""

    loss: Tensor
    logits: Tensor
    gradients: list[Tensor]


def learn(dtype: torch.dtype, **kwargs: Any) -> Overwritten:
    generator = torch.Generator().manual_seed(0)
    layer = torch.nn.Linear(4, 5).to(dtype)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    hidden = torch.randn(2, 3, 4, generator=generator).to(dtype).requires_grad_()
    labels = torch.tensor([[0, 1, -100], [4, 2, 0]])
    logits = layer(hidden)
    loss = resolve(**kwargs)({"logits": logits}, {"labels": labels})["loss"]
    gradients = torch.autograd.grad((3 * loss).sum(), [*layer.parameters(), hidden])
    return Overwritten(loss.detach(), logits.detach(), list(gradients))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mode", [*MODES, "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_model_learns_the_same_when_its_logits_are_overwritten(
    mode: Any, dtype: torch.dtype, smoothing: float, request: pytest.FixtureRequest
) -> None:
    kwargs = {"reduction": mode, "label_smoothing": smoothing, "z_loss": 0.01}
    expected, found = learn(dtype, **kwargs), learn(dtype, overwrite_logits=True, **kwargs)
    tolerance: dict[str, Any] = (
        {} if dtype.itemsize > 2 else {"rtol": 2 * torch.finfo(dtype).eps, "atol": torch.finfo(dtype).eps}
    )
    torch.testing.assert_close(found.loss, expected.loss)
    for gradient, reference in zip(found.gradients, expected.gradients, strict=True):
        torch.testing.assert_close(gradient, reference, **tolerance)
    assert torch.equal(found.logits, expected.logits) == ("plain" in request.node.name)


def test_logits_are_overwritten_only_where_there_is_something_to_learn() -> None:
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    labels, kept = {"labels": torch.ones(2, 3).long()}, logits.clone()
    loss_fn = resolve(overwrite_logits=True)
    loss = loss_fn({"logits": logits}, labels)["loss"]
    with torch.no_grad():
        assert loss_fn({"logits": kept.clone().requires_grad_()}, labels)["loss"] == loss
    assert torch.equal(logits, kept)
    assert loss == resolve()({"logits": logits}, labels)["loss"]


LABELS = {"labels": torch.tensor([[0, 1, 2], [3, 4, 0]])}


def made_logits(make: Callable[[Tensor], Tensor] = torch.clone) -> Tensor:
    hidden = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    return make(hidden @ torch.ones(4, 5))


def overwrite(logits: Tensor, mode: Any, **kwargs: Any) -> Tensor:
    loss: Tensor = resolve(reduction=mode, overwrite_logits=True)({"logits": logits}, LABELS, **kwargs)["loss"]
    return loss.sum()


def _twice(mode: Any) -> None:
    loss = overwrite(made_logits(), mode)
    torch.autograd.backward(loss, retain_graph=True)
    torch.autograd.backward(loss)


def _differentiated_again(mode: Any) -> None:
    logits = made_logits()
    torch.autograd.grad(overwrite(logits, mode), logits, create_graph=True)


def _another_loss(mode: Any) -> None:
    logits = made_logits()
    overwrite(logits, mode)
    resolve()({"logits": logits}, LABELS)


REFUSED: dict[str, tuple[Callable[[str], object], str]] = {
    "a leaf": (lambda mode: overwrite(torch.zeros(2, 3, 5, requires_grad=True), mode), "leaf of the graph"),
    "a parameter": (lambda mode: overwrite(torch.nn.Parameter(torch.zeros(2, 3, 5)), mode), "leaf of the graph"),
    "in a call": (
        lambda mode: resolve(reduction=mode)({"logits": made_logits(torch.tanh)}, LABELS, overwrite_logits=True),
        "Tanh",
    ),
    "tanh": (lambda mode: overwrite(made_logits(torch.tanh), mode), "TanhBackward needs the logits again"),
    "log-softmax": (
        lambda mode: overwrite(made_logits(lambda x: x.log_softmax(-1)), mode),
        "LogSoftmaxBackward needs the logits again",
    ),
    "behind a view": (
        lambda mode: overwrite(made_logits(lambda x: torch.tanh(x).view(6, 5).view(2, 3, 5)), mode),
        "TanhBackward needs the logits again",
    ),
    "another loss": (_another_loss, "an earlier loss has overwritten the logits"),
    "a second backward pass": (_twice, "a second backward pass needs the logits"),
    "a second derivative": (_differentiated_again, "differentiated once more"),
}


@pytest.mark.parametrize("path", ["in chunks"], indirect=True)
@pytest.mark.parametrize("mode", ["mean", "none"])
@pytest.mark.parametrize(("attempt", "part"), REFUSED.values(), ids=REFUSED)
def test_logits_that_are_needed_again_are_not_overwritten(
    attempt: Callable[[str], object], part: str, mode: Any
) -> None:
    with pytest.raises(LossInputError, match=part) as caught:
        attempt(mode)
    assert caught.value.code == "logits-overwritten"
    assert "Leave overwrite_logits off." in str(caught.value)


@pytest.mark.parametrize("path", ["in chunks"], indirect=True)
@pytest.mark.parametrize("mode", ["mean", "none"])
def test_who_kept_overwritten_logits_is_told_by_torch(mode: Any) -> None:
    logits, factor = made_logits(), torch.ones((), requires_grad=True)
    other = (logits * factor).sum()
    loss = overwrite(logits, mode)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.backward(loss + other)


@pytest.mark.parametrize("path", ["in chunks"], indirect=True)
def test_logits_that_are_written_anew_are_logits_again() -> None:
    room = made_logits()
    overwrite(room, "mean")
    with torch.no_grad():
        room.copy_(torch.zeros(2, 3, 5))
    assert loss_of(room.detach(), LABELS["labels"]).item() == pytest.approx(math.log(5))


# Weights


@pytest.mark.parametrize(
    ("labels", "kwargs", "batch", "expected"),
    [
        pytest.param([0, 1], {"class_weights": [1, 3]}, {}, (math.log(4) + 3 * math.log(4 / 3)) / 4, id="classes"),
        pytest.param(
            [0, 1], {"class_weights": [1, 3], "reduction": "sum"}, {}, math.log(4) + 3 * math.log(4 / 3), id="their sum"
        ),
        pytest.param([0, 1], {"class_weights": (0.0, 3.0)}, {}, math.log(4 / 3), id="a class of weight 0"),
        pytest.param([0, 1], {"class_weights": [0, 0]}, {}, 0.0, id="no class counts"),
        pytest.param([0, -100], {"class_weights": [2, 3]}, {}, math.log(4), id="one ignored"),
        pytest.param(
            [0, 0],
            {"class_weights": [2, 4], "label_smoothing": 0.5},
            {},
            0.5 * math.log(4) + 0.25 * (math.log(4) + 2 * math.log(4 / 3)),
            id="smoothed classes",
        ),
        pytest.param([0, 1], {}, {"token_weights": [1, 3]}, (math.log(4) + 3 * math.log(4 / 3)) / 4, id="tokens"),
        pytest.param([0, 1], {}, {"token_weights": [0.0, 2.0]}, math.log(4 / 3), id="a token of weight 0"),
        pytest.param([0, 1], {}, {"sample_weights": [1, 3]}, (math.log(4) + 3 * math.log(4 / 3)) / 4, id="samples"),
        pytest.param(
            [0, 1],
            {"class_weights": [2, 1]},
            {"token_weights": [3, 1], "sample_weights": [1, 5]},
            (6 * math.log(4) + 5 * math.log(4 / 3)) / 11,
            id="all",
        ),
        pytest.param(
            [0, 0],
            {"label_smoothing": 0.5, "smoothing_formula": "megatron"},
            {},
            math.log(4) - 0.5 * LN3,
            id="megatron",
        ),
        pytest.param(
            [0, 0], {"label_smoothing": 1.0, "smoothing_formula": "megatron"}, {}, math.log(4 / 3), id="all megatron"
        ),
    ],
)
def test_weights_by_hand(labels: Any, kwargs: Any, batch: Any, expected: float) -> None:
    logits = torch.tensor([[0.0, LN3], [0.0, LN3]], dtype=torch.float64)
    given = {"labels": torch.tensor(labels), **{name: torch.tensor(weights) for name, weights in batch.items()}}
    assert resolve(**kwargs)({"logits": logits}, given)["loss"].item() == pytest.approx(expected, rel=1e-14, abs=1e-15)


class_weights_of = st.lists(st.sampled_from([0.0, 0.5, 1.0, 3.0]), min_size=5, max_size=5)
smoothings = st.sampled_from([0.0, 0.1, 1.0])


@given(tokens(), class_weights_of, smoothings)
def test_class_weights_are_torchs(drawn: Tokens, weights: list[float], smoothing: float) -> None:
    weights = weights[: drawn.logits.shape[-1]]
    flat, labels = drawn.logits.flatten(0, 1), drawn.labels.flatten()
    share = torch.tensor(weights, dtype=torch.float64)
    for mode in ("sum", "mean", "none"):
        loss_fn = resolve(shift=False, reduction=mode, class_weights=weights, label_smoothing=smoothing)
        leaf = flat.clone().requires_grad_()
        expected = torch.nn.functional.cross_entropy(
            leaf, labels, share, reduction=mode, label_smoothing=smoothing, ignore_index=-100
        )
        loss, gradients = loss_and_gradients(loss_fn, drawn.outputs, drawn.batch)
        if mode == "mean" and not share[labels[labels != -100]].any():
            assert loss == 0.0  # torch's is 0 / 0, or infinite
            assert not gradients["logits"].any()
        else:
            (gradient,) = torch.autograd.grad(expected.sum(), leaf)
            torch.testing.assert_close(loss.flatten(), expected.detach().flatten())
            torch.testing.assert_close(gradients["logits"].flatten(0, 1), gradient)


@given(tokens(), class_weights_of, smoothings)
def test_a_sequence_has_the_mean_of_its_own_class_weights(
    drawn: Tokens, weights: list[float], smoothing: float
) -> None:
    weights = weights[: drawn.logits.shape[-1]]
    kwargs = {"class_weights": weights, "label_smoothing": smoothing, "z_loss": 0.01}
    found = loss_of(drawn.logits, drawn.labels, reduction="sequence_mean", **kwargs)
    aligned = torch.nn.functional.pad(drawn.labels, (0, 1), value=-100)[:, 1:]
    live = [index for index, row in enumerate(aligned.tolist()) if any(weights[y] for y in row if y != -100)]
    alone = [loss_of(drawn.logits[index], aligned[index], **kwargs) for index in live]
    torch.testing.assert_close(found, sum(alone, torch.zeros_like(found)) / max(len(alone), 1))


def test_a_count_replaces_the_sum_of_the_class_weights() -> None:
    logits, labels = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 2, 1, 2])
    kwargs = {"class_weights": [1, 0.5, 4], "label_smoothing": 0.1}
    found = resolve(**kwargs)({"logits": logits}, {"labels": labels}, num_items_in_batch=10)["loss"]
    torch.testing.assert_close(found, loss_of(logits, labels, reduction="sum", **kwargs) / 10)


@given(tokens(least=1), smoothings, st.booleans())
def test_megatrons_smoothing_is_uniform_over_the_others(drawn: Tokens, smoothing: float, weighted: bool) -> None:
    vocab = drawn.logits.shape[-1]
    weights = [1.0, 0.5, 2.0, 0.0, 3.0][:vocab] if weighted else None
    loss_fn = resolve(
        shift=False, label_smoothing=smoothing, smoothing_formula="megatron", class_weights=weights, reduction="sum"
    )
    loss, gradients = loss_and_gradients(loss_fn, drawn.outputs, drawn.batch)
    leaf = drawn.logits.clone().requires_grad_()
    is_label = drawn.labels.unsqueeze(-1) == torch.arange(vocab)
    target = torch.where(is_label, 1 - smoothing, smoothing / max(vocab - 1, 1)).double()
    costs = -torch.log_softmax(leaf, -1) * target * torch.tensor(weights or [1.0] * vocab, dtype=torch.float64)
    expected = torch.where(drawn.labels == -100, 0.0, costs.sum(-1)).sum()
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(gradients["logits"], torch.autograd.grad(expected, leaf)[0])


@given(weighted_tokens(), st.booleans(), formulas())
def test_every_reduction_of_weighted_tokens_is_that_of_the_formula(drawn: Weighted, shift: bool, formula: Any) -> None:
    rows = drawn.rows(lambda scores, label: cross_entropy(scores, label, **formula), shift=shift)
    assert_reduced(resolve(shift=shift, **formula), {"logits": drawn.logits}, drawn.batch, rows)


@given(weighted_tokens(), smoothings)
def test_the_gradient_of_weighted_tokens_is_that_of_the_formula(drawn: Weighted, smoothing: float) -> None:
    assert_slopes(
        resolve(label_smoothing=smoothing), drawn, lambda scores, label: cross_entropy(scores, label, smoothing)
    )


@given(tokens(rows=1), st.data())
def test_a_whole_weight_is_as_many_tokens(drawn: Tokens, data: st.DataObject) -> None:
    count = len(drawn.labels)
    times = torch.tensor(data.draw(st.lists(st.integers(0, 3), min_size=count, max_size=count)), dtype=torch.int64)
    found = resolve()(drawn.outputs, {**drawn.batch, "token_weights": times})
    repeated = loss_of(drawn.logits.repeat_interleave(times, 0), drawn.labels.repeat_interleave(times))
    torch.testing.assert_close(found["loss"], repeated)
    assert found["metrics"]["num_tokens"] == ((times != 0) & (drawn.labels != -100)).sum()


@pytest.mark.parametrize("mode", [*MODES, "none"])
@pytest.mark.parametrize("junk", [math.nan, math.inf])
def test_a_token_of_weight_0_may_hold_anything(mode: Any, junk: float) -> None:
    logits = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    batch = {"labels": torch.tensor([[0, 1, 2, 1], [2, -100, 1, 0]]), "sample_weights": torch.tensor([0.5, 2.0])}
    weights = torch.tensor([[junk, 1.0, 0.0, 2.0], [9.0, junk, 3.0, 0.0]])
    kwargs = {"reduction": mode, "label_smoothing": 0.1, "class_weights": [1, 2, 0.5]}
    clean = {**batch, "token_weights": weights.nan_to_num(0.0, 0.0)}
    expected, right = loss_and_gradients(resolve(**kwargs), {"logits": logits}, clean)
    spoilt = logits.clone()
    spoilt[0, [1, 3]] = spoilt[1, [0, 2, 3]] = junk
    # what is not finite counts for nothing either: the first label is never a target, and one is ignored
    loss, gradients = loss_and_gradients(resolve(**kwargs), {"logits": spoilt}, {**batch, "token_weights": weights})
    assert torch.equal(loss, expected)
    assert torch.equal(gradients["logits"], right["logits"])


def test_weights_of_another_dtype_leave_the_loss_in_its_own() -> None:
    logits, labels = torch.zeros(2, 3, 4), torch.ones(2, 3).long()
    for dtype in (torch.float64, torch.float16, torch.int64):
        batch = {"labels": labels, "token_weights": torch.ones(2, 3).to(dtype), "sample_weights": [1, 2]}
        assert resolve()({"logits": logits}, batch)["loss"].dtype is torch.float32


@pytest.mark.parametrize("shape", [(1,), (3,), (2, 1), ()], ids=str)
def test_sample_weights_are_one_per_sequence(shape: tuple[int, ...]) -> None:
    batch = {"labels": torch.ones(2, 3).long(), "sample_weights": torch.ones(shape)}
    with pytest.raises(LossInputError, match=r"^token_ce: 'sample_weights' must be"):
        resolve()({"logits": torch.zeros(2, 3, 4)}, batch)


@pytest.mark.parametrize("size", [1, 3, 5])
def test_there_is_a_weight_for_each_class(size: int) -> None:
    message = rf"^token_ce: class_weights must hold one number per class, 4; it holds {size}\."
    with pytest.raises(LossInputError, match=message) as caught:
        loss_of(torch.zeros(2, 4), [0, 1], class_weights=[1.0] * size)
    assert caught.value.loc == ("class_weights",)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"class_weights": []},
        {"class_weights": [1.0, -0.5]},
        {"class_weights": [math.nan]},
        {"class_weights": [1.0, math.inf]},
        {"class_weights": [True, False]},
        {"class_weights": ["1"]},
        {"class_weights": torch.ones(2)},
        {"class_weights": 1.0},
        {"smoothing_formula": "torch"},
        {"smoothing_formula": None},
    ],
    ids=str,
)
def test_weights_and_formulas_that_there_are_not_are_refused(kwargs: dict[str, Any]) -> None:
    with pytest.raises(LossConfigError, match=f"^token_ce: {next(iter(kwargs))}"):
        resolve_loss("token_ce", **kwargs)


def test_a_config_keeps_class_weights() -> None:
    loss_fn = resolve(class_weights=[1, 0.5], smoothing_formula="megatron")
    assert resolve_loss(loss_fn.to_config()) == loss_fn
    assert loss_fn.to_config()["kwargs"] == {"class_weights": [1.0, 0.5], "smoothing_formula": "megatron"}

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from reference import loss_and_gradients, reduced, token_ce
from strategies import formulas, tensors
from tensafe.training.losses import LossConfigError, LossInputError, ResolvedLoss, resolve_loss

pytestmark = pytest.mark.usefixtures("in_chunks")

MODES = ("sum", "mean", "sequence_mean", "sequence_sum", "sequence_sum_norm")
CHUNKS = (None, 1, 2, 3, 100)
LN3 = math.log(3)


class Head(NamedTuple):
    """A batch of `linear_ce`."""

    outputs: dict[str, Tensor]
    labels: Tensor

    @property
    def vocab(self) -> int:
        return self.outputs["lm_head_weight"].shape[0]

    @property
    def logits(self) -> Tensor:
        return logits_of(self.outputs)


def logits_of(outputs: Mapping[str, Tensor]) -> Tensor:
    logits = outputs["hidden_states"] @ outputs["lm_head_weight"].T
    return logits + outputs["lm_head_bias"] if "lm_head_bias" in outputs else logits


@st.composite
def heads(draw: st.DrawFn, *, least: int = 0, rows: int = 2, dtype: torch.dtype = torch.float64) -> Head:
    """Hidden states of up to 4 x 4 tokens, an output layer, perhaps a bias; some labels are ignored, perhaps all."""
    lead = tuple(draw(st.integers(least, 4)) for _ in range(rows))
    width, vocab = draw(st.integers(1, 3)), draw(st.integers(1, 5))
    outputs = {
        "hidden_states": draw(tensors((*lead, width), 2.0, dtype)),
        "lm_head_weight": draw(tensors((vocab, width), 2.0, dtype)),
    }
    if draw(st.booleans()):
        outputs["lm_head_bias"] = draw(tensors((vocab,), 2.0, dtype))
    count = math.prod(lead)
    labels = draw(st.lists(st.sampled_from([-100, *range(vocab)]), min_size=count, max_size=count))
    return Head(outputs, torch.tensor(labels, dtype=torch.int64).reshape(lead))


def resolve(name: str = "linear_ce", **kwargs: Any) -> ResolvedLoss:
    if kwargs.get("reduction") == "sequence_sum_norm":
        kwargs["max_length"] = 7
    return resolve_loss(name, **kwargs)


def head(dtype: torch.dtype = torch.float32) -> Head:
    """Two sequences of five tokens, two of which do not count."""
    generator = torch.Generator().manual_seed(0)
    sizes = {"hidden_states": (2, 5, 3), "lm_head_weight": (7, 3), "lm_head_bias": (7,)}
    outputs = {name: torch.randn(size, generator=generator).to(dtype) for name, size in sizes.items()}
    return Head(outputs, torch.tensor([[0, 1, -100, 6, 2], [5, 5, -100, 3, 0]]))


def by_logits(
    outputs: Mapping[str, Tensor], batch: Mapping[str, Any], factor: float = 1.0, **kwargs: Any
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of `token_ce` in float64, and the gradients of `factor` times it."""
    leaves = {name: tensor.detach().to(torch.float64).requires_grad_() for name, tensor in outputs.items()}
    loss = resolve("token_ce", **kwargs)({"logits": logits_of(leaves)}, batch)["loss"]
    gradients = torch.autograd.grad((factor * loss).sum(), list(leaves.values()))
    return loss.detach(), dict(zip(leaves, gradients, strict=True))


def assert_equal_to_token_ce(
    found: tuple[Tensor, Mapping[str, Tensor]], expected: tuple[Tensor, Mapping[str, Tensor]], **tolerance: Any
) -> None:
    torch.testing.assert_close(found[0].to(torch.float64), expected[0], **tolerance)
    assert list(found[1]) == list(expected[1])
    for name, gradient in found[1].items():
        torch.testing.assert_close(gradient.to(torch.float64), expected[1][name], **tolerance)


# Values worked out by hand


@pytest.mark.parametrize(
    ("hidden", "weight", "bias", "labels", "kwargs", "expected"),
    [
        pytest.param([[0.0]], [[1.0], [2.0]], None, [1], {}, math.log(2), id="uniform"),
        pytest.param([[1.0]], [[0.0], [LN3]], None, [1], {}, math.log(4 / 3), id="the likely one"),
        pytest.param([[2.0]], [[0.0], [LN3 / 2]], None, [0], {}, math.log(4), id="the unlikely one"),
        pytest.param([[1.0, 1.0]], [[1.0, -1.0], [LN3, 0.0]], None, [1], {}, math.log(4 / 3), id="two features"),
        pytest.param([[9.0]], [[0.0], [0.0]], [0.0, LN3], [1], {}, math.log(4 / 3), id="bias"),
        pytest.param([[1.0], [1.0]], [[0.0], [LN3]], None, [0, 1], {}, math.log(16 / 3) / 2, id="mean of two"),
        pytest.param([[1.0], [5.0]], [[0.0], [LN3]], None, [0, -100], {}, math.log(4), id="one ignored"),
        pytest.param([[[1.0], [9.0]]], [[0.0], [LN3]], None, [[1, 0]], {}, math.log(4), id="shifted"),
        pytest.param([[[1.0], [0.0]]], [[0.0], [LN3]], None, [[0, 1]], {"shift": False}, math.log(8) / 2, id="aligned"),
        pytest.param(
            [[1.0]], [[0.0], [LN3]], None, [0], {"label_smoothing": 0.5}, math.log(4) - 0.25 * LN3, id="smoothed"
        ),
        pytest.param(
            [[1.0]], [[0.0], [LN3]], None, [1], {"z_loss": 0.5}, math.log(4 / 3) + 0.5 * math.log(4) ** 2, id="z-loss"
        ),
        pytest.param([[1e30]], [[0.0], [1.0]], None, [1], {"softcap": 2.0}, math.log1p(math.exp(-2)), id="at the cap"),
        pytest.param([[1.0]], [[0.0], [1.0]], None, [1], {"logit_scale": LN3}, math.log(4 / 3), id="scaled"),
        pytest.param([[3.0]], [[4.0]], None, [0], {}, 0.0, id="one class"),
        pytest.param([1.0], [[0.0], [LN3]], None, 1, {}, math.log(4 / 3), id="one row without an axis"),
    ],
)
def test_a_loss_by_hand(hidden: Any, weight: Any, bias: Any, labels: Any, kwargs: Any, expected: float) -> None:
    given = {"hidden_states": hidden, "lm_head_weight": weight, "lm_head_bias": bias}
    outputs = {name: torch.tensor(x, dtype=torch.float64) for name, x in given.items() if x is not None}
    loss = resolve(**kwargs)(outputs, {"labels": torch.tensor(labels)})["loss"]
    assert loss.item() == pytest.approx(expected, rel=1e-14, abs=1e-15)


# Against token_ce of the logits, and against the formula


@given(heads(), formulas(), st.sampled_from(MODES), st.booleans())
def test_every_reduction_is_that_of_the_formula(drawn: Head, formula: Any, mode: str, shift: bool) -> None:
    loss = resolve(shift=shift, reduction=mode, **formula)(drawn.outputs, {"labels": drawn.labels})["loss"]
    rows = token_ce(drawn.logits, drawn.labels, shift=shift, **formula)
    assert loss.item() == pytest.approx(reduced(rows, mode, max_length=7), rel=1e-10, abs=1e-12)


@given(
    st.one_of(heads(), heads(rows=1)),
    formulas(),
    st.sampled_from([*MODES, "none"]),
    st.sampled_from(["shifted", "aligned", "shift_labels"]),
    st.sampled_from(CHUNKS),
    st.sampled_from([None, 0, 1, 9]),
)
def test_it_equals_token_ce_of_the_logits(
    drawn: Head, formula: Any, mode: str, labels: str, chunk_size: int | None, count: int | None
) -> None:
    if drawn.labels.ndim == 1 and mode.startswith("sequence"):
        mode = "mean"
    kwargs = {"reduction": mode, "shift": labels == "shifted", **formula}
    batch: dict[str, Any] = {"shift_labels" if labels == "shift_labels" else "labels": drawn.labels}
    if mode == "mean":
        batch["num_items_in_batch"] = count
    if mode.startswith("sequence"):
        batch["num_sequences_in_batch"] = count
    found = loss_and_gradients(resolve(chunk_size=chunk_size, **kwargs), drawn.outputs, batch)
    assert_equal_to_token_ce(found, by_logits(drawn.outputs, batch, **kwargs), rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@given(st.data(), formulas(), st.sampled_from([*MODES, "none"]), st.sampled_from(CHUNKS))
def test_narrower_inputs_are_computed_in_float32(
    dtype: torch.dtype, data: st.DataObject, formula: Any, mode: str, chunk_size: int | None
) -> None:
    outputs, labels = data.draw(heads(dtype=dtype))
    kwargs = {"reduction": mode, **formula}
    loss, gradients = loss_and_gradients(resolve(chunk_size=chunk_size, **kwargs), outputs, {"labels": labels})
    expected, reference = by_logits(outputs, {"labels": labels}, **kwargs)
    assert loss.dtype is torch.float32
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-5)
    rtol = max(1e-5, torch.finfo(dtype).eps)
    for name, gradient in gradients.items():
        assert gradient.dtype is dtype
        torch.testing.assert_close(gradient.double(), reference[name], rtol=rtol, atol=5e-5)


@pytest.mark.parametrize("hidden", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("weight", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_tensors_of_different_widths_meet_in_the_wider_one(hidden: torch.dtype, weight: torch.dtype) -> None:
    outputs, labels = head(torch.float64)
    mixed = {name: x.to(hidden if name == "hidden_states" else weight) for name, x in outputs.items()}
    for mode in ("mean", "none"):
        loss, gradients = loss_and_gradients(resolve(reduction=mode), mixed, {"labels": labels})
        expected = by_logits(mixed, {"labels": labels}, reduction=mode)
        assert loss.dtype is (torch.float64 if torch.float64 in (hidden, weight) else torch.float32)
        torch.testing.assert_close(loss.double(), expected[0], rtol=1e-5, atol=1e-6)
        for name, gradient in gradients.items():
            assert gradient.dtype is mixed[name].dtype
            narrowest = max(torch.finfo(dtype).eps for dtype in (hidden, weight, torch.float32))
            torch.testing.assert_close(gradient.double(), expected[1][name], rtol=2 * narrowest, atol=narrowest)


@given(heads(least=1), st.floats(-10, 10))
def test_the_gradient_is_scaled_by_what_comes_after(drawn: Head, factor: float) -> None:
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in drawn.outputs.items()}
    loss = resolve(shift=False)(leaves, {"labels": drawn.labels})["loss"]
    torch.autograd.backward(factor * loss)
    _, expected = by_logits(drawn.outputs, {"labels": drawn.labels}, factor, shift=False)
    for name, leaf in leaves.items():
        torch.testing.assert_close(leaf.grad, expected[name], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("wanted", ["hidden_states", "lm_head_weight", "lm_head_bias", None])
@pytest.mark.parametrize("mode", ["mean", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_the_gradients_that_are_wanted_are_made(wanted: str | None, mode: str, dtype: torch.dtype) -> None:
    outputs, labels = head(dtype)
    leaves = {name: tensor.clone().requires_grad_(name == wanted) for name, tensor in outputs.items()}
    loss = resolve(reduction=mode)(leaves, {"labels": labels})["loss"]
    assert loss.requires_grad == (wanted is not None)
    everything, gradients = loss_and_gradients(resolve(reduction=mode), outputs, {"labels": labels})
    torch.testing.assert_close(loss, everything)
    if wanted is not None:
        torch.autograd.backward(loss.sum())
        torch.testing.assert_close(leaves[wanted].grad, gradients[wanted])


@given(heads(), st.booleans())
def test_none_gives_one_value_per_label(drawn: Head, shift: bool) -> None:
    batch = {"labels": drawn.labels}
    values = resolve(shift=shift, reduction="none")(drawn.outputs, batch)["loss"]
    rows = token_ce(drawn.logits, drawn.labels, shift=shift)
    expected = torch.tensor([[value for value, _ in row] for row in rows], dtype=torch.float64)
    torch.testing.assert_close(values, expected.reshape(drawn.labels.shape))
    torch.testing.assert_close(resolve(shift=shift, reduction="sum")(drawn.outputs, batch)["loss"], values.sum())


@given(heads(), st.booleans())
def test_num_tokens_is_what_counts(drawn: Head, shift: bool) -> None:
    metrics = resolve(shift=shift)(drawn.outputs, {"labels": drawn.labels})["metrics"]
    counted = sum(weight for row in token_ce(drawn.logits, drawn.labels, shift=shift) for _, weight in row)
    assert metrics == {"num_tokens": torch.tensor(int(counted))}


@pytest.mark.parametrize("mode", ["mean", "none"])
def test_the_default_chunk_is_as_good_as_any_other(mode: str) -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = {"hidden_states": (300, 3), "lm_head_weight": (7, 3), "lm_head_bias": (7,)}
    outputs = {name: torch.randn(size, generator=generator) for name, size in sizes.items()}
    batch = {"labels": torch.randint(0, 7, (300,), generator=generator)}
    expected = by_logits(outputs, batch, reduction=mode)
    for chunk_size in (None, 1, 7, 150, 299, 300, 301, 10**9):
        found = loss_and_gradients(resolve(chunk_size=chunk_size, reduction=mode), outputs, batch)
        assert_equal_to_token_ce(found, expected, rtol=1e-5, atol=1e-5)


# What does not count


@given(heads(), st.sampled_from([math.nan, math.inf, -math.inf, 1e30]), st.sampled_from(["mean", "none"]), formulas())
def test_what_is_ignored_may_hold_anything(drawn: Head, junk: float, mode: str, formula: Any) -> None:
    ignored = (drawn.labels == -100).unsqueeze(-1)
    spoilt = {**drawn.outputs, "hidden_states": torch.where(ignored, junk, drawn.outputs["hidden_states"])}
    loss_fn, batch = resolve(shift=False, reduction=mode, **formula), {"labels": drawn.labels}
    clean, reference = loss_and_gradients(loss_fn, drawn.outputs, batch)
    loss, gradients = loss_and_gradients(loss_fn, spoilt, batch)
    assert torch.equal(loss, clean)
    for name, gradient in gradients.items():
        assert torch.equal(gradient, reference[name])
    assert (torch.where(ignored, gradients["hidden_states"], 0.0) == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mode", ["mean", "none"])
def test_the_last_position_has_nothing_to_predict(mode: str, dtype: torch.dtype) -> None:
    outputs, labels = head(dtype)
    spoilt = {**outputs, "hidden_states": outputs["hidden_states"].clone()}
    spoilt["hidden_states"][:, -1] = math.nan
    clean, reference = loss_and_gradients(resolve(reduction=mode), outputs, {"labels": labels})
    loss, gradients = loss_and_gradients(resolve(reduction=mode), spoilt, {"labels": labels})
    assert torch.equal(loss, clean)
    assert {name: torch.equal(gradient, reference[name]) for name, gradient in gradients.items()} == dict.fromkeys(
        gradients, True
    )
    assert not gradients["hidden_states"][:, -1].any()


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (2, 1, 4), (2, 3, 4), (0, 4), (3, 4)], ids=str)
@pytest.mark.parametrize("mode", [*MODES, "none"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_nothing_to_learn_is_zero_with_zero_gradients(shape: tuple[int, ...], mode: str, dtype: torch.dtype) -> None:
    if len(shape) == 2 and mode.startswith("sequence"):
        shape = (1, *shape)
    sizes = {"hidden_states": shape, "lm_head_weight": (5, 4), "lm_head_bias": (5,)}
    outputs = {name: torch.ones(size, dtype=dtype) for name, size in sizes.items()}
    outputs["hidden_states"].fill_(math.nan)
    loss, gradients = loss_and_gradients(resolve(reduction=mode), outputs, {"labels": torch.full(shape[:-1], -100)})
    assert torch.equal(loss, torch.zeros(shape[:-1] if mode == "none" else (), dtype=loss.dtype))
    for name, gradient in gradients.items():
        assert torch.equal(gradient, torch.zeros(sizes[name], dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_token(dtype: torch.dtype) -> None:
    outputs = {name: x.to(dtype) for name, x in head().outputs.items()}
    outputs["hidden_states"] = outputs["hidden_states"][:1, :1]
    loss, gradients = loss_and_gradients(resolve(), outputs, {"labels": torch.tensor([[3]])})
    assert loss == 0.0
    assert not any(gradient.any() for gradient in gradients.values())
    batch = {"shift_labels": torch.tensor([[3]])}
    alone, _ = loss_and_gradients(resolve(), outputs, batch)
    torch.testing.assert_close(alone.double(), by_logits(outputs, batch)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bad", [math.inf, math.nan])
@pytest.mark.parametrize("mode", ["mean", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_not_finite_is_passed_on(bad: float, mode: str, dtype: torch.dtype) -> None:
    outputs, labels = head(dtype)
    outputs["hidden_states"][0, 0, 0] = bad
    loss = resolve(reduction=mode)(outputs, {"labels": labels})["loss"]
    assert not loss.isfinite().all()
    if mode == "none":
        assert (~loss.isfinite()).nonzero().tolist() == [[0, 0]]


@pytest.mark.parametrize("ignore_index", [-1, 0, 255])
def test_ignore_index_may_be_any_id(ignore_index: int) -> None:
    outputs, labels = head()
    expected = resolve()(outputs, {"labels": torch.where(labels == 0, -100, labels)})["loss"]
    marked = torch.where((labels == -100) | (labels == 0), ignore_index, labels)
    assert resolve(ignore_index=ignore_index)(outputs, {"labels": marked})["loss"] == expected


# Denominators over accumulation steps


@given(heads(), st.integers(0, 4), st.sampled_from([("mean", "num_items"), ("sequence_sum", "num_sequences")]))
def test_micro_batches_add_up_to_the_full_batch(drawn: Head, cut: int, counted: tuple[str, str]) -> None:
    mode, count = counted
    loss_fn = resolve(reduction=mode, shift=False)
    learned = drawn.labels != -100
    total = learned.sum() if mode == "mean" else learned.any(1).sum()
    expected = loss_and_gradients(loss_fn, drawn.outputs, {"labels": drawn.labels})
    loss, gradients = torch.zeros(()), dict.fromkeys(drawn.outputs, torch.zeros(()))
    states = []
    for part in (slice(None, cut), slice(cut, None)):
        outputs = {**drawn.outputs, "hidden_states": drawn.outputs["hidden_states"][part]}
        batch = {"labels": drawn.labels[part], f"{count}_in_batch": total}
        made = loss_and_gradients(loss_fn, outputs, batch)
        loss = loss + made[0]
        gradients = {name: gradients[name] + made[1][name] for name in outputs if name != "hidden_states"}
        states.append(made[1]["hidden_states"])
    torch.testing.assert_close(loss, expected[0])
    gradients["hidden_states"] = torch.cat(states)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[1][name])


def test_the_count_of_a_call_wins_over_that_of_the_batch() -> None:
    outputs, labels = head()
    total = resolve(reduction="sum")(outputs, {"labels": labels})["loss"]
    found = resolve()(outputs, {"labels": labels, "num_items_in_batch": 8}, num_items_in_batch=4)["loss"]
    torch.testing.assert_close(found, total / 4)


# Refusals


@pytest.mark.parametrize("bad", [7, -1, 2**40])
@pytest.mark.parametrize("mode", ["mean", "sequence_sum", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("learn", [True, False], ids=["to learn", "to evaluate"])
def test_a_label_out_of_range_is_named(bad: int, mode: str, dtype: torch.dtype, learn: bool) -> None:
    outputs = {name: tensor.requires_grad_(learn) for name, tensor in head(dtype).outputs.items()}
    labels = torch.tensor([[0, 0, bad, -100, 1], [0, 1, 2, bad, 2]])
    for name in ("labels", "shift_labels"):
        with pytest.raises(LossInputError) as caught:
            resolve(reduction=mode)(outputs, {name: labels})
        assert f"linear_ce: {name!r} must lie in [0, 7) (vocab=7) or be ignore_index" in str(caught.value)
        assert "2 of 10 do not" in str(caught.value)
        assert caught.value.code == "invalid-values"
        assert isinstance(caught.value.__cause__, IndexError | RuntimeError)


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"lm_head_weight": torch.ones(7, 4)}, ["'lm_head_weight' must be float[vocab hidden]", "hidden=3"]),
        ({"lm_head_weight": torch.ones(3)}, ["'lm_head_weight' must be float[vocab hidden]", "float32[3]"]),
        ({"lm_head_bias": torch.ones(6)}, ["'lm_head_bias' must be float[vocab]", "vocab=7"]),
        ({"lm_head_weight": None}, ["'lm_head_weight' (float[vocab hidden]) must be in"]),
        ({"hidden_states": torch.ones(2, 4, 3)}, ["'labels' must be int[*rows]", "*rows=[2, 4]"]),
        ({"labels": None}, ["'labels' or 'shift_labels' must be given"]),
        ({"labels": torch.ones(2, 5)}, ["'labels' must be int[*rows]", "float32[2, 5]"]),
    ],
)
def test_a_tensor_that_does_not_fit_is_refused(change: dict[str, Any], parts: list[str]) -> None:
    outputs, labels = head()
    with pytest.raises(LossInputError, match=r"^linear_ce: ") as caught:
        resolve()({**outputs, "labels": labels, **change}, {})
    assert [part for part in parts if part not in str(caught.value)] == []


@pytest.mark.parametrize(
    "kwargs",
    [
        {"label_smoothing": 1.1},
        {"z_loss": -1.0},
        {"z_loss": math.nan},
        {"softcap": 0.0},
        {"softcap": math.inf},
        {"logit_scale": -1.0},
        {"logit_scale": 0},
        {"chunk_size": 0},
        {"chunk_size": 1.5},
        {"chunk_size": True},
        {"backend": "triton"},
        {"backend": None},
        {"overwrite_logits": True},
        {"max_length": 3},
    ],
    ids=str,
)
def test_a_kwarg_out_of_range_is_refused_at_resolve_and_in_a_call(kwargs: dict[str, Any]) -> None:
    name = next(iter(kwargs))
    outputs, labels = head()
    with pytest.raises(LossConfigError, match=f"^linear_ce: {name}: "):
        resolve_loss("linear_ce", **kwargs)
    with pytest.raises(LossConfigError, match=f"^linear_ce: {name}: "):
        resolve()(outputs, {"labels": labels}, **kwargs)


# Other libraries' kernels


@pytest.mark.parametrize(("backend", "library"), [("liger", "liger-kernel"), ("cce", "cut-cross-entropy")])
def test_a_backend_for_another_device_says_what_to_use(backend: str, library: str) -> None:
    outputs, labels = head()
    with pytest.raises(LossInputError, match=rf"^linear_ce: backend {backend}: {library} .*cpu") as caught:
        resolve(backend=backend)(outputs, {"labels": labels})
    assert "backend: torch" in str(caught.value)
    assert caught.value.code == "backend"
    assert caught.value.loc == ("backend",)


def test_our_own_backend_is_the_default() -> None:
    outputs, labels = head()
    expected = resolve()(outputs, {"labels": labels})["loss"]
    assert resolve(backend="torch")(outputs, {"labels": labels})["loss"] == expected
    assert resolve().kwargs["backend"] == "auto"


@pytest.mark.parametrize(
    ("kwargs", "refused"),
    [
        ({"backend": "liger", "reduction": "none"}, ["reduction"]),
        ({"backend": "liger", "reduction": "sequence_mean", "chunk_size": 64}, ["reduction", "chunk_size"]),
        ({"backend": "cce", "label_smoothing": 0.1}, ["label_smoothing"]),
        (
            {"backend": "cce", "z_loss": 1e-4, "chunk_size": 1, "label_smoothing": 1.0},
            ["label_smoothing", "z_loss", "chunk_size"],
        ),
    ],
    ids=str,
)
def test_what_a_backend_cannot_do_is_refused_at_resolve_all_at_once(kwargs: Any, refused: list[str]) -> None:
    with pytest.raises(LossConfigError) as caught:
        resolve_loss("linear_ce", **kwargs)
    message = str(caught.value)
    assert message.startswith("linear_ce: ")
    assert [name for name in refused if f"{name}: backend {kwargs['backend']}" not in message] == []
    assert message.count(f"backend {kwargs['backend']}") == len(refused)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"backend": "liger", "reduction": "sum", "label_smoothing": 0.1, "z_loss": 1e-4, "softcap": 30.0},
        {"backend": "cce", "reduction": "sequence_mean", "softcap": 30.0, "logit_scale": 0.5},
        {"backend": "cce", "reduction": "none"},
    ],
    ids=str,
)
def test_what_a_backend_can_do_is_accepted(kwargs: Any) -> None:
    assert resolve_loss("linear_ce", **kwargs).kwargs["backend"] == kwargs["backend"]


# Weights


@given(heads(), st.data(), st.sampled_from([*MODES, "none"]), st.sampled_from(CHUNKS))
def test_weights_are_those_of_token_ce(drawn: Head, data: st.DataObject, mode: str, chunk_size: int | None) -> None:
    some = st.sampled_from([0.0, 0.5, 1.0, 2.0])
    shape = tuple(drawn.labels.shape)
    of_tokens = data.draw(st.lists(some, min_size=math.prod(shape), max_size=math.prod(shape)))
    of_samples = data.draw(st.lists(some, min_size=shape[0], max_size=shape[0]))
    batch: dict[str, Any] = {"labels": drawn.labels}
    if data.draw(st.booleans()):
        batch["token_weights"] = torch.tensor(of_tokens).double().reshape(shape)
    if data.draw(st.booleans()):
        batch["sample_weights"] = torch.tensor(of_samples).double()
    kwargs: dict[str, Any] = {
        "reduction": mode,
        "label_smoothing": data.draw(st.sampled_from([0.0, 0.3])),
        "smoothing_formula": data.draw(st.sampled_from(["pytorch", "megatron"])),
        "z_loss": data.draw(st.sampled_from([0.0, 0.01])),
    }
    if data.draw(st.booleans()):
        kwargs["class_weights"] = data.draw(st.lists(some, min_size=drawn.vocab, max_size=drawn.vocab))
    found = loss_and_gradients(resolve(chunk_size=chunk_size, **kwargs), drawn.outputs, batch)
    assert_equal_to_token_ce(found, by_logits(drawn.outputs, batch, **kwargs), rtol=1e-9, atol=1e-10)


def test_there_is_a_weight_for_each_class() -> None:
    given = head()
    with pytest.raises(
        LossInputError, match=r"^linear_ce: class_weights must hold one number per class, 7; it holds 2"
    ):
        resolve(class_weights=[1, 2])(given.outputs, {"labels": given.labels})


@pytest.mark.parametrize("backend", ["liger", "cce"])
def test_other_libraries_have_no_class_weights(backend: str) -> None:
    with pytest.raises(LossConfigError, match=rf"^linear_ce: class_weights: backend {backend} has only None"):
        resolve(backend=backend, class_weights=[1, 2])


@pytest.mark.parametrize("name", ["token_weights", "sample_weights"])
def test_liger_cannot_weigh_tokens(name: str) -> None:
    given = head()
    weights = torch.ones(given.labels.shape if name == "token_weights" else given.labels.shape[:1])
    with pytest.raises(LossInputError, match=rf"^linear_ce: backend liger: .* cannot honour '{name}'"):
        resolve(backend="liger")(given.outputs, {"labels": given.labels, name: weights})

"""A gradient that is written over the logits, and when that is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ops.cases import (
    DTYPES,
    Scored,
    Way,
    assert_near,
    cross_entropy_case,
    expect,
    formulas,
    going,
    gradient_of,
    largest,
    seeds,
    shares,
)
from tensafe.training.losses import LossInputError
from tensafe.training.losses.ops.cross_entropy import Formula, cross_entropy, cross_entropy_dot
from tensafe.training.losses.ops.divergence import divergence, divergence_dot
from tensafe.training.losses.ops.logps import logps, logps_and_entropy

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from torch import Tensor

LABELS = torch.tensor([1, -100, 0, 3])
ONES = torch.ones(4)


@pytest.fixture(autouse=True)
def _chunks() -> Generator[None]:
    with going(Way("chunks", 10)):
        yield


def values_of(logits: Tensor, labels: Tensor = LABELS) -> Tensor:
    return cross_entropy(logits, labels, overwrite_logits=True).sum()


def dot_of(logits: Tensor, labels: Tensor = LABELS) -> Tensor:
    coefficients = torch.ones(labels.shape)
    return cross_entropy_dot(logits, labels, coefficients, overwrite_logits=True)


both_forms = pytest.mark.parametrize("form", [values_of, dot_of])


def source(*shape: int) -> Tensor:
    return torch.linspace(-1, 1, torch.Size(shape).numel()).reshape(shape).requires_grad_()


def made_from(leaf: Tensor) -> Tensor:
    """Return logits that nobody needs again."""
    return leaf * 2.0


# Gradients


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", ["values", "dot"])
@given(data=st.data())
def test_the_gradient_is_that_of_the_formula(form: str, dtype: torch.dtype, data: st.DataObject) -> None:
    draws, formula = data.draw(seeds), data.draw(formulas)
    count, vocab = data.draw(st.integers(1, 6)), data.draw(st.integers(2, 9))
    labels = draws.labels(vocab, count, ignore_index=formula.ignore_index, share=data.draw(shares))
    class_weight = draws.normal(vocab).abs().float() if data.draw(st.booleans()) else None
    case = cross_entropy_case(draws.normal(count, vocab, spread=3.0), Scored(labels, formula, class_weight))
    upstream = draws.coefficients(count, share=data.draw(shares))
    leaf = case.spoiled(case.counts & (upstream != 0)).leaves(dtype)[0]
    logits = leaf * 1
    before = logits.detach().clone()
    with going(Way("chunks", data.draw(st.integers(1, 40)))):
        if form == "dot":
            total = cross_entropy_dot(
                logits, labels, upstream, formula, class_weight=class_weight, overwrite_logits=True
            )
            torch.autograd.backward(total * 0.5)
        else:
            values = cross_entropy(logits, labels, formula, class_weight=class_weight, overwrite_logits=True)
            torch.autograd.backward(values, upstream.to(values.dtype) * 0.5)
    expected = expect(case, [before], upstream)
    seen = case.counts & (upstream != 0)
    if form == "values":
        assert_near(values.detach()[seen], expected.values[seen], case.size)
    else:
        assert_near(total.detach(), (expected.values * upstream).sum(), case.size * count * 2)
    wanted = expected.gradients[0] * 0.5
    assert_near(gradient_of(leaf), wanted, (1 + case.size) * (1 + largest(wanted)), rounded=3)
    assert (gradient_of(leaf)[~seen] == 0).all()
    assert gradient_of(leaf).dtype is dtype


@both_forms
@pytest.mark.parametrize("shape", [(4, 5), (2, 2, 5)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_it_takes_the_place_of_the_logits(
    form: Callable[..., Tensor], shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    logits = made_from(source(*shape).to(dtype))
    gradients: list[Tensor] = []
    logits.register_hook(gradients.append)  # type: ignore[no-untyped-call]
    before = logits.detach().clone()
    torch.autograd.backward(form(logits, LABELS.view(shape[:-1])))
    assert gradients[0].untyped_storage().data_ptr() == logits.untyped_storage().data_ptr()
    assert torch.equal(gradients[0], logits)
    assert not torch.equal(before, logits)
    assert (logits.view(4, 5)[1] == 0).all()


# Where there is no gradient, or no chunks, nothing is overwritten


@both_forms
@pytest.mark.parametrize("state", ["no_grad", "inference", "constant", "plain", "vmap"])
def test_nothing_is_overwritten_without_need(form: Callable[..., Tensor], state: str) -> None:
    leaf = source(4, 5)
    logits = made_from(leaf.detach() if state == "constant" else leaf)
    before = logits.detach().clone()
    expected = cross_entropy(before, LABELS).sum()
    if state == "no_grad":
        with torch.no_grad():
            found = form(logits), form(leaf)
    elif state == "inference":
        with torch.inference_mode():
            found = form(logits), form(leaf)
    elif state == "plain":
        with going(Way("plain")):
            found = form(logits), form(leaf)
    elif state == "vmap":
        found = tuple(torch.func.vmap(form, (0, None))(torch.stack([logits, logits]), LABELS))
    else:
        found = form(logits), form(logits)
    assert torch.equal(logits, before)
    torch.testing.assert_close(found[0].detach(), expected)


# Refusals


class Doubled(torch.autograd.Function):
    """Keeps what it returns."""

    @staticmethod
    def forward(ctx: object, leaf: Tensor) -> Tensor:
        made = leaf * 2
        ctx.save_for_backward(made)  # type: ignore[attr-defined]
        return made

    @staticmethod
    def backward(ctx: object, *upstream: Tensor) -> Tensor:
        return 2 * upstream[0]


def apply_doubled(leaf: Tensor) -> Tensor:
    made: Tensor = Doubled.apply(leaf)  # type: ignore[no-untyped-call]
    return made


REFUSED: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "leaf": (lambda leaf: leaf, "leaf of the graph"),
    "view of a leaf": (lambda leaf: leaf.view(2, 2, 5).view(4, 5), "leaf of the graph"),
    "slice of a leaf": (lambda leaf: leaf[:], "leaf of the graph"),
    "parameter": (lambda leaf: torch.nn.Parameter(leaf.detach()), "leaf of the graph"),
    "tanh": (torch.tanh, "Tanh"),
    "exp": (torch.exp, "Exp"),
    "softmax": (lambda leaf: leaf.softmax(1), "Softmax"),
    "log_softmax": (lambda leaf: leaf.log_softmax(1), "LogSoftmax"),
    "relu": (torch.relu, "Relu"),
    "sigmoid": (torch.sigmoid, "Sigmoid"),
    "a function that keeps it": (apply_doubled, "Doubled"),
    "view of tanh": (lambda leaf: leaf.tanh().view(2, 10).view(4, 5), "Tanh"),
    "slice of tanh": (lambda leaf: torch.cat([leaf, leaf]).tanh()[:4], "Tanh"),
    "three axes of tanh": (lambda leaf: leaf.tanh().view(2, 2, 5).flatten(0, 1), "Tanh"),
    "expanded": (lambda leaf: made_from(leaf)[:1].expand(4, 5), "share memory"),
}


@both_forms
@pytest.mark.parametrize("kind", REFUSED)
def test_logits_that_are_needed_again_are_refused(form: Callable[..., Tensor], kind: str) -> None:
    make, part = REFUSED[kind]
    logits = make(source(4, 5))
    before = logits.detach().clone()
    with pytest.raises(LossInputError, match=part) as refused:
        form(logits)
    assert refused.value.code == "logits-overwritten"
    assert "Leave overwrite_logits off" in str(refused.value)
    assert torch.equal(logits, before)
    torch.autograd.backward(cross_entropy(logits, LABELS).sum())


@both_forms
def test_a_leaf_of_three_axes_is_refused(form: Callable[..., Tensor]) -> None:
    leaf = source(2, 2, 5)
    before = leaf.detach().clone()
    with pytest.raises(LossInputError, match="leaf of the graph"):
        form(leaf, LABELS.view(2, 2))
    assert torch.equal(leaf, before)


@both_forms
def test_what_only_looks_alike_is_not_refused(form: Callable[..., Tensor]) -> None:
    hidden, weight = source(4, 3), source(5, 3)
    harmless: list[Callable[[], Tensor]] = [
        lambda: hidden @ weight.T,
        lambda: (hidden @ weight.T).tanh() * 30,
        lambda: torch.nn.functional.linear(hidden.detach(), weight),
        lambda: (hidden @ weight.T).view(2, 2, 5).view(4, 5),
        lambda: torch.nn.functional.dropout(hidden @ weight.T, 0.5),
    ]
    for make in harmless:
        torch.autograd.backward(form(make()))


@both_forms
def test_a_second_backward_pass_is_refused(form: Callable[..., Tensor]) -> None:
    total = form(made_from(source(4, 5)))
    torch.autograd.backward(total, retain_graph=True)
    with pytest.raises(LossInputError, match="second backward pass"):
        torch.autograd.backward(total)


@both_forms
def test_a_gradient_of_the_gradient_is_refused(form: Callable[..., Tensor]) -> None:
    leaf = source(4, 5)
    with pytest.raises(LossInputError, match="create_graph"):
        torch.autograd.grad(form(made_from(leaf)), leaf, create_graph=True)


@both_forms
def test_a_gradient_that_was_written_over_is_refused(form: Callable[..., Tensor]) -> None:
    logits = made_from(source(4, 5))
    total = form(logits)
    logits.detach().mul_(2)
    with pytest.raises(LossInputError, match="written over the gradient"):
        torch.autograd.backward(total)


SECOND: dict[str, Callable[[Tensor], object]] = {
    "the same": dot_of,
    "cross_entropy": lambda logits: cross_entropy(logits, LABELS),
    "cross_entropy_dot": lambda logits: cross_entropy_dot(logits, LABELS, ONES),
    "a view": lambda logits: cross_entropy(logits.view(2, 2, 5), LABELS.view(2, 2)),
    "detached": lambda logits: cross_entropy(logits.detach(), LABELS),
    "logps": lambda logits: logps(logits, LABELS),
    "logps_and_entropy": lambda logits: logps_and_entropy(logits, LABELS),
    "divergence": lambda logits: divergence(logits, torch.zeros(4, 5)),
    "divergence from it": lambda logits: divergence_dot(torch.zeros(4, 5), logits, ONES),
}


@both_forms
@pytest.mark.parametrize("second", SECOND)
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_second_loss_is_refused(form: Callable[..., Tensor], second: str, when: str) -> None:
    logits = made_from(source(4, 5))
    first = form(logits)
    if when == "after":
        torch.autograd.backward(first)
    with pytest.raises(LossInputError, match="an earlier loss has overwritten the logits"):
        SECOND[second](logits)


@both_forms
def test_logits_that_are_written_there_afresh_are_fine(form: Callable[..., Tensor]) -> None:
    logits = made_from(source(4, 5))
    torch.autograd.backward(form(logits))
    fresh = source(4, 5).detach().flip(0)
    with torch.no_grad():
        logits.copy_(fresh)
    assert torch.equal(cross_entropy(logits.detach(), LABELS), cross_entropy(fresh, LABELS))


@both_forms
def test_other_logits_are_fine_while_overwritten_ones_live(form: Callable[..., Tensor]) -> None:
    kept = made_from(source(4, 5))
    torch.autograd.backward(form(kept))
    other = source(4, 5)
    torch.autograd.backward(form(made_from(other)))
    expected = cross_entropy(made_from(other).detach(), LABELS)
    with torch.inference_mode():
        assert torch.equal(cross_entropy(made_from(other), LABELS), expected)


def test_a_first_loss_that_still_needs_the_logits_is_told_so_by_torch() -> None:
    logits = made_from(source(4, 5))
    first = cross_entropy(logits, LABELS, Formula(z_loss=0.1)).sum()
    _ = dot_of(logits)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.backward(first)

"""Sizes as they are, nothing changed about where chunks begin: few classes, many, and the edge between two ways."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ops.cases import (
    Draws,
    Scored,
    assert_gradients,
    assert_near,
    cross_entropy_case,
    divergence_case,
    entropy_case,
    expect,
    info_nce_case,
    linear_case,
    seeds,
)
from tensafe.training.losses.ops.divergence import Divergence
from tensafe.training.losses.ops.row_scores import Formula

if TYPE_CHECKING:
    from collections.abc import Callable

    from ops.cases import Case

FULL = Formula(label_smoothing=0.1, z_loss=0.01)


def of_logits(count: int, vocab: int, draws: Draws, formula: Formula = Formula()) -> Case:  # noqa: B008
    return cross_entropy_case(draws.normal(count, vocab, spread=3.0), Scored(draws.labels(vocab, count), formula))


def of_states(count: int, vocab: int, draws: Draws) -> Case:
    return linear_case(draws.normal(count, 4), draws.normal(vocab, 4), None, Scored(draws.labels(vocab, count)))


def of_tokens(count: int, vocab: int, draws: Draws) -> Case:
    return entropy_case(draws.normal(count, vocab, spread=3.0), draws.labels(vocab, count), 1.0)


def of_pair(count: int, vocab: int, draws: Draws) -> Case:
    return divergence_case(draws.normal(count, vocab), draws.normal(count, vocab), Divergence("jsd"), draws.mask(count))


def of_sides(count: int, vocab: int, draws: Draws) -> Case:
    return info_nce_case(draws.normal(count, 4), draws.normal(count, 4), 0.5, symmetric=True)


MAKE: dict[str, Callable[[int, int, Draws], Case]] = {
    "cross_entropy": of_logits,
    "cross_entropy-full": partial(of_logits, formula=FULL),
    "linear_cross_entropy": of_states,
    "logps_and_entropy": of_tokens,
    "jsd": of_pair,
}
SIZES = {
    "a large vocabulary": (6, 200_000),
    "one row of many": (1, 2**20 + 1),
    "just below": (1023, 1025),
    "just enough": (1024, 1024),
    "just above": (1024, 1025),
    "two classes": (530_000, 2),
    "no rows": (0, 50_000),
}


def check(case: Case, draws: Draws, dtype: torch.dtype, vocab: int = 0) -> None:
    # torch's own log-softmax, which small inputs go through, adds up its exponentials one after the other: 2e-5 of
    # a row of 65,534 is lost
    size = case.size + vocab / 1000
    upstream = draws.coefficients(case.counts.shape[0])
    # torch's log-softmax, which is the plain way, adds up one after the other
    case = case._replace(size=case.size * (1 + case.inputs[0].shape[-1] ** 0.5 / 50))
    for form in ("values", "dot") if case.dot else ("values",):
        leaves = case.leaves(dtype)
        expected = expect(case, leaves, upstream)
        if form == "dot" and case.dot:
            total = case.dot(upstream, *leaves)
            torch.autograd.backward(total)
            assert_near(total.detach(), (expected.values * upstream).sum(), size * (1 + len(upstream)))
        else:
            values = case.values(*leaves)
            torch.autograd.backward(values, upstream.to(values.dtype))
            seen = upstream != 0
            assert_near(values.detach()[seen], expected.values[seen], size)
        assert_gradients(leaves, expected.gradients, case.size, rounded=1)


@pytest.mark.parametrize(
    ("size", "dtype"),
    [
        *((size, torch.float32) for size in SIZES),
        ("a large vocabulary", torch.bfloat16),
        ("just above", torch.bfloat16),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", MAKE)
def test_a_size(name: str, size: str, dtype: torch.dtype) -> None:
    draws = Draws(0)
    check(MAKE[name](*SIZES[size], draws), draws, dtype, SIZES[size][1])


@pytest.mark.parametrize("count", [0, 1, 1023, 1024, 1100])
def test_a_number_of_pairs(count: int) -> None:
    draws = Draws(0)
    check(of_sides(count, count, draws), draws, torch.float32)


@settings(max_examples=max(5, settings.default.max_examples // 10) if settings.default else 5)
@given(data=st.data())
def test_any_size(data: st.DataObject) -> None:
    vocab = data.draw(st.integers(2, 200_000))
    count = data.draw(st.integers(0, 2**21 // vocab))
    draws = data.draw(seeds)
    check(data.draw(st.sampled_from(list(MAKE.values())))(count, vocab, draws), draws, torch.float32, vocab)

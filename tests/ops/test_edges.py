"""What logits may hold, and which labels are refused: NaN, infinity, and the ends of what a dtype can tell."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

import pytest
import torch

from ops.cases import DTYPES, Way, going, gradient_of
from reference import cross_entropies, divergences, entropies
from tensafe.training.losses.ops.cross_entropy import Formula, cross_entropy, cross_entropy_dot
from tensafe.training.losses.ops.divergence import Divergence, divergence, divergence_dot
from tensafe.training.losses.ops.info_nce import info_nce
from tensafe.training.losses.ops.linear_cross_entropy import linear_cross_entropy, linear_cross_entropy_dot
from tensafe.training.losses.ops.logps import logps, logps_and_entropy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import Tensor

ROWS, VOCAB = 5, 6
LABELS = torch.tensor([0, 1, -100, 5, 2])
COUNTS = LABELS != -100
KINDS = ["forward_kl", "reverse_kl", "jsd"]

every_way = pytest.mark.parametrize("way", ["chunks", "plain", "traced"])


def each(names: Iterable[str]) -> pytest.MarkDecorator:
    """Have a test for each operation, and for both ways of those from hidden states."""
    both = [
        (name, by_vocabulary) for name in names for by_vocabulary in ([False, True] if "linear" in name else [None])
    ]
    return pytest.mark.parametrize(("name", "by_vocabulary"), both)


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


OTHERS = normal(ROWS, VOCAB).flip(0)


def of_hidden_states(logits: Tensor) -> Tensor:
    return linear_cross_entropy(logits, torch.eye(VOCAB, dtype=logits.dtype), LABELS)


def of_student(logits: Tensor, kind: str) -> Tensor:
    return divergence(logits, OTHERS.to(logits.dtype), Divergence(kind), counts=COUNTS)  # type: ignore[arg-type]


def of_teacher(logits: Tensor, kind: str) -> Tensor:
    return divergence(OTHERS.to(logits.dtype), logits, Divergence(kind), counts=COUNTS)  # type: ignore[arg-type]


OF_LOGITS: dict[str, Callable[[Tensor], Tensor]] = {
    "cross_entropy": lambda logits: cross_entropy(logits, LABELS),
    "cross_entropy-smoothed": lambda logits: cross_entropy(logits, LABELS, Formula(label_smoothing=0.1)),
    "cross_entropy-z_loss": lambda logits: cross_entropy(logits, LABELS, Formula(z_loss=0.1)),
    "cross_entropy-softcap": lambda logits: cross_entropy(logits, LABELS, Formula(softcap=5.0)),
    "linear_cross_entropy": of_hidden_states,
    "logps": lambda logits: logps(logits, LABELS),
    "logp of both": lambda logits: logps_and_entropy(logits, LABELS)[0],
    "entropy of both": lambda logits: logps_and_entropy(logits, LABELS)[1],
    **{f"{kind}-student": partial(of_student, kind=kind) for kind in KINDS},
    **{f"{kind}-teacher": partial(of_teacher, kind=kind) for kind in KINDS},
}


@every_way
@each(OF_LOGITS)
@pytest.mark.parametrize("bad", [math.nan, math.inf], ids=str)
def test_nan_is_passed_on_by_its_own_row_alone(name: str, way: str, by_vocabulary: bool | None, bad: float) -> None:
    logits = normal(ROWS, VOCAB)
    spoiled = logits.clone()
    spoiled[1, 3] = bad
    with going(Way(way, 16, by_vocabulary)):
        values, expected = OF_LOGITS[name](spoiled), OF_LOGITS[name](logits)
    others = torch.arange(ROWS) != 1
    assert torch.equal(values[others], expected[others])
    assert values[1].isnan() or (bad == math.inf and name == "cross_entropy-softcap")  # tanh of infinity is 1


@every_way
def test_nan_of_a_pair_reaches_all_that_are_compared_with_it(way: str) -> None:
    a, b = normal(4, 3), normal(4, 3)
    a[1, 0] = math.nan
    with going(Way(way, 4)):
        one_way = info_nce(a, b, temperature=1.0).isnan().tolist()
        both_ways = info_nce(a, b, temperature=1.0, symmetric=True).isnan()
    assert one_way == [False, True, False, False]
    assert both_ways.all()


# A vocabulary mask


def linear_of_bias(logits: Tensor, dot: bool = False) -> Tensor:
    """Take the mask from the bias, where one has to be that is made of hidden states."""
    weight = torch.eye(logits.shape[1], dtype=logits.dtype)
    hidden, bias = logits.nan_to_num(neginf=0.0), torch.where(logits == -math.inf, -math.inf, 0.0).amin(0)
    if dot:
        return linear_cross_entropy_dot(hidden, weight, LABELS, COUNTS.to(logits.dtype), bias=bias)
    return linear_cross_entropy(hidden, weight, LABELS, bias=bias)


def of_both(logits: Tensor, kind: str) -> Tensor:
    return divergence(logits, 2 * logits.flip(0), Divergence(kind), counts=COUNTS)  # type: ignore[arg-type]


MASKABLE: dict[str, Callable[[Tensor], Tensor]] = {
    "cross_entropy": lambda logits: cross_entropy(logits, LABELS),
    "cross_entropy-z_loss": lambda logits: cross_entropy(logits, LABELS, Formula(z_loss=0.1)),
    "cross_entropy_dot": lambda logits: cross_entropy_dot(logits, LABELS, COUNTS.to(logits.dtype)),
    "linear_cross_entropy": linear_of_bias,
    "linear_cross_entropy_dot": partial(linear_of_bias, dot=True),
    "logps": lambda logits: logps(logits, LABELS),
    "logps_and_entropy": lambda logits: torch.stack(logps_and_entropy(logits, LABELS)),
    **{kind: partial(of_both, kind=kind) for kind in KINDS},
}


@every_way
@each(MASKABLE)
@pytest.mark.parametrize("where", ["first", "last"])
def test_a_class_that_is_masked_is_as_good_as_absent(
    name: str, way: str, by_vocabulary: bool | None, where: str
) -> None:
    logits = normal(ROWS, VOCAB)
    mask = torch.full((ROWS, 3), -math.inf, dtype=torch.float64)
    outer, inner = (leaf.clone().requires_grad_() for leaf in (logits, logits))
    offset = 3 if where == "first" else 0
    with going(Way(way, 2 * VOCAB, by_vocabulary)), pytest.MonkeyPatch.context() as patch:
        expected = MASKABLE[name](inner)
        patch.setitem(globals(), "LABELS", torch.where(COUNTS, LABELS + offset, LABELS))
        values = MASKABLE[name](torch.cat([mask, outer] if where == "first" else [outer, mask], 1))
        for result in (values, expected):
            torch.autograd.backward(result, torch.ones_like(result))
    torch.testing.assert_close(values, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient_of(outer), gradient_of(inner), rtol=1e-12, atol=1e-12)


@every_way
@pytest.mark.parametrize("kind", KINDS)
def test_a_class_that_only_one_distribution_has(kind: str, way: str) -> None:
    whole, part = normal(1, 4), normal(1, 4)
    part[0, 2] = -math.inf
    some = torch.ones(1, dtype=torch.float64)
    with going(Way(way)):
        found = {}
        for name, (student, teacher) in {"student": (part, whole), "teacher": (whole, part)}.items():
            leaves = [leaf.clone().requires_grad_() for leaf in (student, teacher)]
            value = divergence(leaves[0], leaves[1], Divergence(kind))  # type: ignore[arg-type]
            assert divergence_dot(student, teacher, some, Divergence(kind)) == value  # type: ignore[arg-type]
            found[name] = value.item()
            if value.isfinite():
                torch.autograd.backward(value)
                assert all(gradient_of(leaf).isfinite().all() for leaf in leaves)
            expected = divergences(student, teacher, kind, 0.5, 1.0).item()
            assert found[name] == pytest.approx(expected, rel=1e-12)
    assert [name for name, value in found.items() if value == math.inf] == {
        "forward_kl": ["student"],
        "reverse_kl": ["teacher"],
        "jsd": [],
    }[kind]


@every_way
@pytest.mark.parametrize("beta", [0.5, 0.001, 0.999])
@pytest.mark.parametrize("gap", [86.0, 95.0, 103.0, 103.5, 103.9, 104.5])
def test_a_probability_that_can_hardly_be_told_from_0_has_no_share(gap: float, beta: float, way: str) -> None:
    student, teacher = torch.tensor([[0.0, -gap]], requires_grad=True), torch.tensor([[0.0, -300.0]])
    with going(Way(way)):
        value = divergence(student, teacher, Divergence("jsd", beta))
        torch.autograd.backward(value)
    assert value.item() == pytest.approx(0, abs=1e-30)
    assert gradient_of(student).abs().max() < 1e-30


# The ends of the range


@every_way
@pytest.mark.parametrize(
    ("dtype", "by_vocabulary"),
    [(dtype, way) for dtype in DTYPES for way in (False, True) if way or dtype.itemsize > 2],
    ids=str,
)
@pytest.mark.parametrize("end", ["1e4", "max/4"])
def test_large_logits(end: str, dtype: torch.dtype, way: str, by_vocabulary: bool) -> None:
    largest = 1e4 if end == "1e4" else torch.finfo(dtype).max / 4
    pattern = torch.tensor(
        [
            [1, 1, -1, 0, 0.5, -1],
            [0, 1, 0.5, -1, 1, 0],
            [0, 0, 0, 0, 0, 0],
            [1, -1, 0, 0, 0, 1],
            [0, 0, -1, 0.5, -1, -1],
        ]
    )
    logits = (pattern.double() * largest).to(dtype)
    exact, kept = logits.double(), LABELS[COUNTS]
    expected = {
        "cross_entropy": cross_entropies(exact[COUNTS], kept),
        "linear_cross_entropy": cross_entropies(exact[COUNTS], kept),
        "logps": -cross_entropies(exact[COUNTS], kept),
        "logp of both": -cross_entropies(exact[COUNTS], kept),
        "entropy of both": entropies(exact[COUNTS]),
        **{
            f"{kind}-student": divergences(exact[COUNTS], OTHERS.to(dtype).double()[COUNTS], kind, 0.5, 1.0)
            for kind in KINDS
        },
    }
    for name, wanted in expected.items():
        leaf = logits.clone().requires_grad_()
        with going(Way(way, 16, by_vocabulary)):
            values = OF_LOGITS[name](leaf)
            torch.autograd.backward(values.sum())
        torch.testing.assert_close(values[COUNTS].double(), wanted, rtol=2e-6, atol=2e-6, msg=name)
        assert gradient_of(leaf).isfinite().all(), name


@every_way
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_low_temperatures(dtype: torch.dtype, way: str) -> None:
    cold, logits, others = 1e-3, normal(ROWS, VOCAB).to(dtype), OTHERS.to(dtype)
    exact, kept = logits.double()[COUNTS], LABELS[COUNTS]
    with going(Way(way)):
        log_probs, entropy = logps_and_entropy(logits, LABELS, temperature=cold)
        found = {kind: divergence(logits, others, Divergence(kind, temperature=cold)) for kind in KINDS}  # type: ignore[arg-type]
        alone = logps(logits, LABELS, temperature=cold)
    close = partial(torch.testing.assert_close, rtol=1e-5, atol=1e-4)
    close(log_probs[COUNTS].double(), -cross_entropies(exact / cold, kept))
    close(alone[COUNTS].double(), -cross_entropies(exact / cold, kept))
    close(entropy[COUNTS].double(), entropies(exact / cold))
    for kind, values in found.items():
        close(values.double(), divergences(logits.double(), others.double(), kind, 0.5, cold), msg=kind)


# Labels


LABELLED: dict[str, Callable[[Tensor], Tensor]] = {
    "cross_entropy": lambda labels: cross_entropy(OTHERS, labels),
    "cross_entropy-smoothed": lambda labels: cross_entropy(OTHERS, labels, Formula(label_smoothing=0.1, z_loss=0.1)),
    "cross_entropy_dot": lambda labels: cross_entropy_dot(OTHERS, labels, torch.ones(ROWS)),
    "linear_cross_entropy": lambda labels: linear_cross_entropy(OTHERS, torch.eye(VOCAB).double(), labels),
    "linear_cross_entropy_dot": lambda labels: linear_cross_entropy_dot(
        OTHERS, torch.eye(VOCAB).double(), labels, torch.ones(ROWS)
    ),
    "logps": lambda labels: logps(OTHERS, labels),
    "logps_and_entropy": lambda labels: logps_and_entropy(OTHERS, labels)[1],
}


@every_way
@each(LABELLED)
@pytest.mark.parametrize("label", [VOCAB, -1, -99, 2**40])
def test_a_label_out_of_range_is_an_index_error(name: str, label: int, way: str, by_vocabulary: bool | None) -> None:
    labels = LABELS.clone()
    labels[3] = label
    with going(Way(way, 16, by_vocabulary)), pytest.raises(IndexError, match="out of bounds"):
        LABELLED[name](labels)


def test_the_usual_ignore_index_is_out_of_range_where_another_is_given() -> None:
    labels = torch.tensor([1, -100, 0])
    with pytest.raises(IndexError, match="out of bounds"):
        cross_entropy(torch.randn(3, VOCAB), labels, Formula(ignore_index=-1))

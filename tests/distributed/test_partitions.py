"""A batch cut into ranks and micro-batches has the loss and the gradient that it has as a whole."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensafe.training.losses.testing.subject import Subject

if TYPE_CHECKING:
    from collections.abc import Mapping

    from benchmarks.partitions import Cut, Result

    from tensafe.training.losses.testing.trial import Trial

ROOT = Path(__file__).parents[2]
CASES = [
    ("token_ce", "mean"),
    ("token_ce", "sequence_mean"),
    ("linear_ce", "mean"),
    ("mtp", "mean"),
    ("mtp", "sequence_mean"),
    ("forward_kl", "sequence_sum"),
    ("grpo", "sequence_mean"),
    ("dr_grpo", "sequence_sum_norm"),
    ("dpo", "mean"),
    ("mse", "mean"),
]
SAMPLES = 10


@pytest.fixture(autouse=True)
def _from_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))


@st.composite
def cuts(draw: st.DrawFn) -> Cut:
    ranks, steps = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    places = draw(st.lists(st.integers(0, ranks * steps - 1), min_size=SAMPLES, max_size=SAMPLES))
    return [
        [[sample for sample, place in enumerate(places) if place == rank * steps + step] for step in range(steps)]
        for rank in range(ranks)
    ]


@cache
def batch_of(name: str, reduction: str) -> tuple[Trial, Result, Mapping[str, Any]]:
    from benchmarks import partitions

    trial = partitions.make_trial(Subject(name), reduction, 3)
    everything = partitions.count_of(trial, [[list(range(SAMPLES))]])
    return trial, partitions.whole(trial), everything


@settings(max_examples=60)
@given(st.sampled_from(CASES), cuts())
def test_parts_divided_by_the_count_of_the_whole_add_up_to_it(case: tuple[str, str], cut: Cut) -> None:
    from benchmarks import partitions

    trial, expected, counts = batch_of(*case)
    found = partitions.deviation(expected, partitions.in_parts(trial, cut, counts))
    assert abs(found.loss) < 1e-13
    assert found.gradient < 1e-14


@settings(max_examples=20)
@given(st.sampled_from(CASES), cuts())
def test_the_parts_count_what_the_whole_counts(case: tuple[str, str], cut: Cut) -> None:
    from benchmarks import partitions

    trial, _, expected = batch_of(*case)
    found = partitions.count_of(trial, cut)
    assert {name: count.tolist() for name, count in found.items()} == {
        name: count.tolist() for name, count in expected.items()
    }


def test_a_mean_of_means_does_not_add_up() -> None:
    from benchmarks import partitions

    trial, expected, _ = batch_of("token_ce", "mean")
    cut = [[[1, 2], [3]], [[0, 4, 5, 6, 7, 8, 9], []]]
    assert partitions.deviation(expected, partitions.in_parts(trial, cut, None)).gradient > 1e-3


def test_the_table_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks import partitions

    partitions.main(["dpo", "--quick"])
    head, _, row = capsys.readouterr().out.splitlines()
    assert head.startswith("| loss | reduction | cuts |")
    assert row.startswith("| `dpo` | mean | 8 | ")
    assert row.count("|") == head.count("|")

"""What losses claim as functions, in words. Whether it is so, the conformance checks say."""

from typing import Any

import pytest

from tensafe.cli.facts import read_facts
from tensafe.cli.pages import page
from tensafe.training.losses.registry import builtin_names, lookup
from tensafe.training.losses.testing import Traits
from tensafe.training.losses.testing.subject import Subject


@pytest.mark.parametrize(
    ("claims", "told"),
    [
        ({}, []),
        ({"sample_independent": True}, ["No sample of a batch depends on another"]),
        ({"sample_independent": False}, ["depend on each other"]),
        ({"non_negative": True, "surrogate": True}, ["It is never negative.", "is not that of its value"]),
        ({"permutation_invariant": False}, ["The order of the samples matters."]),
        ({"twice_differentiable": False}, ["cannot be differentiated again"]),
        ({"zero_where_equal": ("a", "b")}, ["It is 0 where `a` and `b` are equal"]),
        ({"symmetric_in": (("a", "b"), ("c", "d"))}, ["`a` and `b` may be swapped.", "`c` and `d` may be swapped."]),
        ({"shift_invariant": ("a", "b")}, ["A number added to a row of `a` or `b` changes nothing."]),
        ({"passes_gradient_to": ("a",)}, ["`a` may require a gradient, and get it."]),
        ({"sampled_with": ("a",)}, []),
    ],
)
def test_a_claim_is_a_sentence(claims: dict[str, Any], told: list[str]) -> None:
    said = Traits(**claims).in_words()
    assert len(said) == len(told)
    assert all(part in sentence for part, sentence in zip(told, said, strict=True))


def test_a_page_tells_the_claims() -> None:
    text = page(read_facts("tvd"))
    assert "- `logits` and `teacher_logits` may be swapped.\n" in text.partition("## Properties")[2]
    assert "## Properties" not in page(read_facts("weighted_sum"))


@pytest.mark.parametrize(("name", "divisible"), [("token_ce", True), ("mtp", True), ("cosent", False)])
def test_the_mean_tells_of_a_count_where_it_takes_one(name: str, divisible: bool) -> None:
    assert any("num_items_in_batch" in told for told in read_facts(name).reductions.values()) is divisible


def test_each_loss_says_whether_its_samples_are_independent() -> None:
    silent = {name for name in builtin_names() if lookup(name)._traits.sample_independent is None}
    assert silent == {"matryoshka", "weighted_sum"}  # it depends on what they are made of


def test_a_claim_that_could_be_made_is_made() -> None:
    """What is not claimed to be non-negative is negative somewhere, or may be with other kwargs."""
    quiet = [name for name in builtin_names() if not lookup(name)._traits.non_negative]
    seen = [name for name in quiet if min(float(_least(name, seed)) for seed in range(3)) < 0]
    assert set(quiet) - set(seen) <= {"matryoshka", "weighted_sum", "robust_dpo"}


def _least(name: str, seed: int) -> Any:
    subject = Subject(name)
    kwargs: dict[str, Any] = {"reduction": "none"} if "none" in subject.choices("reduction") else {}
    return subject.trial(seed=seed, **kwargs).call()["loss"].detach().min()

"""What the checks leave out of a call, and where they put junk."""

import math

import pytest
import torch

from tensafe.training.losses.testing.aids.exclusion import exclude
from tensafe.training.losses.testing.subject import Subject


def test_the_last_positions_and_the_last_sample_do_not_count() -> None:
    subject = Subject("token_ce")
    left_out = exclude(subject, subject.trial())
    assert left_out is not None
    place = left_out.places["labels"]
    assert place[-1].all()
    assert place[:, -2:].all()
    assert not place[:-1, :-2].any()
    assert (left_out.trial.tensors["labels"][place] == -100).all()


def test_junk_goes_where_nothing_counts_and_nowhere_else() -> None:
    subject = Subject("topk_kl")
    trial = dict(subject.trials())["with labels"]
    left_out = exclude(subject, trial)
    assert left_out is not None
    junk = left_out.junked(math.nan, 99).tensors
    for key in ("logits", "teacher_logps"):
        assert torch.equal(junk[key].isnan().flatten(2).any(-1), left_out.places["labels"])
    assert torch.equal((junk["teacher_ids"] == 99).any(-1), left_out.places["labels"])
    assert torch.equal(junk["labels"], left_out.trial.tensors["labels"])


def test_a_mask_of_one_loss_says_nothing_of_another() -> None:
    subject = Subject("weighted_sum")
    left_out = exclude(subject, dict(subject.trials())["with mask"])
    assert left_out is not None
    assert left_out.of("predictions") is not None
    assert left_out.of("chosen_scores") is None


@pytest.mark.parametrize("name", ["dpo", "contrastive"])
def test_nothing_can_be_left_out_where_nothing_says_so(name: str) -> None:
    subject = Subject(name)
    assert exclude(subject, subject.trial()) is None

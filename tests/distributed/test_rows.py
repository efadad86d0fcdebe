"""Rows gathered over ranks."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from distributed.over_ranks import over_ranks
from distributed.rows_cases import TAKES, all_of_it
from tensafe.distributed import gather_rows
from tensafe.training.losses import LOSS_REGISTRY, LossInputError, LossTypeError
from tensafe.training.losses.registry import builtin_names


def test_two_ranks_that_gather_are_as_one() -> None:
    over_ranks(all_of_it)


def test_every_loss_that_compares_samples_is_among_them() -> None:
    coupled = {name for name in builtin_names() if LOSS_REGISTRY[name]._traits.sample_independent is False}
    assert coupled == set(TAKES)


def test_one_process_gets_back_what_it_gives() -> None:
    rows = torch.ones(2, 3, requires_grad=True)
    named = {"rows": rows, "number": torch.tensor(1.0, requires_grad=True), "texts": ["a", "b"]}
    assert gather_rows(rows) is rows
    assert gather_rows(named) is named


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        ([torch.ones(2)], LossTypeError, "got list"),
        ({"a": torch.ones(2), "b": torch.ones(3)}, LossInputError, "'b' has 3 rows and 'a' 2"),
    ],
)
def test_one_process_refuses_what_several_would(given: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        gather_rows(given)

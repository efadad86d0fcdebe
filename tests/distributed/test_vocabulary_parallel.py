"""Losses of logits whose vocabulary is spread over ranks."""

from distributed.over_ranks import over_ranks
from distributed.spread_cases import all_of_it


def test_what_is_spread_over_two_ranks_is_as_if_it_was_whole() -> None:
    over_ranks(all_of_it)

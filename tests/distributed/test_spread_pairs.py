"""Contrastive losses of pairs that are spread over ranks."""

from distributed.over_ranks import over_ranks
from distributed.pairs_cases import all_of_it


def test_pairs_that_are_spread_over_two_ranks_are_as_if_they_were_whole() -> None:
    over_ranks(all_of_it)

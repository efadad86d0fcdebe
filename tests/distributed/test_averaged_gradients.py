"""The loss of a step on several ranks that average their gradients."""

from distributed.averaged_cases import averaged, counted
from distributed.over_ranks import over_ranks


def test_ddp_gives_the_gradient_of_the_whole_batch() -> None:
    over_ranks(averaged)


def test_ranks_count_together() -> None:
    over_ranks(counted)

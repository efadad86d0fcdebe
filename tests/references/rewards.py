"""Losses of reward models, from their formulas in plain floats."""

import math
from collections.abc import Sequence


def bradley_terry(
    chosen: float,
    rejected: float,
    given_margin: float = 0.0,
    *,
    margin: float = 0.0,
    center_rewards: float | None = None,
    label_smoothing: float = 0.0,
) -> float:
    lead = chosen - rejected - margin - given_margin
    right, wrong = math.log1p(math.exp(-lead)), math.log1p(math.exp(lead))
    centering = (center_rewards or 0.0) * (chosen + rejected) ** 2
    return (1 - label_smoothing) * right + label_smoothing * wrong + centering


def plackett_luce(ranked: Sequence[float], top_k: int | None = None) -> float:
    """Minus the log of the probability that draws without return give the first ranks in this order."""
    probability = 1.0
    for rank in range(len(ranked) if top_k is None else min(top_k, len(ranked))):
        probability *= math.exp(ranked[rank]) / math.fsum(math.exp(score) for score in ranked[rank:])
    return -math.log(probability)

"""Losses of ranking, from their formulas in plain floats, and what hypothesis draws for them."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor

from reference import Rows
from references.rewards import plackett_luce
from strategies import tensors


def by_relevance(scores: Sequence[float], relevance: Sequence[float]) -> list[float]:
    """The scores in order of relevance, highest first; where that is the same, in the order given."""
    places = sorted(range(len(scores)), key=lambda place: (-relevance[place], place))
    return [scores[place] for place in places]


def cosent(scores: Sequence[float], targets: Sequence[float], *, scale: float = 20.0) -> float:
    pairs = [(i, j) for i in range(len(scores)) for j in range(len(scores)) if targets[i] > targets[j]]
    return math.log1p(math.fsum(math.exp(scale * (scores[j] - scores[i])) for i, j in pairs))


class Lists(NamedTuple):
    """Lists of scores, `[batch k]`, the relevance of each item, and which items there are."""

    scores: Tensor
    relevance: Tensor
    mask: Tensor

    def spoilt(self) -> "Lists":
        """The same with NaN where there is no item."""
        scores, relevance = (torch.where(self.mask, side, torch.nan) for side in (self.scores, self.relevance))
        return Lists(scores, relevance, self.mask)

    def rows(self, scores: Sequence[float] | None = None, *, ranked: bool, top_k: int | None) -> Rows:
        """The loss of each list, and whether it counts; the scores are ranked already, or are to be by relevance."""
        batch, k = self.scores.shape
        flat = self.scores.reshape(-1).tolist() if scores is None else scores
        row: list[tuple[float, float]] = []
        for index in range(batch):
            there = [place for place in range(k) if self.mask[index, place]]
            kept = [flat[index * k + place] for place in there]
            order = kept if ranked else by_relevance(kept, [self.relevance[index, place].item() for place in there])
            row.append((plackett_luce(order, top_k), float(bool(there))))
        return [row]


@st.composite
def lists(draw: st.DrawFn) -> Lists:
    """Up to three lists of up to four items; some may be missing, even all, and some may be equally relevant."""
    batch, k = draw(st.integers(0, 3)), draw(st.integers(1, 4))
    relevance = draw(st.lists(st.sampled_from([0.0, 1.0, 2.5]), min_size=batch * k, max_size=batch * k))
    mask = draw(st.lists(st.booleans(), min_size=batch * k, max_size=batch * k))
    return Lists(
        draw(tensors((batch, k))),
        torch.tensor(relevance, dtype=torch.float64).reshape(batch, k),
        torch.tensor(mask, dtype=torch.bool).reshape(batch, k),
    )

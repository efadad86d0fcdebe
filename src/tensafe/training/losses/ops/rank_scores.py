"""The scores of a vocabulary that is spread over ranks: what each rank measures of a row, and what it tells the others.

That is, for each row, its largest score, and after that its sum of exponentials and the score of the label, if that is
among its classes; with label smoothing the sum of its scores too. Two all-reduces, whatever the vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tensafe.training.losses.errors import LossInputError, make_error

from .row_scores import Formula, RowScores, exponentiate
from .sharding import Sharding

__all__ = ["RankScores"]

_FINGERPRINT = 2**20
"""Fingerprints of labels are below this: exact in float32."""


class RankScores(RowScores):
    """`RowScores` of the classes of this rank, and of all classes once they are shared.

    Args:
        formula: What is scored, and how.
        labels: Target ids of all rows that are here, in [0, vocab) whatever classes are here.
        class_weight: Weight of each class of the vocabulary; None is 1 for all.
        sharding: Which classes are here, and whose are the others.
        dtype: What is computed in.

    Raises:
        IndexError: On CPU, a label is outside [0, vocab).
    """

    def __init__(
        self,
        formula: Formula,
        labels: Int[Tensor, " n"],
        class_weight: Float[Tensor, " vocab"] | None,
        sharding: Sharding,
        *,
        dtype: torch.dtype,
    ) -> None:
        super().__init__(formula, labels, class_weight, sharding.vocab, dtype)
        self._sharding = sharding
        shape = (3 if formula.label_smoothing else 2, *self._targets.shape)
        self._numbers = torch.zeros(shape, dtype=dtype, device=labels.device)
        self._total, self._picked = self._numbers[0], self._numbers[1]
        self._shifted = self._numbers[-1]
        self._largest.fill_(-torch.inf)
        self._lowest = torch.finfo(dtype).min
        self._outside = (self._targets < 0) | (self._targets >= sharding.vocab)
        if labels.is_cpu and self._outside.any():
            raise IndexError("Target is out of bounds")
        self._targets = self._targets.clamp(0, sharding.vocab - 1)
        self._weight_here = None if class_weight is None else class_weight[sharding.classes]

    def measure(self, logits: Float[Tensor, "k here"], out: Float[Tensor, "k here"], at: slice) -> Tensor | None:
        """Keep what this rank knows of a few rows; `out` is used up."""
        if not logits.shape[1]:  # more ranks than classes
            return None
        scores, squashed = self._scores(logits, out)
        inside, place = self._labels_here(at)
        self._picked[at] = torch.where(inside, scores.gather(1, place), 0.0)
        largest = torch.amax(scores, 1, keepdim=True, out=self._largest[at])
        torch.sub(scores, largest.clamp(min=self._lowest), out=out)  # all of a rank's classes may be masked
        if self.formula.label_smoothing:
            shifted = out if self._weight_here is None else out * self._weight_here
            torch.sum(shifted, 1, keepdim=True, out=self._shifted[at])
        torch.sum(exponentiate(out, out), 1, keepdim=True, out=self._total[at])
        return squashed

    def share(self) -> None:
        """Tell the other ranks, and learn from them: two all-reduces, whatever the vocabulary.

        Raises:
            LossInputError: On CPU, the ranks have different labels or vocabularies. Elsewhere the values are then NaN.
        """
        if self._sharding.group is not None:
            mine = self._largest.clamp(min=self._lowest)
            differ = self._share_largest()
            drop = (mine - self._largest.clamp(min=self._lowest)).clamp(min=self._lowest)
            self._total.mul_(drop.exp())
            if self.formula.label_smoothing:
                here = self._sharding.classes
                weight = here.stop - here.start if self._weight_here is None else self._weight_here.sum()
                self._shifted.add_(drop * weight)
            self._all_reduce(self._numbers, "SUM")
            self._total.masked_fill_(differ, torch.nan)
        self._picked.masked_fill_(self._outside, torch.nan)

    def differentiate(
        self, out: Float[Tensor, "k here"], squashed: Tensor | None, at: slice, upstream: Float[Tensor, "k 1"]
    ) -> None:
        """Turn exp(z - max z) of this rank's classes into their gradient, in place."""
        if not out.shape[1]:
            return
        of_exponential, of_label, of_class = self._factors(at, upstream)
        out.mul_(of_exponential)
        inside, place = self._labels_here(at)
        out.scatter_add_(1, place, torch.where(inside, -of_label, 0.0))
        self._finish(out, squashed, of_class, self._weight_here)

    def _share_largest(self) -> Tensor:
        """Return whether the ranks have different labels, or see another number of classes."""
        mark = _fingerprint(torch.where(self.ignored, -1, self._targets.squeeze(1)), self._vocab).to(self.dtype)
        largest = torch.cat([self._largest.view(-1), mark, -mark])
        self._all_reduce(largest, "MAX")
        self._largest.copy_(largest[:-2].unsqueeze(1))
        differ = largest[-2] != -largest[-1]
        if differ.is_cpu and differ:
            raise _other_labels()
        return differ

    def _all_reduce(self, numbers: Tensor, operation: str) -> None:
        distributed: Any = torch.distributed
        distributed.all_reduce(numbers, getattr(distributed.ReduceOp, operation), self._sharding.group)

    def _labels_here(self, at: slice) -> tuple[Tensor, Tensor]:
        """Return which rows have their label on this rank, and where; 0 or so for those that have not."""
        here, targets = self._sharding.classes, self._targets[at]
        inside = (targets >= here.start) & (targets < here.stop)
        return inside, (targets - here.start).clamp_(0, here.stop - here.start - 1)


def _fingerprint(labels: Int[Tensor, " n"], vocab: int) -> Int[Tensor, " 1"]:
    places = torch.arange(1, labels.shape[0] + 1, device=labels.device)
    return ((labels + 2) * (places * 7919 % 104729)).sum(0, keepdim=True).add(vocab) % _FINGERPRINT


def _other_labels() -> LossInputError:
    return make_error(
        LossInputError,
        "the ranks that share a vocabulary have different labels, or different ideas of its size.",
        code="labels-differ",
        loc=("labels",),
        hint="Give them one batch, and the shape of the whole to DTensor.from_local where shards differ in size. A "
        "weight that FSDP has sharded is not spread over its vocabulary: pass the gathered one.",
    )

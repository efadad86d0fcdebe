"""What losses of embeddings share."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from tensafe._lazy import torch
from tensafe.training.losses.loss import ElementLoss
from tensafe.training.losses.traits import Traits
from tensafe.training.losses.types import Elements

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["EmbeddingLoss", "InBatchLoss", "JudgedPairs"]


class EmbeddingLoss(ElementLoss):
    """Base of losses on `[batch hidden]` embeddings; one value per row."""

    _family: ClassVar[str] = "embedding"


class InBatchLoss(EmbeddingLoss):
    """Base of losses in which each row of one side must find its partner among all of the other side."""

    _traits: ClassVar[Traits] = Traits(sample_independent=False, non_negative=True)

    def _info_nce(
        self, a: Tensor, b: Tensor, negatives: Tensor | None, *, temperature: float, margin: float, symmetric: bool
    ) -> Elements:
        """Return InfoNCE of similarities `a @ b.T`; `negatives` `[batch k hidden]` are candidates of every row."""
        from tensafe.training.losses.ops.info_nce import Scores, info_nce, info_nce_dot
        from tensafe.training.losses.ops.spread_info_nce import SpreadPairs, layout_of

        metrics = {"positive_similarity": (a * b).detach().sum(1)} if self.metrics else None
        weights, layout = torch.ones_like(a[:, 0]), layout_of(a, b, negatives)
        if layout is not None:
            pairs = SpreadPairs(a, b, negatives, Scores(temperature, margin, symmetric), layout)
            return Elements(pairs.values, weights, metrics, pairs.dot)
        candidates = b if negatives is None else torch.cat([b, negatives.flatten(0, 1)])

        def values() -> Tensor:
            return info_nce(a, candidates, temperature=temperature, margin=margin, symmetric=symmetric)

        def dot(coefficients: Tensor) -> Tensor:
            return info_nce_dot(
                a, candidates, coefficients, temperature=temperature, margin=margin, symmetric=symmetric
            )

        return Elements(values, weights, metrics, dot)


class JudgedPairs(EmbeddingLoss):
    """Base of losses of pairs that a target calls alike or unlike."""

    _alike: ClassVar[int] = 1
    _unlike: ClassVar[int]
    _traits: ClassVar[Traits] = Traits(
        sample_independent=True,
        non_negative=True,
        symmetric_in=(("embeddings_a", "embeddings_b"),),
    )

    def _by_target(self, targets: Tensor, alike: Tensor, unlike: Tensor) -> Tensor:
        """Return the value that the target of each pair chooses; one that is neither fails as an index does."""
        place = torch.where(targets == self._unlike, 0, torch.where(targets == self._alike, 1, 2))
        return torch.stack([unlike, alike]).gather(0, place.unsqueeze(0)).squeeze(0)

    def explain(self, embeddings_a: Tensor, embeddings_b: Tensor, targets: Tensor) -> str | None:
        """Say how many targets are neither."""
        wrong = int(((targets != self._alike) & (targets != self._unlike)).sum())
        allowed = f"{self._alike} (alike) or {self._unlike} (unlike)"
        return f"'targets' must be {allowed}; {wrong} of {targets.numel()} are neither." if wrong else None

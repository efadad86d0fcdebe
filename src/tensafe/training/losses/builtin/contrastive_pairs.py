"""Pairs of embeddings that should be near each other, or far apart."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from tensafe._lazy import F
from tensafe.training.losses.contract import Values
from tensafe.training.losses.families.embedding import JudgedPairs
from tensafe.training.losses.types import Elements

if TYPE_CHECKING:
    from jaxtyping import Float, Num
    from torch import Tensor


class ContrastivePairs(JudgedPairs, name="contrastive_pairs"):
    r"""Pulls alike pairs together, and pushes unlike ones apart until they are a margin from each other.

    .. math:: \ell_i = \tfrac12\big[y_i\, d(a_i, b_i)^2 + (1 - y_i) \max(0,\; m - d(a_i, b_i))^2\big]

    Args:
        embeddings_a: One side of the pairs :math:`a`, float `[batch hidden]`.
        embeddings_b: The other side :math:`b`, same shape.
        targets: :math:`y`, int or float `[batch]`: 1 for a pair that is alike, 0 for one that is not.
        margin: :math:`m` >= 0, in units of the distance: an unlike pair that is apart by it or more costs nothing; 0
            leaves all of them alone.
        distance: :math:`d`: `cosine`, 1 - the cosine, in [0, 2]; `euclidean`, the length of the difference (of
            :math:`x - y + 10^{-6}`, so that it has a gradient where two embeddings coincide).
        reduction: See `ElementLoss`; `none` gives one value per pair.
        metrics: Whether the result carries `accuracy`, the share of pairs on the right side of the margin (alike
            within, unlike not), in [0, 1].

    Returns:
        The loss, 0-d, >= 0, in squared units of the distance. An empty batch gives 0.0, attached to the graph. A zero
        embedding has cosine 0 with all, and a bounded gradient.

    Raises:
        LossInputError: A tensor is missing, the shapes differ, or a target is neither 1 nor 0 (said so on CPU in eager
            mode; elsewhere it fails as an index that is out of range does).
        LossConfigError: A kwarg is unknown or out of range.

    Note:
        Equal to sentence-transformers' `ContrastiveLoss` with its `COSINE_DISTANCE` and `EUCLIDEAN` distances.
        pytorch-metric-learning's `ContrastiveLoss` neither halves nor squares. InfoNCE, which many call contrastive, is
        `contrastive`.

    Example:
        >>> import torch
        >>> from tensafe.training.losses import resolve_loss
        >>> outputs = {"embeddings_a": torch.tensor([[3.0], [3.0]]), "embeddings_b": torch.tensor([[1.0], [1.0]])}
        >>> loss_fn = resolve_loss("contrastive_pairs", distance="euclidean", margin=3.0, reduction="none")
        >>> loss_fn(outputs, {"targets": torch.tensor([1, 0])})["loss"]  # 2 ** 2 / 2, (3 - 2) ** 2 / 2
        tensor([2.0000, 0.5000])

    References:
        Hadsell, Chopra, LeCun, Dimensionality Reduction by Learning an Invariant Mapping, CVPR 2006, equation 4 (with
        y = 0 for pairs that are alike).
    """

    _unlike: ClassVar[int] = 0

    margin: float = Field(default=0.5, ge=0, description="Distance from which an unlike pair costs nothing.")
    distance: Literal["cosine", "euclidean"] = Field(
        default="cosine", description="How far two embeddings are apart: cosine or euclidean."
    )

    def compute(
        self,
        embeddings_a: Float[Tensor, "batch hidden"],
        embeddings_b: Float[Tensor, "batch hidden"],
        targets: Annotated[Num[Tensor, " batch"], Values(among=(1, 0))],
    ) -> Elements:
        """Return the value of each pair; see the class."""
        from tensafe.training.losses.ops.similarity import distance

        apart = distance(embeddings_a, embeddings_b, self.distance)
        values = self._by_target(targets, apart.square() / 2, F.relu(self.margin - apart).square() / 2)
        accuracy = (apart.detach() < self.margin) == (targets == self._alike)
        return Elements(values, metrics={"accuracy": accuracy} if self.metrics else None)

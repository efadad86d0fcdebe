"""Triplets of an anchor, what is like it, and what is not."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from tensafe._lazy import F
from tensafe.training.losses.families.embedding import EmbeddingLoss
from tensafe.training.losses.traits import Traits
from tensafe.training.losses.types import Elements

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


class Triplet(EmbeddingLoss, name="triplet"):
    r"""Hinge loss that asks each anchor to be nearer to its positive than to its negative by a margin.

    .. math:: \ell_i = \max(0,\; d(a_i, p_i) - d(a_i, n_i) + m)

    Args:
        anchor: Embeddings :math:`a`, float `[batch hidden]`.
        positive: What belongs with the anchor of its row, :math:`p`, same shape.
        negative: What does not, :math:`n`, same shape.
        margin: :math:`m` >= 0, in units of the distance; 0 asks only for the right order. Cosine distances lie in
            [0, 2], so there the default of 1 is a large one.
        distance: :math:`d`: `euclidean`, the length of the difference (of :math:`x - y + 10^{-6}`, so that it has a
            gradient where two embeddings coincide); `squared`, the squared length; `cosine`, 1 - the cosine.
        reduction: See `ElementLoss`; `none` gives one value per triplet.
        metrics: Whether the result carries `accuracy`, the share of triplets whose positive is the nearer one, and the
            mean distances `positive_distance` and `negative_distance`.

    Returns:
        The loss, 0-d, >= 0, in units of the distance. An empty batch gives 0.0, attached to the graph.

    Raises:
        LossInputError: A tensor is missing, or the shapes differ.
        LossConfigError: A kwarg is unknown or out of range.

    Note:
        `euclidean` is equal to torch.nn.functional.triplet_margin_loss (without `swap`), `cosine` to its
        triplet_margin_with_distance_loss of that distance. sentence-transformers' `TripletLoss` is `euclidean` with
        margin 5; pytorch-metric-learning's `TripletMarginLoss` takes embeddings of length 1 and margin 0.05, and
        averages over the triplets that are not 0.

    Example:
        >>> import torch
        >>> from tensafe.training.losses import resolve_loss
        >>> outputs = {"anchor": torch.zeros(2, 1), "positive": torch.tensor([[1.0], [2.0]])}
        >>> batch = {"negative": torch.ones(2, 1)}
        >>> resolve_loss("triplet", distance="squared")(outputs, batch)["loss"]  # (1 - 1 + 1 + 4 - 1 + 1) / 2
        tensor(2.5000)

    References:
        Schroff et al., FaceNet, 2015, arXiv:1503.03832, equation 3 (there with squared distances).
    """

    _traits: ClassVar[Traits] = Traits(sample_independent=True, non_negative=True)

    margin: float = Field(default=1.0, ge=0, description="Distance by which the positive should be the nearer one.")
    distance: Literal["euclidean", "cosine", "squared"] = Field(
        default="euclidean", description="How far two embeddings are apart: euclidean, cosine or squared euclidean."
    )

    def compute(
        self,
        anchor: Float[Tensor, "batch hidden"],
        positive: Float[Tensor, "batch hidden"],
        negative: Float[Tensor, "batch hidden"],
    ) -> Elements:
        """Return the hinge of each triplet; see the class."""
        from tensafe.training.losses.ops.similarity import distance

        near, far = (distance(anchor, other, self.distance) for other in (positive, negative))
        metrics = {"accuracy": near < far, "positive_distance": near, "negative_distance": far}
        return Elements(F.relu(near - far + self.margin), metrics=metrics if self.metrics else None)

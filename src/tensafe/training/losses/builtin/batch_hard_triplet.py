"""Triplets that are looked for in the batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from tensafe._lazy import F, torch
from tensafe.training.losses.families.embedding import EmbeddingLoss
from tensafe.training.losses.traits import Traits
from tensafe.training.losses.types import Elements

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor


class BatchHardTriplet(EmbeddingLoss, name="batch_hard_triplet"):
    r"""Hinge loss of each embedding's hardest triplet: the furthest of its own class, and the nearest of another.

    .. math:: \ell_i = \max\Big(0,\; \max_{p \ne i,\, y_p = y_i} d(x_i, x_p) - \min_{y_n \ne y_i} d(x_i, x_n) + m\Big)

    Args:
        embeddings: Embeddings :math:`x`, float `[batch hidden]`.
        labels: Class :math:`y` of each, any integers `[batch]`. An embedding without another of its class, or without
            one of another class, does not count.
        margin: :math:`m` >= 0, in units of the distance; 0 asks only for the right order.
        distance: :math:`d`, as in `triplet`: `euclidean`, `squared` or `cosine`.
        reduction: See `ElementLoss`; `none` gives one value per embedding.
        metrics: Whether the result carries `accuracy`, the share of embeddings whose hardest positive is nearer than
            their hardest negative, and the mean distances `positive_distance` and `negative_distance`.

    Returns:
        The loss, 0-d, >= 0, in units of the distance. A batch without a triplet gives 0.0, attached to the graph.

    Raises:
        LossInputError: A tensor is missing, or the shapes differ.
        LossConfigError: A kwarg is unknown or out of range.

    Note:
        Equal to sentence-transformers' `BatchHardTripletLoss`, whose margin is 5 and whose distance is `euclidean`,
        where every class has two members and there are two classes; it also averages over embeddings without a triplet.
        The samples of a batch are compared with each other, so the loss is no sum over samples. To compare the samples
        of all ranks, call it with `tensafe.distributed.gather_rows` of outputs and batch.

    Example:
        >>> import torch
        >>> from tensafe.training.losses import resolve_loss
        >>> outputs = {"embeddings": torch.tensor([[0.0], [2.0], [3.0], [7.0]])}
        >>> batch = {"labels": torch.tensor([0, 0, 1, 1])}
        >>> loss_fn = resolve_loss("batch_hard_triplet", distance="squared", reduction="none")
        >>> loss_fn(outputs, batch)["loss"]  # 4 - 9, 4 - 1, 16 - 1 and 16 - 25, plus 1
        tensor([ 0.,  4., 16.,  0.])

    References:
        Hermans, Beyer and Leibe, In Defense of the Triplet Loss for Person Re-Identification, 2017, arXiv:1703.07737,
        equation 5.
    """

    _traits: ClassVar[Traits] = Traits(sample_independent=False, non_negative=True)

    margin: float = Field(default=1.0, ge=0, description="Distance by which the positive should be the nearer one.")
    distance: Literal["euclidean", "cosine", "squared"] = Field(
        default="euclidean", description="How far two embeddings are apart: euclidean, cosine or squared euclidean."
    )

    def compute(self, embeddings: Float[Tensor, "batch hidden"], labels: Int[Tensor, " batch"]) -> Elements:
        """Return the hinge of each embedding's hardest triplet; see the class."""
        from tensafe.training.losses.ops.similarity import distance, hardest, others_alike

        alike = others_alike(labels)
        unlike = labels.unsqueeze(1) != labels.unsqueeze(0)
        positive, negative = hardest(embeddings, alike, unlike, self.distance)
        near, far = (distance(embeddings, embeddings[place], self.distance) for place in (positive, negative))
        metrics = {"accuracy": near < far, "positive_distance": near, "negative_distance": far}
        counts = alike.any(1) & unlike.any(1)
        values = torch.where(counts, F.relu(near - far + self.margin), 0.0)
        return Elements(values, counts, metrics if self.metrics else None)

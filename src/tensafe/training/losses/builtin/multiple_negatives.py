"""InfoNCE in one direction, as sentence encoders are trained with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from tensafe.training.losses.families.embedding import InBatchLoss

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from tensafe.training.losses.types import Elements


class MultipleNegatives(InBatchLoss, name="multiple_negatives"):
    r"""Multiple-negatives ranking: each anchor must find its partner among the partners and hard negatives of all.

    .. math:: \ell_i = -\log \frac{e^{s\,\mathrm{sim}(a_i, b_i)}}
        {\sum_j e^{s\,\mathrm{sim}(a_i, b_j)} + \sum_{j,k} e^{s\,\mathrm{sim}(a_i, n_{jk})}}

    Args:
        embeddings_a: The anchors :math:`a`, such as questions, float `[batch hidden]`.
        embeddings_b: Their partners :math:`b`, such as answers, same shape; row i is the partner of row i.
        embeddings_negative: Hard negatives :math:`n`, float `[batch k hidden]`, if there are any: those of every row
            are candidates of every anchor.
        scale: :math:`s` > 0, one over the temperature; the larger, the more the hardest negatives count.
        similarity: :math:`\mathrm{sim}`: `cosine`, or `dot`, the dot product, for embeddings whose length means
            something (which then wants a scale near 1).
        symmetric: Whether each partner must find its anchor among all anchors too; the value is the mean of both.
        reduction: See `ElementLoss`; `none` gives one value per pair.
        metrics: Whether the result carries `positive_similarity`, the mean similarity of the pairs.

    Returns:
        The loss in nats, 0-d. A batch of one pair gives 0.0 (without hard negatives there is none), an empty one too,
        attached to the graph. A zero embedding has cosine 0 with all, and a bounded gradient.

    Raises:
        LossInputError: A tensor is missing, or the shapes differ.
        LossConfigError: A kwarg is unknown or out of range.

    Note:
        Equal to sentence-transformers' `MultipleNegativesRankingLoss` with the same scale, and with `symmetric` to
        that with its directions `query_to_doc` and `doc_to_query`, each with a softmax of its own. `contrastive` is the
        same loss with a temperature, a margin, and both directions. The samples of a batch are each other's negatives,
        so cutting a batch into micro-batches changes it, and a partner that also fits another anchor counts as wrong.
        To compare the samples of all ranks, call it with `tensafe.distributed.gather_rows` of the embeddings, or with
        DTensors that are `Shard(0)`: each rank then scores its own rows alone.

    Example:
        >>> import torch
        >>> from tensafe.training.losses import resolve_loss
        >>> pairs = {"embeddings_a": torch.eye(2), "embeddings_b": torch.eye(2)}
        >>> resolve_loss("multiple_negatives", scale=1.0)(pairs, {})["loss"]  # -log(e / (e + 1))
        tensor(0.3133)
        >>> negatives = {"embeddings_negative": torch.eye(2).unsqueeze(1)}
        >>> resolve_loss("multiple_negatives", scale=1.0)(pairs, negatives)["loss"]  # -log(e / (2 * e + 2))
        tensor(1.0064)

    References:
        Henderson et al., Efficient Natural Language Response Suggestion for Smart Reply, 2017, arXiv:1705.00652,
        section 4.4.
    """

    scale: float = Field(default=20.0, gt=0, description="What the similarities are multiplied by before the softmax.")
    similarity: Literal["cosine", "dot"] = Field(default="cosine", description="How alike two embeddings are.")
    symmetric: bool = Field(default=False, description="Whether the partners must find their anchors too.")

    def compute(
        self,
        embeddings_a: Float[Tensor, "batch hidden"],
        embeddings_b: Float[Tensor, "batch hidden"],
        embeddings_negative: Float[Tensor, "batch k hidden"] | None = None,
    ) -> Elements:
        """Return the value of each pair; see the class."""
        from tensafe.training.losses.ops.similarity import unit

        a, b, negatives = embeddings_a, embeddings_b, embeddings_negative
        if self.similarity == "cosine":
            a, b, negatives = unit(a), unit(b), None if negatives is None else unit(negatives)
        return self._info_nce(a, b, negatives, temperature=1 / self.scale, margin=0.0, symmetric=self.symmetric)

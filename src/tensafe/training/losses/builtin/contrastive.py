"""Symmetric InfoNCE over pairs of embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from tensafe.training.losses.families.embedding import InBatchLoss
from tensafe.training.losses.traits import Traits

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from tensafe.training.losses.types import Elements


class Contrastive(InBatchLoss, name="contrastive"):
    r"""Symmetric InfoNCE: each embedding must find its partner among all of the batch, in both directions.

    .. math:: \ell_i = \tfrac12\big[\mathrm{CE}_i(S') + \mathrm{CE}_i(S'^\top)\big], \quad
        S'_{ij} = (\cos(a_i, b_j) - m\,[i = j]) / \tau, \quad \mathrm{CE}_i(S') = -\log \mathrm{softmax}(S'_i)_i

    Args:
        embeddings_a: One side of the pairs :math:`a`, float `[batch hidden]`, of any length: cosines are taken.
        embeddings_b: The other side :math:`b`, same shape; row i is the partner of row i.
        embeddings_negative: Hard negatives, float `[batch k hidden]`, if there are any: all of the batch, `batch * k`,
            are further candidates of every :math:`a_i`: columns of the first :math:`S'`, not of the second.
        temperature: :math:`\tau` > 0; the smaller, the more the hardest negatives count.
        margin: :math:`m` >= 0, taken off the cosine of each pair (additive margin); 0 is plain InfoNCE.
        reduction: See `ElementLoss`; `none` gives one value per pair.
        metrics: Whether the result carries `positive_similarity`, the mean cosine of the pairs, in [-1, 1].

    Returns:
        The loss in nats, 0-d. A batch of one pair gives 0.0 (without hard negatives there is none), an empty one too,
        attached to the graph. A zero embedding has cosine 0 with all, and a bounded gradient.

    Raises:
        LossInputError: A tensor is missing (`embeddings_b` too: there is no fall-back to self-similarity), or the
            shapes differ.
        LossConfigError: A kwarg is unknown or out of range.

    Note:
        The samples of a batch are each other's negatives, so the loss is no sum over samples: cutting a batch into
        micro-batches changes it, and per-sample gradient clipping (DP-SGD) does not bound its sensitivity.
        Without negatives and margin it is pytorch-metric-learning's `NTXentLoss` with a `CosineSimilarity`, between the
        two sides and averaged over both directions, and the loss of CLIP. To compare the samples of all ranks, call it
        with `tensafe.distributed.gather_rows` of the embeddings, or with DTensors that are `Shard(0)`: each rank then
        scores its own rows alone.

    Example:
        >>> import torch
        >>> from tensafe.training.losses import resolve_loss
        >>> pairs = {"embeddings_a": torch.eye(2), "embeddings_b": torch.eye(2)}
        >>> resolve_loss("contrastive", temperature=1.0)(pairs, {})["loss"]  # -log(e / (e + 1))
        tensor(0.3133)

    References:
        van den Oord et al., Representation Learning with Contrastive Predictive Coding, 2018, arXiv:1807.03748,
        equation 4; in both directions as in Radford et al., 2021, arXiv:2103.00020, figure 3. Margin: Wang et al.,
        CosFace, 2018, arXiv:1801.09414.
    """

    _traits: ClassVar[Traits] = Traits(
        sample_independent=False,
        non_negative=True,
        symmetric_in=(("embeddings_a", "embeddings_b"),),
    )

    temperature: float = Field(default=0.07, gt=0, description="What the cosines are divided by before the softmax.")
    margin: float = Field(default=0.0, ge=0, description="Additive margin taken off the cosine of each pair.")

    def compute(
        self,
        embeddings_a: Float[Tensor, "batch hidden"],
        embeddings_b: Float[Tensor, "batch hidden"],
        embeddings_negative: Float[Tensor, "batch k hidden"] | None = None,
    ) -> Elements:
        """Return the mean of both directions for each pair; see the class."""
        from tensafe.training.losses.ops.similarity import unit

        negatives = None if embeddings_negative is None else unit(embeddings_negative)
        return self._info_nce(
            unit(embeddings_a),
            unit(embeddings_b),
            negatives,
            temperature=self.temperature,
            margin=self.margin,
            symmetric=True,
        )

"""Normalised temperature-scaled cross-entropy of two views."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from tensafe._lazy import torch
from tensafe.training.losses.families.embedding import EmbeddingLoss
from tensafe.training.losses.traits import Traits
from tensafe.training.losses.types import Elements

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


class NTXent(EmbeddingLoss, name="nt_xent"):
    r"""Each view must find the other view of its sample among all views of the batch, of either kind (SimCLR).

    .. math:: \ell_i = \tfrac12 (\ell(a_i, b_i) + \ell(b_i, a_i)), \quad
        \ell(x, y) = -\log \frac{e^{\cos(x, y) / \tau}}{\sum_{z \ne x} e^{\cos(x, z) / \tau}}

    Args:
        embeddings_a: One view of each sample :math:`a`, float `[batch hidden]`, of any length: cosines are taken.
        embeddings_b: The other view :math:`b`, same shape; row i is of the same sample as row i.
        temperature: :math:`\tau` > 0; the smaller, the more the hardest negatives count.
        reduction: See `ElementLoss`; `none` gives one value per sample.
        metrics: Whether the result carries `positive_similarity`, the mean cosine of the two views, in [-1, 1].

    Returns:
        The loss in nats, 0-d, >= 0. A batch of one sample gives 0.0 (there is no negative), an empty one too, attached
        to the graph. A zero embedding has cosine 0 with all, and a bounded gradient.

    Raises:
        LossInputError: A tensor is missing, or the shapes differ.
        LossConfigError: A kwarg is unknown or out of range.

    Note:
        Equal to pytorch-metric-learning's `NTXentLoss` on both views with one label per sample. `contrastive` compares
        a view with those of the other kind alone. The samples of a batch are each other's negatives, so the loss is no
        sum over samples: cutting a batch into micro-batches changes it. It holds `[2 batch, 2 batch]` similarities. To
        compare the samples of all ranks, call it with `tensafe.distributed.gather_rows` of outputs and batch.

    Example:
        >>> import torch
        >>> from tensafe.training.losses import resolve_loss
        >>> views = {"embeddings_a": torch.eye(2), "embeddings_b": torch.eye(2)}
        >>> resolve_loss("nt_xent", temperature=1.0)(views, {})["loss"]  # -log(e / (e + 1 + 1))
        tensor(0.5514)

    References:
        Chen et al., A Simple Framework for Contrastive Learning of Visual Representations, 2020, arXiv:2002.05709,
        equation 1.
    """

    _traits: ClassVar[Traits] = Traits(
        sample_independent=False,
        non_negative=True,
        symmetric_in=(("embeddings_a", "embeddings_b"),),
    )

    temperature: float = Field(default=0.07, gt=0, description="What the cosines are divided by before the softmax.")

    def compute(
        self, embeddings_a: Float[Tensor, "batch hidden"], embeddings_b: Float[Tensor, "batch hidden"]
    ) -> Elements:
        """Return the mean over both views of each sample; see the class."""
        from tensafe.training.losses.ops.similarity import similarities, unit

        views = unit(torch.cat([embeddings_a, embeddings_b]))
        a, b = views.chunk(2) if len(views) else (views, views)
        similarity = (a * b).sum(1)
        to_all = torch.logsumexp(similarities(views, self.temperature), 1)
        values = to_all.reshape(2, -1).mean(0) if len(views) else to_all
        metrics = {"positive_similarity": similarity.detach()} if self.metrics else None
        return Elements(values - similarity / self.temperature, metrics=metrics)

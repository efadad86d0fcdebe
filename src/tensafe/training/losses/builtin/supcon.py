"""Supervised contrastive learning."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from tensafe._lazy import torch
from tensafe.training.losses.families.embedding import EmbeddingLoss
from tensafe.training.losses.traits import Traits
from tensafe.training.losses.types import Elements

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor


class SupCon(EmbeddingLoss, name="supcon"):
    r"""Each embedding must find all those of its class among the batch: contrastive learning with labels.

    .. math:: \ell_i = -\frac{1}{|P_i|} \sum_{p \in P_i} \log
        \frac{e^{\cos(x_i, x_p) / \tau}}{\sum_{j \ne i} e^{\cos(x_i, x_j) / \tau}}, \quad
        P_i = \{p \ne i : y_p = y_i\}

    Args:
        embeddings: Embeddings :math:`x`, float `[batch hidden]`, of any length: cosines are taken.
        labels: Class :math:`y` of each, any integers `[batch]`. An embedding that is alone in its class does not count,
            but the others are compared with it.
        temperature: :math:`\tau` > 0; the smaller, the more the hardest negatives count.
        reduction: See `ElementLoss`; `none` gives one value per embedding.
        metrics: Whether the result carries `positive_similarity`, the mean cosine with those of the same class, in
            [-1, 1].

    Returns:
        The loss in nats, 0-d, >= 0. A batch in which every class is alone gives 0.0, attached to the graph. A zero
        embedding has cosine 0 with all, and a bounded gradient.

    Raises:
        LossInputError: A tensor is missing, or the shapes differ.
        LossConfigError: A kwarg is unknown or out of range.

    Note:
        Equal to pytorch-metric-learning's `SupConLoss` with temperature 0.1. The samples of a batch are each other's
        negatives, so the loss is no sum over samples: cutting a batch into micro-batches changes it. It holds
        `[batch, batch]` similarities. To compare the samples of all ranks, call it with
        `tensafe.distributed.gather_rows` of outputs and batch.

    Example:
        >>> import torch
        >>> from tensafe.training.losses import resolve_loss
        >>> outputs = {"embeddings": torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])}
        >>> batch = {"labels": torch.tensor([5, 5, 7])}
        >>> resolve_loss("supcon", temperature=1.0)(outputs, batch)["loss"]  # -log(e / (e + 1)), twice
        tensor(0.3133)

    References:
        Khosla et al., Supervised Contrastive Learning, 2020, arXiv:2004.11362, equation 2.
    """

    _traits: ClassVar[Traits] = Traits(sample_independent=False, non_negative=True)

    temperature: float = Field(default=0.1, gt=0, description="What the cosines are divided by before the softmax.")

    def compute(self, embeddings: Float[Tensor, "batch hidden"], labels: Int[Tensor, " batch"]) -> Elements:
        """Return the mean over the class of each embedding; see the class."""
        from tensafe.training.losses.ops.similarity import others_alike, similarities, unit

        scores = similarities(unit(embeddings), self.temperature)
        alike = others_alike(labels)
        count = alike.sum(1)
        mean = torch.where(alike, scores, 0.0).sum(1) / count.clamp(min=1)
        metrics = {"positive_similarity": mean.detach() * self.temperature} if self.metrics else None
        return Elements(torch.logsumexp(scores, 1) - mean, count > 0, metrics)

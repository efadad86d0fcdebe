"""Symmetric InfoNCE over pairs of embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from tensafe._lazy import torch
from tensafe.training.losses.loss import ElementLoss
from tensafe.training.losses.types import Elements

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


class Contrastive(ElementLoss, name="contrastive"):
    r"""Symmetric InfoNCE: each embedding must find its partner among all of the batch, in both directions.

    .. math:: \ell_i = \tfrac12\big[\mathrm{CE}_i(S') + \mathrm{CE}_i(S'^\top)\big], \quad
        S'_{ij} = (\cos(a_i, b_j) - m\,[i = j]) / \tau, \quad \mathrm{CE}_i(S') = -\log \mathrm{softmax}(S'_i)_i

    Args:
        embeddings_a: One side of the pairs :math:`a`, float `[batch hidden]`, of any length: cosines are taken.
        embeddings_b: The other side :math:`b`, same shape; row i is the partner of row i.
        temperature: :math:`\tau` > 0; the smaller, the more the hardest negatives count.
        margin: :math:`m` >= 0, taken off the cosine of each pair (additive margin); 0 is plain InfoNCE.
        reduction: See `ElementLoss`; `none` gives one value per pair.
        metrics: Whether the result carries `positive_similarity`, the mean cosine of the pairs, in [-1, 1].

    Returns:
        The loss in nats, 0-d. A batch of one pair gives 0.0 (there is no negative), an empty one too, attached to
        the graph. A zero embedding has cosine 0 with all, and a bounded gradient.

    Raises:
        LossInputError: A tensor is missing (`embeddings_b` too: there is no fall-back to self-similarity), or the
            shapes differ.
        LossConfigError: A kwarg is unknown or out of range.

    Note:
        The samples of a batch are each other's negatives, so the loss is no sum over samples: cutting a batch into
        micro-batches changes it, and per-sample gradient clipping (DP-SGD) does not bound its sensitivity.

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

    temperature: float = Field(default=0.07, gt=0, description="What the cosines are divided by before the softmax.")
    margin: float = Field(default=0.0, ge=0, description="Additive margin taken off the cosine of each pair.")

    def compute(
        self, embeddings_a: Float[Tensor, "batch hidden"], embeddings_b: Float[Tensor, "batch hidden"]
    ) -> Elements:
        """Return the mean of both directions for each pair; see the class."""
        from tensafe.training.losses.ops.info_nce import info_nce, info_nce_dot
        from tensafe.training.losses.ops.similarity import unit

        a, b = unit(embeddings_a), unit(embeddings_b)
        tau, margin = self.temperature, self.margin

        def dot(coefficients: Tensor) -> Tensor:
            return info_nce_dot(a, b, coefficients, temperature=tau, margin=margin, symmetric=True)

        return Elements(
            lambda: info_nce(a, b, temperature=tau, margin=margin, symmetric=True),
            torch.ones_like(a[:, 0]),
            {"positive_similarity": (a * b).detach().sum(1)} if self.metrics else None,
            dot,
        )

"""Pairs of embeddings as many yes-or-no questions."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from tensafe._lazy import F
from tensafe.training.losses.families.embedding import EmbeddingLoss
from tensafe.training.losses.traits import Traits
from tensafe.training.losses.types import Elements

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


class SigLIP(EmbeddingLoss, name="siglip"):
    r"""Sigmoid loss over all pairs of a batch: is this the partner or not?

    .. math:: \ell_i = -\sum_j \log\sigma\big(z_{ij}\,(t \cos(a_i, b_j) + b)\big), \quad z_{ii} = 1,\; z_{ij} = -1

    Args:
        embeddings_a: One side of the pairs :math:`a`, such as images, float `[batch hidden]`, of any length: cosines
            are taken.
        embeddings_b: The other side, same shape; row i is the partner of row i.
        logit_scale: :math:`t` > 0, one over the temperature. An output of this name, a float of no axis, is used
            instead: the parameter that the model learns, as :math:`t` itself (models often keep its log: take exp).
        logit_bias: :math:`b`, which makes up for there being more wrong pairs than right ones. An output of this name
            is used instead, likewise.
        reduction: See `ElementLoss`; `none` gives one value per row, the sum over its pairs; their mean is the sum over
            all pairs divided by the rows.
        metrics: Whether the result carries `positive_similarity`, the mean cosine of the partners, in [-1, 1].

    Returns:
        The loss in nats, 0-d. An empty batch gives 0.0, attached to the graph. A zero embedding has cosine 0 with all,
        and a bounded gradient.

    Raises:
        LossInputError: A tensor is missing, or the shapes differ.
        LossConfigError: A kwarg is unknown or out of range.

    Note:
        The samples of a batch are each other's negatives, but each pair is judged by itself: there is no softmax. The
        matrix of all pairs is made, and kept for the gradient. To compare the samples of all ranks, call it with
        `tensafe.distributed.gather_rows` of outputs and batch.

    Example:
        >>> import torch
        >>> from tensafe.training.losses import resolve_loss
        >>> pairs = {"embeddings_a": torch.eye(2), "embeddings_b": torch.eye(2)}
        >>> resolve_loss("siglip", logit_scale=1.0, logit_bias=0.0)(pairs, {})["loss"]  # log(1 + 1/e) + log(2)
        tensor(1.0064)

    References:
        Zhai et al., Sigmoid Loss for Language Image Pre-Training, 2023, arXiv:2303.15343, equation 1 and algorithm 1.
    """

    _traits: ClassVar[Traits] = Traits(
        sample_independent=False,
        non_negative=True,
        symmetric_in=(("embeddings_a", "embeddings_b"),),
    )

    logit_scale: float = Field(default=10.0, gt=0, description="What the cosines are multiplied by, if no output does.")
    logit_bias: float = Field(default=-10.0, description="What is added to the scaled cosines, if no output is.")

    def compute(
        self,
        embeddings_a: Float[Tensor, "batch hidden"],
        embeddings_b: Float[Tensor, "batch hidden"],
        logit_scale: Float[Tensor, ""] | None = None,
        logit_bias: Float[Tensor, ""] | None = None,
    ) -> Elements:
        """Return the sum over the pairs of each row; see the class."""
        from tensafe.training.losses.ops.similarity import unit

        a, b = unit(embeddings_a), unit(embeddings_b)
        scale = self.logit_scale if logit_scale is None else logit_scale
        bias = self.logit_bias if logit_bias is None else logit_bias
        logits = a @ b.T * scale + bias
        against = logits.diagonal_scatter(-logits.diagonal())  # what speaks against the right answer
        values = F.softplus(against, threshold=_LINEAR).sum(1)
        return Elements(values, metrics={"positive_similarity": (a * b).detach().sum(1)} if self.metrics else None)


_LINEAR = 40.0
"""Where log(1 + exp(x)) is x, to the last digit of float64 too."""

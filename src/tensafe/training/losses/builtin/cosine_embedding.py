"""Pairs of embeddings that should point the same way, or not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from tensafe._lazy import F
from tensafe.training.losses.contract import Values
from tensafe.training.losses.families.embedding import JudgedPairs
from tensafe.training.losses.types import Elements

if TYPE_CHECKING:
    from jaxtyping import Float, Num
    from torch import Tensor


class CosineEmbedding(JudgedPairs, name="cosine_embedding"):
    r"""Pulls the cosine of alike pairs to 1, and pushes that of unlike ones below a margin.

    .. math:: \ell_i = \begin{cases} 1 - \cos(a_i, b_i) & y_i = 1 \\ \max(0, \cos(a_i, b_i) - m) & y_i = -1 \end{cases}

    Args:
        embeddings_a: One side of the pairs :math:`a`, float `[batch hidden]`, of any length: cosines are taken.
        embeddings_b: The other side :math:`b`, same shape.
        targets: :math:`y`, int or float `[batch]`: 1 for a pair that is alike, -1 for one that is not.
        margin: :math:`m` in [-1, 1]: an unlike pair whose cosine is at most this costs nothing; at 1 none costs
            anything, and at -1 all but opposites do.
        reduction: See `ElementLoss`; `none` gives one value per pair.
        metrics: Whether the result carries `accuracy`, the share of pairs on the right side of the margin (alike above,
            unlike at most), in [0, 1].

    Returns:
        The loss, 0-d, in [0, 2]. An empty batch gives 0.0, attached to the graph. A zero embedding has cosine 0 with
        all, and a bounded gradient.

    Raises:
        LossInputError: A tensor is missing, the shapes differ, or a target is neither 1 nor -1 (said so on CPU in eager
            mode; elsewhere it fails as an index that is out of range does).
        LossConfigError: A kwarg is unknown or out of range.

    Example:
        >>> import torch
        >>> from tensafe.training.losses import resolve_loss
        >>> outputs = {"embeddings_a": torch.eye(2), "embeddings_b": torch.ones(2, 2)}
        >>> loss_fn = resolve_loss("cosine_embedding", reduction="none")
        >>> loss_fn(outputs, {"targets": torch.tensor([1, -1])})["loss"]  # 1 - sqrt(1/2), sqrt(1/2)
        tensor([0.2929, 0.7071])

    References:
        Equal to torch.nn.functional.cosine_embedding_loss, which gives 0 for a target of 0.
    """

    _unlike: ClassVar[int] = -1

    margin: float = Field(default=0.0, ge=-1, le=1, description="Cosine that an unlike pair may have at no cost.")

    def compute(
        self,
        embeddings_a: Float[Tensor, "batch hidden"],
        embeddings_b: Float[Tensor, "batch hidden"],
        targets: Annotated[Num[Tensor, " batch"], Values(among=(1, -1))],
    ) -> Elements:
        """Return the value of each pair; see the class."""
        from tensafe.training.losses.ops.similarity import cosine

        similarity = cosine(embeddings_a, embeddings_b)
        values = self._by_target(targets, 1 - similarity, F.relu(similarity - self.margin))
        accuracy = (similarity.detach() > self.margin) == (targets == self._alike)
        return Elements(values, metrics={"accuracy": accuracy} if self.metrics else None)

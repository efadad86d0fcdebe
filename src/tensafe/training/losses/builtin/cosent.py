"""Order of similarities."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from tensafe._lazy import torch
from tensafe.training.losses.loss import Loss
from tensafe.training.losses.traits import Traits
from tensafe.training.losses.types import Elements

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


class CoSENT(Loss, name="cosent"):
    r"""Ranking of similarities: a pair of texts with a higher target should be more similar than any with a lower one.

    .. math:: \ell = \log \Big(1 + \sum_{i, j:\; y_i > y_j} e^{\lambda (s_j - s_i)}\Big)

    Args:
        scores: Similarities :math:`s` of the pairs of texts, as a rule cosines in [-1, 1], float `[batch]`.
        targets: How similar the texts are :math:`y`, float `[batch]`, in any unit: only their order is used. Pairs with
            the same target are not compared.
        scale: :math:`\lambda` > 0, inverse temperature: the larger, the more the worst violations count.
        metrics: Accepted like everywhere; this loss has none.

    Returns:
        The loss in nats, 0-d, >= 0: one value for the whole batch, so there is no `reduction`. With fewer than two
        different targets nothing is compared: 0.0, attached to the graph.

    Raises:
        LossInputError: A tensor is missing, or the shapes differ.
        LossConfigError: A kwarg is unknown or out of range; or `num_items_in_batch` is given, which has nothing to
            divide.

    Note:
        Equal to CoSENTLoss of sentence-transformers, which makes the cosines itself. The samples of a batch are
        compared with each other, so the loss is no sum over samples: cutting a batch into micro-batches changes it, and
        per-sample gradient clipping (DP-SGD) does not bound its sensitivity. To compare the samples of all ranks, call
        it with `tensafe.distributed.gather_rows` of outputs and batch.

    Example:
        >>> import torch
        >>> from tensafe.training.losses import resolve_loss
        >>> outputs, batch = {"scores": torch.tensor([0.5, 0.5])}, {"targets": torch.tensor([1.0, 0.0])}
        >>> round(resolve_loss("cosent")(outputs, batch)["loss"].item(), 4)  # log(1 + e^0)
        0.6931

    References:
        Su, CoSENT, 2022, https://kexue.fm/archives/8847; Huang et al., CoSENT: Consistent Sentence Embedding via
        Similarity Ranking, 2024, doi:10.1109/TASLP.2024.3402087.
    """

    _family: ClassVar[str] = "embedding"
    _divisible: ClassVar[bool] = False
    _traits: ClassVar[Traits] = Traits(sample_independent=False, non_negative=True, shift_invariant=("scores",))

    scale: float = Field(default=20.0, gt=0, description="What differences of scores are multiplied by.")

    def compute(self, scores: Float[Tensor, " batch"], targets: Float[Tensor, " batch"]) -> Elements:
        """Return the one value of the batch; see the class."""
        # for each j, the sum over the i with a higher target, which come after it: no matrix of all pairs
        levels, order = targets.detach().sort()
        ranked = self.scale * scores[order]
        from_here = torch.logcumsumexp(-ranked.flip(0), 0).flip(0)
        from_here = torch.cat((from_here, from_here.new_full((1,), -torch.inf)))
        first_higher = torch.searchsorted(levels, levels, right=True)
        costs = ranked + from_here[first_higher]
        return Elements(torch.logsumexp(torch.cat((costs.new_zeros(1), costs)), 0))

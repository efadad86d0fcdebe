"""Distillation of score margins."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from tensafe.training.losses.loss import ElementLoss
from tensafe.training.losses.traits import Traits
from tensafe.training.losses.types import Elements

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


class MarginMSE(ElementLoss, name="margin_mse"):
    r"""Squared difference between the margins of student and teacher: a ranker learns how far one text beats another.

    .. math:: \ell_i = \big[(s^+_i - s^-_i) - (t^+_i - t^-_i)\big]^2

    Args:
        positive_scores: The student's scores :math:`s^+` of the better texts, float `[*pairs]`.
        negative_scores: The student's scores :math:`s^-` of the worse ones, same shape.
        teacher_positive_scores: The teacher's scores :math:`t^+` of the better ones, same shape. Constants: the
            teacher's scores get no gradient.
        teacher_negative_scores: The teacher's scores :math:`t^-` of the worse ones, same shape.
        reduction: See `ElementLoss`; `none` gives one value per pair.
        metrics: Whether the result carries `accuracy`, the share of pairs that the student orders as the teacher does
            (a tie is an order of its own), in [0, 1].

    Returns:
        The loss, 0-d, >= 0, in squared units of the scores. An empty batch gives 0.0, attached to the graph.

    Raises:
        LossInputError: A tensor is missing, or the shapes differ; nothing is broadcast.
        LossConfigError: A kwarg is unknown.

    Note:
        Equal to MarginMSELoss of sentence-transformers, whose label is the teacher's margin. For several negatives per
        query, give all four tensors the shape `[batch k]`.

    Example:
        >>> import torch
        >>> from tensafe.training.losses import resolve_loss
        >>> student = {"positive_scores": torch.tensor([3.0]), "negative_scores": torch.tensor([1.0])}
        >>> teacher = {"teacher_positive_scores": torch.tensor([9.0]), "teacher_negative_scores": torch.tensor([4.0])}
        >>> resolve_loss("margin_mse")(student, teacher)["loss"]  # (2 - 5) ** 2
        tensor(9.)

    References:
        Hofstätter et al., Improving Efficient Neural Ranking Models with Cross-Architecture Knowledge Distillation,
        2020, arXiv:2010.02666.
    """

    _family: ClassVar[str] = "ranking"
    _traits: ClassVar[Traits] = Traits(sample_independent=True, non_negative=True)

    def compute(
        self,
        positive_scores: Float[Tensor, "*pairs"],
        negative_scores: Float[Tensor, "*pairs"],
        teacher_positive_scores: Float[Tensor, "*pairs"],
        teacher_negative_scores: Float[Tensor, "*pairs"],
    ) -> Elements:
        """Return the squared difference of the margins of each pair; see the class."""
        margin = positive_scores - negative_scores
        wanted = (teacher_positive_scores - teacher_negative_scores).detach()
        metrics = {"accuracy": margin.sign() == wanted.sign()} if self.metrics else None
        return Elements((margin - wanted).square(), metrics=metrics)

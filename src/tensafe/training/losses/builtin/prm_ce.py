"""Cross-entropy of a process reward model."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from tensafe.training.losses.families.tokens import TokenCrossEntropy
from tensafe.training.losses.traits import Traits

if TYPE_CHECKING:
    from jaxtyping import Float, Int, Num
    from torch import Tensor

    from tensafe.training.losses.types import Elements


class PRMCE(TokenCrossEntropy, name="prm_ce"):
    r"""Cross-entropy of `token_ce` at the steps of a solution: is each right or wrong?

    .. math:: \ell_t = (1 - \epsilon)\,w_{y_t}(-\log p_t[y_t]) + \frac{\epsilon}{V} \sum_v -w_v \log p_t[v]
        + \zeta \Big(\log \sum_v e^{z_{tv}}\Big)^2, \quad p_t = \mathrm{softmax}(z_t), \quad
        z_t = c \tanh(s x_t / c)

    Args:
        logits: Scores :math:`x`, float `[batch seq vocab]`, or `[N vocab]`, where `vocab` is the number of verdicts
            (2: wrong, right), or the vocabulary of a model that writes its verdict as a token. 16-bit floats are
            computed in float32.
        labels: Verdicts :math:`y`, integers `[batch seq]`, or `[N]`, in [0, vocab) at the token that ends a step, and
            `ignore_index` elsewhere. Position t is scored against label t.
        shift_labels: As `labels`, never shifted; used instead of them.
        token_weights: What the loss of each label is multiplied by, floats or integers >= 0 shaped like the labels;
            aligned with the labels in use, and shifted with them. A label of weight 0 does not count.
        sample_weights: What all labels of a sequence are multiplied by, `[batch]`; on top of `token_weights`.
        segment_ids: Which sequence of a packed row each position belongs to, integers shaped like the labels: equal
            numbers are one sequence. Nothing is predicted across two, and reductions by sequence take each for one.
            `shift_labels` are used as they are.
        ignore_index: Label of a position that does not count.
        label_smoothing: :math:`\epsilon` in [0, 1]: 0 is plain cross-entropy, 1 is uniform targets.
        smoothing_formula: `pytorch` spreads :math:`\epsilon` over all classes; `megatron` over those other than the
            label.
        class_weights: :math:`w`, a number >= 0 for each class; None is 1 for all. `mean` and `sequence_mean` divide by
            the weights of the labels, as torch does.
        z_loss: :math:`\zeta` >= 0; 0 leaves the term out.
        softcap: :math:`c` > 0, the bound that scores approach; None is no bound, :math:`z = s x`.
        logit_scale: :math:`s` > 0; 1 leaves the logits as they are.
        shift: Whether position t is scored against label t + 1 instead, for a model that writes its verdict as the next
            token.
        reduction: See `TokenLoss`; `none` gives one value per label, 0 where it does not count.
        max_length: See `TokenLoss`.
        metrics: Whether the result carries `num_tokens`, the number of labels that count (0-d int64), and `accuracy`,
            the share of them whose class has the largest score, in [0, 1], weighted as the loss is.

    Returns:
        The loss in nats, 0-d float32 (float64 for float64 logits). A batch in which nothing counts gives 0.0, attached
        to the graph; the gradient of a position that does not count is exactly zero, even where its logits are NaN.

    Raises:
        LossInputError: A tensor is missing or does not fit, or `class_weights` is not as long as there are classes; on
            CPU, a label is outside [0, vocab) and is not `ignore_index`.
        LossConfigError: A kwarg is unknown or out of range.

    Note:
        `accuracy` is an argmax over the classes: with a whole vocabulary of them, turn the metrics off.

    Example:
        >>> import torch
        >>> from tensafe.training.losses import resolve_loss
        >>> steps = {"labels": torch.tensor([[-100, 1, -100, 0]])}  # the second of two steps is wrong
        >>> round(resolve_loss("prm_ce")({"logits": torch.zeros(1, 4, 2)}, steps)["loss"].item(), 4)  # ln 2
        0.6931

    References:
        Lightman et al., Let's Verify Step by Step, 2023, arXiv:2305.20050. Equal to the loss of TRL's
        PRMTrainer, which is torch's cross-entropy over the tokens that end a step.
    """

    _family: ClassVar[str] = "reward model"
    _traits: ClassVar[Traits] = Traits(sample_independent=True, non_negative=True, shift_invariant=("logits",))

    shift: bool = Field(
        default=False, description="Score position t against label t + 1; false: labels are aligned with logits."
    )

    def compute(
        self,
        logits: Float[Tensor, "*rows vocab"],
        labels: Int[Tensor, "*rows"] | None = None,
        shift_labels: Int[Tensor, "*rows"] | None = None,
        token_weights: Num[Tensor, "*rows"] | None = None,
        sample_weights: Num[Tensor, " batch"] | None = None,
        segment_ids: Int[Tensor, "*rows"] | None = None,
    ) -> Elements:
        """Return the cross-entropy of each label; see the class."""
        targets = self._targets(logits, labels, shift_labels, token_weights, sample_weights, segment_ids)
        elements = self._of_logits(logits, targets)
        if elements.metrics is None:
            return elements
        right = logits.detach().argmax(-1) == targets.labels
        return elements._replace(metrics={**elements.metrics, "accuracy": right})

    def explain(
        self,
        logits: Float[Tensor, "*rows vocab"],
        labels: Int[Tensor, "*rows"] | None = None,
        shift_labels: Int[Tensor, "*rows"] | None = None,
        token_weights: Num[Tensor, "*rows"] | None = None,
        sample_weights: Num[Tensor, " batch"] | None = None,
        segment_ids: Int[Tensor, "*rows"] | None = None,
    ) -> str | None:
        """Say which labels are out of range."""
        return self._wrong_labels(logits, labels, shift_labels, segment_ids, logits.shape[-1])

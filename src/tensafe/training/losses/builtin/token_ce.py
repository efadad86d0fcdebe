"""Token-level cross-entropy."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from tensafe._lazy import F
from tensafe.training.losses.families.tokens import TokenCrossEntropy
from tensafe.training.losses.traits import Traits
from tensafe.training.losses.types import Leaner

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jaxtyping import Float, Int, Num
    from torch import Tensor

    from tensafe.training.losses.types import Elements


def _project(outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {"logits": F.linear(outputs["hidden_states"], outputs["lm_head_weight"])}


class TokenCE(TokenCrossEntropy, name="token_ce"):
    r"""Cross-entropy of each token's logits against the label that follows it: the loss of language modelling and SFT.

    .. math:: \ell_t = (1 - \epsilon)\,w_{y_t}(-\log p_t[y_t]) + \frac{\epsilon}{V} \sum_v -w_v \log p_t[v]
        + \zeta \Big(\log \sum_v e^{z_{tv}}\Big)^2, \quad p_t = \mathrm{softmax}(z_t), \quad
        z_t = c \tanh(s x_t / c)

    Args:
        logits: Scores :math:`x`, float `[batch seq vocab]`, or `[N vocab]`. 16-bit floats are computed in float32.
        labels: Target ids :math:`y`, integers `[batch seq]`, or `[N]`, in [0, vocab) or `ignore_index`. With
            `[batch seq vocab]` logits, position t is scored against label t + 1, as in Hugging Face models; the last
            position then has nothing to predict and does not count. `[N vocab]` logits are never shifted.
        shift_labels: Labels that are aligned with the logits already; used instead of `labels` and never shifted.
        token_weights: What the loss of each label is multiplied by, floats or integers >= 0 shaped like the labels;
            aligned with the labels in use, and shifted with them. A label of weight 0 does not count.
        sample_weights: What all labels of a sequence are multiplied by, `[batch]`; on top of `token_weights`.
        segment_ids: Which sequence of a packed row each position belongs to, integers shaped like the labels: equal
            numbers are one sequence. Nothing is predicted across two, and reductions by sequence take each for one.
            `shift_labels` are used as they are.
        ignore_index: Label of a position that does not count.
        label_smoothing: :math:`\epsilon` in [0, 1]: 0 is plain cross-entropy, 1 is uniform targets.
        smoothing_formula: `pytorch` spreads :math:`\epsilon` over all classes, as in the formula; `megatron` over the
            V - 1 others than the label, which is `pytorch` with :math:`\epsilon V / (V - 1)`; at 1 the label has none.
        class_weights: :math:`w`, a number >= 0 for each of the V classes; None is 1 for all. `mean` and `sequence_mean`
            divide by the weights of the labels, as torch does.
        z_loss: :math:`\zeta` >= 0, e.g. 1e-4; 0 leaves the term out.
        softcap: :math:`c` > 0, the bound that scores approach; None is no bound, :math:`z = s x`.
        logit_scale: :math:`s` > 0; 1 leaves the logits as they are.
        overwrite_logits: Whether the gradient may be written over the logits in the forward pass. It then takes no
            memory and a fifth of the time, and the logits hold no logits any more. Where torch.compile or functorch
            runs, and below a million logits, nothing is overwritten.
        shift: Whether `labels` are shifted; false says that they are aligned with the logits already.
        reduction: See `TokenLoss`; `none` gives one value per label, 0 where it does not count.
        max_length: See `TokenLoss`.
        metrics: Whether the result carries `num_tokens`, the number of labels that count (0-d int64).

    Returns:
        The loss in nats, 0-d float32 (float64 for float64 logits). A batch in which nothing counts gives 0.0, attached
        to the graph; the gradient of a position that does not count is exactly zero, even where its logits are NaN.

    Raises:
        LossInputError: A tensor is missing or does not fit, or `class_weights` is not as long as the vocabulary; on
            CPU, a label is outside [0, vocab) and is not `ignore_index`. On CUDA such a label trips torch's device-side
            assertion. With `overwrite_logits`: something needs the logits again (they are a leaf of the graph, what
            made them keeps them, another loss has overwritten them already, or backward is called twice).
        LossConfigError: A kwarg is unknown or out of range.

    Note:
        From a million logits on, the memory above the logits is that of their gradient and a little more; the logits
        are kept until `backward`. `linear_ce` needs no logits at all. A logit of -inf (a vocabulary mask) is fine
        unless `label_smoothing` > 0: the smoothed loss is then infinite. uint8 labels are widened; they cannot hold
        -100, so give another `ignore_index`.

        Logits may be a DTensor, spread over rows, over the vocabulary (along one dimension of the mesh) or both. They
        are not gathered, and their gradient is a DTensor of the same placements. Labels and weights are plain and whole
        on every rank, or DTensors too; the loss is then of the kind of the labels. `overwrite_logits` does nothing
        there, and there are no second derivatives. torch's `loss_parallel` is not needed, and does no harm.

    Example:
        >>> import torch
        >>> from tensafe.training.losses import resolve_loss
        >>> loss_fn = resolve_loss("token_ce", shift=False)
        >>> result = loss_fn({"logits": torch.zeros(1, 2, 4)}, {"labels": torch.tensor([[3, -100]])})
        >>> round(result["loss"].item(), 4), result["metrics"]["num_tokens"].item()  # ln 4, one label counts
        (1.3863, 1)

    References:
        Label smoothing: Szegedy et al., Rethinking the Inception Architecture for Computer Vision, 2015,
        arXiv:1512.00567, section 7. z-loss: Chowdhery et al., PaLM, 2022, arXiv:2204.02311, section 5. Softcap: Gemma
        Team, Gemma 2, 2024, arXiv:2408.00118, section 2. Equal to torch.nn.functional.cross_entropy on shifted logits
        and labels, `class_weights` being its `weight`, but where the weights of all labels are 0 (or there are no
        labels): torch's mean is then NaN or infinite. `megatron` is Megatron-LM's label smoothing.
    """

    _leaner: ClassVar[Leaner | None] = Leaner("linear_ce", _project)
    _traits: ClassVar[Traits] = Traits(sample_independent=True, non_negative=True, shift_invariant=("logits",))

    overwrite_logits: bool = Field(
        default=False, description="Let the gradient overwrite the logits: no memory, but nobody can use them again."
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
        return self._of_logits(logits, targets, overwrite_logits=self.overwrite_logits)

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

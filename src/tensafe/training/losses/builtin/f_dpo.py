"""Direct preference optimisation under other divergences."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from tensafe._lazy import F, torch
from tensafe.training.losses.errors import Problem, config_error
from tensafe.training.losses.families.preference import GainLoss

if TYPE_CHECKING:
    from typing import Self

    from torch import Tensor

    from tensafe.training.losses.families.pairs import Pairs

_LARGEST_EXPONENT = 80.0
"""The exponential of it is a float32, and so is its product with any usual beta."""


class FDPO(GainLoss, name="f_dpo"):
    r"""Preference loss of a model that is held to its reference by another divergence than the reverse KL.

    .. math:: \ell_i = -\log\sigma\big(\beta\,(g(R^c_i) - g(R^r_i))\big), \quad R = \log\frac{\pi(y)}{\bar\pi(y)}, \quad
        g(R) = \begin{cases} R & \text{reverse KL} \\ -e^{-R} & \text{forward KL} \\ \log\sigma(R) & \text{JS} \\
        (e^{(\alpha - 1) R} - 1) / (\alpha - 1) & \text{alpha} \end{cases}

    Args:
        chosen_logps: Log-probability :math:`\log\pi` of each chosen completion, summed over its tokens, float
            `[batch]`, in nats, <= 0. Its sign is not checked: that would cost a synchronisation.
        rejected_logps: The same of each rejected completion.
        ref_chosen_logps: The same of the chosen completions under the reference model :math:`\bar\pi`.
        ref_rejected_logps: The same of the rejected completions.
        chosen_logits: In place of `chosen_logps`: scores of the model, float `[batch chosen_seq vocab]`.
        chosen_labels: Then the ids of the tokens, integers `[batch chosen_seq]`, and `ignore_index` at the prompt and
            at padding; position t is scored against label t + 1. A pair with an empty completion does not count.
        rejected_logits: In place of `rejected_logps`: float `[batch rejected_seq vocab]`.
        rejected_labels: Integers `[batch rejected_seq]`, likewise.
        beta: :math:`\beta` > 0, scale of the reward: the smaller, the further the model may leave the reference.
        divergence: Which divergence: `reverse_kl` (that is `dpo`), `forward_kl`, `js` or `alpha`.
        alpha: :math:`\alpha` in [0, 1] of divergence `alpha`, refused with any other: 1 is the reverse KL, 0 the
            forward KL. It is 1 minus the alpha of the paper.
        ignore_index: Label of a position that does not count.
        shift: Whether labels are shifted; false says that they are aligned with the logits already.
        reference_free: Whether to do without the reference model; its log-probabilities are 0 then, and may not be
            given.
        reduction: See `ElementLoss`; `none` gives one value per pair.
        metrics: Whether the result carries `chosen_reward` and `rejected_reward`, beta times the gain of each over the
            reference, `reward_margin`, their difference, and `reward_accuracy`, the share of pairs with a margin above
            0.

    Returns:
        The loss, 0-d float32 (float64 for float64 inputs), >= 0, in nats; log 2 at the reference. A batch in which
        nothing counts gives 0.0, attached to the graph.

    Raises:
        LossInputError: A tensor is missing, is given twice (as log-probabilities and as logits), is a reference though
            `reference_free`, or does not fit; on CPU, a label is outside [0, vocab).
        LossConfigError: A kwarg is unknown or out of range.

    Note:
        Equal to TRL's `f_divergence_type` (`reverse_kl`, `forward_kl`, `js_divergence`, `alpha_divergence`) with
        `loss_type="sigmoid"`; constants of :math:`g`, which the difference drops, are left out. Exponents are capped at
        80, as in TRL for `alpha`: from there on :math:`g` is flat, and a completion that is that unlikely gets no
        gradient.

    Example:
        >>> import torch
        >>> from tensafe.training.losses import resolve_loss
        >>> pair = {"chosen_logps": torch.tensor([-10.0]), "rejected_logps": torch.tensor([-12.0])}
        >>> ref = {"ref_chosen_logps": torch.tensor([-11.0]), "ref_rejected_logps": torch.tensor([-11.0])}
        >>> resolve_loss("f_dpo", beta=0.5, divergence="forward_kl")(pair, ref)["loss"]  # -log sigmoid((e - 1/e) / 2)
        tensor(0.2691)

    References:
        Wang et al., Beyond Reverse KL: Generalizing Direct Preference Optimization with Diverse Divergence Constraints,
        2023, arXiv:2309.16240.
    """

    divergence: Literal["reverse_kl", "forward_kl", "js", "alpha"] = Field(
        default="reverse_kl", description="Divergence that holds the model to its reference."
    )
    alpha: float = Field(
        default=0.5, ge=0, le=1, description="Exponent of divergence alpha: 1 is the reverse KL, 0 the forward KL."
    )

    @model_validator(mode="after")
    def _alpha_is_of_its_divergence(self) -> Self:
        if self.divergence != "alpha" and self.alpha != type(self).model_fields["alpha"].default:
            message = f"has no effect with divergence {self.divergence}; drop it, or set divergence: alpha"
            raise config_error([Problem("no-effect", ("alpha",), message, on_key=True)], loss=None)
        return self

    def pair_loss(self, pairs: Pairs) -> Tensor:
        """Return the logistic loss of the margin between scores; see the class."""
        return -F.logsigmoid(self.margin(pairs))

    def scores(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """Return what the divergence makes of the gains over the reference model."""
        return self._score(pairs.chosen.ratio), self._score(pairs.rejected.ratio)

    def _score(self, ratio: Tensor) -> Tensor:
        if self.divergence == "js":
            return F.logsigmoid(ratio)
        exponent = {"reverse_kl": 1.0, "forward_kl": 0.0, "alpha": self.alpha}[self.divergence] - 1
        if exponent == 0:
            return ratio
        return torch.expm1((exponent * ratio).clamp(max=_LARGEST_EXPONENT)) / exponent

"""Kahneman-Tversky optimisation."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from tensafe._lazy import torch
from tensafe.training.losses.errors import missing_tensor
from tensafe.training.losses.loss import ElementLoss
from tensafe.training.losses.traits import Traits
from tensafe.training.losses.types import Elements

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor


class KTO(ElementLoss, name="kto"):
    r"""Raises desirable completions and lowers undesirable ones, against the reference: no pairs are needed.

    .. math:: \ell_i = \begin{cases} w_d\,\big(1 - \sigma(\beta\,(R_i - z))\big) & \text{desirable} \\
        w_u\,\big(1 - \sigma(\beta\,(z - R_i))\big) & \text{undesirable} \end{cases}, \quad
        R = \log\frac{\pi(y)}{\bar\pi(y)}, \quad z = \max\Big(0, \frac1n \sum_j R'_j\Big)

    Args:
        logps: Log-probability :math:`\log\pi` of each completion, summed over its tokens, float `[batch]`, in nats,
            <= 0. Its sign is not checked: that would cost a synchronisation.
        ref_logps: The same under the reference model :math:`\bar\pi`.
        desirable: Whether each completion is a good one, bool `[batch]`.
        kl_logps: Log-probabilities of mismatched completions (those of other prompts) under the model, float `[batch]`;
            with `ref_kl_logps` they make :math:`R'`, of which the mean estimates the divergence :math:`z`. It gets no
            gradient. Without both :math:`z = 0`.
        ref_kl_logps: The same under the reference model.
        beta: :math:`\beta` > 0, scale of the reward: the smaller, the further the model may leave the reference.
        desirable_weight: :math:`w_d` >= 0; 0 learns from undesirable completions alone.
        undesirable_weight: :math:`w_u` >= 0; 0 learns from desirable completions alone.
        reduction: See `ElementLoss`; `none` gives one value per completion. `mean` divides by the completions, of
            whatever weight.
        metrics: Whether the result carries `chosen_reward` and `rejected_reward`, beta times the mean gain of the
            desirable and of the undesirable completions (0 where there is none of them), `reward_margin`, their
            difference (0 where either is missing), and `kl`, which is :math:`z`.

    Returns:
        The loss, 0-d float32 (float64 for float64 inputs), in [0, max(w_d, w_u)]; half the weight at the reference. An
        empty batch gives 0.0, attached to the graph.

    Raises:
        LossInputError: A tensor is missing (of `kl_logps` and `ref_kl_logps` one alone), or does not fit.
        LossConfigError: A kwarg is unknown or out of range.

    Note:
        Equal to TRL's `KTOTrainer` with `loss_type="kto"`; without :math:`z`, to its `loss_type="apo_zero_unpaired"`
        and to Liger's. TRL averages :math:`z` over ranks; here it is that of this batch, so the completions of a batch
        are coupled by it (without a gradient), and micro-batches change it. Where one class is rarer than the
        other, the paper raises its weight until both sum to about the same. To compare the samples of all ranks, call
        it with `tensafe.distributed.gather_rows` of outputs and batch.

    Example:
        >>> import torch
        >>> from tensafe.training.losses import resolve_loss
        >>> outputs = {"logps": torch.tensor([-10.0, -12.0])}
        >>> batch = {"ref_logps": torch.tensor([-11.0, -11.0]), "desirable": torch.tensor([True, False])}
        >>> resolve_loss("kto", beta=0.5)(outputs, batch)["loss"]  # 1 - sigmoid(0.5), twice
        tensor(0.3775)

    References:
        Ethayarajh et al., KTO: Model Alignment as Prospect Theoretic Optimization, 2024, arXiv:2402.01306.
    """

    _family: ClassVar[str] = "preference"
    _traits: ClassVar[Traits] = Traits(
        sample_independent=False,
        non_negative=True,
        sampled_with=("kl_logps", "ref_kl_logps"),
    )

    beta: float = Field(default=0.1, gt=0, description="Scale of the implicit reward.")
    desirable_weight: float = Field(default=1.0, ge=0, description="Weight of the desirable completions.")
    undesirable_weight: float = Field(default=1.0, ge=0, description="Weight of the undesirable completions.")

    def compute(
        self,
        logps: Float[Tensor, " batch"],
        ref_logps: Float[Tensor, " batch"],
        desirable: Bool[Tensor, " batch"],
        kl_logps: Float[Tensor, " batch"] | None = None,
        ref_kl_logps: Float[Tensor, " batch"] | None = None,
    ) -> Elements:
        """Return the loss of each completion; see the class."""
        ratio, baseline = logps - ref_logps.detach(), _baseline(logps, kl_logps, ref_kl_logps)
        lead = torch.where(desirable, ratio - baseline, baseline - ratio)
        weight = torch.where(desirable, self.desirable_weight, self.undesirable_weight).to(lead.dtype)
        values = weight * torch.sigmoid(-self.beta * lead)
        return Elements(values, metrics=self._metrics(ratio.detach(), desirable, baseline) if self.metrics else None)

    def _metrics(self, ratio: Tensor, desirable: Tensor, baseline: Tensor) -> dict[str, Tensor]:
        chosen, rejected = (self.beta * _mean_over(ratio, chosen) for chosen in (desirable, ~desirable))
        margin = torch.where(desirable.any() & (~desirable).any(), chosen - rejected, 0.0)
        return {"chosen_reward": chosen, "rejected_reward": rejected, "reward_margin": margin, "kl": baseline}


def _baseline(logps: Tensor, kl_logps: Tensor | None, ref_kl_logps: Tensor | None) -> Tensor:
    """Return the estimated divergence from the reference, 0-d and >= 0."""
    if kl_logps is None and ref_kl_logps is None:
        return logps.new_zeros(())
    if kl_logps is None or ref_kl_logps is None:
        raise missing_tensor("kl_logps" if kl_logps is None else "ref_kl_logps")
    gains = (kl_logps - ref_kl_logps).detach()
    return (gains.sum() / max(gains.numel(), 1)).clamp(min=0)


def _mean_over(numbers: Tensor, counts: Tensor) -> Tensor:
    """Return the mean of the numbers that count, 0 if none does."""
    return torch.where(counts, numbers, 0.0).sum() / counts.sum().clamp(min=1)

"""Losses whose gradient is not that of their value, does not arrive, or arrives where it should not."""

from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from tensafe.training.losses import Elements
from tensafe.training.losses.builtin.dft import DFT
from tensafe.training.losses.builtin.dpo import DPO
from tensafe.training.losses.builtin.margin_ranking import MarginRanking
from tensafe.training.losses.families.pairs import Completions
from tensafe.training.losses.testing import LossInfo, Traits
from zoo.healthy import CarefulCE, token_losses
from zoo.mutant import Mutant


class _Uphill(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return values.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return -grads[0]


class _OnceOnly(torch.autograd.Function):
    """The identity, with a backward that autograd cannot follow."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        ctx.save_for_backward(values)
        return values.square()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (values,) = ctx.saved_tensors
        slope: Tensor = 2 * values * grads[0]
        return slope


class UphillCE(CarefulCE):
    """A backward of its own, with the wrong sign."""

    def compute(self, logits: Float[Tensor, "batch seq vocab"], labels: Int[Tensor, "batch seq"]) -> Elements:
        """Return the right values."""
        values, counts = token_losses(logits, labels, self.ignore_index, self.label_smoothing)
        return Elements(_Uphill.apply(values), counts)  # type: ignore[no-untyped-call]


class OnceDifferentiable(CarefulCE):
    """A backward of its own, which cannot be differentiated."""

    def compute(self, logits: Float[Tensor, "batch seq vocab"], labels: Int[Tensor, "batch seq"]) -> Elements:
        """Square the values in a function of its own."""
        values, counts = token_losses(logits, labels, self.ignore_index, self.label_smoothing)
        return Elements(_OnceOnly.apply(values), counts)  # type: ignore[no-untyped-call]


class DetachedWeight(CarefulCE):
    """Focal loss whose focus is detached, though the value depends on it."""

    def compute(self, logits: Float[Tensor, "batch seq vocab"], labels: Int[Tensor, "batch seq"]) -> Elements:
        """Weigh the values by what was not understood."""
        values, counts = token_losses(logits, labels, self.ignore_index, self.label_smoothing)
        return Elements((1 - torch.exp(-values.detach())).square() * values, counts)


class HonestDFT(DFT):
    """A factor that was detached once and is not any more."""

    def compute(
        self,
        logits: Float[Tensor, "*rows vocab"],
        labels: Int[Tensor, "*rows"] | None = None,
        shift_labels: Int[Tensor, "*rows"] | None = None,
        token_weights: Float[Tensor, "*rows"] | None = None,
        sample_weights: Float[Tensor, " batch"] | None = None,
        segment_ids: Int[Tensor, "*rows"] | None = None,
    ) -> Elements:
        """Return the whole product, to be differentiated."""
        from tensafe.training.losses.ops.logps import logps

        used, weights, _ = self._targets(logits, labels, shift_labels, token_weights, sample_weights, segment_ids)
        log_p = logps(logits, used, ignore_index=self.ignore_index)
        return Elements(-log_p.exp() * log_p, weights, segment_ids=segment_ids)


class LeakyDPO(DPO):
    """A gradient reaches the reference model: it is trained as well."""

    def _referenced(self, completions: Completions, ref_logps: Tensor | None) -> Completions:
        referenced = super()._referenced(completions, ref_logps)
        return referenced if ref_logps is None else referenced._replace(ref_logps=ref_logps.to(completions.logps.dtype))


class HeldRanking(MarginRanking):
    """The rejected side gets no gradient."""

    def compute(self, chosen_scores: Float[Tensor, " batch"], rejected_scores: Float[Tensor, " batch"]) -> Elements:
        """Detach one side."""
        return super().compute(chosen_scores, rejected_scores.detach())


class SmoothTwice(CarefulCE):
    """It claims that it cannot be differentiated twice, and it can."""

    _traits: ClassVar[Traits] = Traits(twice_differentiable=False)


MUTANTS = [
    Mutant("uphill", UphillCE, frozenset({"check_gradcheck", "check_direction"})),
    Mutant("once differentiable", OnceDifferentiable, frozenset({"check_gradgradcheck"})),
    Mutant("claims to be differentiable once", SmoothTwice, frozenset({"check_gradgradcheck"})),
    Mutant("a detached weight", DetachedWeight, frozenset({"check_gradcheck", "check_direction"})),
    Mutant("claims to be a surrogate", HonestDFT, frozenset({"check_gradcheck"})),
    Mutant("a gradient into the reference", LeakyDPO, frozenset({"check_grad_reaches_inputs"})),
    Mutant(
        "claims a gradient into the reference",
        DPO,
        frozenset({"check_grad_reaches_inputs"}),
        LossInfo(traits=DPO._traits._replace(passes_gradient_to=("ref_chosen_logps",))),
    ),
    Mutant("one side held", HeldRanking, frozenset({"check_grad_reaches_inputs", "check_gradcheck"})),
]

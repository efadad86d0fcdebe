"""The scores of a vocabulary, a few rows at a time: what cross-entropy from logits and from hidden states share."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["Formula", "RowScores", "below_largest", "exponentiate"]

_LOG2_E = 1.4426950408889634


class Formula(NamedTuple):
    r"""What is scored, and how.

    .. math:: \ell = (1 - \epsilon)\, w_y\, (-\log p_y) + \frac{\epsilon}{V} \sum_v w_v\, (-\log p_v) +
        \zeta\, \mathrm{lse}(z)^2, \quad p = \mathrm{softmax}(z), \quad z = c \tanh(s x / c)

    Attributes:
        ignore_index: Label of a row that does not count.
        label_smoothing: :math:`\epsilon` >= 0, torch's definition; at :math:`V / (V - 1)` the label has no share.
        z_loss: :math:`\zeta` >= 0, weight of the squared log-partition function (PaLM, arXiv:2204.02311).
        softcap: :math:`c` > 0, bound of the scores (Gemma 2, arXiv:2408.00118); None leaves :math:`z = s x`.
        scale: :math:`s` > 0, what the logits :math:`x` are multiplied by.
    """

    ignore_index: int = -100
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    softcap: float | None = None
    scale: float = 1.0

    def counted(self, labels: Int[Tensor, " n"], weights: Float[Tensor, "*rows"]) -> Int[Tensor, " n"]:
        """Return labels in which a row of weight 0 does not count."""
        return torch.where(weights.reshape(-1) != 0, labels, self.ignore_index)

    @property
    def is_identity(self) -> bool:
        """Whether the scores are the logits as they are."""
        return self.softcap is None and self.scale == 1.0

    def scores(self, logits: Float[Tensor, "n vocab"]) -> Float[Tensor, "n vocab"]:
        """Return :math:`z` of logits."""
        scores = logits if self.scale == 1.0 else logits * self.scale
        return scores if self.softcap is None else self.softcap * torch.tanh(scores / self.softcap)


def exponentiate(differences: Float[Tensor, "n vocab"], out: Float[Tensor, "n vocab"]) -> Float[Tensor, "n vocab"]:
    """Write exp of numbers <= 0 into `out`, which may be the same; as exact as exp, which some CPUs do slowly."""
    return torch.mul(differences, _LOG2_E, out=out).exp2_()


def below_largest(
    scores: Float[Tensor, "n vocab"], out: Float[Tensor, "n vocab"]
) -> tuple[Float[Tensor, "n vocab"], Float[Tensor, "n 1"]]:
    """Write scores of any dtype minus the largest of their row into `out`; return it, and the largest."""
    if scores.dtype is not out.dtype:
        scores = out.copy_(scores)
    largest = scores.amax(1, keepdim=True)
    return torch.sub(scores, largest, out=out), largest


class RowScores:
    """What is kept of each row: enough for its value, and to make its gradient from the logits once more.

    Buffers are in the dtype that is computed in, float32 or float64; `at` says which rows they hold.

    Args:
        formula: What is scored, and how.
        labels: Target ids of all rows.
        class_weight: Weight of each class; None is 1 for all.
        vocab: Number of classes.
        dtype: What is computed in.
    """

    def __init__(
        self,
        formula: Formula,
        labels: Int[Tensor, " n"],
        class_weight: Float[Tensor, " vocab"] | None,
        vocab: int,
        dtype: torch.dtype,
    ) -> None:
        self.formula = formula
        self.dtype = dtype
        self.ignored: Bool[Tensor, " n"] = labels == formula.ignore_index
        self._vocab = vocab
        self._targets = torch.where(self.ignored, 0, labels).unsqueeze(1)
        self._class_weight = class_weight
        self._weight_of_all: Tensor | float = float(vocab) if class_weight is None else class_weight.sum()
        kept = torch.empty((4, labels.shape[0], 1), dtype=dtype, device=labels.device)
        self._largest, self._total, self._picked, self._shifted = kept.unbind()

    def measure(self, logits: Float[Tensor, "k vocab"], out: Float[Tensor, "k vocab"], at: slice) -> Tensor | None:
        """Write exp(z - max z) into `out`, which may be `logits`, and keep what the value of each row needs.

        Returns:
            tanh of the capped scores where there is a softcap, for `differentiate`.

        Raises:
            IndexError: On CPU, a label is outside [0, vocab).
        """
        scores, squashed = self._scores(logits, out)
        largest = torch.amax(scores, 1, keepdim=True, out=self._largest[at])
        try:
            torch.gather(scores, 1, self._targets[at], out=self._picked[at])
        except RuntimeError as error:  # F.cross_entropy calls it an IndexError
            raise IndexError(f"Target is out of bounds: {error}") from None
        torch.sub(scores, largest, out=out)
        if self.formula.label_smoothing:
            # summed after the subtraction, the scores lose no digits, however large they are
            shifted = out if self._class_weight is None else out * self._class_weight
            torch.sum(shifted, 1, keepdim=True, out=self._shifted[at])
        torch.sum(exponentiate(out, out), 1, keepdim=True, out=self._total[at])
        return squashed

    def again(self, logits: Float[Tensor, "k vocab"], out: Float[Tensor, "k vocab"], at: slice) -> Tensor | None:
        """Write exp(z - max z) once more, of rows that have been measured."""
        scores, squashed = self._scores(logits, out)
        exponentiate(torch.sub(scores, self._largest[at], out=out), out)
        return squashed

    def differentiate(
        self, out: Float[Tensor, "k vocab"], squashed: Tensor | None, at: slice, upstream: Float[Tensor, "k 1"]
    ) -> None:
        r"""Turn exp(z - max z) into the gradient with respect to the logits, in place.

        .. math:: \frac{\partial \ell}{\partial z_k} = p_k \Big[(1 - \epsilon) w_y + \frac{\epsilon}{V} \sum_v w_v
            + 2 \zeta\, \mathrm{lse}(z)\Big] - (1 - \epsilon) w_y [k = y] - \frac{\epsilon}{V} w_k
        """
        of_exponential, of_label, of_class = self._factors(at, upstream)
        out.mul_(of_exponential)
        out.scatter_add_(1, self._targets[at], -of_label)
        self._finish(out, squashed, of_class, self._class_weight)

    def values(self) -> Float[Tensor, " n"]:
        """Return the value of each row, 0 where it does not count."""
        formula = self.formula
        log_total = self._total.log()
        values = (self._largest - self._picked) + log_total
        if self._class_weight is not None:
            values = values * self._class_weight[self._targets]
        if formula.label_smoothing:
            uniform = (self._weight_of_all * log_total - self._shifted) / self._vocab
            values = (1 - formula.label_smoothing) * values + formula.label_smoothing * uniform
        if formula.z_loss:
            values = values + formula.z_loss * (self._largest + log_total).square()
        return torch.where(self.ignored, 0.0, values.squeeze(1))

    def _factors(self, at: slice, upstream: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return what the gradient has of each exponential, of the label, and of every class (times its weight)."""
        formula = self.formula
        upstream = upstream * formula.scale
        of_label = upstream * (1 - formula.label_smoothing)
        if self._class_weight is not None:
            of_label = of_label * self._class_weight[self._targets[at]]
        of_class = upstream * (formula.label_smoothing / self._vocab)
        of_softmax = of_label + of_class * self._weight_of_all
        if formula.z_loss:
            log_partition = self._largest[at] + self._total[at].log()
            of_softmax = of_softmax + 2 * formula.z_loss * upstream * log_partition
        return of_softmax / self._total[at], of_label, of_class

    def _finish(self, out: Tensor, squashed: Tensor | None, of_class: Tensor, weight: Tensor | None) -> None:
        if self.formula.label_smoothing:
            _ = out.sub_(of_class) if weight is None else out.addcmul_(of_class, weight, value=-1)
        if squashed is not None:
            out.mul_(squashed.square_().neg_().add_(1))

    def _scores(self, logits: Tensor, out: Tensor) -> tuple[Tensor, Tensor | None]:
        formula = self.formula
        if formula.softcap is not None:
            squashed = torch.mul(logits.to(out.dtype), formula.scale / formula.softcap).tanh_()
            return torch.mul(squashed, formula.softcap, out=out), squashed
        if formula.scale != 1.0:
            return torch.mul(out.copy_(logits), formula.scale, out=out), None
        return (logits if logits.dtype is out.dtype else out.copy_(logits)), None

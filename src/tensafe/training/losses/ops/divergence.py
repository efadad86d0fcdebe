r"""Divergence between two distributions over the vocabulary, a few rows at a time."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .lean import compute_dtype
from .row_scores import below_largest, exponentiate
from .rowwise import RowKernel, Rows, chunked, chunked_dot

__all__ = ["Divergence", "divergence", "divergence_dot"]


class Divergence(NamedTuple):
    r"""Which divergence of a student :math:`S` from a teacher :math:`P`, and of what softness.

    .. math:: P = \mathrm{softmax}(t / T), \quad S = \mathrm{softmax}(s / T)

    Attributes:
        kind: `forward_kl`, :math:`\sum P (\log P - \log S)`; `reverse_kl`, :math:`\sum S (\log S - \log P)`; `jsd`, the
            generalised Jensen-Shannon divergence :math:`\beta\,\mathrm{KL}(P \| M) + (1 - \beta)\,\mathrm{KL}(S \| M)`
            with :math:`M = \beta P + (1 - \beta) S` (GKD, arXiv:2306.13649); `skew_kl`,
            :math:`\mathrm{KL}(P \| \beta P + (1 - \beta) S)`, and `skew_rkl`,
            :math:`\mathrm{KL}(S \| (1 - \beta) P + \beta S)` (DistiLLM, arXiv:2402.03898); `symmetric_kl`,
            :math:`\beta\,\mathrm{KL}(P \| S) + (1 - \beta)\,\mathrm{KL}(S \| P)`; `tvd`, the total variation distance
            :math:`\tfrac12 \sum |P - S|`.
        beta: :math:`\beta` in (0, 1), of the kinds that have it. Towards either end `jsd` tends to 0, not to a KL.
        temperature: :math:`T` > 0. Nothing is multiplied by :math:`T^2`.
    """

    kind: Literal["forward_kl", "reverse_kl", "jsd", "skew_kl", "skew_rkl", "symmetric_kl", "tvd"] = "forward_kl"
    beta: float = 0.5
    temperature: float = 1.0


def divergence(
    student_logits: Float[Tensor, "*rows vocab"],
    teacher_logits: Float[Tensor, "*rows vocab"],
    formula: Divergence = Divergence(),  # noqa: B008  # a value, like a number
    *,
    counts: Bool[Tensor, "*rows"] | None = None,
) -> Float[Tensor, "*rows"]:
    """Return the divergence of each row; see `Divergence`.

    Args:
        student_logits: Unnormalised scores, any float dtype; 16-bit ones are computed in float32.
        teacher_logits: Likewise. They get a gradient too, where they want one.
        formula: Which divergence.
        counts: Which rows count; None is all.

    Returns:
        Values in nats (`tvd` in [0, 1]), >= 0, float32 (float64 for float64 logits), 0 where a row does not count, with
        a gradient of exactly zero whatever the row holds. A class of probability 0 adds nothing; one that only the
        first distribution of a KL has makes it infinite, a skewed one excepted.
    """
    flat = [logits.reshape(-1, logits.shape[-1]) for logits in (student_logits, teacher_logits)]
    (values,) = chunked(_kernel(formula, None if counts is None else counts.reshape(-1)), *flat)
    return values.reshape(student_logits.shape[:-1])


def divergence_dot(
    student_logits: Float[Tensor, "*rows vocab"],
    teacher_logits: Float[Tensor, "*rows vocab"],
    coefficients: Float[Tensor, "*rows"],
    formula: Divergence = Divergence(),  # noqa: B008  # a value, like a number
) -> Float[Tensor, ""]:
    """Return the sum of coefficients times `divergence`, with the gradients made in the forward pass.

    Args:
        student_logits: As in `divergence`.
        teacher_logits: Likewise.
        coefficients: What each row's value is multiplied by; 0 drops the row. Constants: they get no gradient.
        formula: As in `divergence`.

    Returns:
        The sum, 0-d, in the dtype of the values.
    """
    flat = [logits.reshape(-1, logits.shape[-1]) for logits in (student_logits, teacher_logits)]
    factors = coefficients.detach().reshape(-1).to(compute_dtype(student_logits.dtype))
    return chunked_dot(_kernel(formula, factors != 0), factors, *flat)


def _kernel(formula: Divergence, counts: Tensor | None) -> RowKernel:
    return _KERNELS[formula.kind](formula, counts)


class _Softmax(NamedTuple):
    """A distribution: `exponentials / total`, whose log is `below - total.log()`."""

    below: Tensor
    exponentials: Tensor
    total: Tensor

    @classmethod
    def of(cls, rows: Rows, which: int, temperature: float) -> _Softmax:
        """Make that of one input: the exponentials in `out`, where its gradient will be, the rest in scratch."""
        below, _ = below_largest(rows.inputs[which], rows.scratch[which])
        if temperature != 1.0:
            below.mul_(1 / temperature)
        exponentials = exponentiate(below, rows.out[which])
        return cls(below, exponentials, exponentials.sum(1, keepdim=True))


class _PairKernel(RowKernel):
    """What the kernels of two distributions share; the inputs are student and teacher."""

    def __init__(self, formula: Divergence, counts: Tensor | None) -> None:
        self.counts = counts
        self._formula = formula

    def _log_softmax(self, logits: Tensor) -> Tensor:
        if self.counts is not None:
            logits = logits.masked_fill(~self.counts.unsqueeze(1), 0.0)
        return torch.log_softmax(logits.to(compute_dtype(logits.dtype)) / self._formula.temperature, 1)

    def _kept(self, values: Tensor) -> tuple[Tensor]:
        return (values if self.counts is None else torch.where(self.counts, values, 0.0),)


class _KullbackLeibler(_PairKernel):
    """KL(P | Q): P is the teacher in `forward_kl`, the student in `reverse_kl`."""

    def __init__(self, formula: Divergence, counts: Tensor | None) -> None:
        super().__init__(formula, counts)
        self._order = (1, 0) if formula.kind == "forward_kl" else (0, 1)

    def run_rows(self, rows: Rows) -> tuple[Tensor, ...]:
        """Return the divergence; its gradient is Q - P for the logits of Q, P (log P - log Q - KL) for those of P."""
        p, q = (_Softmax.of(rows, which, self._formula.temperature) for which in self._order)
        gap = p.below.sub_(q.below).masked_fill_(p.exponentials == 0, 0.0)
        shift = q.total.log() - p.total.log()
        values = torch.mul(p.exponentials, gap, out=q.below).sum(1, keepdim=True).div_(p.total).add_(shift)
        if rows.upstream is not None:
            upstream = rows.upstream[0] / self._formula.temperature
            of_p, of_q = (rows.wanted[which] for which in self._order)
            if of_q:
                q.exponentials.mul_(upstream / q.total).addcmul_(p.exponentials, upstream / p.total, value=-1)
            if of_p:
                p.exponentials.mul_(gap.add_(shift - values)).mul_(upstream / p.total)
        return (values.squeeze(1),)

    def plain(self, *inputs: Any) -> tuple[Tensor, ...]:
        """Return KL(P | Q), by log-softmax."""
        log_p, log_q = (self._log_softmax(inputs[which]) for which in self._order)
        gap = torch.where(log_p == -torch.inf, 0.0, log_p - log_q)
        return self._kept((log_p.exp() * gap).sum(1))


class _JensenShannon(_PairKernel):
    """Generalised Jensen-Shannon divergence."""

    def run_rows(self, rows: Rows) -> tuple[Tensor, ...]:
        """Return the divergence; its gradient is beta P (log P/M - KL(P | M)) for the teacher, likewise for S."""
        beta, temperature = self._formula.beta, self._formula.temperature
        both = [_Softmax.of(rows, which, temperature) for which in (0, 1)]
        student, teacher = (each.exponentials.div_(each.total) for each in both)
        tiny = torch.finfo(student.dtype).tiny  # half of the least number above 0 is 0, of which the log is not finite
        mixture = torch.lerp(student, teacher, beta).clamp_(min=tiny).log_()
        values = torch.zeros_like(both[0].total)
        for each, share, wanted in zip(both, (1 - beta, beta), rows.wanted, strict=True):
            gap = each.below.sub_(each.total.log()).sub_(mixture).masked_fill_(each.exponentials == 0, 0.0)
            part = (each.exponentials * gap).sum(1, keepdim=True)
            values += share * part
            if rows.upstream is not None and wanted:
                each.exponentials.mul_(gap.sub_(part)).mul_(rows.upstream[0] * (share / temperature))
        return (values.squeeze(1),)

    def plain(self, *inputs: Any) -> tuple[Tensor, ...]:
        """Return the divergence, by log-softmax."""
        beta = self._formula.beta
        log_s, log_p = (self._log_softmax(logits) for logits in inputs)
        mixture = torch.lerp(log_s.exp(), log_p.exp(), beta)
        log_m = torch.where(mixture == 0, 1.0, mixture).log()
        values = torch.zeros_like(log_s[:, 0])
        for log_each, share in ((log_s, 1 - beta), (log_p, beta)):
            gap = torch.where(log_each == -torch.inf, 0.0, log_each - log_m)
            values = values + share * (log_each.exp() * gap).sum(1)
        return self._kept(values)


class _Skewed(_PairKernel):
    """KL(P | beta P + (1 - beta) Q): P is the teacher in `skew_kl`, the student in `skew_rkl`."""

    def __init__(self, formula: Divergence, counts: Tensor | None) -> None:
        super().__init__(formula, counts)
        self._order = (1, 0) if formula.kind == "skew_kl" else (0, 1)

    def run_rows(self, rows: Rows) -> tuple[Tensor, ...]:
        """Return the divergence; with R = P/M, that of Q is (1 - beta) Q (E_Q R - R), of P: P (h - E_P h).

        There h is log P - log M - beta R.
        """
        beta, temperature = self._formula.beta, self._formula.temperature
        p, q = (_Softmax.of(rows, which, temperature) for which in self._order)
        of_p, of_q = (each.exponentials.div_(each.total) for each in (p, q))
        tiny = torch.finfo(of_p.dtype).tiny  # as in _JensenShannon
        mixture = torch.lerp(of_q, of_p, beta).clamp_(min=tiny)
        ratio = torch.div(of_p, mixture, out=q.below)
        gap = p.below.sub_(p.total.log()).sub_(mixture.log_()).masked_fill_(of_p == 0, 0.0)
        values = torch.mul(of_p, gap, out=mixture).sum(1, keepdim=True)
        if rows.upstream is not None:
            upstream = rows.upstream[0] / temperature
            wants_p, wants_q = (rows.wanted[which] for which in self._order)
            if wants_p:
                slope = gap.sub_(ratio, alpha=beta)
                mean = torch.mul(of_p, slope, out=mixture).sum(1, keepdim=True)
                of_p.mul_(slope.sub_(mean)).mul_(upstream)
            if wants_q:
                mean = torch.mul(of_q, ratio, out=mixture).sum(1, keepdim=True)
                of_q.mul_(ratio.sub_(mean)).mul_(upstream * (beta - 1))
        return (values.squeeze(1),)

    def plain(self, *inputs: Any) -> tuple[Tensor, ...]:
        """Return KL(P | M), by log-softmax."""
        log_p, log_q = (self._log_softmax(inputs[which]) for which in self._order)
        mixture = torch.lerp(log_q.exp(), log_p.exp(), self._formula.beta)
        log_m = torch.where(mixture == 0, 1.0, mixture).log()
        gap = torch.where(log_p == -torch.inf, 0.0, log_p - log_m)
        return self._kept((log_p.exp() * gap).sum(1))


class _Symmetric(_PairKernel):
    """The mean of both KL, with weights beta and 1 - beta."""

    def run_rows(self, rows: Rows) -> tuple[Tensor, ...]:
        """Return the mean; its gradient is that of `_KullbackLeibler` in either order."""
        beta, temperature = self._formula.beta, self._formula.temperature
        both = [_Softmax.of(rows, which, temperature) for which in (0, 1)]
        student, teacher = (each.exponentials.div_(each.total) for each in both)
        gap = both[1].below.sub_(both[0].below)  # log P - log S, but for a shift of the whole row
        of_student = torch.where(student == 0, 0.0, gap)
        of_teacher = gap.masked_fill_(teacher == 0, 0.0)
        room = both[0].below
        mean_student = torch.mul(student, of_student, out=room).sum(1, keepdim=True)
        mean_teacher = torch.mul(teacher, of_teacher, out=room).sum(1, keepdim=True)
        shift = both[0].total.log() - both[1].total.log()
        values = beta * (mean_teacher + shift) - (1 - beta) * (mean_student + shift)
        if rows.upstream is not None:
            upstream = rows.upstream[0] / temperature
            apart = torch.sub(student, teacher, out=room)
            if rows.wanted[0]:
                student.mul_(of_student.sub_(mean_student)).mul_(beta - 1).add_(apart, alpha=beta).mul_(upstream)
            if rows.wanted[1]:
                teacher.mul_(of_teacher.sub_(mean_teacher)).mul_(beta).add_(apart, alpha=beta - 1).mul_(upstream)
        return (values.squeeze(1),)

    def plain(self, *inputs: Any) -> tuple[Tensor, ...]:
        """Return the mean, by log-softmax."""
        log_s, log_p = (self._log_softmax(logits) for logits in inputs)
        forward = log_p.exp() * torch.where(log_p == -torch.inf, 0.0, log_p - log_s)
        reverse = log_s.exp() * torch.where(log_s == -torch.inf, 0.0, log_s - log_p)
        beta = self._formula.beta
        return self._kept(beta * forward.sum(1) + (1 - beta) * reverse.sum(1))


class _TotalVariation(_PairKernel):
    """Half of the absolute differences between two distributions."""

    def run_rows(self, rows: Rows) -> tuple[Tensor, ...]:
        """Return the distance; with s the sign of S - P, its gradient is S (s - E_S s) / 2, and P (E_P s - s) / 2."""
        both = [_Softmax.of(rows, which, self._formula.temperature) for which in (0, 1)]
        student, teacher = (each.exponentials.div_(each.total) for each in both)
        apart = torch.sub(student, teacher, out=both[0].below)
        values = torch.abs(apart, out=both[1].below).sum(1) / 2
        if rows.upstream is not None:
            sign = apart.sign_()
            for each, half, wanted in zip((student, teacher), (0.5, -0.5), rows.wanted, strict=True):
                if wanted:
                    mean = torch.mul(each, sign, out=both[1].below).sum(1, keepdim=True)
                    scale = rows.upstream[0] * (half / self._formula.temperature)
                    each.mul_(torch.sub(sign, mean, out=both[1].below)).mul_(scale)
        return (values,)

    def plain(self, *inputs: Any) -> tuple[Tensor, ...]:
        """Return the distance, by log-softmax."""
        log_s, log_p = (self._log_softmax(logits) for logits in inputs)
        return self._kept((log_s.exp() - log_p.exp()).abs().sum(1) / 2)


_KERNELS: dict[str, type[_PairKernel]] = {
    "forward_kl": _KullbackLeibler,
    "reverse_kl": _KullbackLeibler,
    "jsd": _JensenShannon,
    "skew_kl": _Skewed,
    "skew_rkl": _Skewed,
    "symmetric_kl": _Symmetric,
    "tvd": _TotalVariation,
}

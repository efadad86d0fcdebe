"""Work on the log-probs of logits `[rows vocab]`: those of the labels, and the divergence of two distributions."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from benchmarks.peers import attribute

from .base import Setting, Step, Work, backward_of, equal_shares, random
from .logits import CHUNKS, Logits

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

__all__ = ["divergence", "logps", "logps_without_gradient"]

_SEQUENCES = 8  # trl goes through a batch one sequence at a time


def logps(setting: Setting) -> Work:
    """Return the log-probs of the labels, with an upstream gradient of its own for each."""
    given = Logits(setting)
    logits, labels = given.logits, given.labels
    upstream = random(given.rows, setting=setting._replace(dtype="float32"), seed=2)

    def with_backward(values_of: Callable[[], Tensor]) -> Step:
        def step() -> Tensor:
            values = values_of()
            torch.autograd.backward(values, upstream.to(values.dtype))
            return values.detach()

        return step

    return given.work(
        {**_logps_contenders(logits, labels, with_backward), "copy": given.copy},
        {"trl": lambda: with_backward(_trl_logps(logits, labels))},
        reference=given.exact_logps,
    )


def logps_without_gradient(setting: Setting) -> Work:
    """Return the log-probs of the labels."""
    given = Logits(setting, requires_grad=False)
    logits, labels = given.logits, given.labels

    def forward_only(values_of: Callable[[], Tensor]) -> Step:
        return torch.no_grad()(values_of)

    return given.work(
        {**_logps_contenders(logits, labels, forward_only), "read": lambda: logits.sum},
        {"trl": lambda: forward_only(_trl_logps(logits, labels))},
        reference=given.exact_logps,
    )


def divergence(setting: Setting) -> Work:
    """Return the mean KL of a student's distribution from a teacher's, with the gradient for the student only."""
    given = Logits(setting)
    student, rows = given.logits, given.rows
    teacher = random(rows, setting.sizes["vocab"], setting=setting, seed=3, scale=2.0)

    def tensafe() -> Step:
        from tensafe.training.losses.ops.divergence import Divergence, divergence_dot

        formula, shares = Divergence("forward_kl"), equal_shares(rows, setting.device)
        return backward_of(lambda: divergence_dot(student, teacher, shares, formula))

    def per_token() -> Step:
        from tensafe.training.losses.ops.divergence import Divergence, divergence

        formula = Divergence("forward_kl")
        return backward_of(lambda: divergence(student, teacher, formula).mean())

    def base() -> Tensor:
        return F.kl_div(student.log_softmax(-1), teacher.log_softmax(-1), log_target=True, reduction="batchmean")

    def torchtune() -> Step:
        loss_fn = attribute("torchtune.modules.loss:ForwardKLWithChunkedOutputLoss")(CHUNKS)

        return backward_of(lambda: loss_fn(_chunks(student), _chunks(teacher), given.labels.unsqueeze(0)))

    def add() -> Step:
        """Read both once, write once."""
        target = torch.empty_like(student)
        return lambda: torch.add(student.detach(), teacher, out=target)

    return given.work(
        {"tensafe": tensafe, "tensafe, per token": per_token, "F.kl_div": lambda: backward_of(base), "copy": add},
        {"torchtune": torchtune},
        reference=lambda: _exact_divergence(student.detach(), teacher),
        incomparable=frozenset({"torchtune"}),  # it leaves the teacher's entropy out
    )


def _logps_contenders(
    logits: Tensor, labels: Tensor, as_step: Callable[[Callable[[], Tensor]], Step]
) -> dict[str, Callable[[], Step]]:
    def tensafe() -> Step:
        from tensafe.training.losses.ops.logps import logps

        return as_step(lambda: logps(logits, labels))

    def base() -> Tensor:
        return logits.log_softmax(-1).gather(-1, labels.unsqueeze(-1)).squeeze(-1)

    return {"tensafe": tensafe, "log_softmax + gather": lambda: as_step(base)}


def _trl_logps(logits: Tensor, labels: Tensor) -> Callable[[], Tensor]:
    select = attribute("trl.trainer.utils:selective_log_softmax")
    sequences = math.gcd(_SEQUENCES, len(labels))
    vocab = logits.shape[-1]
    return lambda: select(logits.view(sequences, -1, vocab), labels.view(sequences, -1)).flatten()


def _exact_divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean KL in float64, a few rows at a time."""
    total = torch.zeros((), dtype=torch.float64, device=student.device)
    for ours, theirs in zip(torch.split(student, 64), torch.split(teacher, 64), strict=True):
        log_q, log_p = ours.double().log_softmax(-1), theirs.double().log_softmax(-1)
        total += F.kl_div(log_q, log_p, log_target=True, reduction="sum")
    return total / student.shape[0]


def _chunks(logits: Tensor) -> list[Tensor]:
    return list(logits.unsqueeze(0).chunk(CHUNKS, 1))

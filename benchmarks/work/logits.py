"""Work on logits `[rows vocab]`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.peers import attribute, need_cuda

from .base import Setting, Step, Work, backward_of, clear_gradients, equal_shares, random

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "CHUNKS",
    "Logits",
    "compiled_cross_entropy",
    "cross_entropy",
    "overwriting_cross_entropy",
    "small_cross_entropy",
]

CHUNKS = 8
"""torchtune's own default."""


class Logits:
    """Logits, labels, and what the works on them share."""

    def __init__(self, setting: Setting, *, requires_grad: bool = True) -> None:
        rows, vocab = setting.sizes["rows"], setting.sizes["vocab"]
        self.rows, self.device = rows, setting.device
        self.logits = random(rows, vocab, setting=setting, seed=0, scale=2.0).requires_grad_(requires_grad)
        generator = torch.Generator().manual_seed(1)
        self.labels = torch.randint(0, vocab, (rows,), generator=generator).to(setting.device)
        self.bytes = self.logits.numel() * self.logits.element_size()

    def work(
        self,
        contenders: dict[str, Callable[[], Step]],
        peers: dict[str, Callable[[], Step]] | None = None,
        *,
        reference: Callable[[], Tensor] | None = None,
        **rest: Any,
    ) -> Work:
        """Return a work on the logits, whose memory is counted in their bytes."""
        return Work(
            contenders,
            reset=clear_gradients(self.logits),
            unit=self.bytes,
            unit_name="logits",
            peers=peers or {},
            reference=reference,
            **rest,
        )

    def exact_logps(self) -> Tensor:
        """Return the log-probs of the labels in float64, a few rows at a time."""
        parts = []
        for logits, labels in zip(torch.split(self.logits.detach(), 64), torch.split(self.labels, 64), strict=True):
            log_probs = logits.double().log_softmax(-1)
            parts.append(log_probs.gather(-1, labels.unsqueeze(-1)).squeeze(-1))
        return torch.cat(parts)

    def exact_cross_entropy(self) -> Tensor:
        """Return the mean cross-entropy in float64."""
        return -self.exact_logps().mean()

    def copy(self) -> Step:
        """Read the logits once and write a tensor of their size once: no gradient is made with less."""
        source, target = self.logits.detach(), torch.empty_like(self.logits)
        return partial(target.copy_, source)


def cross_entropy(setting: Setting) -> Work:
    """Return the mean cross-entropy of logits, forward and backward."""
    given = Logits(setting)
    logits, labels, rows = given.logits, given.labels, given.rows

    def tensafe() -> Step:
        from tensafe.training.losses.ops.cross_entropy import Formula, cross_entropy_dot

        shares = equal_shares(rows, setting.device)
        return backward_of(lambda: cross_entropy_dot(logits, labels, shares, Formula()))

    def per_token() -> Step:
        from tensafe.training.losses.ops.cross_entropy import Formula, cross_entropy

        return backward_of(lambda: cross_entropy(logits, labels, Formula()).mean())

    def torchtune() -> Step:
        loss_fn = attribute("torchtune.modules.loss:CEWithChunkedOutputLoss")(CHUNKS)
        return backward_of(lambda: loss_fn(list(logits.unsqueeze(0).chunk(CHUNKS, 1)), labels.unsqueeze(0)))

    def transformers() -> Step:
        loss_fn = attribute("transformers.loss.loss_utils:ForCausalLMLoss")
        vocab = logits.shape[1]
        return backward_of(lambda: loss_fn(logits.unsqueeze(0), None, vocab, shift_labels=labels.unsqueeze(0)))

    def liger() -> Step:
        need_cuda(setting.device)
        loss_fn = attribute("liger_kernel.transformers.functional:liger_cross_entropy")
        return backward_of(lambda: loss_fn(logits, labels))

    return given.work(
        {
            "tensafe": tensafe,
            "tensafe, per token": per_token,
            "F.cross_entropy": lambda: backward_of(lambda: F.cross_entropy(logits, labels)),
            "copy": given.copy,
        },
        {
            "torch.compile": lambda: _compiled(lambda: F.cross_entropy(logits, labels)),
            "torchtune": torchtune,
            "transformers": transformers,
            "liger-kernel": liger,
        },
        reference=given.exact_cross_entropy,
        compiled=frozenset({"torch.compile"}),
    )


def small_cross_entropy(setting: Setting) -> Work:
    """Return per-token cross-entropy and its mean, and the whole adapter for comparison."""
    given = Logits(setting)
    logits, labels = given.logits, given.labels

    def tensafe() -> Step:
        from tensafe.training.losses.ops.cross_entropy import Formula, cross_entropy

        return backward_of(lambda: cross_entropy(logits, labels, Formula()).mean())

    return given.work(
        {
            "tensafe": tensafe,
            "F.cross_entropy, per token": lambda: backward_of(
                lambda: F.cross_entropy(logits, labels, reduction="none").mean()
            ),
            "resolve_loss('token_ce')": lambda: backward_of(_token_ce(logits, labels)),
            "F.cross_entropy": lambda: backward_of(lambda: F.cross_entropy(logits, labels)),
        },
        reference=given.exact_cross_entropy,
    )


def overwriting_cross_entropy(setting: Setting) -> Work:
    """Return the mean cross-entropy of logits that nobody needs afterwards.

    Logits that may be written over are no leaf: they are cloned anew before each step, outside of what is timed.
    """
    given = Logits(setting)
    labels = given.labels
    fresh: list[Tensor] = []

    def reset() -> None:
        fresh.clear()
        fresh.append(given.logits.clone())

    def gradient_of(loss_fn: Callable[[Tensor], Tensor]) -> Step:
        def step() -> Tensor:
            loss = loss_fn(fresh[0])
            torch.autograd.grad(loss, fresh[0])
            return loss.detach()

        return step

    def tensafe() -> Step:
        from tensafe.training.losses.ops.cross_entropy import Formula, cross_entropy_dot

        shares = equal_shares(given.rows, setting.device)
        return gradient_of(lambda logits: cross_entropy_dot(logits, labels, shares, Formula(), overwrite_logits=True))

    def per_token() -> Step:
        from tensafe.training.losses.ops.cross_entropy import Formula, cross_entropy

        return gradient_of(lambda logits: cross_entropy(logits, labels, Formula(), overwrite_logits=True).mean())

    work = given.work(
        {
            "tensafe": tensafe,
            "tensafe, per token": per_token,
            "F.cross_entropy": lambda: gradient_of(lambda logits: F.cross_entropy(logits, labels)),
            "copy": given.copy,
        },
        reference=given.exact_cross_entropy,
    )
    work.reset = reset
    return work


def compiled_cross_entropy(setting: Setting) -> Work:
    """Return the mean cross-entropy of logits, compiled."""
    given = Logits(setting)
    logits, labels = given.logits, given.labels
    work = given.work(
        {
            "tensafe": lambda: _compiled(_token_ce(logits, labels)),
            "compiled F.cross_entropy": lambda: _compiled(lambda: F.cross_entropy(logits, labels)),
        },
        reference=given.exact_cross_entropy,
        compiled=frozenset({"tensafe", "compiled F.cross_entropy"}),
    )
    work.unit, work.unit_name = 0, "the base's"
    return work


def _token_ce(logits: Tensor, labels: Tensor) -> Callable[[], Tensor]:
    from tensafe.training.losses import resolve_loss

    loss_fn, outputs, batch = resolve_loss("token_ce"), {"logits": logits}, {"labels": labels}
    return lambda: loss_fn(outputs, batch)["loss"]


def _compiled(forward: Callable[[], Tensor]) -> Step:
    torch.compiler.reset()
    return backward_of(torch.compile(forward, fullgraph=True))

"""Work on hidden states `[rows hidden]` and the weight of a language model's head `[vocab hidden]`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.peers import LeftOut, attribute, need_cuda

from .base import Setting, Step, Work, backward_of, clear_gradients, equal_shares, random

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["linear_cross_entropy"]

_CHUNKS = 8  # torchtune's own default
_VOCAB_CHUNK = 4096  # Liger's own default
_MIB = 2**20


def linear_cross_entropy(setting: Setting) -> Work:
    """Return the mean cross-entropy of hidden states, with gradients for them and for the weight."""
    rows, vocab, width = (setting.sizes[name] for name in ("rows", "vocab", "hidden"))
    hidden = random(rows, width, setting=setting, seed=0).requires_grad_()
    weight = random(vocab, width, setting=setting, seed=1, scale=2 * width**-0.5).requires_grad_()
    labels = torch.randint(0, vocab, (rows,), generator=torch.Generator().manual_seed(2)).to(setting.device)

    def tensafe() -> Step:
        from tensafe.training.losses.ops.cross_entropy import Formula
        from tensafe.training.losses.ops.linear_cross_entropy import linear_cross_entropy_dot

        shares, size = equal_shares(rows, setting.device), setting.chunk_size
        return backward_of(lambda: linear_cross_entropy_dot(hidden, weight, labels, shares, Formula(), chunk_size=size))

    def per_token() -> Step:
        from tensafe.training.losses.ops.cross_entropy import Formula
        from tensafe.training.losses.ops.linear_cross_entropy import linear_cross_entropy

        size = setting.chunk_size
        return backward_of(lambda: linear_cross_entropy(hidden, weight, labels, Formula(), chunk_size=size).mean())

    def exact() -> Tensor:
        wide = weight.detach().double()
        parts = [
            F.cross_entropy(states.double() @ wide.T, targets, reduction="sum")
            for states, targets in zip(torch.split(hidden.detach(), 64), torch.split(labels, 64), strict=True)
        ]
        return torch.stack(parts).sum() / rows

    return Work(
        {
            "tensafe": tensafe,
            "tensafe, per token": per_token,
            "F.linear + F.cross_entropy": lambda: backward_of(
                lambda: F.cross_entropy(F.linear(hidden, weight), labels)
            ),
            "three GEMMs": lambda: _three_products(hidden.detach(), weight.detach()),
        },
        reset=clear_gradients(hidden, weight),
        unit=_MIB,
        unit_name="MiB without the two gradients",
        uncounted=(hidden.numel() + weight.numel()) * hidden.element_size(),
        reference=exact,
        peers=_peers(hidden, weight, labels),
        warm_up=setting.sizes["vocab"] < 100_000,
    )


def _three_products(hidden: Tensor, weight: Tensor) -> Step:
    """Return the products that every formula needs: the logits, and a gradient for each input."""
    logits = torch.empty(hidden.shape[0], weight.shape[0], device=hidden.device, dtype=hidden.dtype)
    for_hidden, for_weight = torch.empty_like(hidden), torch.empty_like(weight)

    def step() -> Tensor:
        torch.mm(hidden, weight.T, out=logits)
        torch.mm(logits, weight, out=for_hidden)
        return torch.mm(logits.T, hidden, out=for_weight)

    return step


def _peers(hidden: Tensor, weight: Tensor, labels: Tensor) -> dict[str, Callable[[], Step]]:
    device = str(hidden.device)

    def from_torch() -> Step:
        fused = getattr(F, "linear_cross_entropy", None)
        if fused is None:
            raise LeftOut(f"torch {torch.__version__} has no F.linear_cross_entropy")
        options = attribute("torch.nn:LinearCrossEntropyOptions")()
        return backward_of(lambda: fused(hidden, weight, labels, options=options))

    def liger() -> Step:
        need_cuda(device)
        fused = attribute("liger_kernel.transformers.functional:liger_fused_linear_cross_entropy")
        return backward_of(lambda: fused(hidden, weight, labels))

    def liger_in_torch() -> Step:
        function = attribute("liger_kernel.chunked_loss.fused_linear_ppo:_ChunkedSelectiveLogProbFunction")
        return backward_of(lambda: -function.apply(hidden, weight, labels, None, 1.0, _VOCAB_CHUNK).mean())

    def trl() -> Step:
        function = attribute("trl.kernels.chunked_logprob:ChunkedLogProbFunction")
        size = attribute("trl.trainer.utils:_CHUNKED_LOGPROB_CHUNK_SIZE")
        return backward_of(lambda: -function.apply(hidden, weight, None, labels, 1.0, size, None, 1.0, ())[0].mean())

    def torchtune() -> Step:
        loss_fn = attribute("torchtune.modules.loss:CEWithChunkedOutputLoss")(_CHUNKS)
        return backward_of(
            lambda: loss_fn(
                [F.linear(states, weight) for states in hidden.unsqueeze(0).chunk(_CHUNKS, 1)], labels.unsqueeze(0)
            )
        )

    def cut_cross_entropy() -> Step:
        need_cuda(device)
        fused = attribute("cut_cross_entropy:linear_cross_entropy")
        return backward_of(lambda: fused(hidden, weight, labels))

    return {
        "torch F.linear_cross_entropy": from_torch,
        "liger-kernel": liger,
        "liger-kernel, its torch ops": liger_in_torch,
        "trl": trl,
        "torchtune": torchtune,
        "cut-cross-entropy": cut_cross_entropy,
    }

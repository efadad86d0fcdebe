"""Work on pairs of embeddings `[batch hidden]`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .base import Setting, Step, Work, backward_of, clear_gradients, equal_shares, random

__all__ = ["info_nce"]

_TEMPERATURE = 0.07
_ROWS_OF_A_CHUNK = 512


def info_nce(setting: Setting) -> Work:
    """Return the mean InfoNCE of a batch in one direction, forward and backward for both sides."""
    batch, hidden = setting.sizes["batch"], setting.sizes["hidden"]
    a = F.normalize(random(batch, hidden, setting=setting, seed=0), dim=1).requires_grad_()
    b = F.normalize(random(batch, hidden, setting=setting, seed=1), dim=1).requires_grad_()
    partners = torch.arange(batch, device=setting.device)

    def tensafe() -> Step:
        from tensafe.training.losses.ops.info_nce import info_nce_dot

        shares = equal_shares(batch, setting.device)
        return backward_of(lambda: info_nce_dot(a, b, shares, temperature=_TEMPERATURE))

    def per_pair() -> Step:
        from tensafe.training.losses.ops.info_nce import info_nce

        return backward_of(lambda: info_nce(a, b, temperature=_TEMPERATURE).mean())

    def base() -> Tensor:
        return F.cross_entropy((a / _TEMPERATURE) @ b.T, partners)

    def checkpointed() -> Tensor:
        scaled = a / _TEMPERATURE
        parts = [
            checkpoint(_summed, rows, b, targets, use_reentrant=False)
            for rows, targets in zip(
                torch.split(scaled, _ROWS_OF_A_CHUNK), torch.split(partners, _ROWS_OF_A_CHUNK), strict=True
            )
        ]
        return torch.stack(parts).sum() / batch

    def exact() -> Tensor:
        return F.cross_entropy((a.detach().double() / _TEMPERATURE) @ b.detach().double().T, partners)

    return Work(
        {
            "tensafe": tensafe,
            "tensafe, per pair": per_pair,
            "a @ b.T + F.cross_entropy": lambda: backward_of(base),
            "three GEMMs": lambda: _three_products(a.detach(), b.detach()),
        },
        reset=clear_gradients(a, b),
        unit=batch * batch * a.element_size(),
        unit_name="[B, B]",
        reference=exact,
        peers={"checkpoint for each chunk": lambda: backward_of(checkpointed)},
    )


def _summed(rows: Tensor, b: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(rows @ b.T, targets, reduction="sum")


def _three_products(a: Tensor, b: Tensor) -> Step:
    """Return the products that every formula needs: the similarities, and a gradient for each side."""
    similarity = torch.empty(a.shape[0], b.shape[0], device=a.device, dtype=a.dtype)
    for_a, for_b = torch.empty_like(a), torch.empty_like(b)

    def step() -> Tensor:
        torch.mm(a, b.T, out=similarity)
        torch.mm(similarity, b, out=for_a)
        return torch.mm(similarity.T, a, out=for_b)

    return step

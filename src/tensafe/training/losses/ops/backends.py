"""Cross-entropy from hidden states by other libraries' kernels, behind the same two functions as our own."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tensafe.training.losses.errors import LossInputError, make_error

from .linear_cross_entropy import linear_cross_entropy, linear_cross_entropy_dot
from .row_scores import Formula

__all__ = ["backend"]

Function = Callable[..., Tensor]


def backend(name: str, hidden: Float[Tensor, "*rows hidden"]) -> tuple[Function, Function]:
    """Return what has the signatures of `linear_cross_entropy` and `linear_cross_entropy_dot`.

    Args:
        name: `auto`, `torch`, `liger` or `cce`.
        hidden: What it will be called with.

    Raises:
        LossInputError: The library is not installed, or the tensors are not on CUDA.
    """
    if name in {"auto", "torch"}:
        return linear_cross_entropy, linear_cross_entropy_dot
    return (_no_values, _liger_dot) if name == "liger" else (_cce, _cce_dot)


def _cce(
    hidden: Float[Tensor, "*rows hidden"],
    weight: Float[Tensor, "vocab hidden"],
    labels: Int[Tensor, "*rows"],
    formula: Formula,
    *,
    bias: Float[Tensor, " vocab"] | None = None,
    chunk_size: int | None = None,
) -> Float[Tensor, "*rows"]:
    function = _function("cce", "cut_cross_entropy", "linear_cross_entropy", hidden)
    if bias is not None:
        raise _error("cce", "cut-cross-entropy takes no bias.", "bias")
    # its default leaves small gradients out
    scaled = hidden if formula.scale == 1.0 else hidden * formula.scale
    kwargs = {"softcap": formula.softcap, "reduction": "none", "filter_eps": None}
    values: Tensor = function(scaled, weight, labels, ignore_index=formula.ignore_index, **kwargs)
    return torch.where(labels == formula.ignore_index, 0.0, values.to(torch.float32))


def _cce_dot(
    hidden: Float[Tensor, "*rows hidden"],
    weight: Float[Tensor, "vocab hidden"],
    labels: Int[Tensor, "*rows"],
    coefficients: Float[Tensor, "*rows"],
    formula: Formula,
    *,
    bias: Float[Tensor, " vocab"] | None = None,
    chunk_size: int | None = None,
) -> Float[Tensor, ""]:
    return (_cce(hidden, weight, labels, formula, bias=bias) * coefficients).sum()


def _liger_dot(
    hidden: Float[Tensor, "*rows hidden"],
    weight: Float[Tensor, "vocab hidden"],
    labels: Int[Tensor, "*rows"],
    coefficients: Float[Tensor, "*rows"],
    formula: Formula,
    *,
    bias: Float[Tensor, " vocab"] | None = None,
    chunk_size: int | None = None,
) -> Float[Tensor, ""]:
    function = _function("liger", "liger_kernel.transformers.functional", "liger_fused_linear_cross_entropy", hidden)
    flat = hidden.reshape(-1, hidden.shape[-1])
    total: Tensor = function(
        flat if formula.scale == 1.0 else flat * formula.scale,
        weight,
        labels.reshape(-1),
        bias=None if bias is None else bias * formula.scale,
        ignore_index=formula.ignore_index,
        lse_square_scale=formula.z_loss,
        label_smoothing=formula.label_smoothing,
        reduction="sum",
        softcap=formula.softcap,
    )
    # sum and mean give every token that counts the same coefficient
    return total.to(torch.float32) * coefficients.amax() if coefficients.numel() else total.to(torch.float32)


def _no_values(*args: Any, **kwargs: Any) -> Tensor:
    raise _error("liger", "liger-kernel gives no value per token.", "reduction")


def _function(name: str, module: str, attribute: str, hidden: Tensor) -> Function:
    package = module.partition(".")[0].replace("_", "-")
    if hidden.device.type != "cuda":
        raise _error(name, f"{package} runs on CUDA; these tensors are on {hidden.device.type}.", "backend")
    try:
        function: Function = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise _error(name, f"{package} cannot be used here: {error}.", "backend") from error
    return function


def _error(name: str, message: str, argument: str) -> LossInputError:
    hint = "Use backend: torch, which is the same on every device."
    return make_error(LossInputError, f"backend {name}: {message}", code="backend", loc=(argument,), hint=hint)

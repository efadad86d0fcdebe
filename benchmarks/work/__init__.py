"""The pieces of work, each a function from a setting to what can be timed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .base import Setting, Step, Work, build
from .embeddings import info_nce
from .hidden import linear_cross_entropy
from .log_probs import divergence, logps, logps_without_gradient
from .logits import (
    compiled_cross_entropy,
    cross_entropy,
    overwriting_cross_entropy,
    small_cross_entropy,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["WORKS", "Setting", "Step", "Work", "build"]

WORKS: Mapping[str, Callable[[Setting], Work]] = {
    function.__name__: function
    for function in (
        cross_entropy,
        small_cross_entropy,
        overwriting_cross_entropy,
        compiled_cross_entropy,
        logps,
        logps_without_gradient,
        divergence,
        info_nce,
        linear_cross_entropy,
    )
}

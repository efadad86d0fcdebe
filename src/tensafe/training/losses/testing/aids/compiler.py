"""torch.compile and torch.export with nothing left over from before, and nothing left behind."""

from __future__ import annotations

import io
import logging
import warnings
from contextlib import contextmanager, redirect_stderr
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping

__all__ = ["AsModule", "fresh_compiler"]


@contextmanager
def fresh_compiler() -> Generator[None]:
    """Forget every compiled graph, before and after.

    What torch warns of is about itself, and what it prints of a graph that it could not make stands in the error too.
    """
    torch.compiler.reset()
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            for kind in (DeprecationWarning, FutureWarning):
                warnings.filterwarnings("ignore", category=kind, module=r"torch\.")
            yield
    finally:
        logging.disable(disabled)
        torch.compiler.reset()


class AsModule(torch.nn.Module):
    """A loss as the module that `torch.export` wants."""

    def __init__(self, loss: Callable[..., Any]) -> None:
        super().__init__()
        self._loss = loss

    def forward(self, outputs: Mapping[str, Any], batch: Mapping[str, Any]) -> Any:
        """Compute the loss."""
        return self._loss(outputs, batch)

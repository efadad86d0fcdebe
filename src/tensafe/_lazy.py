"""`torch` and `F`, imported on first use: validating a config must not pay two seconds for them."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

__all__ = ["F", "torch"]

if TYPE_CHECKING:
    import torch as torch
    import torch.nn.functional as F
else:

    class _LazyModule(ModuleType):
        """A module that imports its namesake when an attribute is first asked for, and keeps what it was asked for."""

        def __getattr__(self, name: str) -> Any:
            # Tools that probe every module (inspect, doctest, pytest) ask for dunders; they must not wake torch up.
            if name.startswith("__"):
                raise AttributeError(name)
            value = getattr(import_module(self.__name__), name)
            setattr(self, name, value)
            return value

    torch = _LazyModule("torch")
    F = _LazyModule("torch.nn.functional")

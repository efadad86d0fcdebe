"""Other libraries. Each is imported when a row needs it, and left out with the reason where that fails."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

__all__ = ["LeftOut", "attribute", "need_cuda"]


class LeftOut(Exception):  # noqa: N818  # nothing is wrong
    """A contender that cannot run here; the text is the reason."""


def attribute(path: str) -> Any:
    """Return `module:name`.

    Raises:
        LeftOut: It cannot be imported, or is not there.
    """
    module, _, name = path.partition(":")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return getattr(importlib.import_module(module), name)
    except Exception as error:  # a library may fail on import in its own ways
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise LeftOut(f"{type(error).__name__}: {lines[0] if lines else 'no message'}") from error


def need_cuda(device: str) -> None:
    """Refuse a peer whose kernels are Triton's.

    Raises:
        LeftOut: The device is not CUDA.
    """
    if not device.startswith("cuda"):
        raise LeftOut("its kernels need CUDA")

"""A process group of this one process."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from tensafe.training.losses.testing.outcome import skip

if TYPE_CHECKING:
    from collections.abc import Generator

    from torch.distributed.device_mesh import DeviceMesh

__all__ = ["one_rank_mesh"]

_dist: Any = dist


@contextmanager
def one_rank_mesh() -> Generator[DeviceMesh]:
    """Give a mesh of one CPU rank, and take the process group down again."""
    if not dist.is_available() or not dist.is_gloo_available():
        skip("torch was built without gloo")
    if dist.is_initialized():
        skip("a process group is running already")
    hook = sys.excepthook
    try:
        dist.init_process_group("gloo", store=_dist.HashStore(), rank=0, world_size=1)
    except RuntimeError as error:  # no network interface, in a sandbox
        skip(f"gloo cannot start here: {error}")
    finally:
        sys.excepthook = hook  # torch puts one in its place, at each start, and leaves it there
    try:
        from torch.distributed.device_mesh import init_device_mesh

        yield init_device_mesh("cpu", (1,))
    finally:
        dist.destroy_process_group()

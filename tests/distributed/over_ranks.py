"""Running a function in several processes that make one group."""

from __future__ import annotations

import multiprocessing
import tempfile
from datetime import timedelta
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
import torch.multiprocessing

if TYPE_CHECKING:
    from collections.abc import Callable

PATIENCE = 120  # seconds, for a collective and for all of it: the machine may be busy

# one process imports torch, and those of all tests are forked from it
multiprocessing.set_forkserver_preload(["torch.distributed.tensor", "torch.nn.parallel", "tensafe.distributed"])


def over_ranks(work: Callable[[], None], ranks: int = 2) -> None:
    """Run a module-level function in each of some processes of one gloo group; whatever one raises is raised here."""
    processes: Any = torch.multiprocessing
    with tempfile.TemporaryDirectory() as folder:
        context = processes.start_processes(
            _run, (ranks, str(Path(folder) / "store"), work), nprocs=ranks, join=False, start_method="forkserver"
        )
        try:
            until = monotonic() + PATIENCE
            while not context.join(timeout=1):  # it returns whenever one of them ends
                if monotonic() > until:
                    raise TimeoutError(f"{ranks} ranks did not end within {PATIENCE} s")
        finally:
            for process in context.processes:
                process.kill()


def _run(rank: int, ranks: int, store: str, work: Callable[[], None]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=ranks, timeout=timedelta(seconds=PATIENCE)
    )
    try:
        work()
    finally:
        dist.destroy_process_group()

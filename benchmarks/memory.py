"""The peak memory of one step, in a fresh process: `python -m benchmarks.memory` is that process.

On Linux the kernel keeps the most pages that a process ever held; writing 5 to /proc/self/clear_refs makes it start
anew. On CUDA torch's allocator keeps count. Elsewhere nothing is measured.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .work import WORKS, Setting, Step, Work, build

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["measure_peak"]

_SMALL = {"rows": 64, "vocab": 20_000, "batch": 1100, "hidden": 64}
# glibc learns from the first blocks that are freed to keep larger ones, and where it then has holes is chance: with
# a fixed threshold every large block is given back when it is freed, so that the peak is what is alive at once.
_RETURN_BLOCKS = {"MALLOC_MMAP_THRESHOLD_": "131072"}
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def measure_peak(work: str, contender: str, setting: Setting, threads: int) -> int | None:
    """Run one step of a contender in a fresh process, and return its peak in bytes above the inputs.

    Args:
        work: A name in `WORKS`.
        contender: Who is to do it.
        setting: Sizes, dtype and device.
        threads: Of torch.

    Returns:
        None where the system does not say.

    Raises:
        RuntimeError: The contender failed.
    """
    request = json.dumps({"work": work, "contender": contender, "threads": threads, "setting": setting._asdict()})
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.memory", request]
    child = subprocess.run(command, env={**os.environ, **_RETURN_BLOCKS}, capture_output=True, text=True, check=False)
    if child.returncode:
        lines = child.stderr.strip().splitlines()
        raise RuntimeError(lines[-1] if lines else f"exit status {child.returncode}")
    peak: int | None = json.loads(child.stdout.splitlines()[-1])
    return peak


def _answer(work: str, contender: str, threads: int, setting: Mapping[str, Any]) -> int | None:
    torch.set_num_threads(threads)
    wanted = Setting(**setting)
    if not wanted.device.startswith("cuda") and not _resets():
        return None
    small = wanted._replace(sizes={name: min(size, _SMALL[name]) for name, size in wanted.sizes.items()})
    make = WORKS[work]
    if contender not in make(small).compiled:
        _run(make(small), contender)  # what is imported and made once only is no memory of the step
    full = make(wanted)
    step = build(full, contender)
    if contender in full.compiled:
        full.reset()
        step()
    full.reset()
    above = _on_cuda(step, wanted.device) if wanted.device.startswith("cuda") else _on_linux(step)
    return max(0, above - full.uncounted)


def _run(work: Work, contender: str) -> None:
    step = build(work, contender)
    work.reset()
    step()


def _on_cuda(step: Step, device: str) -> int:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _on_linux(step: Step) -> int:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # freed memory that the allocator kept would be used again unseen
    _CLEAR.write_text("5")
    before = _status("VmRSS")
    step()
    return _status("VmHWM") - before


def _resets() -> bool:
    try:
        _CLEAR.write_text("5")
    except OSError:
        return False
    return hasattr(ctypes.CDLL(None), "malloc_trim")


def _status(field: str) -> int:
    line = next(line for line in _STATUS.read_text("utf-8").splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    print(json.dumps(_answer(**json.loads(sys.argv[1]))))

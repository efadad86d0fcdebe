"""How much memory a piece of code takes at most: counted tensor by tensor, fake ones too, or measured."""

from __future__ import annotations

import ctypes
import gc
import weakref
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

__all__ = ["COUNTED", "ON_CUDA", "RESIDENT", "MemoryMeter", "Peak", "count_peak", "freeing_at_once", "measure_peak"]

COUNTED = "tensors counted"
ON_CUDA = "CUDA allocator"
RESIDENT = "resident set"
"""What a peak was read from."""

_LEAST_RESIDENT = 16 * 2**20  # less than that drowns in pages and in what the allocator keeps
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_CLEAR_REFS = Path("/proc/self/clear_refs")

Result = TypeVar("Result")


class Peak(NamedTuple):
    """The most memory that a piece of code took at once, above what was taken before it.

    Attributes:
        size: In bytes.
        source: What it was read from: `RESIDENT`, `ON_CUDA` or `COUNTED`.
    """

    size: int
    source: str


class MemoryMeter(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves its hook for subclasses untyped
    """Counts the bytes of every tensor storage that comes to life within it, for as long as it lives.

    What a kernel allocates and frees within itself is not seen.

    Attributes:
        live: Bytes alive now.
        peak: The most bytes that were alive at once.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # pyright: ignore[reportUnknownMemberType]  # untyped too
        self.live = 0
        self.peak = 0
        self._seen: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        # what is met as an argument before any operation has returned it was there before
        self._seen.update(_storages((args, kwargs)))
        result = func(*args, **(kwargs or {}))
        for storage in _storages(result):
            if storage not in self._seen:
                self._seen.add(storage)
                self._count(storage)
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        size = storage.nbytes()
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._free, size).atexit = False

    def _free(self, size: int) -> None:
        self.live -= size


def count_peak(run: Callable[[], Result]) -> tuple[Result, Peak]:
    """Run something and count the tensors that it makes; return what it returned, and their peak."""
    with MemoryMeter() as meter:
        result = run()
    return result, Peak(meter.peak, COUNTED)


def measure_peak(run: Callable[[], Result], device: torch.device) -> tuple[Result, Peak | None]:
    """Run something and measure the most memory that it took, without slowing it down.

    On CUDA torch's allocator tells it. On Linux the resident set of the process does, which other threads must leave
    alone meanwhile; with all that comes before it within `freeing_at_once`, it shows what is in use and no more.

    Args:
        run: What to run.
        device: Where its tensors are.

    Returns:
        What it returned, and the peak; None where it cannot be measured, or is too small to show.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        allocated = torch.cuda.memory_allocated(device)
        result = run()
        return result, Peak(torch.cuda.max_memory_allocated(device) - allocated, ON_CUDA)
    before = _reset_resident_peak() if device.type == "cpu" else None
    result = run()
    if before is None:
        return result, None
    grown = _resident("VmHWM") - before
    return result, Peak(grown, RESIDENT) if grown >= _LEAST_RESIDENT else None


@contextmanager
def freeing_at_once() -> Generator[None]:
    """Let glibc give back to the system whatever is freed; it keeps pieces of up to 32 MiB if left alone.

    This takes time, so nothing should be timed within it.
    """
    _set_thresholds(2**17)
    try:
        yield
    finally:
        _set_thresholds(2**25)  # as far as they rise of their own accord, with the sizes that are freed


def _set_thresholds(size: int) -> None:
    if _CLEAR_REFS.exists():
        with suppress(AttributeError):  # not every C library is glibc
            libc = ctypes.CDLL(None)
            libc.mallopt(_M_MMAP_THRESHOLD, size)
            libc.mallopt(_M_TRIM_THRESHOLD, 2 * size)


def _reset_resident_peak() -> int | None:
    """Let the peak of the resident set start anew, and return where it starts; None where the system cannot."""
    if not _CLEAR_REFS.exists():
        return None
    with suppress(AttributeError):  # not every C library is glibc
        # what was freed but kept would be used again, and the set would grow by less than what is taken
        ctypes.CDLL(None).malloc_trim(0)
    try:
        _CLEAR_REFS.write_text("5")
        size, peak = _resident("VmRSS"), _resident("VmHWM")
    except (OSError, LookupError):
        return None
    return size if peak - size < _LEAST_RESIDENT else None


def _resident(field: str) -> int:
    """Return a size that the kernel tells of this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, size = line.partition(":")
        if name == field:
            return int(size.split()[0]) * 1024
    raise LookupError(field)


def _storages(values: Any) -> list[torch.UntypedStorage]:
    tensors = (leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor))
    return [tensor.untyped_storage() for tensor in tensors if tensor.layout is torch.strided]

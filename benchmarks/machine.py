"""Where a run took place."""

from __future__ import annotations

import os
import platform
from datetime import datetime
from pathlib import Path

import torch

__all__ = ["describe_machine", "to_text"]


def describe_machine(device: str) -> dict[str, str | int | float]:
    """Return what a reader needs to judge the figures by."""
    described: dict[str, str | int | float] = {
        "cpu": _cpu_name(),
        "cores": os.cpu_count() or 0,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "device": device,
        "date": datetime.now().astimezone().isoformat(timespec="minutes"),
    }
    if hasattr(os, "getloadavg"):
        described["load at the start"] = round(os.getloadavg()[0], 2)
    if device.startswith("cuda"):
        described["gpu"] = torch.cuda.get_device_name(device)
    return described


def to_text(machine: dict[str, str | int | float]) -> str:
    """Return one line about a machine."""
    threads = f"{machine['threads']} thread{'' if machine['threads'] == 1 else 's'}"
    where = machine.get("gpu") or f"{machine['cpu']}, {machine['cores']} cores, {machine['capability']}, {threads}"
    return f"{where}; torch {machine['torch']}, Python {machine['python']}; {machine['date']}"


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()

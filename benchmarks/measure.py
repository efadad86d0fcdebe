"""Measuring one row: who takes part, their times, their peaks, their errors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from . import check_cost, compiled, startup
from .memory import measure_peak
from .peers import LeftOut
from .results import Figures, Report, Result, Spread, spread_of
from .rows import TINY, Row
from .timing import Rounds, Samples, interleave, one_line
from .work import WORKS, Setting, Step, Work, build

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["QUICK", "Options", "measure"]

Tick = Callable[[str], None]

QUICK = Rounds(least=1, enough=3, longest=15.0, shortest=0.0)
"""For a first look: `--quick`."""

_ONCE = Rounds(least=1, enough=1, shortest=0.0)


class Options(NamedTuple):
    """How to measure.

    Attributes:
        rounds: How often everyone has a turn.
        device: Where.
        threads: Of torch.
        tiny: Whether all sizes are tiny.
        peers: Whether other libraries take part.
        memory: Whether peaks are measured.
        apart: Whether each row has a process of its own: what the allocator kept of one row makes the next one faster.
    """

    rounds: Rounds = Rounds()
    device: str = "cpu"
    threads: int = 1
    tiny: bool = False
    peers: bool = True
    memory: bool = True
    apart: bool = False


def measure(row: Row, options: Options, tick: Tick) -> Result:
    """Measure one row.

    Args:
        row: Which.
        options: How.
        tick: Told what is being done.
    """
    if options.apart or any(os.environ.get(name) != value for name, value in row.environment.items()):
        return _in_child(row, options, tick)
    if row.kind == "check":
        return check_cost.measure(row, peers=options.peers, tick=tick)
    if row.kind == "compiled":
        return compiled.measure(row, device=options.device, tick=tick)
    if row.kind == "startup":
        return startup.measure(row, options.rounds, tick=tick)
    return _measure_work(row, options, tick)


def _measure_work(row: Row, options: Options, tick: Tick) -> Result:
    setting = _setting(row, options)
    work = WORKS[row.work](setting)
    result = Result(row.name, _describe(setting), work.unit_name)
    names = [*work.contenders, *(work.peers if options.peers and row.peers else ())]
    entered = {name: _entered(name, work, result) for name in names}
    steps = {name: step for name, step in entered.items() if step is not None}
    rounds = _ONCE if row.once and options.device == "cpu" else options.rounds
    samples = interleave(steps, work.reset, rounds, device=options.device, tick=tick, warm_up=work.warm_up)
    tick("the float64 reference")
    exact = None if work.reference is None else work.reference()
    for name in steps:
        comparable = name not in work.incomparable
        result.contenders.append(_figures_of(row, name, samples, exact if comparable else None))
    unit = work.unit
    del entered, steps, samples, work  # the children need the memory
    if options.memory and row.memory:
        _measure_peaks(row, setting, unit, result, options, tick)
    return result


def _setting(row: Row, options: Options) -> Setting:
    on_cuda = options.device.startswith("cuda")
    sizes = dict(row.cuda_sizes if on_cuda and row.cuda_sizes else row.sizes)
    if options.tiny:
        sizes = {name: min(size, TINY[name]) for name, size in sizes.items()}
    return Setting(sizes, row.dtype, options.device, row.chunk_size)


def _describe(setting: Setting) -> str:
    sizes = ", ".join(f"{name} {size}" for name, size in setting.sizes.items())
    return f"{sizes}; {setting.dtype}"


def _entered(name: str, work: Work, result: Result) -> Step | None:
    """Return the step of a contender that can take part."""
    try:
        return build(work, name)
    except LeftOut as reason:
        result.left_out[name] = str(reason)
    except Exception as error:  # a contender that fails must not end the run
        result.contenders.append(Figures(name, failed=one_line(error)))
    return None


def _figures_of(row: Row, name: str, samples: Mapping[str, Samples], exact: Tensor | None) -> Figures:
    ours = samples[name]
    if ours.failed is not None or not ours.seconds:
        return Figures(name, failed=ours.failed)
    figures = Figures(name, spread_of(ours.seconds), _ratio(ours, samples.get(row.base)))
    if row.floor is not None and name != row.floor:
        figures.floor = _ratio(ours, samples.get(row.floor))
    if exact is not None and ours.value is not None and name != row.floor:
        figures.error = (ours.value.double() - exact).abs().max().item()
    return figures


def _ratio(ours: Samples, base: Samples | None) -> Spread | None:
    """Return the quartiles of the ratio within each round: what slows a whole round down drops out."""
    if base is None or base.failed is not None:
        return None
    return spread_of([mine / theirs for mine, theirs in zip(ours.seconds, base.seconds, strict=True)])


def _measure_peaks(row: Row, setting: Setting, unit: int, result: Result, options: Options, tick: Tick) -> None:
    for figures in result.contenders:
        if figures.contender == row.floor or figures.failed is not None:
            continue
        tick(f"memory of {figures.contender}")
        try:
            figures.peak_bytes = measure_peak(row.work, figures.contender, setting, options.threads)
        except RuntimeError as error:
            figures.failed = one_line(error)
    peaks = {figures.contender: figures.peak_bytes for figures in result.contenders}
    unit = unit or peaks.get(row.base) or 0
    for figures in result.contenders:
        if figures.peak_bytes is not None and unit:
            figures.memory = figures.peak_bytes / unit


def _in_child(row: Row, options: Options, tick: Tick) -> Result:
    """Measure a row in a process of its own, which starts with the row's environment variables."""
    tick(" ".join(["in a process of its own", *(f"{name}={value}" for name, value in row.environment.items())]))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.json"
        command = [sys.executable, "-m", "benchmarks", "--only", row.name, "--json", str(path), *_as_arguments(options)]
        child = subprocess.run(
            command, env={**os.environ, **row.environment}, capture_output=True, text=True, check=False
        )
        if child.returncode:
            lines = child.stderr.strip().splitlines()
            reason = lines[-1] if lines else f"exit status {child.returncode}"
            return Result(row.name, contenders=[Figures(name, failed=reason) for name in row.held])
        return Report.from_json(json.loads(path.read_text("utf-8"))).rows[0]


def _as_arguments(options: Options) -> list[str]:
    arguments = ["--device", options.device, "--threads", str(options.threads)]
    arguments += ["--quick"] if options.rounds == QUICK else []
    arguments += ["--sizes", "tiny"] if options.tiny else []
    arguments += [] if options.peers else ["--no-peers"]
    return arguments + ([] if options.memory else ["--no-memory"])

"""`tensafe check`: does the loss of this config run, forward and backward, and what does it cost?"""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import typer
from rich.console import Console
from rich.table import Table

from tensafe._lazy import torch
from tensafe.config import check_source
from tensafe.training.losses.errors import TensafeError
from tensafe.training.losses.resolve import resolve_loss, resolving_under
from tensafe.training.losses.samples import Sample, SampleSettings, make_sample

from .source import policy, read

if TYPE_CHECKING:
    from tensafe.training.losses.adapter import ResolvedLoss

__all__ = ["Settings", "run"]


class Settings(NamedTuple):
    """What the command line asks for; `named` are the axes that it gives a size by name."""

    sizes: dict[str, int]
    named: frozenset[str]
    dtype: str
    device: str
    dry: bool
    seed: int


class Report(NamedTuple):
    """What one step showed; seconds and values are None for a dry run."""

    sample: Sample
    result: Any
    gradients: dict[str, Any]
    forward: float | None
    backward: float | None
    peak: int


def run(file: str, settings: Settings, allow: list[str]) -> int:
    """Validate, resolve and run one loss; return the exit code."""
    rules = policy(allow)
    try:
        name, source = read(file)
    except OSError as error:
        typer.echo(f"tensafe: cannot read {file}: {error.strerror or error}", err=True)
        return 2
    config, problems = check_source(source, name, rules)
    if config is None:
        typer.echo("\n".join(str(problem) for problem in problems))
        return 1
    with resolving_under(rules):
        loss = resolve_loss(config.loss)
    try:
        torch.empty(0, device=settings.device)
    except (RuntimeError, AssertionError) as error:
        typer.echo(f"tensafe: --device {settings.device}: {str(error).partition(chr(10))[0]}", err=True)
        return 2
    try:
        report = _step(loss, settings)
    except TensafeError as error:
        typer.echo(f"{name}: the loss does not run: {error}")
        return 1
    except Exception as error:  # a stranger's loss may raise anything
        typer.echo(f"{name}: {loss.name} raised {type(error).__name__}: {error}\n  {_place(error)}")
        return 1
    unused = settings.named - report.sample.axes
    if unused:
        axes = ", ".join(sorted(report.sample.axes))
        typer.echo(f"tensafe: --size {min(unused)}: no tensor of {loss.name} has this axis; there are {axes}", err=True)
        return 2
    _print(name, loss, settings, report)
    return _verdict(report, settings)


def _verdict(report: Report, settings: Settings) -> int:
    """Print what a training run would stumble over, or ok; return the exit code."""
    without = [tensor for tensor, gradient in report.gradients.items() if gradient is None]
    if without:
        typer.echo(f"warning: no gradient reaches {', '.join(without)}")
    shown = {"the loss": report.result["loss"]}
    shown.update({f"the gradient of {name}": grad for name, grad in report.gradients.items() if grad is not None})
    wild = [] if settings.dry else [name for name, tensor in shown.items() if not tensor.isfinite().all()]
    typer.echo(f"not finite: {', '.join(wild)}" if wild else "ok")
    return 1 if wild else 0


def _step(loss: ResolvedLoss, settings: Settings) -> Report:
    with _fake() if settings.dry else nullcontext():
        sample = make_sample(loss, SampleSettings(settings.sizes, settings.dtype, settings.device, settings.seed))
        _forward_and_backward(loss, sample)  # the first step pays for imports and for warming up
        report = _forward_and_backward(loss, sample)
    return report._replace(forward=None, backward=None) if settings.dry else report


def _forward_and_backward(loss: ResolvedLoss, sample: Sample) -> Report:
    from tensafe._memory import MemoryMeter

    leaves = sample.leaves()
    for leaf in leaves.values():
        leaf.grad = None
    meter = MemoryMeter()
    meter.ignore([*sample.outputs.made.values(), *sample.batch.made.values()])
    with meter:
        started = time.perf_counter()
        result = loss(sample.outputs, sample.batch)
        middle = time.perf_counter()
        if result["loss"].requires_grad:
            torch.autograd.backward(result["loss"].sum())
        ended = time.perf_counter()
    gradients = {name: leaf.grad for name, leaf in leaves.items()}
    return Report(sample, result, gradients, middle - started, ended - middle, meter.peak)


def _fake() -> AbstractContextManager[Any]:
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode()


def _place(error: BaseException) -> str:
    """Return the innermost line of the loss's own code; of tensafe's where the loss is a built-in."""
    ours, theirs = "", ""
    trace = error.__traceback__
    while trace is not None:
        module = trace.tb_frame.f_globals.get("__name__", "").partition(".")[0]
        code = trace.tb_frame.f_code
        place = f"at {code.co_filename}:{trace.tb_lineno} in {code.co_name}"
        if module == "tensafe":
            ours = place
        elif module not in {"torch", "collections", "_collections_abc"}:
            theirs = place
        trace = trace.tb_next
    return theirs or ours


def _print(name: str, loss: ResolvedLoss, settings: Settings, report: Report) -> None:
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{name}: {loss.name}{' (dry run on fake tensors)' if settings.dry else ''}")
    console.print(_tensor_table(report))
    console.print(_result_table(report))


def _tensor_table(report: Report) -> Table:
    table = Table("tensor", "from", "dtype", "shape", "gradient norm", title="tensors", title_justify="left")
    for place, side in (("outputs", report.sample.outputs), ("batch", report.sample.batch)):
        for name, tensor in side.made.items():
            shape = " ".join(str(size) for size in tensor.shape)
            norm = _gradient_norm(report, name) if place == "outputs" else ""
            table.add_row(name, place, str(tensor.dtype).removeprefix("torch."), shape or "scalar", norm)
    return table


def _gradient_norm(report: Report, name: str) -> str:
    gradient = report.gradients.get(name)
    if gradient is None:
        return "none"
    return "fake" if report.forward is None else f"{gradient.double().norm().item():.4g}"


def _result_table(report: Report) -> Table:
    table = Table("what", "value", title="one step", title_justify="left")
    table.add_row("loss", _number(report.result["loss"], report))
    for name, metric in report.result.get("metrics", {}).items():
        table.add_row(name, _number(metric, report))
    if report.forward is not None and report.backward is not None:
        table.add_row("forward", f"{report.forward * 1e3:.2f} ms")
        table.add_row("backward", f"{report.backward * 1e3:.2f} ms")
    table.add_row("peak memory", f"{_bytes(report.peak)} above the tensors")
    return table


def _number(value: Any, report: Report) -> str:
    if not hasattr(value, "dtype"):
        return f"{value:.6g}"
    kind = f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if report.forward is None or value.ndim:
        return kind
    return f"{value.item():.6g} ({kind.partition('[')[0]})"


def _bytes(count: int) -> str:
    size = float(count)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"

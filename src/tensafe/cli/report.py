"""What `tensafe check` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from tensafe._memory import Peak
    from tensafe.training.losses.samples import Sample

    from .step import Comparison, Step

__all__ = ["Report", "print_report"]


class Report(NamedTuple):
    """What one step showed.

    Attributes:
        sample: What it was run on.
        step: What it gave; times and values mean nothing in a dry run.
        predicted: The bytes that it was predicted to take, or why that could not be told.
        comparison: What it needs, and what a leaner loss would.
        measured: What it took; None for a dry run.
    """

    sample: Sample
    step: Step
    predicted: int | str
    comparison: Comparison | None
    measured: Peak | None = None


def print_report(heading: str, report: Report) -> None:
    """Print the tensors, the step, and what a leaner loss would need."""
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{heading}{' (dry run on fake tensors)' if report.measured is None else ''}", markup=False)
    console.print(_tensor_table(report))
    console.print(_result_table(report))
    if report.comparison is not None:
        typer.echo(_sentence(report.comparison))


def _tensor_table(report: Report) -> Table:
    table = Table("tensor", "from", "dtype", "shape", "gradient norm", title="tensors", title_justify="left")
    for place, side in (("outputs", report.sample.outputs), ("batch", report.sample.batch)):
        for name, tensor in side.items():
            norm = _gradient_norm(report, name) if place == "outputs" else ""
            table.add_row(name, place, str(tensor.dtype).removeprefix("torch."), _shape(tensor.shape), norm)
    return table


def _shape(shape: tuple[int, ...]) -> str:
    return " ".join(str(size) for size in shape) or "scalar"


def _gradient_norm(report: Report, name: str) -> str:
    gradient = report.sample.gradients().get(name)
    if gradient is None:
        return "none"
    return "fake" if report.measured is None else f"{gradient.double().norm().item():.4g}"


def _result_table(report: Report) -> Table:
    table = Table("what", "value", title="one step", title_justify="left")
    result, forward, backward = report.step
    table.add_row("loss", _number(result["loss"], report))
    for name, metric in result.get("metrics", {}).items():
        table.add_row(name, _number(metric, report))
    if report.measured is not None:
        table.add_row("forward", f"{forward * 1e3:.2f} ms")
        table.add_row("backward", f"{backward * 1e3:.2f} ms")
    predicted = report.predicted
    above = predicted if isinstance(predicted, str) else f"{_bytes(predicted)} above the tensors"
    table.add_row("peak memory, predicted", above)
    if report.measured is not None:
        size, source = report.measured
        table.add_row("peak memory, measured", f"{_bytes(size)} above the tensors ({source})")
    return table


def _sentence(comparison: Comparison) -> str:
    need, leaner, leaner_need, start, spared = comparison
    tensors = " and ".join(f"{name} [{_shape(shape)}]" for name, shape in start.items())
    return (
        f"this step needs {_bytes(need)} for the loss; {leaner} would need {_bytes(leaner_need)}\n"
        f"  both from {tensors} to their gradients; {', '.join(spared)} included, which {leaner} never makes"
    )


def _number(value: Any, report: Report) -> str:
    if not hasattr(value, "dtype"):
        return f"{value:.6g}"
    kind = f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if report.measured is None or value.ndim:
        return kind
    return f"{value.item():.6g} ({kind.partition('[')[0]})"


def _bytes(count: int) -> str:
    size = float(count)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"

"""`tensafe check`: does the loss of this config run, forward and backward, and what does it cost?"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import typer

from tensafe._lazy import torch
from tensafe.config import check_source
from tensafe.training.losses.errors import TensafeError
from tensafe.training.losses.resolve import resolve_loss, resolving_under
from tensafe.training.losses.samples import SampleSettings, make_sample

from .report import Report, print_report
from .source import policy, read
from .step import Comparison, Step, compare, predict, take_step

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

    @property
    def sample(self) -> SampleSettings:
        """How to make the batch."""
        return SampleSettings(self.sizes, self.dtype, self.device, self.seed)


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
        report = _dry_step(loss, settings) if settings.dry else _real_step(loss, settings)
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
    print_report(f"{name}: {loss.name}", report)
    return _verdict(report, settings)


def _verdict(report: Report, settings: Settings) -> int:
    """Print what a training run would stumble over, or ok; return the exit code."""
    gradients = report.sample.gradients()
    without = [tensor for tensor, gradient in gradients.items() if gradient is None]
    if without:
        typer.echo(f"warning: no gradient reaches {', '.join(without)}")
    shown = {"the loss": report.step.result["loss"]}
    shown.update({f"the gradient of {name}": grad for name, grad in gradients.items() if grad is not None})
    wild = [] if settings.dry else [name for name, tensor in shown.items() if not tensor.isfinite().all()]
    typer.echo(f"not finite: {', '.join(wild)}" if wild else "ok")
    return 1 if wild else 0


def _dry_step(loss: ResolvedLoss, settings: Settings) -> Report:
    sample, step, predicted = predict(loss, settings.sample)
    return Report(sample, step, predicted, compare(loss, settings.sample))


def _real_step(loss: ResolvedLoss, settings: Settings) -> Report:
    from tensafe._memory import count_peak, freeing_at_once, measure_peak

    def step() -> Step:
        return take_step(loss, sample.outputs, sample.batch, settings.device)

    with freeing_at_once():
        sample = make_sample(loss, settings.sample)
        step()  # pays for imports
        sample.renew()
        peak = measure_peak(step, torch.device(settings.device))[1]
    if peak is None:
        sample.renew()
        peak = count_peak(step)[1]
    sample.renew()
    step()  # warms the allocator up
    sample.renew()
    return Report(sample, step(), *_foretell(loss, settings), peak)


def _foretell(loss: ResolvedLoss, settings: Settings) -> tuple[int | str, Comparison | None]:
    """Predict what a step takes that was taken already; a stranger's loss may need values, which fake tensors lack."""
    try:
        predicted = predict(loss, settings.sample)[2]
    except Exception as error:
        return f"unknown, for {type(error).__name__} on fake tensors", None
    return predicted, compare(loss, settings.sample)


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

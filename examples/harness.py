"""What the training examples share: sections of a config, optimizer, log, progress bar, command line."""

import argparse
import json
import math
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Self, TypeVar

import torch
from byte_lm import Batch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from tensafe.config import TrainingConfig
from tensafe.training.losses import ResolvedLoss, TensafeError, resolve_loss

Record = dict[str, Any]
Count = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0)]
console = Console()


class SettingsError(Exception):
    """A section of the config other than `loss` has mistakes."""


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Model(Section):
    width: Count
    layers: Count
    heads: Count

    @model_validator(mode="after")
    def _heads_have_pairs(self) -> Self:
        if self.width % (2 * self.heads):  # rotary positions turn pairs of features
            raise ValueError(f"width must be a multiple of 2 * heads = {2 * self.heads}, got {self.width}")
        return self


class Optimizer(Section):
    learning_rate: Rate
    final_learning_rate: Rate
    warmup_steps: int = Field(ge=0)
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = Field(strict=False)
    weight_decay: float = Field(ge=0)
    clip_norm: Rate


SettingsT = TypeVar("SettingsT", bound=Section)


def read_settings(sections: type[SettingsT], config: TrainingConfig, file: Path) -> SettingsT:
    """Validate the sections that belong to a script; tensafe validates `loss` and leaves the rest alone."""
    try:
        return sections.model_validate(dict(config.sections))
    except ValidationError as error:
        mistakes = error.errors(include_url=False, include_input=False)
        raise SettingsError("\n".join(f"{file}: {_explain(mistake, sections)}" for mistake in mistakes)) from None


def _explain(mistake: Any, sections: type[Section]) -> str:
    *outer, _ = mistake["loc"] or ("",)
    path = ".".join(map(str, mistake["loc"]))
    if mistake["type"] == "missing":
        return f"{path}: required key is missing"
    if mistake["type"] == "extra_forbidden":
        owner: Any = sections.model_fields[outer[0]].annotation if outer else sections
        return f"{path}: unknown key; expected one of {', '.join(owner.model_fields)}"
    return f"{path}: {mistake['msg'].removeprefix('Value error, ')}"


def make_loss(config: TrainingConfig, file: Path) -> ResolvedLoss:
    """Resolve the loss of a config; training needs one that returns one number."""
    # The quickstart's line. resolve_loss(config.loss) is the same, since a spec is a type and its kwargs, but for one
    # thing more that it carries: `inputs`, the renames of tensors.
    loss_fn = resolve_loss(config.loss) if config.loss.inputs else resolve_loss(config.loss.type, **config.loss.kwargs)
    if loss_fn.kwargs.get("reduction") == "none":
        raise SettingsError(f"{file}: loss.kwargs.reduction: training needs one number; choose another than none")
    console.print(f"loss: {loss_fn}", highlight=False, soft_wrap=True)
    return loss_fn


def denominators(loss_fn: ResolvedLoss, counted: Sequence[Tensor]) -> dict[str, Any]:
    """Count what the loss divides by in a whole window of micro-batches.

    Micro-batches hold different numbers of tokens, so the mean of their means would give a token in a sparse one more
    weight. Divided by the count of the window, the losses add up to that of one large batch. A
    sum of losses takes a list, with the count of each term.
    """
    if "losses" in loss_fn.kwargs:
        terms = [denominators(term.loss, counted) for term in loss_fn.kwargs["losses"]]
        return {name: [term.get(name) for term in terms] for name in dict.fromkeys(chain.from_iterable(terms))}
    reduction = loss_fn.kwargs.get("reduction", "mean")
    if reduction == "mean":
        return {"num_items_in_batch": sum(int(mask.sum()) for mask in counted)}
    if reduction.startswith("sequence_"):
        return {"num_sequences_in_batch": sum(int(mask.any(1).sum()) for mask in counted)}
    return {}  # a sum has no denominator


def accumulate(
    loss_fn: ResolvedLoss,
    window: Sequence[Batch],
    counted: Sequence[Tensor],
    forward: Callable[[Batch], Mapping[str, Tensor]],
    step: int,
) -> tuple[float, dict[str, float]]:
    """Add up the gradients of a window of micro-batches; return its loss, and the metrics averaged over them.

    `counted` says for each micro-batch which of its elements count; `forward` gives what the loss takes from the model;
    `step` is for a loss with a schedule.
    """
    counts = denominators(loss_fn, counted)
    loss = 0.0
    metrics: dict[str, float] = defaultdict(float)
    for batch in window:
        loss_result = loss_fn(forward(batch), {**batch, "step": step}, **counts)
        loss_result["loss"].backward()
        loss += loss_result["loss"].item()
        for name, value in loss_result.get("metrics", {}).items():
            metrics[name] += float(value) / len(window)
    return loss, dict(metrics)


def split(batch: Batch, parts: int) -> list[Batch]:
    """Cut a batch into micro-batches."""
    chunks = {name: tensor.chunk(parts) for name, tensor in batch.items()}
    return [dict(zip(chunks, part, strict=True)) for part in zip(*chunks.values(), strict=True)]


def make_optimizer(model: nn.Module, settings: Optimizer, steps: int) -> tuple[torch.optim.Optimizer, LambdaLR]:
    """Return AdamW, which does not decay biases and norms, and its schedule: a linear warmup, then a cosine."""
    parameters = list(model.parameters())
    groups = [
        {"params": [weight for weight in parameters if weight.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [weight for weight in parameters if weight.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=settings.betas)
    floor = settings.final_learning_rate / settings.learning_rate
    warmup = min(settings.warmup_steps, steps // 2)  # a run cut short by --steps still gets past it

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        progress = (step - warmup) / max(steps - warmup, 1)
        return floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2

    return optimizer, LambdaLR(optimizer, factor)


def follow(records: Iterator[Record], steps: int, out: Path, describe: Callable[[Record], str]) -> list[Record]:
    """Write records to `log.jsonl` as they come, one JSON object a line, and show the steps on a progress bar."""
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    kept: list[Record] = []
    out.mkdir(parents=True, exist_ok=True)
    with (out / "log.jsonl").open("w", encoding="utf-8") as lines, Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=steps)
        for record in records:
            kept.append(record)
            print(json.dumps(record), file=lines, flush=True)
            if "loss" in record:
                shown = describe(record) + "".join(f"  {name} {v:.4g}" for name, v in record["metrics"].items())
                progress.update(task, completed=record["step"], description=shown)
    return kept


def series(records: Sequence[Record], key: str) -> list[float]:
    """Return the values that the records have under a key, in order."""
    return [record[key] for record in records if key in record]


def smoothed(values: Sequence[float]) -> list[float]:
    """Return a centred moving average; it starts where the values do, as they change steeply there."""
    windows = [values[i - min(12, i) : i + min(12, i) + 1] for i in range(len(values))]
    return [sum(window) / len(window) for window in windows]


def draw_smoothed(axes: Any, values: Sequence[float], color: str, raw: str = "", average: str = "") -> None:
    """Draw a value of each step, thin, and its moving average, thick."""
    steps = range(1, len(values) + 1)
    axes.plot(steps, values, color=color, alpha=0.3, linewidth=0.8, label=raw)
    axes.plot(steps, smoothed(values), color=color, linewidth=1.8, label=average)


class Report(NamedTuple):
    """What to tell of a run that is over.

    Attributes:
        names: What to call the values of each key of the records.
        unit: What they are counted in.
        plot: Draws them.
        figure: Name of the file with the figure.
    """

    names: dict[str, str]
    unit: str
    plot: Callable[[Sequence[Record], Path], None]
    figure: str


def tell(report: Report, records: Sequence[Record], seconds: float, out: Path) -> None:
    """Print where the run began and where it ended, and draw it."""
    for key, name in report.names.items():
        values = series(records, key)
        console.print(f"{name:<32}{values[0]:.3f} -> {values[-1]:.3f}{report.unit}")
    console.print(f"{'time':<32}{seconds:.0f} s")
    console.print(f"wrote {out / 'log.jsonl'}")
    try:
        report.plot(records, out / report.figure)
        console.print(f"wrote {out / report.figure}")
    except ImportError:
        console.print("no figure of the run: matplotlib is missing; pip install 'tensafe[plot]'", markup=False)


def step_count(text: str) -> int:
    """Read the argument of --steps."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError("expected a whole number of at least 1")
    return int(text)


def run_command(description: str, train: Callable[[Path, int | None, Path, Sequence[str]], None], name: str) -> None:
    """Read the command line and train; a mistake ends the script with its message and no traceback."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--config", type=Path, default=Path(f"configs/train_{name}.yaml"))
    parser.add_argument("--steps", type=step_count, help="optimizer steps, instead of those of the config")
    parser.add_argument("--out", type=Path, default=Path(f"runs/{name}"), help="where the log and the figure go")
    parser.add_argument("--allow", action="append", default=[], metavar="MODULE", help="module the config may import")
    args = parser.parse_args()
    try:
        train(args.config, args.steps, args.out, args.allow)
    except (TensafeError, SettingsError, OSError) as error:
        sys.exit(str(error))

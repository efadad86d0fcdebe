"""Supervised fine-tuning, end to end: the quickstart's training loop on real text, with the loss chosen in YAML.

    python examples/train_sft.py --config configs/train_sft.yaml

docs/dev/baseline.md explains what it does and what comes out.
"""

import argparse
import json
import math
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Annotated, Any, Self

import torch
from byte_lm import IGNORED, Batch, ByteLM, collate, load_samples
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from tensafe.config import TrainingConfig, load_config
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


class Data(Section):
    context: int = Field(ge=64)
    batch_size: Count
    holdout: int = Field(ge=2)


class Optimizer(Section):
    learning_rate: Rate
    final_learning_rate: Rate
    warmup_steps: int = Field(ge=0)
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = Field(strict=False)
    weight_decay: float = Field(ge=0)
    clip_norm: Rate


class Training(Section):
    seed: int = Field(ge=0, lt=2**63)
    threads: Count
    steps: Count
    accumulation: Count
    validate_every: Count


class Settings(Section):
    model: Model
    data: Data
    optimizer: Optimizer
    training: Training


def read_settings(config: TrainingConfig, file: Path) -> Settings:
    """Validate the sections that belong to this script; tensafe validates `loss` and leaves the rest alone."""
    try:
        return Settings.model_validate(dict(config.sections))
    except ValidationError as error:
        mistakes = error.errors(include_url=False, include_input=False)
        raise SettingsError("\n".join(f"{file}: {_explain(mistake)}" for mistake in mistakes)) from None


def _explain(mistake: Any) -> str:
    *outer, _ = mistake["loc"]
    path = ".".join(map(str, mistake["loc"]))
    if mistake["type"] == "missing":
        return f"{path}: required key is missing"
    if mistake["type"] == "extra_forbidden":
        owner: Any = Settings.model_fields[outer[0]].annotation if outer else Settings
        return f"{path}: unknown key; expected one of {', '.join(owner.model_fields)}"
    return f"{path}: {mistake['msg'].removeprefix('Value error, ')}"


def denominators(loss_fn: ResolvedLoss, window: Sequence[Batch]) -> dict[str, int]:
    """Count what the loss divides by in a whole window of micro-batches.

    Micro-batches hold different numbers of labels, so the mean of their means would give a label in a sparse one more
    weight. Divided by the count of the window, the losses add up to that of one large batch.
    """
    # position t is scored against label t + 1, so the first label of a row is never asked for
    scored = [batch["labels"][:, 1:] != IGNORED for batch in window]
    reduction = loss_fn.kwargs.get("reduction", "mean")
    if reduction == "mean":
        return {"num_items_in_batch": sum(int(mask.sum()) for mask in scored)}
    if reduction.startswith("sequence_"):
        return {"num_sequences_in_batch": sum(int(mask.any(1).sum()) for mask in scored)}
    return {}  # a sum has no denominator


def accumulate(model: ByteLM, loss_fn: ResolvedLoss, window: Sequence[Batch]) -> tuple[float, dict[str, float]]:
    """Add up the gradients of a window; return its loss, and its metrics averaged over the micro-batches."""
    counts = denominators(loss_fn, window)
    loss = 0.0
    metrics: dict[str, float] = defaultdict(float)
    for batch in window:
        outputs = model(batch["input_ids"])
        loss_result = loss_fn(outputs, batch, **counts)
        loss_result["loss"].backward()
        loss += loss_result["loss"].item()
        for name, value in loss_result.get("metrics", {}).items():
            metrics[name] += float(value) / len(window)
    return loss, dict(metrics)


@torch.no_grad()
def evaluate(model: ByteLM, loss_fn: ResolvedLoss, batches: Sequence[Batch]) -> dict[str, float]:
    """Return the loss on held-out text, and the plain cross-entropy, which losses of all kinds can be compared by."""
    losses = {"validation_loss": loss_fn, "validation_nats_per_byte": resolve_loss("token_ce")}
    totals = dict.fromkeys(losses, 0.0)
    counts = {name: denominators(fn, batches) for name, fn in losses.items()}
    for batch in batches:
        outputs = model(batch["input_ids"])
        for name, fn in losses.items():
            totals[name] += fn(outputs, batch, **counts[name])["loss"].item()
    return totals


def make_optimizer(model: ByteLM, settings: Optimizer, steps: int) -> tuple[torch.optim.Optimizer, LambdaLR]:
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


def run(settings: Settings, loss_fn: ResolvedLoss, steps: int) -> Iterator[Record]:
    """Train, and yield a record for each step and each validation."""
    torch.manual_seed(settings.training.seed)
    torch.set_num_threads(settings.training.threads)
    training, held_out = load_samples(settings.data.context, settings.data.holdout)
    size = settings.data.batch_size
    validation = [collate(held_out[start : start + size]) for start in range(0, len(held_out), size)]
    model = ByteLM(**settings.model.model_dump())
    parameters = sum(weight.numel() for weight in model.parameters())
    console.print(f"{parameters:,} parameters; {len(training):,} samples to train on, {len(held_out):,} held out")
    loader = DataLoader(training, size, shuffle=True, collate_fn=collate)
    batches = chain.from_iterable(repeat(loader))  # one epoch after another, each in a new order
    optimizer, schedule = make_optimizer(model, settings.optimizer, steps)

    yield {"step": 0, **evaluate(model, loss_fn, validation)}
    for step in range(1, steps + 1):
        started = time.perf_counter()
        window: list[Batch] = list(islice(batches, settings.training.accumulation))
        loss, metrics = accumulate(model, loss_fn, window)
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.optimizer.clip_norm)
        record = {"step": step, "loss": loss, "learning_rate": schedule.get_last_lr()[0], "metrics": metrics}
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        tokens = sum(batch["input_ids"].numel() for batch in window)
        yield {**record, "tokens_per_s": tokens / (time.perf_counter() - started)}
        if step % settings.training.validate_every == 0 or step == steps:
            yield {"step": step, **evaluate(model, loss_fn, validation)}


def follow(records: Iterator[Record], steps: int, log: Path) -> list[Record]:
    """Write records to the log as they come, one JSON object a line, and show them on a progress bar."""
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    kept: list[Record] = []
    with log.open("w", encoding="utf-8") as lines, Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=steps)
        for record in records:
            kept.append(record)
            print(json.dumps(record), file=lines, flush=True)
            if "loss" in record:
                metrics = "".join(f"  {name} {value:.4g}" for name, value in record["metrics"].items())
                shown = f"loss {record['loss']:.3f}  {record['tokens_per_s']:,.0f} tokens/s{metrics}"
                progress.update(task, completed=record["step"], description=shown)
    return kept


def summarise(records: Sequence[Record], seconds: float) -> None:
    """Print where the run began and where it ended."""
    names = {
        "loss": "training loss",
        "validation_loss": "validation loss",
        "validation_nats_per_byte": "validation, plain cross-entropy",
    }
    for key, name in names.items():
        values = [record[key] for record in records if key in record]
        console.print(f"{name:<32}{values[0]:.3f} -> {values[-1]:.3f} nats per byte")
    console.print(f"{'time':<32}{seconds:.0f} s")


def plot(records: Sequence[Record], path: Path) -> None:
    """Draw the losses over the steps."""
    from matplotlib.figure import Figure

    steps, losses = zip(*((record["step"], record["loss"]) for record in records if "loss" in record), strict=True)
    checks = [record for record in records if "validation_loss" in record]
    at = [record["step"] for record in checks]
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.plot(steps, losses, color="tab:blue", alpha=0.3, linewidth=0.8, label="training loss, each step")
    axes.plot(steps, smoothed(losses), color="tab:blue", linewidth=1.8, label="training loss, moving average")
    for key, marker, color, name in (
        ("validation_loss", "o", "tab:orange", "validation loss"),
        ("validation_nats_per_byte", "s", "tab:green", "validation, plain cross-entropy"),
    ):
        values = [record[key] for record in checks]
        axes.plot(at, values, marker, color=color, markersize=5, label=name, clip_on=False, zorder=3)
        axes.annotate(f"{values[-1]:.2f}", (at[-1], values[-1]), (7, -4), textcoords="offset points", color=color)
    axes.set(xlabel="optimizer step", ylabel="loss (nats per byte)", xlim=(0, at[-1]), ylim=(0, None))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)


def smoothed(values: Sequence[float]) -> list[float]:
    """Return a centred moving average; it starts where the values do, as they fall steeply there."""
    windows = [values[i - min(12, i) : i + min(12, i) + 1] for i in range(len(values))]
    return [sum(window) / len(window) for window in windows]


def train(file: Path, steps: int | None, out: Path, allow: Sequence[str]) -> None:
    """Train as a config says; leave `log.jsonl` and `loss.png` in `out`."""
    started = time.perf_counter()
    config = load_config(file, allow=allow)
    settings = read_settings(config, file)
    # The quickstart's line. resolve_loss(config.loss) is the same, since a spec is a type and its kwargs, but for one
    # thing more that it carries: `inputs`, the renames of tensors.
    loss_fn = resolve_loss(config.loss) if config.loss.inputs else resolve_loss(config.loss.type, **config.loss.kwargs)
    if loss_fn.kwargs.get("reduction") == "none":
        raise SettingsError(f"{file}: loss.kwargs.reduction: training needs one number; choose another than none")
    console.print(f"loss: {loss_fn}", highlight=False, soft_wrap=True)
    out.mkdir(parents=True, exist_ok=True)
    steps = steps or settings.training.steps
    records = follow(run(settings, loss_fn, steps), steps, out / "log.jsonl")
    summarise(records, time.perf_counter() - started)
    console.print(f"wrote {out / 'log.jsonl'}")
    try:
        plot(records, out / "loss.png")
        console.print(f"wrote {out / 'loss.png'}")
    except ImportError:
        console.print("no figure of the loss: matplotlib is missing; pip install 'tensafe[plot]'", markup=False)


def step_count(text: str) -> int:
    """Read the argument of --steps."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError("expected a whole number of at least 1")
    return int(text)


def main() -> None:
    parser = argparse.ArgumentParser(description="Fine-tune a small byte-level model with the loss of a config.")
    parser.add_argument("--config", type=Path, default=Path("configs/train_sft.yaml"))
    parser.add_argument("--steps", type=step_count, help="optimizer steps, instead of those of the config")
    parser.add_argument("--out", type=Path, default=Path("runs/sft"), help="where the log and the figure go")
    parser.add_argument("--allow", action="append", default=[], metavar="MODULE", help="module the config may import")
    args = parser.parse_args()
    try:
        train(args.config, args.steps, args.out, args.allow)
    except (TensafeError, SettingsError, OSError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()

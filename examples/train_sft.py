"""Supervised fine-tuning, end to end: the quickstart's training loop on real text, with the loss chosen in YAML.

    python examples/train_sft.py --config configs/train_sft.yaml

docs/dev/baseline.md explains what it does and what comes out.
"""

import time
from collections.abc import Iterator, Sequence
from itertools import chain, islice, repeat
from pathlib import Path

import harness
import torch
from byte_lm import IGNORED, Batch, ByteLM, collate, load_samples
from harness import (
    Count,
    Model,
    Optimizer,
    Record,
    Report,
    Section,
    console,
    denominators,
    draw_smoothed,
    follow,
    make_loss,
    make_optimizer,
    read_settings,
    run_command,
    series,
    tell,
)
from pydantic import Field
from torch import Tensor
from torch.utils.data import DataLoader

from tensafe.config import load_config
from tensafe.training.losses import ResolvedLoss, resolve_loss


class Data(Section):
    context: int = Field(ge=64)
    batch_size: Count
    holdout: int = Field(ge=2)


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


def scored(batch: Batch) -> Tensor:
    """Say which labels are asked for; position t is scored against label t + 1, so the first of a row never is."""
    return batch["labels"][:, 1:] != IGNORED


def accumulate(
    model: ByteLM, loss_fn: ResolvedLoss, window: Sequence[Batch], step: int = 0
) -> tuple[float, dict[str, float]]:
    """Add up the gradients of a window; return its loss, and its metrics averaged over the micro-batches."""
    masks = [scored(batch) for batch in window]
    return harness.accumulate(loss_fn, window, masks, lambda batch: model(batch["input_ids"]), step)


@torch.no_grad()
def evaluate(model: ByteLM, loss_fn: ResolvedLoss, batches: Sequence[Batch], step: int) -> dict[str, float]:
    """Return the loss on held-out text, and the plain cross-entropy, which losses of all kinds can be compared by."""
    losses = {"validation_loss": loss_fn, "validation_nats_per_byte": resolve_loss("token_ce")}
    totals = dict.fromkeys(losses, 0.0)
    masks = [scored(batch) for batch in batches]
    counts = {name: denominators(fn, masks) for name, fn in losses.items()}
    for batch in batches:
        outputs = model(batch["input_ids"])
        for name, fn in losses.items():
            totals[name] += fn(outputs, {**batch, "step": step}, **counts[name])["loss"].item()
    return totals


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

    yield {"step": 0, **evaluate(model, loss_fn, validation, 0)}
    for step in range(1, steps + 1):
        started = time.perf_counter()
        window: list[Batch] = list(islice(batches, settings.training.accumulation))
        loss, metrics = accumulate(model, loss_fn, window, step - 1)
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.optimizer.clip_norm)
        record = {"step": step, "loss": loss, "learning_rate": schedule.get_last_lr()[0], "metrics": metrics}
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        tokens = sum(batch["input_ids"].numel() for batch in window)
        yield {**record, "tokens_per_s": tokens / (time.perf_counter() - started)}
        if step % settings.training.validate_every == 0 or step == steps:
            yield {"step": step, **evaluate(model, loss_fn, validation, step)}


def plot(records: Sequence[Record], path: Path) -> None:
    """Draw the losses over the steps."""
    from matplotlib.figure import Figure

    checks = [record for record in records if "validation_loss" in record]
    at = [record["step"] for record in checks]
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.subplots()
    raw, average = "training loss, each step", "training loss, moving average"
    draw_smoothed(axes, series(records, "loss"), "tab:blue", raw, average)
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


def describe(record: Record) -> str:
    """Say how a step went, for the progress bar."""
    return f"loss {record['loss']:.3f}  {record['tokens_per_s']:,.0f} tokens/s"


REPORT = Report(
    names={
        "loss": "training loss",
        "validation_loss": "validation loss",
        "validation_nats_per_byte": "validation, plain cross-entropy",
    },
    unit=" nats per byte",
    plot=plot,
    figure="loss.png",
)


def train(file: Path, steps: int | None, out: Path, allow: Sequence[str]) -> None:
    """Train as a config says; leave `log.jsonl` and `loss.png` in `out`."""
    started = time.perf_counter()
    config = load_config(file, allow=allow)
    settings = read_settings(Settings, config, file)
    loss_fn = make_loss(config, file)
    steps = steps or settings.training.steps
    records = follow(run(settings, loss_fn, steps), steps, out, describe)
    tell(REPORT, records, time.perf_counter() - started, out)


def main() -> None:
    run_command("Fine-tune a small byte-level model with the loss of a config.", train, "sft")


if __name__ == "__main__":
    main()

"""Learning from preferences: a policy that shuffles digits comes to sort them, from pairs of its own completions.

    python examples/train_dpo.py --config configs/train_dpo.yaml

Of two completions that the reference model has sampled, the one with fewer pairs of digits in the wrong order is
preferred. The loss is chosen in YAML.
"""

import copy
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from byte_lm import IGNORED, Batch, ByteLM
from harness import (
    Count,
    Record,
    Report,
    Section,
    SettingsError,
    accumulate,
    console,
    draw_smoothed,
    follow,
    make_loss,
    make_optimizer,
    read_settings,
    run_command,
    series,
    split,
    tell,
)
from pydantic import Field
from sorting import (
    TaskSettings,
    answers,
    begin,
    complete,
    disorder,
    draw_prompts,
    encode,
    is_sorted,
    labels_of,
    score,
)

from tensafe.config import load_config
from tensafe.training.losses import ResolvedLoss

SIDES = ("chosen", "rejected")


class Pairs(Section):
    count: Count
    batch_size: Count


class Training(Section):
    seed: int = Field(ge=0, lt=2**63)
    threads: Count
    steps: Count
    accumulation: Count
    validate_every: Count


class Settings(TaskSettings):
    pairs: Pairs
    training: Training


class Trainer:
    """A policy that is being trained, with the reference that it began as and pairs of the reference's completions."""

    def __init__(self, settings: Settings, loss_fn: ResolvedLoss) -> None:
        seed = settings.training.seed
        torch.manual_seed(seed)
        torch.set_num_threads(settings.training.threads)
        self.settings = settings
        self.loss_fn = loss_fn
        self.rng = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.policy = begin(settings, self.rng)
        self.reference = copy.deepcopy(self.policy)
        self.held_out = draw_prompts(random.Random(0), settings.data, settings.data.held_out, held_out=True)
        self.pairs = self.prefer(draw_prompts(self.rng, settings.data, settings.pairs.count))
        self.held_out_pairs = self.prefer(self.held_out)
        kept, held_out = (len(pairs["chosen_ids"]) for pairs in (self.pairs, self.held_out_pairs))
        if not kept or not held_out:
            raise SettingsError("pairs: of no two completions is one more in order; sample more, or warm up for longer")
        console.print(f"{kept:,} pairs to train on, {held_out:,} held out")

    def sample(self, prompts: Sequence[bytes], generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a completion of each prompt, with its labels."""
        length = self.settings.data.max_tokens
        input_ids = complete(self.policy, encode(prompts), length, 1.0, generator)
        return input_ids, labels_of(input_ids, length)

    @torch.no_grad()
    def prefer(self, prompts: Sequence[bytes]) -> Batch:
        """Sample two completions of each prompt; keep the pairs of which one is more in order than the other."""
        samples = [self.sample(prompts, self.generator) for _ in range(2)]
        first, second = (
            torch.tensor([disorder(*pair) for pair in zip(prompts, answers(labels), strict=True)])
            for _, labels in samples
        )
        differ = first != second
        batch: Batch = {}
        for side, wanted in zip(SIDES, (first < second, first > second), strict=True):
            for name, (left, right) in zip(("ids", "labels"), zip(*samples, strict=True), strict=True):
                batch[f"{side}_{name}"] = torch.where(wanted.unsqueeze(1), left, right)[differ]
            batch[f"{side}_lengths"] = (batch[f"{side}_labels"] != IGNORED).sum(1)  # some losses average over tokens
        return {**batch, **{f"ref_{name}": logps for name, logps in pair_logps(self.reference, batch).items()}}

    def accumulate(self, batch: Batch, step: int) -> tuple[float, dict[str, float]]:
        """Add up the gradients of the micro-batches of a batch of pairs; return their loss and metrics."""
        window = split(batch, self.settings.training.accumulation)
        counted = [torch.ones(len(part["chosen_ids"])) for part in window]
        return accumulate(self.loss_fn, window, counted, lambda part: pair_logps(self.policy, part), step)

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Return how often held-out pairs are told apart, and how often a sampled answer is right."""
        pairs = self.held_out_pairs
        now = pair_logps(self.policy, pairs)
        margin = now["chosen_logps"] - now["rejected_logps"]
        gained = margin - (pairs["ref_chosen_logps"] - pairs["ref_rejected_logps"])
        generator = torch.Generator().manual_seed(self.settings.training.seed)  # so that training is not disturbed
        _, labels = self.sample(self.held_out, generator)
        right = [is_sorted(*pair) for pair in zip(self.held_out, answers(labels), strict=True)]
        return {
            "reward_accuracy": accuracy(gained),
            "logp_accuracy": accuracy(margin),
            "sorted": sum(right) / len(right),
        }

    def records(self, steps: int) -> Iterator[Record]:
        """Train, and yield a record for each step and each validation."""
        training = self.settings.training
        optimizer, schedule = make_optimizer(self.policy, self.settings.optimizer, steps)
        yield {"step": 0, **self.evaluate()}
        for step in range(1, steps + 1):
            started = time.perf_counter()
            batch = self.draw()
            loss, metrics = self.accumulate(batch, step - 1)
            torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.settings.optimizer.clip_norm)
            record = {"step": step, "loss": loss, "learning_rate": schedule.get_last_lr()[0], "metrics": metrics}
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            yield {**record, "pairs_per_s": len(batch["chosen_ids"]) / (time.perf_counter() - started)}
            if step % training.validate_every == 0 or step == steps:
                yield {"step": step, **self.evaluate()}

    def draw(self) -> Batch:
        """Return a batch of pairs, at random."""
        rows = torch.randint(len(self.pairs["chosen_ids"]), (self.settings.pairs.batch_size,), generator=self.generator)
        return {name: tensor[rows] for name, tensor in self.pairs.items()}


def pair_logps(model: ByteLM, pairs: Batch) -> Batch:
    """Return the log-probability of each completion of each pair, summed over its bytes."""
    ids, labels = (torch.cat([pairs[f"{side}_{name}"] for side in SIDES]) for name in ("ids", "labels"))
    logps = score(model, {"input_ids": ids, "labels": labels})["logps"].sum(1)
    return {f"{side}_logps": part for side, part in zip(SIDES, logps.chunk(2), strict=True)}


def accuracy(margins: torch.Tensor) -> float:
    """Return the share of positive margins; a margin of 0 is a guess, and counts half."""
    return ((margins.sign() + 1) / 2).mean().item()


def plot(records: Sequence[Record], path: Path) -> None:
    """Draw the loss over the steps and, above it, what held-out pairs and prompts say."""
    from matplotlib.figure import Figure

    at = [record["step"] for record in records if "reward_accuracy" in record]
    figure = Figure(figsize=(7.2, 5.4), layout="constrained")
    top, bottom = figure.subplots(2, sharex=True, height_ratios=[2, 1])
    for key, marker, color, name in (
        ("reward_accuracy", "o", "tab:orange", "held-out pairs told apart, by the gain over the reference"),
        ("logp_accuracy", "s", "tab:green", "held-out pairs told apart, by log-probability"),
        ("sorted", "^", "tab:purple", "held-out numbers sorted, sampled"),
    ):
        top.plot(at, series(records, key), f"{marker}-", color=color, markersize=5, label=name, clip_on=False, zorder=3)
    top.set(ylabel="share", xlim=(0, at[-1]), ylim=(0, 1))
    draw_smoothed(bottom, series(records, "loss"), "tab:blue", "each step", "moving average")
    bottom.set(xlabel="optimizer step", ylabel="training loss", ylim=(0, None))
    for axes in (top, bottom):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    figure.savefig(path, dpi=120)


def describe(record: Record) -> str:
    """Say how a step went, for the progress bar."""
    return f"loss {record['loss']:.3f}  {record['pairs_per_s']:,.0f} pairs/s"


REPORT = Report(
    names={
        "reward_accuracy": "accuracy, gain over reference",
        "logp_accuracy": "accuracy, log-probability",
        "sorted": "numbers sorted, sampled",
    },
    unit="",
    plot=plot,
    figure="accuracy.png",
)


def train(file: Path, steps: int | None, out: Path, allow: Sequence[str]) -> None:
    """Train as a config says; leave `log.jsonl` and `accuracy.png` in `out`."""
    started = time.perf_counter()
    config = load_config(file, allow=allow)
    settings = read_settings(Settings, config, file)
    loss_fn = make_loss(config, file)
    steps = steps or settings.training.steps
    records = follow(Trainer(settings, loss_fn).records(steps), steps, out, describe)
    tell(REPORT, records, time.perf_counter() - started, out)


def main() -> None:
    run_command("Train a small policy on preferences with the loss of a config.", train, "dpo")


if __name__ == "__main__":
    main()

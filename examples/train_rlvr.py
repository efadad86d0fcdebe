"""Reinforcement learning with a verifiable reward: a policy learns to sort digits from a checker's yes or no.

    python examples/train_rlvr.py --config configs/train_rlvr.yaml

The loss is chosen in YAML. docs/rlvr_quickstart.md explains what it does and what comes out.
"""

import copy
import random
import time
from collections.abc import Iterator, Sequence
from itertools import chain, repeat
from pathlib import Path
from typing import Literal

import torch
from byte_lm import IGNORED, Batch
from harness import (
    Count,
    Rate,
    Record,
    Report,
    Section,
    accumulate,
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
    draw_prompts,
    encode,
    is_sorted,
    labels_of,
    score,
)

from tensafe.config import load_config
from tensafe.training.losses import ResolvedLoss
from tensafe.training.losses.advantages import group_advantages

DRIFTS = {"approx_kl": "tab:red", "clip_fraction": "tab:purple"}
reward = is_sorted
"""Any function of prompt and completion that returns a number."""


class Rollout(Section):
    prompts: Count
    group: int = Field(ge=2)
    temperature: Rate
    normalise: Literal["group", "batch", "none"]


class Training(Section):
    seed: int = Field(ge=0, lt=2**63)
    threads: Count
    steps: Count
    passes: Count
    accumulation: Count
    validate_every: Count


class Settings(TaskSettings):
    rollout: Rollout
    training: Training


class Trainer:
    """A policy that is being trained, with what it began as and the randomness that it samples with."""

    def __init__(self, settings: Settings, loss_fn: ResolvedLoss) -> None:
        torch.manual_seed(settings.training.seed)
        torch.set_num_threads(settings.training.threads)
        self.settings = settings
        self.loss_fn = loss_fn
        self.rng = random.Random(settings.training.seed)
        self.generator = torch.Generator().manual_seed(settings.training.seed)
        self.policy = begin(settings, self.rng)
        self.reference = copy.deepcopy(self.policy)
        self.held_out = draw_prompts(random.Random(0), settings.data, settings.data.held_out, held_out=True)

    def sample(self, prompts: Sequence[bytes], temperature: float, generator: torch.Generator) -> Batch:
        """Return a completion of each prompt, and its reward."""
        length = self.settings.data.max_tokens
        input_ids = complete(self.policy, encode(prompts), length, temperature, generator)
        labels = labels_of(input_ids, length)
        rewards = torch.tensor([reward(*pair) for pair in zip(prompts, answers(labels), strict=True)])
        return {"input_ids": input_ids, "labels": labels, "mask": labels != IGNORED, "rewards": rewards}

    @torch.no_grad()
    def roll_out(self) -> Batch:
        """Return groups of completions with all that a loss may ask for beside the log-probabilities of now."""
        rollout = self.settings.rollout
        prompts = draw_prompts(self.rng, self.settings.data, rollout.prompts)
        grouped = list(chain.from_iterable(repeat(prompt, rollout.group) for prompt in prompts))
        batch = self.sample(grouped, rollout.temperature, self.generator)
        return {
            **batch,
            "advantages": group_advantages(batch["rewards"], group_size=rollout.group, normalise=rollout.normalise),
            "old_logps": score(self.policy, batch, rollout.temperature)["logps"],
            "ref_logps": score(self.reference, batch, rollout.temperature)["logps"],
        }

    def accumulate(self, batch: Batch, step: int) -> tuple[float, dict[str, float]]:
        """Add up the gradients of the micro-batches of a rollout; return their loss and metrics."""
        window = split(batch, self.settings.training.accumulation)
        temperature = self.settings.rollout.temperature
        return accumulate(
            self.loss_fn,
            window,
            [part["mask"] for part in window],
            lambda part: score(self.policy, part, temperature),
            step,
        )

    def evaluate(self) -> dict[str, float]:
        """Return the mean reward on held-out prompts, of the likeliest completions and of sampled ones."""
        generator = torch.Generator().manual_seed(self.settings.training.seed)  # so that training is not disturbed
        temperatures = {"greedy_reward": 0.0, "sampled_reward": self.settings.rollout.temperature}
        return {
            name: self.sample(self.held_out, temperature, generator)["rewards"].mean().item()
            for name, temperature in temperatures.items()
        }

    def records(self, steps: int) -> Iterator[Record]:
        """Train, and yield a record for each step and each validation."""
        training = self.settings.training
        optimizer, schedule = make_optimizer(self.policy, self.settings.optimizer, steps)
        yield {"step": 0, **self.evaluate()}
        for step in range(1, steps + 1):
            started = time.perf_counter()
            batch = self.roll_out()
            record = {
                "step": step,
                "reward": batch["rewards"].mean().item(),
                "mixed_groups": mixed_groups(batch, self.settings.rollout),
            }
            for _ in range(training.passes):
                loss, metrics = self.accumulate(batch, step - 1)
                torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.settings.optimizer.clip_norm)
                optimizer.step()
                optimizer.zero_grad()
            # loss and metrics are those of the last pass, where the policy is farthest from the one that sampled
            record |= {"loss": loss, "learning_rate": schedule.get_last_lr()[0], "metrics": metrics}
            schedule.step()
            yield {**record, "completions_per_s": len(batch["rewards"]) / (time.perf_counter() - started)}
            if step % training.validate_every == 0 or step == steps:
                yield {"step": step, **self.evaluate()}


def mixed_groups(batch: Batch, rollout: Rollout) -> float:
    """Return the share of groups with different rewards; the others have no advantage, and teach nothing."""
    rewards = batch["rewards"].unflatten(0, (-1, rollout.group))
    return (rewards.amax(1) > rewards.amin(1)).float().mean().item()


def plot(records: Sequence[Record], path: Path) -> None:
    """Draw the rewards over the steps and, where the loss measures it, how far the policy moves in a step."""
    from matplotlib.figure import Figure

    steps = [record for record in records if "loss" in record]
    at = [record["step"] for record in records if "greedy_reward" in record]
    drifts = {name: color for name, color in DRIFTS.items() if all(name in record["metrics"] for record in steps)}
    figure = Figure(figsize=(7.2, 4.2 + 1.2 * len(drifts)), layout="constrained")
    heights = [3.2, *(1.0 for _ in drifts)]
    top, *panels = figure.subplots(len(heights), sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    draw_smoothed(top, series(records, "reward"), "tab:blue", "training, each step", "training, moving average")
    for key, marker, color, name in (
        ("greedy_reward", "o", "tab:orange", "held out, likeliest completions"),
        ("sampled_reward", "s", "tab:green", "held out, sampled completions"),
    ):
        values = series(records, key)
        top.plot(at, values, marker, color=color, markersize=5, label=name, clip_on=False, zorder=3)
    top.set(ylabel="mean reward", xlim=(0, at[-1]), ylim=(0, 1))
    top.legend(frameon=False, loc="lower right")
    for axes, (key, color) in zip(panels, drifts.items(), strict=True):
        draw_smoothed(axes, [record["metrics"][key] for record in steps], color)
        axes.set(ylabel=key, ylim=(0, None))
    for axes in (top, *panels):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    [top, *panels][-1].set(xlabel="step")
    figure.savefig(path, dpi=120)


def describe(record: Record) -> str:
    """Say how a step went, for the progress bar."""
    return (
        f"reward {record['reward']:.3f}  loss {record['loss']:+.3f}  {record['completions_per_s']:,.0f} completions/s"
    )


REPORT = Report(
    names={
        "greedy_reward": "reward, held out, likeliest",
        "sampled_reward": "reward, held out, sampled",
    },
    unit="",
    plot=plot,
    figure="reward.png",
)


def train(file: Path, steps: int | None, out: Path, allow: Sequence[str]) -> None:
    """Train as a config says; leave `log.jsonl` and `reward.png` in `out`."""
    started = time.perf_counter()
    config = load_config(file, allow=allow)
    settings = read_settings(Settings, config, file)
    loss_fn = make_loss(config, file)
    steps = steps or settings.training.steps
    records = follow(Trainer(settings, loss_fn).records(steps), steps, out, describe)
    tell(REPORT, records, time.perf_counter() - started, out)


def main() -> None:
    run_command("Train a small policy by a checker's rewards with the loss of a config.", train, "rlvr")


if __name__ == "__main__":
    main()

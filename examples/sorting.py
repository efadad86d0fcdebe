r"""A task whose answers a program can check, sort the digits of a number, and a start that knows its form only.

The prompt is `"  417="` and the right completion is `"147\n"`. Before it learns from rewards or preferences, a model is
trained for a short while on completions with the right digits *in a random order*: it learns to answer with a
permutation, and sorts as often as chance does.
"""

import random
import zlib
from collections.abc import Sequence

import torch
from byte_lm import IGNORED, Batch, ByteLM, Sample, collate
from harness import Count, Model, Optimizer, Rate, Section, console
from pydantic import Field
from torch import Tensor

from tensafe.training.losses import resolve_loss
from tensafe.training.losses.ops.logps import logps_and_entropy

__all__ = [
    "WRONG",
    "Digits",
    "TaskSettings",
    "WarmStart",
    "answers",
    "begin",
    "complete",
    "disorder",
    "draw_prompts",
    "encode",
    "is_sorted",
    "labels_of",
    "score",
]

END = b"\n"
WRONG = 99
"""Disorder of an answer that is no permutation of the digits at all."""


class Digits(Section):
    """How many digits a number has, and what part of the task is kept for validation."""

    shortest: int = Field(ge=1)
    longest: int = Field(ge=1, le=9)
    held_out: Count

    @property
    def max_tokens(self) -> int:
        """Length of the longest right completion; one that goes on past it is cut, and wrong."""
        return self.longest + len(END)


class WarmStart(Section):
    steps: int = Field(ge=0)
    batch_size: Count
    learning_rate: Rate


class TaskSettings(Section):
    """The sections of a config that say what is learnt, and by what model."""

    model: Model
    data: Digits
    warm_start: WarmStart
    optimizer: Optimizer


def draw_prompts(rng: random.Random, digits: Digits, count: int, *, held_out: bool = False) -> list[bytes]:
    """Return prompts, padded to one width on the left; one number in ten is kept for validation."""
    prompts: list[bytes] = []
    while len(prompts) < count:
        number = "".join(rng.choices("0123456789", k=rng.randint(digits.shortest, digits.longest))).encode()
        if (zlib.crc32(number) % 10 == 0) is held_out:
            prompts.append(number.rjust(digits.longest) + b"=")
    return prompts


def is_sorted(prompt: bytes, completion: bytes) -> float:
    """Reward an answer: 1 for the digits of the prompt in ascending order, 0 for anything else."""
    return float(completion == bytes(sorted(prompt.strip(b" ="))) + END)


def disorder(prompt: bytes, completion: bytes) -> int:
    """Count the pairs of digits that stand in the wrong order; what is no permutation is worse than any."""
    if sorted(completion) != sorted(prompt.strip(b" =") + END) or not completion.endswith(END):
        return WRONG
    return sum(left > right for at, left in enumerate(completion[:-1]) for right in completion[at + 1 : -1])


def begin(settings: TaskSettings, rng: random.Random) -> ByteLM:
    """Return a model that knows the form of an answer, from permutations that are sorted only by chance."""
    model = ByteLM(**settings.model.model_dump())
    parameters = sum(weight.numel() for weight in model.parameters())
    console.print(f"{parameters:,} parameters; {settings.warm_start.steps} supervised steps on shuffled digits")
    _warm_start(model, settings.data, settings.warm_start, rng)
    return model


def _warm_start(model: ByteLM, digits: Digits, settings: WarmStart, rng: random.Random) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.95))
    loss_fn = resolve_loss("token_ce")
    for step in range(settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * (1 - step / settings.steps)
        batch = collate([_shuffled(prompt, rng) for prompt in draw_prompts(rng, digits, settings.batch_size)])
        loss_fn(model(batch["input_ids"]), batch)["loss"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


def _shuffled(prompt: bytes, rng: random.Random) -> Sample:
    number = list(prompt.strip(b" ="))
    rng.shuffle(number)
    return Sample(prompt, bytes(number) + END)


def encode(prompts: Sequence[bytes]) -> Tensor:
    """Return the bytes of prompts of one length, `[batch seq]`."""
    return torch.tensor([list(prompt) for prompt in prompts])


@torch.no_grad()
def complete(model: ByteLM, prompts: Tensor, length: int, temperature: float, generator: torch.Generator) -> Tensor:
    """Return the prompts with `length` bytes sampled after each; a temperature of 0 takes the likeliest."""
    for _ in range(length):
        logits = model(prompts)["logits"][:, -1]
        if temperature == 0:
            chosen = logits.argmax(-1, keepdim=True)
        else:
            chosen = torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)
        prompts = torch.cat((prompts, chosen), dim=1)
    return prompts


def labels_of(input_ids: Tensor, length: int) -> Tensor:
    """Return the last `length` bytes as labels, `[batch length]`: what comes after the first END does not count."""
    completions = input_ids[:, -length:]
    ended = (completions == END[0]).cumsum(1)
    past = ended - (completions == END[0]).to(ended.dtype) > 0
    return completions.masked_fill(past, IGNORED)


def answers(labels: Tensor) -> list[bytes]:
    """Return completions as bytes, END included where there is one."""
    return [bytes(byte for byte in row if byte != IGNORED) for row in labels.tolist()]


def score(model: ByteLM, batch: Batch, temperature: float = 1.0) -> Batch:
    """Return the log-probability of each byte of the completions, and the entropy of what it was drawn from.

    Both are `[batch length]`, and 0 where a label does not count.
    """
    labels = batch["labels"]
    # the logits at position t are for the byte at t + 1: from the last of the prompt to the last but one
    logits = model(batch["input_ids"][:, :-1])["logits"][:, -labels.shape[1] :]
    logps, entropies = logps_and_entropy(logits, labels, temperature=temperature, ignore_index=IGNORED)
    return {"logps": logps, "entropies": entropies}

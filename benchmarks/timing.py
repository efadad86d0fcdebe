"""Times of contenders that take turns, so that what disturbs the machine disturbs all of them."""

from __future__ import annotations

import gc
import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .work import Step

__all__ = ["Rounds", "Samples", "interleave", "one_line"]

_SHORTEST_SAMPLE = 0.02


class Rounds(NamedTuple):
    """How often everyone has a turn.

    Attributes:
        least: No fewer rounds than this.
        enough: As many if there is time.
        longest: Seconds after which no new round begins.
        shortest: Seconds until which short rounds go on, though they are enough.
    """

    least: int = 3
    enough: int = 15
    longest: float = 90.0
    shortest: float = 10.0

    def are_over(self, done: int, seconds: float) -> bool:
        """Return whether no further round is due."""
        return done >= self.least and (seconds > self.longest or (done >= self.enough and seconds > self.shortest))


@dataclass
class Samples:
    """What one step took.

    Attributes:
        seconds: Of one call, one number for each round.
        value: What the last call returned.
        failed: Why there are no more.
    """

    seconds: list[float] = field(default_factory=list)
    value: Tensor | None = None
    failed: str | None = None


def interleave(
    steps: Mapping[str, Step],
    reset: Callable[[], None],
    rounds: Rounds,
    *,
    device: str,
    tick: Callable[[str], None],
    warm_up: bool = True,
) -> dict[str, Samples]:
    """Time steps in turns.

    A short step is called several times for a sample, and each call is timed by itself, so that `reset` stays out of
    it. Each round begins with another contender. One that fails has no further turns.

    Args:
        steps: What to time, by name.
        reset: Run before each call.
        rounds: How often.
        device: Where the steps run; on CUDA their end is waited for.
        tick: Told the name of who is about to run.
        warm_up: Whether every step runs unmeasured first.
    """
    samples = {name: Samples() for name in steps}

    def turn(name: str, calls: int) -> float:
        tick(name)
        return _call(steps[name], calls, samples[name], reset, device)

    calls = {name: 1 if not warm_up or turn(name, 1) > 1 else _enough(turn(name, 1)) for name in steps}
    order = list(steps)
    start = time.perf_counter()
    done = 0
    while not rounds.are_over(done, time.perf_counter() - start):
        done += 1
        gc.collect()
        order = [name for name in order[1:] + order[:1] if samples[name].failed is None]
        for name in order:
            samples[name].seconds.append(turn(name, calls[name]))
    return samples


def _call(step: Step, calls: int, samples: Samples, reset: Callable[[], None], device: str) -> float:
    """Call a step some times, and return the mean of their seconds."""
    total = 0.0
    try:
        for _ in range(calls):
            seconds, samples.value = _timed(step, reset, device)
            total += seconds
    except Exception as error:  # a contender that fails must not end the run
        samples.failed = one_line(error)
    return total / calls


def _enough(seconds: float) -> int:
    """Return how many calls make a sample that is long enough for the clock."""
    return max(1, math.ceil(_SHORTEST_SAMPLE / max(seconds, 1e-6)))


def one_line(error: Exception) -> str:
    """Return an error's kind and the first line of its text."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"


def _timed(step: Step, reset: Callable[[], None], device: str) -> tuple[float, Tensor]:
    reset()
    _wait(device)
    start = time.perf_counter()
    value = step()
    _wait(device)
    return time.perf_counter() - start, value


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)

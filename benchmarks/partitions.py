"""What becomes of a loss when its batch is cut: `python -m benchmarks.partitions`, from the root of the repository.

A batch whose samples count unevenly is dealt out at random to ranks and, on each, to micro-batches; some get nothing.
Each part is divided by the count of the whole, as `tensafe.distributed.count_items` gives it, ranks average their
gradients as DDP does, and the loss and the gradient that come out are compared with those of the whole batch. Beside
it is what most training loops do: the mean of the means of the parts that have anything.
"""

from __future__ import annotations

import argparse
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from tensafe.distributed import count_items
from tensafe.training.losses import get_registered_losses
from tensafe.training.losses.testing.subject import Subject

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor

    from tensafe.training.losses.testing.trial import Trial

__all__ = ["Cut", "Deviation", "Line", "Result", "deviation", "make_trial", "measure", "random_cut", "reductions"]

MAIN = ("token_ce", "dpo", "grpo", "mse")
"""Losses that get all cuts for each reduction; the others share them among theirs."""

_SIZES = {"batch": 10, "seq": 6, "hidden": 8}
_SIGMAS = 4
_NAIVE = 4
"""One of so many cuts is also put to the mean of means."""

Cut = list[list[list[int]]]
"""The samples of each micro-batch of each rank."""


class Result(NamedTuple):
    """A loss, and its gradient by each tensor that is learnt, one after the other."""

    loss: Tensor
    gradient: Tensor


class Deviation(NamedTuple):
    """How far the parts of a batch are from the whole: of the loss with its sign, of the gradient the largest."""

    loss: float
    gradient: float


class Line(NamedTuple):
    """What one loss with one reduction did.

    Attributes:
        loss: Its name.
        reduction: How.
        cuts: How many.
        exact: What came of dividing by the count of the whole, for each batch.
        naive: What came of the mean of means, likewise.
    """

    loss: str
    reduction: str
    cuts: int
    exact: list[list[Deviation]]
    naive: list[list[Deviation]]


def reductions(subject: Subject) -> list[str]:
    """Return the reductions that take a count."""
    return [mode for mode in subject.choices("reduction") or ("mean",) if mode not in {"none", "sum"}]


def make_trial(subject: Subject, reduction: str, seed: int) -> Trial:
    """Return a batch in which samples count unevenly, and one not at all where that can be said."""
    kwargs: dict[str, Any] = {"reduction": reduction} if subject.choices("reduction") else {}
    if reduction == "sequence_sum_norm":
        kwargs["max_length"] = _SIZES["seq"]
    trial = subject.trial(seed=seed, sizes=_SIZES, metrics=False, **kwargs)
    generator = torch.Generator().manual_seed(seed)
    labels, ignored = subject.labels(trial), subject.ignored_label(trial)

    def change(key: str, tensor: Tensor) -> Tensor:
        says = key in labels or (key.endswith("mask") and tensor.dtype is torch.bool)
        if not says or tensor.ndim < 2 or not trial.has_samples(key):
            return tensor
        lengths = torch.randint(0, tensor.shape[1] + 1, (len(tensor), 1), generator=generator)
        lengths[0] = 0
        beyond = torch.arange(tensor.shape[1]) >= lengths
        nothing: Any = ignored if key in labels else False
        return torch.where(beyond.reshape(*beyond.shape, *[1] * (tensor.ndim - 2)), nothing, tensor)

    return trial.changed(change)


def random_cut(samples: int, generator: torch.Generator) -> Cut:
    """Deal samples out to at most 4 ranks with at most 3 micro-batches each; some parts may be empty."""
    ranks, steps = (int(torch.randint(1, most + 1, (), generator=generator)) for most in (4, 3))
    places = torch.randint(0, ranks * steps, (samples,), generator=generator).tolist()
    parts = [[sample for sample, place in enumerate(places) if place == part] for part in range(ranks * steps)]
    return [parts[rank * steps : (rank + 1) * steps] for rank in range(ranks)]


def whole(trial: Trial) -> Result:
    """Return what the batch gives at once."""
    run = trial.run()
    return Result(run.loss, _flat(run.gradients))


def in_parts(trial: Trial, cut: Cut, counts: Mapping[str, Any] | None) -> Result:
    """Return what the cut batch gives, on ranks that average their gradients as DDP does.

    Args:
        trial: The whole batch.
        cut: Its parts.
        counts: Of the whole; None for the mean of the means, over micro-batches that have anything and over all ranks.
    """
    loss = torch.zeros((), dtype=torch.float64)
    gradients = {key: torch.zeros_like(trial.outputs[key]) for key in trial.learnt}
    for rank in cut:
        share = 1.0 / max(sum(map(bool, rank)), 1) if counts is None else float(len(cut))  # gradient_scale
        for samples in rank:
            if counts is None and not samples:
                continue
            index = torch.tensor(samples, dtype=torch.int64)
            run = trial.rows(index).run(**(counts or {}))
            loss += run.loss * share
            for key, gradient in run.gradients.items():
                where: Any = index if trial.has_samples(key) else ...
                gradients[key][where] += gradient * share
    return Result(loss / len(cut), _flat(gradients) / len(cut))


def _flat(gradients: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([gradient.reshape(-1) for gradient in gradients.values()])


def count_of(trial: Trial, cut: Cut) -> dict[str, Any]:
    """Return the counts of the whole: what each rank counts, added up as an all-reduce does."""
    parts = [trial.rows(torch.tensor(samples, dtype=torch.int64)) for rank in cut for samples in rank]
    sizes = iter([_known_sizes(part) for part in parts])
    return count_items(trial.loss, [part.batch for part in parts], sizes=lambda _: next(sizes))


def _known_sizes(part: Trial) -> dict[str, Any]:
    """Return the sizes of axes that a training loop knows, though no tensor of the batch may tell."""
    sizes: dict[str, Any] = {}
    for key, tensor in part.tensors.items():
        for axis, dim in enumerate(part.specs[key].dims):
            if dim in {"*rows", "*shape", "*pairs", "*samples"}:
                sizes[str(dim)] = tuple(tensor.shape[: tensor.ndim - len(part.specs[key].dims) + 1])
            elif dim in {"batch", "k", "seq"} and not str(part.specs[key].dims[0]).startswith("*"):
                sizes[str(dim)] = tensor.shape[axis]
    return sizes


def deviation(expected: Result, found: Result) -> Deviation:
    """Return how far a result is from another."""
    difference = (found.gradient - expected.gradient).abs()
    return Deviation(float(found.loss - expected.loss), float(difference.max()) if difference.numel() else 0.0)


def measure(name: str, reduction: str, cuts: int, *, per_batch: int = 10) -> Line:
    """Cut batches of a loss at random.

    Args:
        name: The loss.
        reduction: How it is reduced.
        cuts: How often.
        per_batch: How many cuts of one batch, before the next one is drawn.
    """
    subject = Subject(name)
    line = Line(name, reduction, cuts, [], [])
    generator = torch.Generator().manual_seed(0)
    for first in range(0, cuts, per_batch):
        trial = make_trial(subject, reduction, first)
        expected = whole(trial)
        drawn = [random_cut(_SIZES["batch"], generator) for _ in range(min(per_batch, cuts - first))]
        counts = count_of(trial, drawn[0])
        line.exact.append([deviation(expected, in_parts(trial, cut, counts)) for cut in drawn])
        line.naive.append([deviation(expected, in_parts(trial, cut, None)) for cut in drawn[::_NAIVE]])
    return line


def sign(batches: Sequence[Sequence[Deviation]]) -> str:
    """Return which way the loss is off on average: + or -, or 0 where that is no more than chance would give.

    The cuts of one batch share the rounding of its whole, so each batch has one vote.
    """
    means = [math.fsum(each.loss for each in batch) for batch in batches]
    up, down = (sum(side * mean > 0 for mean in means) for side in (1, -1))
    return "0" if abs(up - down) <= _SIGMAS * math.sqrt(up + down) else "+" if up > down else "-"


def shown(line: Line) -> str:
    """Return a row of the table."""
    cells = [f"`{line.loss}`", line.reduction, f"{line.cuts}"]
    for batches in (line.exact, line.naive):
        found = [each for batch in batches for each in batch]
        cells += [
            f"{max(abs(each.loss) for each in found):.1e}",
            f"{max(each.gradient for each in found):.1e}",
            f"{math.fsum(each.loss for each in found) / len(found):+.0e} ({sign(batches)})",
        ]
    return f"| {' | '.join(cells)} |"


HEAD = """\
| loss | reduction | cuts | loss off by | gradient | on average (sign) | naive: loss | gradient | on average (sign) |
|---|---|---|---|---|---|---|---|---|"""


def claimants() -> Iterator[str]:
    """Yield the losses that claim independent samples."""
    for name, loss in sorted(get_registered_losses().items()):
        traits = getattr(loss, "_traits", None)
        if traits is not None and traits.sample_independent:
            yield name


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("losses", nargs="*", help="registered losses; all that claim independent samples by default")
    parser.add_argument("--cuts", type=int, default=1000, help="random cuts of each loss")
    parser.add_argument("--quick", action="store_true", help="few cuts of the main losses")
    given = parser.parse_args(arguments)
    names = given.losses or (MAIN if given.quick else list(claimants()))
    print(HEAD)
    for name in names:
        modes = reductions(Subject(name))
        each = 8 if given.quick else given.cuts if name in MAIN else math.ceil(given.cuts / len(modes))
        for mode in modes:
            print(shown(measure(name, mode, each)), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()

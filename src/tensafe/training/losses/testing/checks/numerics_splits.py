"""What a batch is to its parts: to samples that depend on nothing but themselves, and to micro-batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from tensafe.training.losses.errors import TensafeError
from tensafe.training.losses.nested import innermost
from tensafe.training.losses.testing.aids.comparing import change_of, shown
from tensafe.training.losses.testing.aids.coupling import coupled_sample, has_reduction
from tensafe.training.losses.testing.catalogue import conformance_check
from tensafe.training.losses.testing.outcome import NotApplicable, fail, skip
from tensafe.training.losses.testing.subject import SIZES
from tensafe.training.losses.testing.trial import Run

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

    from tensafe.training.losses.testing.subject import Subject
    from tensafe.training.losses.testing.trial import Trial

_COUNT = 7
_SPLITS = 100
_MOST_SIGMAS = 5


@conformance_check(
    "numerics",
    "It claims Traits(sample_independent=True), and what one sample adds depends on another: on a statistic of the "
    "batch, on negatives from it, or on a sort. Compute it from the sample alone, or drop the claim.",
)
def check_sample_independence(subject: Subject) -> None:
    """What a sample adds to the gradient does not depend on the others, if the loss claims so; else it does."""
    claimed = subject.traits.sample_independent
    if claimed is None:
        skip("it does not say whether its samples are independent")
    if subject.trial().batch_size < 2:
        skip("its batches have less than two samples")
    coupled = coupled_sample(subject)
    if claimed and coupled is not None:
        kept, key, trial = coupled
        fail(f"the gradient of {key}[{kept}] changes when the other samples do", trial=trial)
    if not claimed and coupled is None:
        fail(
            "it claims Traits(sample_independent=False), yet no sample changes when the others do",
            "Claim that its samples are independent, or let the samples show how they are not.",
        )


@conformance_check(
    "numerics",
    "Micro-batches do not add up to the batch. Divide the sum of the values by num_items_in_batch and by nothing else "
    "(not by the tokens of the micro-batch, not by sequence first), and add nothing once per call. A loss that cannot "
    "do so must not take num_items_in_batch.",
)
def check_microbatch_equivalence(subject: Subject) -> None:
    """The parts of a batch, each divided by the count of the whole, add up to it: values and gradients."""
    if subject.trial().batch_size < 2:
        skip("its batches have less than two samples")
    if subject.traits.sample_independent is False or coupled_sample(subject) is not None:
        skip("its samples are coupled, so the parts of a batch are another loss")
    modes = [(kwargs, count) for kwargs, count in _modes(subject) if _takes(subject, kwargs, count)]
    if not modes:
        skip("it takes no num_items_in_batch")
    for kwargs, count in modes:
        _check_parts(subject, kwargs, count)
    _check_bias(subject, *modes[0])


def _modes(subject: Subject) -> Iterator[tuple[dict[str, Any], str | None]]:
    """Yield kwargs that choose a reduction, with the count that it may be told."""
    choices = subject.choices("reduction")
    for mode in choices:
        kwargs = {"reduction": mode, **({"max_length": SIZES["seq"]} if mode == "sequence_sum_norm" else {})}
        if mode != "none":
            yield kwargs, _count_of(mode)
    if not choices:
        yield {}, "num_items_in_batch"
        if has_reduction(subject):
            yield {"reduction": "sum"}, None


def _count_of(mode: str) -> str | None:
    if mode == "sum":
        return None
    return "num_sequences_in_batch" if mode.startswith("sequence_") else "num_items_in_batch"


def _takes(subject: Subject, kwargs: Mapping[str, Any], count: str | None) -> bool:
    """Whether the loss takes a count; it may refuse one, with an error that says so."""
    try:
        trial = subject.trial(**kwargs)
        trial.call(**_told(trial, count))
    except (TensafeError, NotApplicable):
        return False
    return True


def _check_parts(subject: Subject, kwargs: Mapping[str, Any], count: str | None) -> None:
    trial = _uneven(subject, subject.trial(**kwargs))
    whole = _run(trial, _told(trial, count))
    rows = torch.arange(trial.batch_size)
    for first in (rows == 0, rows % 2 == 1):
        added = _added(trial, (rows[first], rows[~first]), _told(trial, count))
        change = change_of(whole, added, rtol=1e-9, atol=1e-12)
        if change is not None:
            fail(f"the sum over two parts of the batch changes {change}{_with(kwargs, count)}", trial=trial)
    if count is not None:
        half = _run(trial, _told(trial, count, 2 * _COUNT))
        if not torch.allclose(2 * half.loss, whole.loss, rtol=1e-9, atol=1e-12):
            told = f"from {shown(whole.loss)} to {shown(half.loss)} instead of half of it"
            fail(f"twice the {count} changes the loss {told}{_with(kwargs, None)}", trial=trial)


def _uneven(subject: Subject, trial: Trial) -> Trial:
    """Return the call with less that counts in the first sample, so that not all weigh the same."""
    ignored = subject.ignored_label(trial)

    def change(key: str, tensor: Tensor) -> Tensor:
        if tensor.ndim < 2 or not (key in subject.labels(trial) or key.endswith("mask")):
            return tensor
        tensor = tensor.clone()
        tensor[0, -2:] = ignored if key in subject.labels(trial) else 0  # type: ignore[assignment]
        return tensor

    return trial.changed(change)


def _run(trial: Trial, counts: Mapping[str, Any]) -> Run:
    run = trial.run(**counts)
    return run._replace(result={"loss": run.result["loss"].detach()})


def _added(trial: Trial, parts: tuple[Tensor, ...], counts: Mapping[str, Any]) -> Run:
    """Return the sum of the losses of parts, and of their gradients, each at its place."""
    total = torch.zeros(())
    gradients = {key: torch.zeros_like(trial.outputs[key]) for key in trial.learnt}
    for part in parts:
        run = _run(trial.rows(part), counts)
        total = total + run.loss
        for key, gradient in run.gradients.items():
            if trial.has_samples(key):
                gradients[key][part] += gradient
            else:
                gradients[key] += gradient
    return Run({"loss": total}, gradients)


def _check_bias(subject: Subject, kwargs: Mapping[str, Any], count: str | None) -> None:
    """In float32 sums are rounded, up as often as down; otherwise an error grows with the number of parts."""
    signs = unequal = 0
    kwargs = {**kwargs, **({"metrics": False} if subject.loss_class is not None else {})}  # they only take time
    generator = torch.Generator().manual_seed(0)
    for trial in _groups(subject, kwargs):
        counts = _told(trial, count)
        order = torch.randperm(trial.batch_size, generator=generator)
        cut = int(torch.randint(1, trial.batch_size, (), generator=generator))
        parts = sum(trial.rows(part).call(**counts)["loss"].detach().double() for part in (order[:cut], order[cut:]))
        residual = parts - trial.call(**counts)["loss"].detach().double()
        signs += int(residual.sum().sign())
        unequal += int(residual.sum() != 0)
    if abs(signs) > _MOST_SIGMAS * unequal**0.5:
        side = "more" if signs > 0 else "less"
        told = f"of {_SPLITS} random splits, {(unequal + abs(signs)) // 2} add up to {side} than the whole"
        fail(f"{told}, {(unequal - abs(signs)) // 2} to the opposite{_with(kwargs, count)}")


def _groups(subject: Subject, kwargs: Mapping[str, Any]) -> Iterator[Trial]:
    """Yield as many batches as there are splits: of one large one, where there can be one."""
    if subject.info.sample_inputs is not None:
        for seed in range(_SPLITS):
            yield subject.trial("float32", seed=seed, **kwargs)
        return
    size = SIZES["batch"]
    large = subject.trial("float32", sizes={"batch": size * _SPLITS}, **kwargs)
    for start in range(0, large.batch_size, size):
        yield large.rows(slice(start, start + size))


def _told(trial: Trial, count: str | None, number: int = _COUNT) -> dict[str, Any]:
    """Return the count as the loss takes it: one with several losses inside takes it for each."""
    parts = len(list(innermost(trial.loss)))
    return {} if count is None else {count: number if parts == 1 else [number] * parts}


def _with(kwargs: Mapping[str, Any], count: str | None) -> str:
    given = {**kwargs, **({} if count is None else {count: _COUNT})}
    told = [f"{name}={value}" for name, value in given.items()]
    return f" ({', '.join(told)})" if told else ""

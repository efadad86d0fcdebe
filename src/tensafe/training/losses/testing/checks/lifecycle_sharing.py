"""A loss that threads share, and what it keeps of a call."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from tensafe.training.losses.errors import TensafeError
from tensafe.training.losses.testing.aids.comparing import agree
from tensafe.training.losses.testing.catalogue import conformance_check
from tensafe.training.losses.testing.outcome import fail, skip

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tensafe.training.losses.testing.subject import Subject
    from tensafe.training.losses.testing.trial import Trial

_THREADS = 8
_CALLS = 3
"""Of each thread; they begin one call apart, so that together they make every one several times."""

_MOST_OVERRIDES = 2


class _Yielding(TorchFunctionMode):
    """Let another thread go on at each operation, where they would seldom take turns."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        time.sleep(0)
        return func(*args, **(kwargs or {}))


@conformance_check(
    "lifecycle",
    "A call must leave nothing where another call reads it: keep what belongs to a call in local variables, not in "
    "attributes, globals, mutable defaults or torch's settings.",
)
def check_thread_safety(subject: Subject) -> None:
    """Eight threads that call it on two batches with mixed overrides get what one thread gets."""
    trials = [subject.trial("float64", seed=seed) for seed in (0, 1)]
    trials = [trial._replace(loss=trials[0].loss) for trial in trials]
    calls = [(trial, overrides) for overrides in _overrides(trials[0]) for trial in trials]
    expected = [_numbers(trial, overrides) for trial, overrides in calls]
    wrong: list[str] = []
    barrier = threading.Barrier(_THREADS)

    def work(first: int) -> None:
        barrier.wait()
        with _Yielding():
            for step in range(_CALLS):
                index = (first + step) % len(calls)
                wrong.extend(_wrong(*calls[index], expected[index]))

    threads = [threading.Thread(target=work, args=(index,)) for index in range(_THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if wrong:
        fail(f"called by {_THREADS} threads at once: {wrong[0]}", trial=trials[0])


@conformance_check(
    "lifecycle",
    "Something holds what the model has computed: an attribute, a global, a cache, a closure, or a list or dict in "
    "auxiliary. Whatever outlives the call must be .detach()ed, and small.",
)
def check_graph_released(subject: Subject) -> None:
    """Whoever keeps the metrics and the auxiliary of a call does not keep the model's outputs, or their graph."""
    trial = subject.trial("float64")
    if not trial.learnt:
        skip("no tensor of its sample is learnt")
    for learn in (False, True):
        computed: dict[str, Tensor] = {key: _node.apply(leaf) for key, leaf in trial.leaves().items()}
        alive = {key: (weakref.ref(tensor), weakref.ref(tensor.grad_fn)) for key, tensor in computed.items()}
        kept = _kept_of(trial, computed, learn=learn)
        del computed
        held = _held(alive)
        if held:
            told = ", ".join(held)
            fail(f"with only {_names(kept)} kept, {told} of the call {'is' if len(held) == 1 else 'are'} still alive")


class _Node(torch.autograd.Function):
    """The identity; its node in the graph is a Python object, which lives as long as the graph."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return tensor.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients


_node: Any = _Node


def _wrong(trial: Trial, overrides: Mapping[str, Any], expected: Tensor) -> Iterator[str]:
    """Yield what is wrong with a call, if anything is."""
    try:
        found = _numbers(trial, overrides)
    except Exception as error:
        yield f"it raises {type(error).__name__}: {error}"
        return
    if not agree(found, expected, rtol=1e-9, atol=1e-12):
        yield f"a call with {dict(overrides) or 'no overrides'} gave another result"


def _overrides(trial: Trial) -> Iterator[dict[str, Any]]:
    """Yield overrides that the loss takes: none at first, then other values of its kwargs."""
    yield {}
    found = 0
    for name, value in trial.loss.kwargs.items():
        for other in _others(value):
            try:
                trial.call(**{name: other})
            except TensafeError:
                continue
            yield {name: other}
            found += 1
            if found == _MOST_OVERRIDES:
                return


def _others(value: Any) -> tuple[Any, ...]:
    if isinstance(value, bool):
        return (not value,)
    if value == "mean":
        return ("sum",)
    return (value / 2, value + 0.25) if isinstance(value, float) else ()


def _numbers(trial: Trial, overrides: Mapping[str, Any]) -> Tensor:
    """Return the loss and the metrics of a call."""
    result = trial.call(**overrides)
    numbers = [float(result["loss"].sum()), *map(float, result.get("metrics", {}).values())]
    return torch.tensor(numbers, dtype=torch.float64)


def _kept_of(trial: Trial, computed: Mapping[str, Tensor], *, learn: bool) -> dict[str, Any]:
    """Call the loss on what was computed, and return what a logger would keep."""
    result: dict[str, Any] = {**trial.loss({**trial.outputs, **computed}, dict(trial.batch))}
    loss = result.pop("loss")
    if learn and loss.requires_grad:
        torch.autograd.backward(loss.sum())
    return result


def _held(alive: Mapping[str, tuple[weakref.ref[Any], ...]]) -> list[str]:
    held = [key for key, refs in alive.items() if any(ref() is not None for ref in refs)]
    if not held:
        return []
    gc.collect()  # a cycle may hold it until the next collection
    return [key for key, refs in alive.items() if any(ref() is not None for ref in refs)]


def _names(kept: Mapping[str, Any]) -> str:
    return " and ".join(kept) or "nothing"

"""The same call again, and the same numbers laid out in memory otherwise."""

from __future__ import annotations

import pickle
import random
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from tensafe.training.losses.testing.aids.comparing import change_of
from tensafe.training.losses.testing.catalogue import conformance_check
from tensafe.training.losses.testing.outcome import fail

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable

    from torch import Tensor

    from tensafe.training.losses.testing.subject import Subject
    from tensafe.training.losses.testing.trial import Run, Trial


@conformance_check(
    "numerics",
    "The same call must give the same bits. Draw random numbers from a torch.Generator of your own with a fixed seed, "
    "or take them from the batch; never seed or use the global generator, and keep nothing from one call for the next.",
)
def check_bitwise_repeatable(subject: Subject) -> None:
    """Two calls give the same bits, with deterministic algorithms too, and draw no global random numbers."""
    trial = subject.trial("float32")
    torch.rand(())  # from here on, to seed it anew shows
    state = _random_state()
    first = trial.run()
    if state != _random_state():
        fail("it draws from, or seeds, the global random numbers", trial=trial)
    change = change_of(first, trial.run(), rtol=0, atol=0)
    if change is not None:
        fail(f"to call it again changes {change}", trial=trial)
    with _deterministic():
        again = trial.run()
    change = change_of(first, again)
    if change is not None:
        fail(f"deterministic algorithms change {change}: it reads memory that it has not written", trial=trial)


def _random_state() -> tuple[object, ...]:
    """Return the state of every global generator."""
    numpy = sys.modules.get("numpy")
    return bytes(torch.get_rng_state()), random.getstate(), numpy and pickle.dumps(numpy.random.get_state())


@contextmanager
def _deterministic() -> Generator[None]:
    """Use deterministic algorithms, which also fill new memory with NaN."""
    was, warned = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was, warn_only=warned)


@conformance_check(
    "numerics",
    "Tensors may be slices, transposed or expanded. Use .reshape() instead of .view(), and no in-place or "
    "pointer-level code that takes memory to be contiguous.",
)
def check_noncontiguous_and_expanded_inputs(subject: Subject) -> None:
    """Tensors that are strided, transposed or expanded give what their contiguous copies give."""
    trial = subject.trial()
    expected = trial.run()
    for told, lay in (("every other element of a larger tensor", _strided), ("transposed", _transposed)):
        change = change_of(expected, _laid_out(trial, trial.tensors, lay))
        if change is not None:
            shown = trial.replaced(**{key: lay(tensor) for key, tensor in trial.tensors.items()})
            fail(f"tensors that are {told} change {change}", trial=shown)
    for key, tensor in trial.tensors.items():
        if not tensor.ndim or not len(tensor):
            continue
        change = change_of(_laid_out(trial, [key], _copied), _laid_out(trial, [key], _expanded))
        if change is not None:
            told = f"to expand one row of {key!r}, rather than to copy it, changes {change}"
            fail(told, trial=trial.replaced(**{key: _expanded(tensor)}))


def _laid_out(trial: Trial, keys: Iterable[str], lay: Callable[[Tensor], Tensor]) -> Run:
    """Call the loss on tensors that are laid out otherwise, and differentiate by them."""
    leaves = trial.leaves()
    made = {key: lay(leaves.get(key, trial.tensors[key])) for key in keys}
    return trial.replaced(**made).run_on({key: made.get(key, leaf) for key, leaf in leaves.items()})


def _strided(tensor: Tensor) -> Tensor:
    return torch.stack([tensor, tensor], -1)[..., 0]


def _transposed(tensor: Tensor) -> Tensor:
    return tensor.mT.contiguous().mT if tensor.ndim > 1 else tensor


def _expanded(tensor: Tensor) -> Tensor:
    return tensor[:1].expand_as(tensor)


def _copied(tensor: Tensor) -> Tensor:
    return _expanded(tensor).contiguous()

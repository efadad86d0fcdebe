"""Rows that hold several sequences: what they are to the same sequences in rows of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from tensafe.training.losses.errors import TensafeError
from tensafe.training.losses.testing.aids.comparing import change_of
from tensafe.training.losses.testing.catalogue import conformance_check
from tensafe.training.losses.testing.outcome import fail, skip

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from tensafe.training.losses.testing.subject import Subject
    from tensafe.training.losses.testing.trial import Run, Trial

_SEQUENCES = 2
_LENGTH = 3
_IDS = [5] * _LENGTH + [2] * _LENGTH


@conformance_check(
    "numerics",
    "It takes segment_ids, and a row of several sequences is not what they are in rows of their own. Ignore a label "
    "where the next position is of another sequence, sum over sequences instead of rows, and return "
    "Elements(..., segment_ids=segment_ids).",
)
def check_packed_rows(subject: Subject) -> None:
    """Sequences that are packed into one row give what they give in rows of their own, with every reduction."""
    keys = [key for key, spec in subject.declared().items() if spec.name == "segment_ids"]
    if not keys:
        skip("takes no segment_ids")
    for told, apart in _apart(subject):
        packed = _packed(apart, keys)
        before, after = packed.run(), _packed_run(apart, packed)
        change = change_of(after, before)
        if change is not None:
            fail(f"to pack two sequences into each row changes {change}{told}", trial=packed)


def _apart(subject: Subject) -> Iterator[tuple[str, Trial]]:
    """Yield calls with each sequence in a row of its own, one for each reduction."""
    sizes = {"batch": 2 * _SEQUENCES, "seq": _LENGTH}
    for mode in subject.choices("reduction") or (None,):
        kwargs: dict[str, Any] = {} if mode is None else {"reduction": mode}
        kwargs |= {"max_length": _LENGTH} if mode == "sequence_sum_norm" else {}
        try:
            subject.resolve(**kwargs)
        except TensafeError:  # it needs another kwarg
            continue
        yield "" if mode is None else f", with reduction {mode}", subject.trial(sizes=sizes, **kwargs)


def _packed(apart: Trial, keys: list[str]) -> Trial:
    """Return the same call with rows of two sequences."""
    packed = apart.changed(lambda key, tensor: _two_in_one(tensor) if _by_position(apart, key) else tensor)
    rows = apart.batch_size // _SEQUENCES
    return packed._replace(batch={**packed.batch, **{key: torch.tensor([_IDS] * rows) for key in keys}})


def _by_position(apart: Trial, key: str) -> bool:
    return apart.has_samples(key) and apart.tensors[key].shape[1:2] == (_LENGTH,)


def _two_in_one(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1, _SEQUENCES * _LENGTH, *tensor.shape[2:])


def _packed_run(apart: Trial, packed: Trial) -> Run:
    """Return what the sequences give apart, in the shapes of the packed rows."""
    run = apart.run()
    gradients = {key: gradient.reshape(packed.outputs[key].shape) for key, gradient in run.gradients.items()}
    loss = run.result["loss"]
    return run._replace(result={**run.result, "loss": _two_in_one(loss) if loss.ndim else loss}, gradients=gradients)

"""Losses that are particular about dicts, or that take lists for something else than tensors."""

from typing import Any

import torch
import torch.nn.functional as F

from tensafe.training.losses import LossInputError, LossReturn
from zoo.healthy import careful_ce
from zoo.mutant import Mutant


def only_dicts(outputs: Any, batch: Any) -> LossReturn:
    """Loss of `logits` and `labels`, for outputs and batches that are dicts."""
    for name, side in (("outputs", outputs), ("batch", batch)):
        if not isinstance(side, dict):
            raise LossInputError(f"{name} must be a dict; got {type(side).__name__}.")
    return careful_ce(outputs, batch)


def lists_are_aligned(outputs: Any, batch: Any) -> LossReturn:
    """Loss of `logits` and `labels`; labels in a list are taken for those of the next token already."""
    labels = batch.get("labels")
    if isinstance(labels, list):
        batch = {**batch, "labels": F.pad(torch.tensor(labels), (1, 0), value=-100)[:, :-1]}
    return careful_ce(outputs, batch)


MUTANTS = [
    Mutant("only_dicts", only_dicts, frozenset({"check_accepts_mapping_attribute_and_dataclass_outputs"})),
    Mutant("lists_are_aligned", lists_are_aligned, frozenset({"check_accepts_python_lists"})),
]

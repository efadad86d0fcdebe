"""Losses whose docstrings leave out what a user has to know, or are wrong."""

from typing import Any

from pydantic import Field

from tensafe.training.losses import LossReturn
from zoo.healthy import CarefulCE, careful_ce
from zoo.mutant import Mutant


def undocumented(outputs: Any, batch: Any) -> LossReturn:
    return careful_ce(outputs, batch)


def silent_on_a_kwarg(outputs: Any, batch: Any, scale: float = 1.0) -> LossReturn:
    """Loss of `logits` and `labels`, times a scale."""
    return {"loss": scale * careful_ce(outputs, batch)["loss"]}


def silent_on_a_key(outputs: Any, batch: Any) -> LossReturn:
    """Cross-entropy of `logits`.

    Args:
        outputs: Has `logits`.
        batch: A batch.
    """
    return careful_ce(outputs, batch)


def wrong_example(outputs: Any, batch: Any) -> LossReturn:
    """Cross-entropy of `logits` and `labels`.

    Example:
        >>> import torch
        >>> from zoo.healthy import careful_ce
        >>> result = careful_ce({"logits": torch.zeros(1, 2, 4)}, {"labels": torch.tensor([[0, 3]])})
        >>> round(result["loss"].item(), 4)
        2.0
    """
    return careful_ce(outputs, batch)


class FieldWithoutDescription(CarefulCE):
    """Cross-entropy with a scale of which only the default is told."""

    scale: float = Field(default=1.0, gt=0)


DOCSTRING = frozenset({"check_docstring"})

MUTANTS = [
    Mutant("undocumented", undocumented, DOCSTRING | {"check_resolves_to_callable"}),
    Mutant("silent_on_a_kwarg", silent_on_a_kwarg, DOCSTRING),
    Mutant("silent_on_a_key", silent_on_a_key, DOCSTRING),
    Mutant("wrong_example", wrong_example, DOCSTRING),
    Mutant("field_without_description", FieldWithoutDescription, DOCSTRING),
]

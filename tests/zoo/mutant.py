"""What the zoo keeps: losses that are broken on purpose, each in one way."""

from typing import Any, NamedTuple

from tensafe.training.losses.testing import LossInfo


class Mutant(NamedTuple):
    """A loss with one mistake that people make."""

    name: str
    loss: Any
    killed_by: frozenset[str]
    """Every check that notices, and no other does."""
    info: LossInfo | None = None

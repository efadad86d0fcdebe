"""Losses whose kwargs stick, or may be anything."""

from typing import Any

from pydantic import ConfigDict

from tensafe.training.losses import LossReturn
from zoo.alike import Smoothing, told_alike
from zoo.healthy import CarefulCE, careful_ce
from zoo.mutant import Mutant


class Sticky:
    """Loss of `logits` and `labels`, which takes what one call says for its own.

    Args:
        outputs: `logits`, float `[batch seq vocab]`.
        batch: `labels`, integers `[batch seq]`.
        label_smoothing: In [0, 1], default None: what it was set to last.
    """

    def __init__(self) -> None:
        self._smoothing = 0.0

    def __call__(self, outputs: Any, batch: Any, *, label_smoothing: Smoothing | None = None) -> LossReturn:
        """Keep the smoothing."""
        if label_smoothing is not None:
            self._smoothing = label_smoothing
        return careful_ce(outputs, batch, label_smoothing=self._smoothing)


class AnyKwargs(CarefulCE):
    """Cross-entropy that takes kwargs of other losses too, and ignores them."""

    model_config = ConfigDict(extra="ignore")


class Converting(CarefulCE):
    """Cross-entropy that makes numbers of strings and bools."""

    model_config = ConfigDict(strict=False)


@told_alike
def unannotated(outputs: Any, batch: Any, label_smoothing=0.0) -> LossReturn:  # type: ignore[no-untyped-def]  # the mistake
    """Cross-entropy with a smoothing that may be anything."""
    return careful_ce(outputs, batch, label_smoothing=label_smoothing)


MUTANTS = [
    Mutant("sticky", Sticky(), frozenset({"check_default_kwargs_then_override"})),
    Mutant("any_kwargs", AnyKwargs, frozenset({"check_unknown_kwarg_rejected"})),
    Mutant("converting", Converting, frozenset({"check_kwarg_types_and_ranges"})),
    Mutant("unannotated", unannotated, frozenset({"check_kwarg_types_and_ranges"})),
]

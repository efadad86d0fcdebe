"""Is this a good loss? Checks that any loss should pass, and hypothesis strategies for what a loss is called with.

from tensafe.training.losses.testing import assert_loss_conforms, parametrize_with_loss_checks

@parametrize_with_loss_checks(["my_loss", "my_package.losses:other"])
def test_conforms(loss, check):
    check(loss)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tensafe.training.losses.traits import Traits

from .catalogue import GROUPS, Check, all_checks, select_checks
from .info import LossInfo
from .outcome import CheckFailedError, CheckResult, ConformanceError
from .runner import (
    assert_loss_conforms,
    describe_failure,
    loss_checks_generator,
    parametrize_with_loss_checks,
    verdict,
)

if TYPE_CHECKING:  # they need hypothesis, which whoever only runs checks can do without
    from .strategies import invalid_loss_kwargs, loss_inputs, loss_kwargs, training_configs

__all__ = [
    "GROUPS",
    "Check",
    "CheckFailedError",
    "CheckResult",
    "ConformanceError",
    "LossInfo",
    "Traits",
    "all_checks",
    "assert_loss_conforms",
    "describe_failure",
    "invalid_loss_kwargs",
    "loss_checks_generator",
    "loss_inputs",
    "loss_kwargs",
    "parametrize_with_loss_checks",
    "select_checks",
    "training_configs",
    "verdict",
]

_STRATEGIES = {"invalid_loss_kwargs", "loss_inputs", "loss_kwargs", "training_configs"}


def __getattr__(name: str) -> Any:
    """Import the strategies when one is asked for."""
    if name not in _STRATEGIES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import strategies

    return getattr(strategies, name)

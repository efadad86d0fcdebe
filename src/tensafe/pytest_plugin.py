"""The pytest plugin: a fixture that checks a loss.

pytest imports this in every session of an environment that has tensafe, so it imports nothing but pytest until it is
asked to check something.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import pytest

if TYPE_CHECKING:
    from tensafe.training.losses.testing import CheckResult

__all__ = ["LossConformance", "loss_conformance"]


class LossConformance(Protocol):
    """Type of the fixture, for annotations."""

    def __call__(self, loss: Any, **options: Any) -> list[CheckResult]:
        """Check a loss; the options are those of `assert_loss_conforms`."""
        ...


@pytest.fixture
def loss_conformance() -> LossConformance:
    """Return a function that checks a loss, as in `loss_conformance("my_loss", groups=["core"])`."""
    from tensafe.training.losses.testing import assert_loss_conforms

    def check(loss: Any, **options: Any) -> list[CheckResult]:
        return assert_loss_conforms(loss, **{"on_skip": None, **options})

    return check

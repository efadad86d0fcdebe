"""Where peers are installed: a table of how far apart the losses are, with the versions that were compared."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

_rows: list[tuple[str, list[float], str]] = []


@pytest.fixture(autouse=True)
def _differences(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, object], None]
) -> Any:
    """Note the largest difference of each comparison: the first is that of the values, the others of gradients."""
    found: list[float] = []
    real = torch.testing.assert_close

    def note(left: Any, right: Any) -> None:
        if isinstance(left, tuple | list):
            for pair in zip(left, right, strict=True):
                note(*pair)
        elif isinstance(left, Tensor) and isinstance(right, Tensor) and left.shape == right.shape and left.numel():
            found.append(float((left.detach().double() - right.detach().double()).abs().max()))

    def noting(left: Any, right: Any, **rest: Any) -> None:
        note(left, right)
        real(left, right, **rest)

    monkeypatch.setattr(torch.testing, "assert_close", noting)
    yield
    record_property("differences", found)
    peers = ", ".join(f"{name} {value}" for name, value in request.node.user_properties if name != "differences")
    if found:
        _rows.append((request.node.name, found, peers))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if _rows:
        terminalreporter.section("largest differences from peers: of values, of gradients")
        for name, (value, *gradients), peers in _rows:
            slopes = f"{max(gradients):.1e}" if gradients else "-"
            terminalreporter.write_line(f"{value:8.1e} {slopes:>8}  {name}  ({peers})")

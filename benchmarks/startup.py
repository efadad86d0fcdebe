"""What starting costs: whole processes, less an interpreter that does nothing."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import TYPE_CHECKING

from .results import Figures, Result, spread_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .rows import Row
    from .timing import Rounds

__all__ = ["measure"]

_COMMANDS: Mapping[str, list[str]] = {
    "validate": ["-m", "tensafe", "validate", "configs/train_sft.yaml"],
    "import": ["-c", "import tensafe"],
}
_IMPORT_TORCH = ["-c", "import torch"]
_NOTHING = ["-c", "pass"]


def measure(row: Row, rounds: Rounds, *, tick: Callable[[str], None]) -> Result:
    """Time a command and `import torch` in turns.

    Args:
        row: The row of the table; `work` names the command.
        rounds: How often.
        tick: Told what is being done.
    """
    ours: list[float] = []
    base: list[float] = []
    _seconds_of(_COMMANDS[row.work])  # the first one may write byte code
    for _ in range(min(rounds.enough, 9)):
        tick("tensafe")
        nothing = _seconds_of(_NOTHING)
        ours.append(_seconds_of(_COMMANDS[row.work]) - nothing)
        tick(row.base)
        base.append(_seconds_of(_IMPORT_TORCH) - nothing)
    ratios = [mine / theirs for mine, theirs in zip(ours, base, strict=True)]
    ones = [1.0] * len(base)
    contenders = [
        Figures("tensafe", spread_of(ours), spread_of(ratios)),
        Figures(row.base, spread_of(base), spread_of(ones)),
    ]
    return Result(row.name, "a process, less an empty one", contenders=contenders)


def _seconds_of(arguments: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    return time.perf_counter() - start

"""What was measured, and whether it meets the targets; written to JSON and read back."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from statistics import quantiles
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .rows import Row

__all__ = ["Figures", "Report", "Result", "Spread", "missed_by", "misses", "spread_of"]


class Spread(NamedTuple):
    """Quartiles."""

    lower: float
    median: float
    upper: float


def spread_of(samples: Sequence[float]) -> Spread:
    """Return the quartiles of samples; of a single one, itself."""
    if len(samples) == 1:
        return Spread(samples[0], samples[0], samples[0])
    return Spread(*quantiles(samples, n=4, method="inclusive"))


@dataclass
class Figures:
    """What one contender of a row showed; None is not measured.

    Attributes:
        contender: Its name.
        seconds: Time of one call.
        time: In units of the base's, round by round.
        floor: In units of the floor's, round by round.
        memory: Peak above the inputs, in the row's unit.
        peak_bytes: The same in bytes.
        error: Largest distance from the float64 reference.
        missed: Faults of six that went unnoticed.
        graphs: Graphs that torch.compile made.
        fullgraph: "yes", or why not.
        failed: Why there are no figures, or not all.
    """

    contender: str
    seconds: Spread | None = None
    time: Spread | None = None
    floor: Spread | None = None
    memory: float | None = None
    peak_bytes: int | None = None
    error: float | None = None
    missed: int | None = None
    graphs: int | None = None
    fullgraph: str | None = None
    failed: str | None = None


@dataclass
class Result:
    """One row, measured.

    Attributes:
        row: Its name.
        detail: Sizes and dtype, for people.
        unit: What memory is counted in.
        contenders: What each showed.
        left_out: Contenders that did not run, and why.
    """

    row: str
    detail: str = ""
    unit: str = ""
    contenders: list[Figures] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)


@dataclass
class Report:
    """One run.

    Attributes:
        machine: Where and when it ran.
        options: How.
        rows: What was measured.
        misses: The targets that were missed.
    """

    machine: dict[str, str | int | float]
    options: dict[str, str | int | bool]
    rows: list[Result]
    misses: list[str]

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Report:
        """Read what `to_json` gave."""
        return cls(data["machine"], data["options"], [_result(row) for row in data["rows"]], data["misses"])


def _result(data: dict[str, Any]) -> Result:
    contenders = [Figures(**{name: _figure(value) for name, value in each.items()}) for each in data["contenders"]]
    return Result(**{**data, "contenders": contenders})


def _figure(value: Any) -> Any:
    return Spread(*value) if isinstance(value, list) else value


def misses(row: Row, result: Result) -> list[str]:
    """Return a sentence for each target that a contender who is held to it missed."""
    by_name = {figures.contender: figures for figures in result.contenders}
    missed: list[str] = []
    for name in row.held:
        if name in result.left_out:
            missed.append(f"{row.name}: {name}: left out: {result.left_out[name]}")
        elif name not in by_name:
            missed.append(f"{row.name}: {name}: was not measured")
        else:
            missed += [f"{row.name}: {name}: {what}" for what in missed_by(by_name[name], row)]
    return missed


def missed_by(figures: Figures, row: Row) -> list[str]:
    """Return the targets of a row that these figures miss; what was not measured misses none."""
    missed = [] if figures.failed is None else [f"failed: {figures.failed}"]
    limits = row.limits
    shown: tuple[tuple[str, float | None, float | None], ...] = (
        ("time", _median(figures.time), limits.time),
        ("time over the floor", _median(figures.floor), limits.floor),
        ("memory", figures.memory, limits.memory),
        ("error", figures.error, limits.error),
        ("seconds", _median(figures.seconds), limits.seconds),
        ("missed faults", figures.missed, limits.missed),
        ("graphs", figures.graphs, limits.graphs),
    )
    for what, value, limit in shown:
        if value is not None and limit is not None and not value <= limit:
            missed.append(f"{what} {value:.3g}, target <= {limit:g}")
    if limits.fullgraph and figures.fullgraph != "yes":
        missed.append(f"torch.compile(fullgraph=True): {figures.fullgraph}")
    return missed


def _median(spread: Spread | None) -> float | None:
    return None if spread is None else spread.median

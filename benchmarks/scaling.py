"""How cost grows: time and peak memory of tensafe and of its base over tokens, vocabulary and sequence length."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

from .machine import describe_machine, to_text
from .memory import measure_peak
from .plot import BASE, OURS
from .results import Spread, spread_of
from .timing import interleave
from .work import WORKS, Setting, build

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

    from .measure import Options

__all__ = ["Curve", "draw", "measure_curves"]


class Point(NamedTuple):
    """One contender at one size."""

    size: int
    seconds: Spread
    peak_bytes: int | None


class Curve(NamedTuple):
    """One axis along which work grows.

    Attributes:
        title: What is measured.
        axis: The label of the horizontal axis.
        work: A name in `WORKS`.
        base: The contender to compare with.
        grows: The size that grows.
        values: Its values.
        fixed: The other sizes.
    """

    title: str
    axis: str
    work: str
    base: str
    grows: str
    values: Sequence[int]
    fixed: Mapping[str, int]


CURVES = (
    Curve(
        "from logits, vocabulary 32,000",
        "tokens N",
        "cross_entropy",
        "F.cross_entropy",
        "rows",
        (64, 256, 1024, 4096),
        {"vocab": 32_000},
    ),
    Curve(
        "from logits, 1,024 tokens",
        "vocabulary V",
        "cross_entropy",
        "F.cross_entropy",
        "vocab",
        (500, 2_000, 8_000, 32_000, 128_000),
        {"rows": 1024},
    ),
    Curve(
        "from hidden states of width 256, vocabulary 32,000",
        "sequence length",
        "linear_cross_entropy",
        "F.linear + F.cross_entropy",
        "rows",
        (128, 512, 2048, 8192),
        {"vocab": 32_000, "hidden": 256},
    ),
)
_TINY = {"rows": (4, 8), "vocab": (20, 40)}

Points = dict[str, list[Point]]


def measure_curves(options: Options, tick: Callable[[str], None]) -> list[tuple[Curve, Points]]:
    """Measure every curve.

    Args:
        options: How.
        tick: Told what is being done.
    """
    return [(curve, _measure_curve(_shrunk(curve) if options.tiny else curve, options, tick)) for curve in CURVES]


def draw(curves: Sequence[tuple[Curve, Points]], options: Options, path: Path) -> None:
    """Draw time above and memory below, one column for each curve, and save the picture."""
    figure, panels = plt.subplots(2, len(curves), figsize=(4.3 * len(curves), 6.6), layout="constrained", sharey="row")
    for column, (curve, points) in enumerate(curves):
        above, below = panels[0][column], panels[1][column]
        above.set_title(curve.title, fontsize=10)
        below.set_xlabel(curve.axis)
        for name, of_one in points.items():
            ours = name == "tensafe"
            style = {"color": OURS if ours else BASE, "marker": "o" if ours else "s", "label": name, "linewidth": 1.8}
            sizes = [point.size for point in of_one]
            above.plot(sizes, [point.seconds.median for point in of_one], **style)
            above.fill_between(
                sizes,
                [point.seconds.lower for point in of_one],
                [point.seconds.upper for point in of_one],
                color=style["color"],
                alpha=0.18,
                linewidth=0,
            )
            measured = [(point.size, point.peak_bytes / 2**20) for point in of_one if point.peak_bytes]
            below.plot([size for size, _ in measured], [mib for _, mib in measured], **style)
        for axes in (above, below):
            _finish(axes, [point.size for point in points["tensafe"]])
    panels[0][0].set_ylabel("seconds, forward + backward")
    panels[1][0].set_ylabel("MiB above the inputs at the peak")
    panels[1][-1].set_title("without the two gradients", fontsize=8)
    figure.suptitle(f"Cross-entropy, float32. {to_text(describe_machine(options.device))}", fontsize=9)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _finish(axes: Axes, sizes: Sequence[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes], fontsize=8)
    axes.grid(color="#e4e4e4", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="upper left")


def _shrunk(curve: Curve) -> Curve:
    fixed = {name: min(size, 16) for name, size in curve.fixed.items()}
    return curve._replace(values=_TINY[curve.grows], fixed=fixed)


def _tell(tick: Callable[[str], None], where: str, name: str) -> None:
    tick(f"{where}: {name}")


def _measure_curve(curve: Curve, options: Options, tick: Callable[[str], None]) -> Points:
    points: Points = {"tensafe": [], curve.base: []}
    for value in curve.values:
        setting = Setting({**curve.fixed, curve.grows: value}, device=options.device)
        where = f"{curve.axis} {value}"
        work = WORKS[curve.work](setting)
        steps = {name: build(work, name) for name in points}
        samples = interleave(steps, work.reset, options.rounds, device=options.device, tick=partial(_tell, tick, where))
        del work, steps
        for name, of_one in points.items():
            failed = samples[name].failed
            if failed is not None:
                raise RuntimeError(f"{name} at {where}: {failed}")
            tick(f"{where}: memory of {name}")
            peak = measure_peak(curve.work, name, setting, options.threads) if options.memory else None
            of_one.append(Point(value, spread_of(samples[name].seconds), peak))
    return points

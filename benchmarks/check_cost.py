"""What checking two tensors and a return adds to a call, and what the check finds.

The loss itself is a constant, so that a call costs what its check costs.
"""

from __future__ import annotations

import timeit
from typing import TYPE_CHECKING, Any

import torch

from .checks import OURS, PEERS, Checked, Outcome, unchecked
from .peers import LeftOut
from .results import Figures, Result, spread_of
from .timing import one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from .rows import Row

__all__ = ["measure"]

_CALLS = 500
_ROUNDS = 15
_CONSTANT = torch.tensor(1.5)


def measure(row: Row, *, peers: bool, tick: Callable[[str], None]) -> Result:
    """Measure the cost and the reach of each check.

    Args:
        row: The row of the table.
        peers: Whether other libraries take part.
        tick: Told what is being done.
    """
    result = Result(row.name, "2 tensors, a constant loss")
    builders = {**OURS, **(PEERS if peers else {})}
    checks = {name: check for name in builders if (check := _entered(name, builders[name], result)) is not None}
    added = _added_seconds(checks, tick)
    for name in checks:
        tick(f"faults found by {name}")
        ratios = [ours / base for ours, base in zip(added[name], added[row.base], strict=True)]
        figures = Figures(name, spread_of(added[name]), spread_of(ratios))
        figures.missed = _missed(builders[name])
        figures.fullgraph = _under_fullgraph(builders[name])
        result.contenders.append(figures)
    return result


def _entered(name: str, builder: Callable[[Outcome], Checked], result: Result) -> Checked | None:
    """Return a check that accepts good tensors."""
    try:
        check = builder(_constant)
        check(*_good())
    except LeftOut as reason:
        result.left_out[name] = str(reason)
    except Exception as error:  # a contender that fails must not end the run
        result.contenders.append(Figures(name, failed=one_line(error)))
    else:
        return check
    return None


def _constant(logits: Tensor) -> Tensor:
    return _CONSTANT


def _good() -> tuple[dict[str, Any], dict[str, Any]]:
    return {"logits": torch.zeros(2, 3, 5)}, {"labels": torch.zeros(2, 3, dtype=torch.int64)}


def _added_seconds(checks: Mapping[str, Checked], tick: Callable[[str], None]) -> dict[str, list[float]]:
    """Time each call, less the unchecked one of the same round."""
    added: dict[str, list[float]] = {name: [] for name in checks}
    bare, order = unchecked(_constant), list(checks)
    for _ in range(_ROUNDS):
        without = _seconds_of(bare)
        for name in order:
            tick(name)
            added[name].append(_seconds_of(checks[name]) - without)
        order = order[1:] + order[:1]
    return added


def _seconds_of(check: Checked) -> float:
    outputs, batch = _good()
    return min(timeit.repeat(lambda: check(outputs, batch), number=_CALLS, repeat=3)) / _CALLS


def _faults() -> dict[str, tuple[dict[str, Any], dict[str, Any], Outcome]]:
    outputs, batch = _good()
    return {
        "dtype": (outputs, {"labels": batch["labels"].float()}, _constant),
        "rank": ({"logits": torch.zeros(6, 5)}, batch, _constant),
        "shared axis": (outputs, {"labels": torch.zeros(2, 4, dtype=torch.int64)}, _constant),
        "missing": (outputs, {}, _constant),
        "not a tensor": ({"logits": "logits"}, batch, _constant),
        "wrong return": (outputs, batch, lambda logits: "nothing"),
    }


def _missed(builder: Callable[[Outcome], Checked]) -> int:
    """Return how many faults raise no error at all."""
    unnoticed = 0
    for outputs, batch, outcome in _faults().values():
        try:
            builder(outcome)(outputs, batch)
        except Exception:  # any error will do: the fault was noticed
            continue
        unnoticed += 1
    return unnoticed


def _under_fullgraph(builder: Callable[[Outcome], Checked]) -> str:
    """Return "yes" if good tensors pass `torch.compile(fullgraph=True)`, and one of a wrong rank does not."""
    try:
        _compiled(builder)(*_good())
    except Exception as error:  # whatever the compiler raises is the finding
        return f"no: {type(error).__name__}"
    outputs, batch, _ = _faults()["rank"]
    try:
        _compiled(builder)(outputs, batch)
    except Exception:  # refused while it is traced
        return "yes"
    return "no: takes a wrong rank"


def _compiled(builder: Callable[[Outcome], Checked]) -> Checked:
    torch.compiler.reset()
    check = builder(lambda logits: logits.sum())
    wrapped: Checked = torch.compile(
        lambda outputs, batch: check(outputs, batch)["loss"], fullgraph=True, backend="eager"
    )
    return wrapped

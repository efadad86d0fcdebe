"""What a loss is called with: its tensors, and the shape that each has."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tensafe.training.losses.adapter import TypedLoss
from tensafe.training.losses.contract import TensorSpec, is_variadic, lookup_keys
from tensafe.training.losses.nested import innermost, takes_step
from tensafe.training.losses.sample_values import is_from_model
from tensafe.training.losses.samples import SampleSettings, make_sample

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tensafe.training.losses.adapter import ResolvedLoss

__all__ = ["Layout", "Need", "read_needs"]

_SIZE = 2
STEP = TensorSpec("step", "int", ())
"""What a loss with a schedule is told beside tensors."""


class Need(NamedTuple):
    """A tensor that a loss takes.

    Attributes:
        spec: What it is.
        side: `outputs` or `batch`.
        key: Its key there.
        optional: Whether it may be absent.
        ids: Axis whose size its ids stay below, if it holds ids.
        ignore_index: Id of what does not count, if there is one.
    """

    spec: TensorSpec
    side: str
    key: str
    optional: bool = False
    ids: str | None = None
    ignore_index: int | None = None


class Layout(NamedTuple):
    """Sizes of the axes.

    Attributes:
        sizes: Of each named axis.
        axes: The axes that each variadic one stands for.
    """

    sizes: Mapping[str, int]
    axes: Mapping[str, tuple[str, ...]]

    def shape(self, spec: TensorSpec) -> list[int]:
        """Return the shape of a tensor."""
        names = [name for dim in spec.dims for name in (self.axes[str(dim)] if is_variadic(dim) else (dim,))]
        return [name if isinstance(name, int) else self.sizes[name] for name in names]


def read_needs(loss: ResolvedLoss) -> list[Need]:
    """Return the tensors that a loss, or the losses inside it, take; a plain callable those that it asks for."""
    parts = list(innermost(loss))
    needs: dict[tuple[str, str], Need] = {}
    for part in parts:
        for need in _declared(part) if isinstance(part, TypedLoss) else ():
            _add(needs, need)
    if not all(isinstance(part, TypedLoss) for part in parts):
        sample = make_sample(loss, SampleSettings({"batch": _SIZE, "seq": _SIZE, "vocab": _SIZE, "hidden": _SIZE}))
        for key, spec in sample.specs().items():
            side = "outputs" if key in sample.outputs else "batch"
            needs.setdefault((side, key), Need(spec, side, key, ids="vocab", ignore_index=None))
    if takes_step(loss):
        needs["batch", "step"] = Need(STEP, "batch", "step")
    return list(needs.values())


def _declared(loss: TypedLoss) -> Iterator[Need]:
    axes = {dim for spec in loss.contract.tensors for dim in spec.dims}
    ids = next((axis for axis in ("vocab", "classes") if axis in axes), None)
    for spec in loss.contract.tensors:
        place, keys = lookup_keys(spec, loss.inputs)
        side = place or ("outputs" if is_from_model(spec) else "batch")
        ignored = loss.kwargs.get("ignore_index") if spec.name.endswith("labels") else None
        yield Need(spec, side, keys[0], spec.optional, ids, ignored)


def _add(needs: dict[tuple[str, str], Need], need: Need) -> None:
    """Add what a loss takes; what another takes too is ignored by both or by neither."""
    place = need.side, need.key
    first = needs.setdefault(place, need)
    ignored = first.ignore_index if first.ignore_index == need.ignore_index else None
    needs[place] = first._replace(optional=first.optional and need.optional, ignore_index=ignored)

"""Value and gradient of a loss against one element of a tensor, all else fixed."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

from tensafe._lazy import torch
from tensafe.training.losses.adapter import TypedLoss
from tensafe.training.losses.contract import lookup_keys
from tensafe.training.losses.errors import LossInputError, TensafeError, make_error, near_miss
from tensafe.training.losses.samples import Sample, SampleSettings, add_missing, make_sample

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor

    from tensafe.training.losses.adapter import ResolvedLoss
    from tensafe.training.losses.contract import TensorSpec
    from tensafe.training.losses.figures import Figure

__all__ = ["Curve", "Moved", "draw_curve", "find_moved"]

_POINTS = 121
_REACH = 5.0
_SIZES: tuple[dict[str, int], ...] = (
    {"batch": 1, "seq": 1},
    {"batch": 1, "seq": 2},
    {"batch": 2, "seq": 2},
    {"batch": 4, "seq": 4},
    {"batch": 4, "seq": 4, "hidden": 128},
)
_TYPICAL: Mapping[tuple[str, ...], float] = {("batch",): -30.0, ("batch", "seq"): -1.5}
_OTHERS = {"vocab": 5, "hidden": 3}
_SEEDS = 6


class Curve(NamedTuple):
    """The loss at each position of the element that moves, and its derivative by that element."""

    values: list[float]
    gradients: list[float]

    def differs_from(self, other: Curve) -> bool:
        """Whether two curves can be told apart in a picture."""
        return any(_differ(mine, others) for mine, others in zip(self, other, strict=True))


class Moved(NamedTuple):
    """The element that moves.

    Attributes:
        sample: What it is an element of.
        tensor: Key of its tensor.
        place: Its indices in the tensor.
        positions: Where it goes.
    """

    sample: Sample
    tensor: str
    place: tuple[int, ...]
    positions: list[float]

    @property
    def name(self) -> str:
        """The element as one writes it in Python."""
        return f"{self.tensor}[{', '.join(map(str, self.place))}]" if self.place else self.tensor


def find_moved(losses: Sequence[ResolvedLoss], tensor: str | None, figure: Figure) -> Moved:
    """Make a sample for losses that differ in kwargs, as small as the first allows, and choose the element to move.

    It is the element whose rise would lower the loss most: of logits the one of the label, of log-probabilities one
    with a positive advantage. The first sample is taken in which there is one.

    Raises:
        TensafeError: The loss cannot be called on any sample, or there is no such tensor.
    """
    best: tuple[Sample, str, tuple[int, ...]] | None = None
    failure: TensafeError | None = None
    loss = losses[0]
    for settings in _settings(loss):
        try:
            sample = _make(losses, settings, tensor, figure)
            key = _key(loss, sample, tensor)
            gradient = _gradient(loss, sample, key, _tensor(sample, key))
        except LossInputError as error:
            if error.code == "unknown-tensor":
                raise
            failure = error
            continue
        place = _steepest(gradient)
        if place is not None and gradient[place] < 0:
            best = sample, key, place
            break
        if best is None:
            best = sample, key, place or (0,) * gradient.ndim
    if best is None:
        assert failure is not None
        raise failure
    sample, key, place = best
    low, high = _range(loss, key, float(_tensor(sample, key)[place]), figure)
    step = (high - low) / (_POINTS - 1)
    return Moved(sample, key, place, [low + step * index for index in range(_POINTS)])


def draw_curve(loss: ResolvedLoss, moved: Moved) -> Curve:
    """Call the loss with the element at each of its positions."""
    original = _tensor(moved.sample, moved.tensor)
    curve = Curve([], [])
    for position in moved.positions:
        tensor = original.clone()
        tensor[moved.place] = position
        tensor.requires_grad_()
        value = _value(loss, moved.sample, moved.tensor, tensor)
        curve.values.append(float(value.detach()))
        curve.gradients.append(float(_derivative(value, tensor)[moved.place]))
    return curve


def _settings(loss: ResolvedLoss) -> Iterator[SampleSettings]:
    """Yield sizes from the smallest on; a single element shows the loss best, but many have nothing to learn of it."""
    contract = loss.contract if isinstance(loss, TypedLoss) else None
    names = contract.dim_names() if contract else []
    others = {name: 3 for name in names if not name.startswith("*") and not name.endswith("_seq")}
    for sizes in _SIZES:
        for seed in range(_SEEDS):
            yield SampleSettings({**others, **_OTHERS, **sizes}, dtype="float64", seed=seed)


def _make(losses: Sequence[ResolvedLoss], settings: SampleSettings, tensor: str | None, figure: Figure) -> Sample:
    sample = make_sample(losses[0], settings)
    for spec in _specs(losses[0]):
        # without what it was before, a ratio would be 1 wherever the tensor goes
        if spec.name.startswith("old_") or spec.name in {tensor, *figure.fixed}:
            sample.add(spec, _inputs(losses[0]))
    for loss in losses[1:]:
        add_missing(sample, loss)
    numbers = {**_log_probabilities(losses[0]), **figure.fixed}
    for side in _sides(sample):
        for key, made in side.items():
            number = numbers.get(key)
            side[key] = made.detach() if number is None else torch.full_like(made.detach(), number)
    return sample


def _log_probabilities(loss: ResolvedLoss) -> dict[str, float]:
    """Return what log-probabilities are made: far enough from 0 to rise, and alike, so that ratios begin at 1.

    The second one of completions differs, so that no two terms of a loss cancel wherever the first goes.
    """
    names = {axes: [spec.name for spec in _specs(loss) if _is_logps(spec) and spec.dims == axes] for axes in _TYPICAL}
    numbers = {name: number for axes, number in _TYPICAL.items() for name in names[axes]}
    return {**numbers, **dict.fromkeys(names["batch",][1:2], _TYPICAL["batch",] - 10)}


def _is_logps(spec: TensorSpec) -> bool:
    return spec.kind == "float" and spec.name.endswith("logps")


def _key(loss: ResolvedLoss, sample: Sample, tensor: str | None) -> str:
    """Return the key of the tensor of which an element moves."""
    floats = [key for side in _sides(sample) for key, made in side.items() if made.is_floating_point()]
    if tensor is None:
        if not floats:
            raise make_error(
                LossInputError, "it takes no floating-point tensor.", code="unknown-tensor", loss=loss.name
            )
        return floats[0]
    key = tensor
    if isinstance(loss, TypedLoss):
        key = next((lookup_keys(spec, loss.inputs)[1][0] for spec in loss.contract.tensors if spec.name == tensor), key)
    if key in floats:
        return key
    kind = "is no floating-point tensor" if any(key in side for side in _sides(sample)) else "is none of its tensors"
    nearest = near_miss(tensor, floats)
    raise make_error(
        LossInputError,
        f"{tensor!r} {kind}{f'; did you mean {nearest}?' if nearest else '.'}",
        code="unknown-tensor",
        loss=loss.name,
        loc=(tensor,),
        hint=f"There are {', '.join(floats)}.",
    )


def _sides(sample: Sample) -> tuple[dict[str, Any], dict[str, Any]]:
    return sample.outputs, sample.batch


def _tensor(sample: Sample, key: str) -> Tensor:
    found: Tensor = next(side[key] for side in _sides(sample) if key in side)
    return found


def _value(loss: ResolvedLoss, sample: Sample, key: str, tensor: Tensor) -> Tensor:
    side = next(side for side in _sides(sample) if key in side)
    kept = side[key]
    side[key] = tensor
    try:
        return loss(sample.outputs, sample.batch)["loss"].sum()
    finally:
        side[key] = kept


def _derivative(value: Tensor, tensor: Tensor) -> Tensor:
    if not value.requires_grad:
        return torch.zeros_like(tensor)
    (gradient,) = torch.autograd.grad(value, tensor, allow_unused=True, materialize_grads=True)
    return gradient


def _gradient(loss: ResolvedLoss, sample: Sample, key: str, tensor: Tensor) -> Tensor:
    moving = tensor.clone().requires_grad_()
    return _derivative(_value(loss, sample, key, moving), moving)


def _steepest(gradient: Tensor) -> tuple[int, ...] | None:
    """Return the place of the most negative derivative, or of the largest if none is; None if all are zero."""
    if not gradient.numel() or not gradient.isfinite().all() or not gradient.any():
        return None
    flat = gradient.flatten()
    place = int(flat.argmin() if flat.min() < 0 else flat.argmax())
    return tuple(int(part) for part in torch.unravel_index(torch.tensor(place), gradient.shape))


def _range(loss: ResolvedLoss, key: str, value: float, figure: Figure) -> tuple[float, float]:
    if figure.low is not None and figure.high is not None and figure.tensor in {None, key}:
        return figure.low, figure.high
    if key.endswith("logps"):
        return 2 * value, 0.0
    declared = next((spec.values for spec in _specs(loss) if spec.name == key), None)
    low, high = (None, None) if declared is None else (declared.low, declared.high)
    if declared is not None and declared.sums_to_one:
        low, high = 0.0, 1.0
    low = -_REACH if low is None else low
    return low, max(low, _REACH) if high is None else high


def _specs(loss: ResolvedLoss) -> Sequence[TensorSpec]:
    return loss.contract.tensors if isinstance(loss, TypedLoss) else ()


def _differ(mine: Sequence[float], others: Sequence[float]) -> bool:
    pairs = [(a, b) for a, b in zip(mine, others, strict=True) if math.isfinite(a) and math.isfinite(b)]
    if not pairs:
        return False
    low, high = min(min(pair) for pair in pairs), max(max(pair) for pair in pairs)
    return any(abs(a - b) > 0.02 * (high - low) for a, b in pairs) and high > low


def _inputs(loss: ResolvedLoss) -> Mapping[str, str]:
    return loss.inputs if isinstance(loss, TypedLoss) else {}

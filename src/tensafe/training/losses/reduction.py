r"""The one place where unreduced elements become one number.

Every reduction but `none` is linear, :math:`\sum_i c_i v_i`, with coefficients made of weights and denominators alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, overload

from tensafe._lazy import torch

from .errors import LossConfigError, LossInputError, LossReturnError, make_error, shorten
from .guards import is_list, is_mapping
from .packing import count_sequences, sequence_totals
from .types import Elements, LossReturn

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

__all__ = [
    "BY_SEQUENCE",
    "MODES",
    "WHOLE",
    "Reduction",
    "check_sequences",
    "coefficients",
    "denominator",
    "reduce_elements",
]

BY_SEQUENCE = frozenset({"sequence_mean", "sequence_sum", "sequence_sum_norm"})
"""The modes that take each sequence for one."""

WHOLE = frozenset({"none", "sum", "mean"})
"""The modes that take the values as a whole, and leave one that is a single number as it is."""

MODES = WHOLE | BY_SEQUENCE


class Reduction(NamedTuple):
    """How to reduce, and what the denominators are when they are not this batch's own.

    Attributes:
        mode: `none`, `sum`, `mean`, `sequence_mean`, `sequence_sum` or `sequence_sum_norm`.
        max_length: The constant of `sequence_sum_norm`.
        num_items: What `mean` divides by: elements in the whole optimizer step, over accumulation and ranks.
        num_sequences: What the `sequence_*` modes divide by, likewise.
        apart: Whether the last axis is one of several losses, each with a mean of its own; the means are added. Then
            `num_items` may hold a number for each.
    """

    mode: str = "mean"
    max_length: int | None = None
    num_items: float | Tensor | Sequence[float | Tensor] | None = None
    num_sequences: float | Tensor | None = None
    apart: bool = False


def reduce_elements(owner: str, elements: object, reduction: Reduction, *, with_metrics: bool) -> LossReturn:
    """Reduce values and metrics.

    Args:
        owner: Name of the loss, for messages.
        elements: What `compute` returned.
        reduction: How.
        with_metrics: Whether metrics are wanted.

    Returns:
        The loss and the metrics, averaged with the same weights and detached. Nothing counted gives 0.0, still attached
        to the graph, so that a rank with nothing to learn keeps its backward pass.

    Raises:
        LossReturnError: `compute` returned no `Elements`, or weights or metrics of another shape than the values.
        LossInputError: The reduction does not fit the values, or a given denominator is unusable.
    """
    if not isinstance(elements, Elements):
        raise make_error(
            LossReturnError,
            f"compute() must return Elements(values, ...); got {type(elements).__name__}.",
            code="not-elements",
            loss=owner,
            hint="Return Elements(values), unreduced.",
        )
    values, weights, metrics, dot, _ = elements
    if dot is not None and weights is None:
        raise make_error(LossReturnError, "Elements with dot must have weights.", code="elements-shape", loss=owner)
    if reduction.num_items is not None or reduction.num_sequences is not None:
        _check_counts(owner, reduction, values if weights is None else weights)
        reduction = _together(reduction, values if weights is None else weights)
    if callable(values) and dot is None:
        values = values()
    if not callable(values):
        _check_elements(owner, values, weights, metrics)
    if reduction.mode == "none":
        loss = _unreduced(values() if callable(values) else values, weights)
    elif weights is None and not callable(values) and _is_whole(reduction):
        loss = _unweighted(values, reduction.mode)
    else:
        loss = _dot(owner, elements, values, reduction)
    return {"loss": loss, "metrics": _average(metrics, weights) if with_metrics and metrics else {}}


def coefficients(weights: Tensor, reduction: Reduction, segment_ids: Tensor | None = None) -> Tensor:
    r"""Return :math:`c` of :math:`\sum_i c_i v_i`, in the dtype of `weights`.

    Args:
        weights: Float, shaped like the values: what counts, and how much. The first axis is `batch`.
        reduction: Any mode but `none`; `sequence_*` need a second axis.
        segment_ids: See `Elements`.
    """
    if reduction.mode == "sum":
        return weights
    given: Any = reduction.num_items if reduction.mode == "mean" else reduction.num_sequences
    count: float | Tensor = denominator(weights, reduction, segment_ids) if given is None else given
    scale = _inverse(count, weights)
    if reduction.mode == "mean":
        return weights * scale
    if reduction.max_length is not None:
        scale = scale / reduction.max_length
    if reduction.mode == "sequence_mean":
        scale = scale * _inverse(sequence_totals(weights, segment_ids, apart=reduction.apart), weights)
    return weights * scale


def denominator(weights: Tensor, reduction: Reduction, segment_ids: Tensor | None = None) -> Any:
    """Return what a batch by itself is divided by, a tensor: what a given count stands for, and is summed up from.

    Args:
        weights: What counts, and how much; see `coefficients`.
        reduction: How; None comes back where it divides by nothing.
        segment_ids: See `Elements`.
    """
    if reduction.mode == "mean":
        return weights.reshape(-1, weights.shape[-1]).sum(0) if reduction.apart else weights.sum()
    return count_sequences(weights, segment_ids) if reduction.mode in BY_SEQUENCE else None


def _together(reduction: Reduction, like: object) -> Reduction:
    """Return the reduction with the counts of several losses as one tensor, beside what they divide."""
    counts = reduction.num_items
    if not isinstance(like, torch.Tensor) or not _is_several(counts):
        return reduction
    if is_list(counts):
        counts = torch.stack([torch.as_tensor(count, dtype=torch.float64) for count in counts])
    dtype = torch.promote_types(like.dtype, torch.float32)
    return reduction._replace(num_items=torch.as_tensor(counts).to(like.device, dtype))


@overload
def _inverse(count: Tensor, like: Tensor) -> Tensor: ...


@overload
def _inverse(count: float | Tensor, like: Tensor) -> float | Tensor: ...


def _inverse(count: float | Tensor, like: Tensor) -> float | Tensor:
    """Return 1 / count, and 0 for 0: where nothing counts there is nothing to divide."""
    if not isinstance(count, torch.Tensor):
        return 0.0 if count == 0 else 1.0 / count
    is_zero = count == 0
    return torch.where(is_zero, 0.0, 1.0 / torch.where(is_zero, 1.0, count.to(like.dtype)))


def _dot(owner: str, elements: Elements, values: Tensor | Callable[[], Tensor], reduction: Reduction) -> Tensor:
    weights, segment_ids = elements.weights, elements.segment_ids
    if segment_ids is not None:
        _check_segments(owner, segment_ids, values if weights is None else weights, reduction)
    if callable(values):
        assert elements.dot is not None
        assert weights is not None
        check_sequences(owner, weights, reduction)
        wide = weights.to(torch.promote_types(weights.dtype, torch.float32))
        return elements.dot(coefficients(wide, reduction, segment_ids))
    check_sequences(owner, values, reduction)
    if weights is None:
        return (values * coefficients(torch.ones_like(values), reduction, segment_ids)).sum()
    factors = coefficients(weights.to(values.dtype), reduction, segment_ids)
    return (torch.where(weights != 0, values, 0.0) * factors).sum()


def _is_whole(reduction: Reduction) -> bool:
    return reduction.mode in WHOLE and reduction.num_items is None and not reduction.apart


def _unweighted(values: Tensor, mode: str) -> Tensor:
    if values.ndim == 0:
        return values
    return values.mean() if mode == "mean" and values.numel() else values.sum()


def _unreduced(values: Tensor, weights: Tensor | None) -> Tensor:
    if weights is None:
        return values
    kept = torch.where(weights != 0, values, 0.0)
    return kept if weights.dtype is torch.bool else kept * weights


def _average(metrics: Mapping[str, Any], weights: Tensor | None) -> dict[str, float | Tensor]:
    averaged: dict[str, float | Tensor] = {}
    share: Tensor | None = None
    for name, metric in metrics.items():
        if not isinstance(metric, torch.Tensor) or metric.ndim == 0:
            averaged[name] = metric.detach() if isinstance(metric, torch.Tensor) else metric
            continue
        metric = metric.detach()
        numbers = metric if metric.is_floating_point() else metric.to(torch.float32)
        if weights is None:
            averaged[name] = numbers.sum() / max(numbers.numel(), 1)
            continue
        if share is None:
            share = coefficients(weights.detach().to(numbers.dtype), Reduction())
        averaged[name] = (torch.where(weights != 0, numbers, 0.0) * share).sum()
    return averaged


def _check_elements(owner: str, values: Any, weights: Any, metrics: Any) -> None:
    if not isinstance(values, torch.Tensor) or not values.is_floating_point():
        message = f"values must be a floating-point tensor; got {_kind(values)}."
        raise make_error(LossReturnError, message, code="elements-dtype", loss=owner)
    if weights is not None:
        _check_shaped_alike(owner, "weights", weights, values)
    if metrics is None:
        return
    if not is_mapping(metrics):
        message = f"metrics must be a dict of tensors or numbers; got {type(metrics).__name__}."
        raise make_error(LossReturnError, message, code="elements-shape", loss=owner)
    for name, metric in metrics.items():
        if not isinstance(metric, int | float) and not (isinstance(metric, torch.Tensor) and metric.ndim == 0):
            _check_shaped_alike(owner, f"metrics[{name!r}]", metric, values)


def _check_shaped_alike(owner: str, name: str, tensor: Any, values: Tensor) -> None:
    if not isinstance(tensor, torch.Tensor) or tensor.shape != values.shape:
        got = list(tensor.shape) if isinstance(tensor, torch.Tensor) else type(tensor).__name__
        raise make_error(
            LossReturnError,
            f"{name} must be a tensor shaped like the values, {list(values.shape)}; got {got}.",
            code="elements-shape",
            loss=owner,
            hint="Broadcast it in compute() if that is meant.",
        )


def _check_segments(owner: str, segment_ids: Any, like: Any, reduction: Reduction) -> None:
    shape = like.shape[:-1] if reduction.apart else like.shape
    if not isinstance(segment_ids, torch.Tensor) or segment_ids.shape != shape:
        got = list(segment_ids.shape) if isinstance(segment_ids, torch.Tensor) else type(segment_ids).__name__
        raise make_error(
            LossReturnError,
            f"segment_ids must be a tensor of integers, {list(shape)}, like the values; got {got}.",
            code="elements-shape",
            loss=owner,
        )


def _kind(value: Any) -> str:
    return str(value.dtype).removeprefix("torch.") if isinstance(value, torch.Tensor) else type(value).__name__


def check_sequences(owner: str, values: Tensor, reduction: Reduction) -> None:
    """Refuse a reduction by sequence of values that have but one axis."""
    if reduction.mode in BY_SEQUENCE and values.ndim < 2:
        raise make_error(
            LossInputError,
            f"reduction {reduction.mode} averages over sequences, and these values have one axis.",
            code="reduction-needs-sequences",
            loss=owner,
            loc=("reduction",),
            hint="Pass tensors with [batch seq] axes, or use reduction mean.",
        )


def _check_counts(owner: str, reduction: Reduction, like: object) -> None:
    for name, count, modes in (
        ("num_items_in_batch", reduction.num_items, frozenset({"mean"})),
        ("num_sequences_in_batch", reduction.num_sequences, BY_SEQUENCE),
    ):
        if count is not None:
            if reduction.apart and name == "num_items_in_batch" and _is_several(count):
                _check_several(owner, name, count, like)
            else:
                _check_count(owner, name, count, like)
            if reduction.mode not in modes:
                raise make_error(
                    LossConfigError,
                    f"{name} is the denominator of reduction {' or '.join(sorted(modes))}, "
                    f"and has no effect with {reduction.mode}.",
                    code="unused-count",
                    loss=owner,
                    loc=(name,),
                    hint="Leave it out, or choose that reduction.",
                )


def _is_several(counts: object) -> bool:
    return is_list(counts) or (isinstance(counts, torch.Tensor) and counts.ndim > 0)


def _check_count(owner: str, name: str, count: Any, like: object) -> None:
    if isinstance(count, torch.Tensor):
        _check_device(owner, name, count, like)
        dense = count.layout is torch.strided and not count.is_quantized
        usable = dense and count.ndim == 0 and _is_count(count.dtype)
    else:
        usable = isinstance(count, int | float) and not isinstance(count, bool) and 0 <= count < 2**63
    if not usable:
        raise make_error(
            LossInputError,
            f"{name} must be a number >= 0 or a 0-d tensor; got {_describe_count(count)}.",
            code="invalid-count",
            loss=owner,
            loc=(name,),
        )


def _check_several(owner: str, name: str, counts: Any, like: Any) -> None:
    """Refuse counts that are not one for each of the losses along the last axis of the values."""
    found = len(counts) if is_list(counts) or counts.ndim == 1 else None
    if found != like.shape[-1]:
        got = f"{found}" if found is not None else _describe_count(counts)
        raise make_error(
            LossInputError,
            f"{name} must be one number, or one for each of the {like.shape[-1]} means; got {got}.",
            code="invalid-count",
            loss=owner,
            loc=(name,),
        )
    for count in counts:
        _check_count(owner, name, count, like)


def _is_count(dtype: torch.dtype) -> bool:
    """Whether a number of this dtype can be divided by: a bool, a complex one and a float of 8 bits cannot."""
    return dtype is not torch.bool and not dtype.is_complex and not (dtype.is_floating_point and dtype.itemsize == 1)


def _check_device(owner: str, name: str, count: Tensor, like: object) -> None:
    device = getattr(like, "device", count.device)
    if count.device != device and count.device.type != "cpu":  # torch takes a single number from the CPU anywhere
        raise make_error(
            LossInputError,
            f"{name} is on {count.device}, but the loss is computed on {device}.",
            code="device-mismatch",
            loss=owner,
            loc=(name,),
            hint=f"Move it: {name}.to({str(device)!r}).",
        )


def _describe_count(count: Any) -> str:
    if isinstance(count, torch.Tensor):
        return f"a tensor of shape {list(count.shape)}, {str(count.dtype).removeprefix('torch.')}"
    return shorten(count)

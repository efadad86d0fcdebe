"""What a loss gives back, checked and brought into the form of `LossReturn`."""

from __future__ import annotations

import functools
from itertools import islice
from typing import TYPE_CHECKING, Any

from tensafe._lazy import torch

from .errors import LossReturnError, make_error, near_miss, shorten
from .guards import is_mapping
from .types import LossFn, LossOutput, LossReturn

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["checked_return", "validate_loss_return", "wrap_simple_loss"]

_KEYS = ("loss", "metrics", "auxiliary")
_MOST_NAMES = 8


def validate_loss_return(result: Any, strict: bool = False) -> LossReturn:
    """Check what a loss returned and bring it into the form of `LossReturn`.

    Args:
        result: A mapping with `loss` and perhaps `metrics` and `auxiliary`, a `LossOutput`, or a bare scalar.
        strict: Whether a bare scalar is refused.

    Returns:
        A new dict with the same values.

    Raises:
        LossReturnError: `loss` is missing, a key is unknown, or `metrics` or `auxiliary` is not a mapping.

    Example:
        >>> validate_loss_return({"loss": 1.5})
        {'loss': 1.5}
        >>> validate_loss_return(2.0)
        {'loss': 2.0, 'metrics': {}}
    """
    return _validate(result, "loss", strict=strict)


def wrap_simple_loss(fn: Callable[..., Any], name: str | None = None) -> LossFn:
    """Make a `LossFn` of a function that returns just a number or a 0-d tensor.

    Example:
        >>> wrap_simple_loss(lambda outputs, batch: outputs["x"] - batch["y"])({"x": 1.0}, {"y": 0.5})
        {'loss': 0.5, 'metrics': {}}
    """

    @functools.wraps(fn)
    def wrapped(outputs: Any, batch: Any, **kwargs: Any) -> LossReturn:
        return {"loss": fn(outputs, batch, **kwargs), "metrics": {}}

    if name is not None:
        wrapped.__name__ = name
    return wrapped


def checked_return(result: Any, owner: str, *, unreduced: bool) -> LossReturn:
    """Check the return of a protocol callable: a tensor loss, detached scalar metrics, detached auxiliary tensors.

    Args:
        result: What the callable returned.
        owner: Its name, for messages.
        unreduced: Whether the loss may have axes (the reduction is `none`).
    """
    checked = _validate(result, owner, strict=False)
    checked["loss"] = _as_loss(checked["loss"], owner, unreduced=unreduced)
    checked["metrics"] = {name: _as_metric(name, value, owner) for name, value in checked.get("metrics", {}).items()}
    if "auxiliary" in checked:
        auxiliary = checked["auxiliary"]
        checked["auxiliary"] = {
            name: value.detach() if isinstance(value, torch.Tensor) else value for name, value in auxiliary.items()
        }
    return checked


def _validate(result: Any, owner: str, *, strict: bool) -> LossReturn:
    if isinstance(result, LossOutput):
        result = result.to_dict()
    if is_mapping(result):
        return _validate_mapping(result, owner)
    if not strict and not isinstance(result, bool) and _is_scalar(result):
        return {"loss": result, "metrics": {}}
    raise make_error(
        LossReturnError,
        f"must return dict with 'loss' key{'' if strict else ', or a scalar'}; got {_describe(result)}.",
        code="not-a-loss-return",
        loss=owner,
        hint="End with return {'loss': loss}." if result is None else None,
    )


def _validate_mapping(result: Mapping[Any, Any], owner: str) -> LossReturn:
    unknown = [key for key in result if key not in _KEYS]
    if "loss" not in result:
        nearest = next((key for key in unknown if isinstance(key, str) and near_miss(key, ["loss"])), None)
        raise make_error(
            LossReturnError,
            f"must return dict with 'loss' key; got keys {_names(result)}.",
            code="missing-loss",
            loss=owner,
            loc=("loss",),
            hint=f"Is {shorten(nearest)} a misspelt 'loss'?" if nearest else None,
        )
    if unknown:
        nearest = near_miss(str(unknown[0]), _KEYS)
        raise make_error(
            LossReturnError,
            f"returned an unknown key {shorten(unknown[0])}.",
            code="unknown-return-key",
            loss=owner,
            loc=(str(unknown[0]),),
            hint=f"Did you mean {nearest!r}?"
            if nearest
            else "Put scalars under 'metrics', the rest under 'auxiliary'.",
        )
    checked: LossReturn = {"loss": result["loss"]}
    if result.get("metrics") is not None:
        checked["metrics"] = _as_mapping(result["metrics"], "metrics", owner)
    if result.get("auxiliary") is not None:
        checked["auxiliary"] = _as_mapping(result["auxiliary"], "auxiliary", owner)
    return checked


def _as_mapping(value: Any, key: str, owner: str) -> dict[str, Any]:
    if is_mapping(value) and all(isinstance(name, str) for name in value):
        return dict(value)
    raise make_error(
        LossReturnError,
        f"'{key}' must be a dict with string keys; got {_describe(value)}.",
        code="invalid-return",
        loss=owner,
        loc=(key,),
    )


def _as_loss(loss: Any, owner: str, *, unreduced: bool) -> Any:
    if isinstance(loss, int | float) and not isinstance(loss, bool):
        return torch.tensor(float(loss))
    if isinstance(loss, torch.Tensor) and loss.is_floating_point():
        if loss.ndim == 0 or unreduced:
            return loss
        hint = "Reduce it: loss.mean()."
    else:
        hint = "The loss is a 0-d floating-point tensor."
    raise make_error(
        LossReturnError,
        f"'loss' must be a scalar; got {_describe(loss)}.",
        code="loss-not-scalar",
        loss=owner,
        loc=("loss",),
        hint=hint,
    )


def _as_metric(name: str, value: Any, owner: str) -> Any:
    if isinstance(value, torch.Tensor):
        if value.ndim == 0:
            return value.detach()
    elif isinstance(value, int | float):
        return value
    elif hasattr(value, "__float__") and not getattr(value, "ndim", 0):
        return float(value)
    raise make_error(
        LossReturnError,
        f"metric {shorten(name)} must be a scalar; got {_describe(value)}.",
        code="metric-not-scalar",
        loss=owner,
        loc=("metrics", name),
        hint="Average it, or put it under 'auxiliary'.",
    )


def _names(result: Mapping[Any, Any]) -> str:
    """Return the first few keys, for a message."""
    names = [shorten(key, 40) for key in islice(result, _MOST_NAMES + 1)]
    return ", ".join(names[:_MOST_NAMES] + ["..."] * (len(names) > _MOST_NAMES)) or "none"


def _is_scalar(value: Any) -> bool:
    return isinstance(value, (int, float, torch.Tensor))


def _describe(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    return f"{type(value).__name__}"

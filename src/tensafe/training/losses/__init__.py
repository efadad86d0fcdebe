"""Typed, validated, pluggable losses: resolve one by name, path or callable; write one as a class or a function.

Example:
    >>> import torch
    >>> from tensafe.training.losses import resolve_loss
    >>> loss_fn = resolve_loss("mse")
    >>> loss_fn({"predictions": torch.tensor([1.0, 3.0])}, {"targets": torch.tensor([1.0, 1.0])})["loss"]
    tensor(2.)
"""

from typing import TYPE_CHECKING

from .adapter import ResolvedLoss
from .contract import Alias, Values
from .errors import (
    LossConfigError,
    LossInputError,
    LossReturnError,
    LossTypeError,
    Problem,
    TensafeError,
    UnknownLossError,
    UnsafeTargetError,
    missing_tensor,
)
from .loss import ElementLoss, Loss, TokenLoss
from .nested import NestedLoss
from .registry import LOSS_REGISTRY, get_registered_losses, register_loss
from .returns import validate_loss_return, wrap_simple_loss
from .spec import LossSpec
from .traits import Traits
from .types import Elements, LossFn, LossOutput, LossReturn

if TYPE_CHECKING:  # the same function, with an overload for each built-in loss
    from .signatures import resolve_loss
else:
    from .resolve import resolve_loss

__all__ = [
    "LOSS_REGISTRY",
    "Alias",
    "ElementLoss",
    "Elements",
    "Loss",
    "LossConfigError",
    "LossFn",
    "LossInputError",
    "LossOutput",
    "LossReturn",
    "LossReturnError",
    "LossSpec",
    "LossTypeError",
    "NestedLoss",
    "Problem",
    "ResolvedLoss",
    "TensafeError",
    "TokenLoss",
    "Traits",
    "UnknownLossError",
    "UnsafeTargetError",
    "Values",
    "get_registered_losses",
    "missing_tensor",
    "register_loss",
    "resolve_loss",
    "validate_loss_return",
    "wrap_simple_loss",
]

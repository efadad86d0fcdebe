"""The public TenSafe's `base` module: the same names, from where they live now."""

from .returns import validate_loss_return, wrap_simple_loss
from .types import LossFn, LossOutput, LossReturn

__all__ = ["LossFn", "LossOutput", "LossReturn", "validate_loss_return", "wrap_simple_loss"]

"""Hypothesis strategies made from what losses declare: what they are called with, their kwargs, and configs of them.

All of them shrink to small cases that a person can read.
"""

try:
    import hypothesis as hypothesis
except ModuleNotFoundError as error:
    if error.name != "hypothesis":
        raise
    message = "strategies of losses need hypothesis: pip install 'tensafe[testing]'"
    raise ModuleNotFoundError(message, name="hypothesis") from None

from .configs import ConfigText, training_configs
from .inputs import LossInputs, loss_inputs
from .kwargs import InvalidKwargs, invalid_loss_kwargs, loss_kwargs

__all__ = [
    "ConfigText",
    "InvalidKwargs",
    "LossInputs",
    "invalid_loss_kwargs",
    "loss_inputs",
    "loss_kwargs",
    "training_configs",
]

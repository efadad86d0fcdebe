"""What a checker must refuse: an error on each line that says so, and on no other."""

from typing import Any

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from tensafe.training.losses import ElementLoss, Elements, Loss, LossReturn, LossSpec, register_loss, resolve_loss
from tensafe.training.losses.builtin.linear_ce import LinearCE
from tensafe.training.losses.builtin.token_ce import TokenCE

logits, labels = torch.zeros(2, 3), torch.zeros(2).long()


class Scaled(ElementLoss):
    """A loss of a user's own."""

    scale: float = Field(description="Required.")

    def compute(self, predictions: Float[Tensor, " batch"], targets: Float[Tensor, " batch"]) -> Elements:
        return Elements(self.scale * (predictions - targets))


# kwargs
TokenCE(label_smoothin=0.1)  # expect-error
TokenCE(label_smoothing="0.1")  # expect-error
TokenCE(reduction="average")  # expect-error
TokenCE(0.1)  # expect-error
TokenCE(softcap="30")  # expect-error
TokenCE(chunk_size=64)  # expect-error
LinearCE(backend="triton")  # expect-error
LinearCE(overwrite_logits=True)  # expect-error
Scaled()  # expect-error
Scaled(scale=None)  # expect-error

# tensors
TokenCE().compute(logts=logits, labels=labels)  # expect-error
Scaled(scale=1.0).compute(predictions=logits)  # expect-error
LinearCE().compute(logits=logits, labels=labels)  # expect-error
Scaled(scale=1.0).compute(predictions=logits, targets="targets")  # expect-error
TokenCE()({"logits": logits}, {"labels": labels})  # expect-error


# returns
def misspelt(outputs: Any, batch: Any) -> LossReturn:
    return {"losss": logits.mean()}  # expect-error


def lossless(outputs: Any, batch: Any) -> LossReturn:
    return {"metrics": {}}  # expect-error


def textual(outputs: Any, batch: Any) -> LossReturn:
    return {"loss": "0.5"}  # expect-error


resolve_loss("mse")({}, {})["losss"]  # expect-error


class Reduced(Loss):
    """It returns a tensor where unreduced Elements are due."""

    def compute(self, predictions: Float[Tensor, " batch"]) -> Tensor:  # expect-error
        return predictions.mean()


# specs
resolve_loss(3)  # expect-error
resolve_loss(None)  # expect-error
resolve_loss()  # expect-error
LossSpec(typ="mse")  # expect-error
register_loss("number", 3)  # expect-error
register_loss("named", misspelt, override=True)  # expect-error

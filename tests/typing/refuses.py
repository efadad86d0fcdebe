"""What a checker must refuse: an error on each line that says so, and on no other."""

from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from tensafe.training.losses import (
    ElementLoss,
    Elements,
    Loss,
    LossFn,
    LossReturn,
    LossSpec,
    ResolvedLoss,
    TokenLoss,
    register_loss,
    resolve_loss,
)
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


# a user's own loss class
class Sharpened(TokenLoss, name="typed_sharpened"):
    """With fields, two required tensors and an optional one."""

    power: float = Field(default=2.0, gt=0, description="Exponent.")
    kind: Literal["up", "down"] = Field(default="up", description="Direction.")

    def compute(
        self,
        logps: Float[Tensor, "batch seq"],
        advantages: Float[Tensor, "batch seq"],
        mask: Float[Tensor, "batch seq"] | None = None,
    ) -> Elements:
        logps.squared()  # expect-error
        mask.sum()  # expect-error
        return Elements(-((logps * advantages) ** self.powr))  # expect-error


Sharpened(powr=3.0)  # expect-error
Sharpened(power="3")  # expect-error
Sharpened(kind="sideways")  # expect-error
Sharpened(reduction="average")  # expect-error
Sharpened().compute(logps=logits)  # expect-error
Sharpened().compute(logps=logits, advantage=logits)  # expect-error
Sharpened().compute(logps=logits, advantages=1.0)  # expect-error
Sharpened().compute(logps=logits, advantages=logits)["loss"]  # expect-error


class Averaged(ElementLoss):
    """It forgets to return, and gives a tensor as a metric's name."""

    def compute(self, predictions: Float[Tensor, " batch"]) -> Elements:  # expect-error
        Elements(predictions)


class Unpacked(ElementLoss):
    """It returns what a plain function would."""

    def compute(self, predictions: Float[Tensor, " batch"]) -> Elements:
        return {"loss": predictions.mean()}  # expect-error


# a user's own function
def worded(outputs: Any, batch: Any) -> str:
    return "0.5"


def forgetful(outputs: Any, batch: Any) -> None:
    print(outputs, batch)


resolve_loss(worded)  # expect-error
resolve_loss(forgetful)  # expect-error
register_loss("worded", worded)  # expect-error
as_loss: LossFn = worded  # expect-error


@register_loss("typed_forgetful")  # expect-error
def also_forgetful(outputs: Any, batch: Any) -> None:
    print(outputs, batch)


# a built-in by name: on the line of the call, however it is used
def use(loss_fn: ResolvedLoss) -> None:
    loss_fn(logits, labels)


def give() -> ResolvedLoss:
    return resolve_loss("token_ce", label_smoothin=0.1)  # expect-error


resolve_loss("token_ce", label_smoothin=0.1)  # expect-error
resolve_loss("token_ce", label_smoothing="0.1")  # expect-error
resolve_loss("token_ce", label_smoothing=0.1, ignore_index="pad")  # expect-error
loss_fn = resolve_loss("token_ce", label_smoothin=0.1)  # expect-error
loss_fn(logits, labels)
use(resolve_loss("token_ce", label_smoothin=0.1))  # expect-error
use(loss_fn=resolve_loss("mse", reduction="average"))  # expect-error
none = resolve_loss("token_ce", label_smoothing=None)  # expect-error of pyright
bare = resolve_loss("weighted_sum")  # expect-error of pyright
use(resolve_loss("matryoshka", dims=[64]))  # expect-error

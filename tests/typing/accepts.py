"""What a user may write: no checker has anything to say about this file."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, assert_type

import torch
from jaxtyping import Float, Int
from pydantic import BaseModel, Field
from torch import Tensor, nn

from tensafe.training.losses import (
    LOSS_REGISTRY,
    Alias,
    ElementLoss,
    Elements,
    Loss,
    LossConfigError,
    LossFn,
    LossOutput,
    LossReturn,
    LossSpec,
    NestedLoss,
    ResolvedLoss,
    TokenLoss,
    get_registered_losses,
    missing_tensor,
    register_loss,
    resolve_loss,
    validate_loss_return,
    wrap_simple_loss,
)
from tensafe.training.losses.builtin.linear_ce import LinearCE
from tensafe.training.losses.builtin.token_ce import TokenCE
from tensafe.training.losses.registry import resolve_loss as resolve_from_registry


class DPO(ElementLoss, name="typed_dpo"):
    """A loss of one's own, with fields, a rename, an alias and an optional tensor."""

    beta: float = Field(default=0.1, gt=0, description="Inverse temperature.")
    kind: Literal["sigmoid", "hinge"] = Field(default="sigmoid", description="Shape.")

    def compute(
        self,
        chosen_logps: Float[Tensor, " batch"],
        rejected_logps: Annotated[Float[Tensor, " batch"], Alias("logps_rejected")],
        labels: Int[Tensor, " batch"] | None = None,
    ) -> Elements:
        if labels is None:
            raise missing_tensor("labels")
        margin = chosen_logps - rejected_logps
        return Elements(-nn.functional.logsigmoid(self.beta * margin), metrics={"margin": margin})


class Bounded(TokenLoss):
    """Not registered, with a required field."""

    limit: int = Field(ge=1, description="Longest sequence.")

    def compute(self, logps: Float[Tensor, "batch seq"]) -> Elements:
        return Elements(-logps, logps > -self.limit)


class Halved(Loss, name="typed_halved"):
    """A combinator."""

    inner: NestedLoss

    def __call__(self, outputs: Any, batch: Any) -> LossReturn:
        result = self.inner(outputs, batch)
        return {"loss": result["loss"] / 2, "metrics": result.get("metrics", {})}


dpo = DPO(beta=0.2, kind="hinge", reduction="sum")
assert_type(dpo.beta, float)
assert_type(dpo.compute(chosen_logps=torch.zeros(2), rejected_logps=torch.zeros(2)), Elements)
DPO(beta=1)  # an int is fine for a float
Bounded(limit=3, reduction="sequence_sum_norm", max_length=4)
TokenCE(label_smoothing=0.1, ignore_index=0).compute(logits=torch.zeros(2, 3), labels=torch.zeros(2).long())
TokenCE(z_loss=1e-4, softcap=None, logit_scale=2, overwrite_logits=True)
linear = LinearCE(softcap=30, chunk_size=64, backend="torch", reduction="sum")
assert_type(linear.backend, Literal["auto", "torch", "liger", "cce"])
linear.compute(hidden_states=torch.zeros(2, 4), lm_head_weight=torch.zeros(3, 4), labels=torch.zeros(2).long())


# the two ways to write a plain callable


@register_loss("typed_function")
def function(outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor], *, weight: float = 1.0) -> LossReturn:
    return {"loss": weight * (outputs["x"] - batch["y"]).mean(), "metrics": {"weight": weight}}


assert_type(function({}, {}, weight=2.0), LossReturn)  # the decorator keeps the signature


class Instance:
    """A loss with state."""

    def __call__(self, outputs: Any, batch: Any, **kwargs: Any) -> LossReturn:
        return {"loss": torch.tensor(0.0), "auxiliary": {"seen": kwargs}}


class Module(nn.Module):
    """A loss with parameters."""

    def forward(self, outputs: dict[str, Tensor], batch: dict[str, Tensor]) -> Tensor:
        return outputs["x"].mean()


def scalar(outputs: Any, batch: Any) -> float:
    return 0.5


instance: LossFn = register_loss("typed_instance", Instance())
register_loss("typed_instance", Instance(), overwrite=True)
simple: LossFn = wrap_simple_loss(scalar, name="half")


# every form of a spec

section: dict[str, Any] = {"type": "mse", "kwargs": {"reduction": "sum"}, "inputs": {"targets": "batch.y"}}
for spec in ("mse", "package.module:function", section, LossSpec(type="mse")):
    assert_type(resolve_loss(spec), ResolvedLoss)
for loss in (function, Instance(), Module(), dpo, DPO, TokenCE, instance, simple, scalar):
    assert_type(resolve_loss(loss), ResolvedLoss)
resolve_loss(resolve_loss("token_ce", label_smoothing=0.1), reduction="sum")
assert_type(resolve_from_registry("mse", reduction="sum"), ResolvedLoss)

# a name that only the user knows takes any kwargs: no checker can tell what they should be

resolve_loss("typed_function", weight=2.0)
resolve_loss("package.module:weighted_loss", weight=0.5, ignore_index=-100)
resolve_loss("mine", a=None, b="x", c=[1, 2], d={"e": 1}, f=len, g=Instance(), h=(1, None), i=object())
resolve_loss("mine", decay=None)


def build(name: str, kwargs: dict[str, Any], others: dict[str, object]) -> ResolvedLoss:
    resolve_loss(name)
    resolve_loss(name, weight=0.5, kind=None)
    resolve_loss("mine", **others)
    resolve_loss("token_ce", **kwargs)
    resolve_loss("token_ce", metrics=False, **kwargs)
    return resolve_loss(name, **kwargs)


def choose(name: Literal["mse", "l1"], spec: str | dict[str, Any]) -> ResolvedLoss:
    resolve_loss(spec, reduction="sum")
    return resolve_loss(name, reduction="sum")


resolve_loss("weighted_sum", losses=["mse", {"type": "l1", "weight": 0.5}, TokenCE(), resolve_loss("mse")])
resolve_loss("matryoshka", loss="multiple_negatives", dims=[64, 32])
terms = ["mse", {"type": "l1", "weight": 0.5}]
resolve_loss("weighted_sum", losses=terms)
shaped = {"label_smoothing": 0.1, "softcap": 30.0}
resolve_loss("token_ce", reduction="sequence_mean", **shaped)
for name in ("token_ce", "mse", "weighted_sum", "mine"):
    assert_type(resolve_loss(name), ResolvedLoss)
    assert_type(resolve_loss(name, metrics=False), ResolvedLoss)
for name in ("token_ce", "mse"):
    resolve_loss(name)({}, {}, reduction="sum")
resolve_loss(TokenCE, label_smoothing=0.1)
resolve_loss(dpo, beta=0.3)
resolve_loss(function, weight=0.5)


# using one


class Output(nn.Module):
    """An object with attributes, as models return."""

    logits: Tensor


@dataclass
class Batch:
    """Likewise."""

    labels: Tensor


def train(loss_fn: ResolvedLoss, output: Output, batch: Batch) -> float:
    result = loss_fn(output, batch, label_smoothing=0.2, num_items_in_batch=torch.tensor(3))
    assert_type(result, LossReturn)
    assert_type(result["loss"], Tensor)
    result["loss"].backward()  # type: ignore[no-untyped-call]  # pyright: ignore[reportUnknownMemberType]  # torch's
    if "metrics" in result:
        for name, value in result["metrics"].items():
            print(name.upper(), float(value))
    as_function: LossFn = loss_fn
    return float(as_function(outputs=output, batch=batch)["loss"])


class TrainingConfig(BaseModel):
    """A user's own model with a loss in it."""

    loss: LossSpec
    steps: int = 10


config = TrainingConfig(loss=LossSpec(type="token_ce", kwargs={"label_smoothing": 0.1}))
resolve_loss(config.loss.type, **config.loss.kwargs)
resolve_loss(config.loss)
assert_type(validate_loss_return(LossOutput(loss=torch.tensor(1.0), metrics={"a": 1.0})), LossReturn)
assert_type(get_registered_losses(), dict[str, Any])
assert_type(list(LOSS_REGISTRY), list[str])

misspelt: dict[str, Any] = {"label_smothing": 0.1}
try:
    resolve_loss("token_ce", **misspelt)
except LossConfigError as error:
    assert_type(error.loss, str | None)
    for problem in error.problems:
        print(error.code, error.loc, error.hint, problem.code, problem.loc, problem.message, problem.suggestion)

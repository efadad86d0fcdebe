"""Ways to check a loss: `logits [batch seq vocab]`, float; `labels [batch seq]`, integers; and what is returned.

Each is a function from an outcome, which makes the loss of the logits, to a function of outputs and batch. Annotations
are evaluated here, because beartype and pydantic read them.
"""

from collections.abc import Callable, Mapping
from typing import Annotated, Any

import torch
from jaxtyping import Float, Int, jaxtyped
from pydantic import AfterValidator, InstanceOf, TypeAdapter
from torch import Tensor
from typing_extensions import TypedDict  # pydantic takes no other before Python 3.12

from tensafe.training.losses import Elements, Loss, resolve_loss

from .peers import attribute

__all__ = ["OURS", "PEERS", "Checked", "Outcome", "unchecked"]

Named = Mapping[str, Any]
Checked = Callable[[Named, Named], Any]
Outcome = Callable[[Tensor], Any]

_FLOATS = frozenset({torch.float32, torch.float64, torch.float16, torch.bfloat16})
_INTS = frozenset({torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8})

_Logits: Any = Float[Tensor, "batch seq vocab"]
_Labels: Any = Int[Tensor, "batch seq"]
_Scalar: Any = Float[Tensor, ""]


class Return(TypedDict):
    """What a loss returns."""

    loss: Tensor
    metrics: dict[str, float | Tensor]


def unchecked(outcome: Outcome) -> Checked:
    """Check nothing."""
    return lambda outputs, batch: {"loss": outcome(outputs["logits"]), "metrics": {}}


def _tensafe(outcome: Outcome) -> Checked:
    class Constant(Loss):
        """Nothing but its contract."""

        def compute(self, logits: Float[Tensor, "batch seq vocab"], labels: Int[Tensor, "batch seq"]) -> Elements:
            """Return the outcome."""
            return Elements(outcome(logits))

    return resolve_loss(Constant())


def _by_hand(outcome: Outcome) -> Checked:  # noqa: C901  # one branch for each thing that may be wrong
    """Keep the promises that tensafe makes, written out for this one loss."""

    def compute(logits: Tensor, labels: Tensor) -> Elements:
        return Elements(outcome(logits))

    def check(outputs: Named, batch: Named) -> Return:  # noqa: C901  # likewise
        logits, other = outputs.get("logits"), batch.get("logits")
        if logits is None:
            logits = other
        elif other is not None and other is not logits:
            raise ValueError("logits in outputs and batch differ")
        labels, other = outputs.get("labels"), batch.get("labels")
        if labels is None:
            labels = other
        elif other is not None and other is not labels:
            raise ValueError("labels in outputs and batch differ")
        if not isinstance(logits, Tensor) or logits.layout is not torch.strided:
            raise TypeError("logits must be a tensor")
        if logits.dtype not in _FLOATS:
            raise TypeError("logits must be float")
        shape = logits.shape
        if len(shape) != 3:
            raise ValueError("logits must be [batch seq vocab]")
        rows, seq, vocab = shape
        if vocab < 1:
            raise ValueError("vocab must be at least 1")
        if not isinstance(labels, Tensor) or labels.layout is not torch.strided:
            raise TypeError("labels must be a tensor")
        if labels.dtype not in _INTS:
            raise TypeError("labels must be integers")
        shape = labels.shape
        if len(shape) != 2 or shape[0] != rows or shape[1] != seq:
            raise ValueError("labels must be [batch seq] like logits")
        if labels.device != logits.device:
            raise ValueError("labels must be on the device of logits")
        if batch.get("num_items_in_batch") is not None or batch.get("num_sequences_in_batch") is not None:
            raise ValueError("this loss takes no counts")
        elements = compute(logits, labels)
        if not isinstance(elements, Elements):
            raise TypeError("compute must return Elements")
        values = elements.values
        if not isinstance(values, Tensor) or not values.dtype.is_floating_point:
            raise TypeError("values must be a float tensor")
        return {"loss": values, "metrics": {}}

    return check


def _by_hand_bare(outcome: Outcome) -> Checked:
    """Notice the six faults and nothing else."""

    def check(outputs: Named, batch: Named) -> Return:
        logits, labels = outputs["logits"], batch["labels"]
        if not isinstance(logits, Tensor) or not isinstance(labels, Tensor):
            raise TypeError("logits and labels must be tensors")
        if logits.dtype not in _FLOATS or labels.dtype not in _INTS:
            raise TypeError("logits must be float, labels integers")
        rows, seq, _ = logits.shape
        if labels.shape != (rows, seq):
            raise ValueError("labels must be [batch seq] like logits")
        loss = outcome(logits)
        if not isinstance(loss, Tensor):
            raise TypeError("the loss must be a tensor")
        return {"loss": loss, "metrics": {}}

    return check


def _jaxtyping(outcome: Outcome) -> Checked:
    @jaxtyped(typechecker=None)
    def check(outputs: Named, batch: Named) -> Return:
        logits, labels = outputs["logits"], batch["labels"]
        if not isinstance(logits, _Logits) or not isinstance(labels, _Labels):
            raise TypeError("must be float[batch seq vocab] and int[batch seq]")
        loss = outcome(logits)
        if not isinstance(loss, _Scalar):
            raise TypeError("the loss must be a 0-d tensor")
        return {"loss": loss, "metrics": {}}

    return check


def _beartype(outcome: Outcome) -> Checked:
    @jaxtyped(typechecker=attribute("beartype:beartype"))
    def loss_fn(logits: Float[Tensor, "batch seq vocab"], labels: Int[Tensor, "batch seq"]) -> Return:
        return {"loss": outcome(logits), "metrics": {}}

    return lambda outputs, batch: loss_fn(outputs["logits"], batch["labels"])


def _beartype_on_mappings(outcome: Outcome) -> Checked:
    class Outputs(TypedDict):
        logits: Float[Tensor, "batch seq vocab"]

    class Batch(TypedDict):
        labels: Int[Tensor, "batch seq"]

    @jaxtyped(typechecker=attribute("beartype:beartype"))
    def loss_fn(outputs: Outputs, batch: Batch) -> Return:
        logits, _ = outputs["logits"], batch["labels"]
        return {"loss": outcome(logits), "metrics": {}}

    return loss_fn  # type: ignore[return-value]  # a TypedDict is no Mapping[str, Any] to the checker


def _typeguard(outcome: Outcome) -> Checked:
    check_type = attribute("typeguard:check_type")  # its decorator takes the axes of jaxtyping for code

    @jaxtyped(typechecker=None)
    def check(outputs: Named, batch: Named) -> Any:
        logits = check_type(outputs["logits"], _Logits)
        check_type(batch["labels"], _Labels)
        return check_type({"loss": outcome(logits), "metrics": {}}, Return)

    return check


def _pydantic(outcome: Outcome) -> Checked:
    class Inputs(TypedDict):
        logits: InstanceOf[Tensor]
        labels: InstanceOf[Tensor]

    class Result(TypedDict):
        loss: InstanceOf[Tensor]
        metrics: dict[str, Any]

    @jaxtyped(typechecker=None)
    def check_shapes(inputs: Inputs) -> Inputs:
        if not isinstance(inputs["logits"], _Logits) or not isinstance(inputs["labels"], _Labels):
            raise ValueError("must be float[batch seq vocab] and int[batch seq]")
        return inputs

    inputs_adapter: TypeAdapter[Any] = TypeAdapter(Annotated[Inputs, AfterValidator(check_shapes)])
    result_adapter: TypeAdapter[Any] = TypeAdapter(Result)

    def check(outputs: Named, batch: Named) -> Any:
        given = inputs_adapter.validate_python({**outputs, **batch})
        return result_adapter.validate_python({"loss": outcome(given["logits"]), "metrics": {}})

    return check


OURS: Mapping[str, Callable[[Outcome], Checked]] = {
    "tensafe": _tensafe,
    "by hand": _by_hand,
    "by hand, the six faults only": _by_hand_bare,
}
PEERS: Mapping[str, Callable[[Outcome], Checked]] = {
    "jaxtyping, isinstance": _jaxtyping,
    "jaxtyping + beartype": _beartype,
    "jaxtyping + beartype, TypedDicts": _beartype_on_mappings,
    "jaxtyping + typeguard": _typeguard,
    "pydantic TypeAdapter": _pydantic,
}

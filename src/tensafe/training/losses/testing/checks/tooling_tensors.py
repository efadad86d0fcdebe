"""Kinds of tensor: a Parameter, a subclass, a DTensor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor
from torch.distributed.tensor.experimental import implicit_replication

from tensafe.training.losses.testing.aids.agreement import require_agreement
from tensafe.training.losses.testing.aids.process_group import one_rank_mesh
from tensafe.training.losses.testing.catalogue import conformance_check
from tensafe.training.losses.testing.outcome import fail, first_line, skip

if TYPE_CHECKING:
    from collections.abc import Callable

    from tensafe.training.losses.testing.subject import Subject
    from tensafe.training.losses.testing.trial import Run
    from tensafe.training.losses.types import LossReturn


class _Tagged(Tensor):
    """A subclass that torch carries through every operation."""


_KINDS: dict[str, Callable[[Tensor], Any]] = {
    "an nn.Parameter": nn.Parameter,
    "a subclass of Tensor": lambda tensor: tensor.as_subclass(_Tagged),
}


@conformance_check(
    "tooling",
    "Ask isinstance(x, torch.Tensor), never type(x) is torch.Tensor, and use torch operations rather than numpy or "
    ".data.",
)
def check_tensor_subclass_and_parameter(subject: Subject) -> None:
    """A Parameter, or an instance of a subclass, is a tensor like any other, forward and backward."""
    trial = subject.trial("float64")
    expected = trial.run()
    for what, wrap in _KINDS.items():
        try:
            found = trial.run_on({key: wrap(leaf) for key, leaf in trial.leaves().items()})
        except Exception as error:
            fail(f"given {what} it raises {first_line(error)}", trial=trial)
        require_agreement(_mapped(found, _as_plain), expected, f"given {what}", trial)


@conformance_check(
    "tooling",
    "Tensors that are spread over ranks come as DTensor, and none but DTensors may meet them. Make new tensors from "
    "given ones (zeros_like, new_zeros, where), and stay with torch operations.",
)
def check_dtensor(subject: Subject) -> None:
    """Given DTensors, on a mesh of one rank, it gives the same result and gradients."""
    trial = subject.trial("float64")
    expected = trial.run()
    with one_rank_mesh() as mesh:
        spread = trial.changed(lambda _, tensor: distribute_tensor(tensor, mesh, [Replicate()]))
        leaves = {key: spread.outputs[key].requires_grad_() for key in trial.learnt}
        try:
            with implicit_replication():  # a tensor that the loss makes counts as one that every rank has
                found = _mapped(spread.run_on(leaves), _as_whole)
        except NotImplementedError as error:
            skip(f"torch has no rule for DTensor: {first_line(error)}")
        except Exception as error:
            fail(f"given DTensors it raises {first_line(error)}", trial=trial)
    require_agreement(found, expected, "given DTensors", trial)


def _as_plain(value: Any) -> Any:
    return value.as_subclass(Tensor) if isinstance(value, Tensor) else value


def _as_whole(value: Any) -> Any:
    return value.full_tensor() if isinstance(value, DTensor) else value


def _mapped(run: Run, change: Callable[[Any], Any]) -> Run:
    """Return a run with its tensors changed into plain ones."""
    result: dict[str, Any] = {**run.result, "loss": change(run.result["loss"])}
    for part in ("metrics", "auxiliary"):
        if part in result:
            result[part] = {name: change(value) for name, value in result[part].items()}
    return run._replace(
        result=cast("LossReturn", result), gradients={key: change(grad) for key, grad in run.gradients.items()}
    )

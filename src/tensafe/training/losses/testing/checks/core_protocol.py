"""The protocol: what a loss resolves to, what it returns, and what it leaves alone."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.utils import _pytree as pytree

from tensafe.training.losses.adapter import ProtocolLoss
from tensafe.training.losses.registry import is_registered
from tensafe.training.losses.resolve import resolve_loss
from tensafe.training.losses.returns import validate_loss_return
from tensafe.training.losses.testing.catalogue import conformance_check
from tensafe.training.losses.testing.outcome import fail, skip

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tensafe.training.losses.adapter import ResolvedLoss
    from tensafe.training.losses.loss import Loss
    from tensafe.training.losses.testing.subject import Subject
    from tensafe.training.losses.testing.trial import Trial

_LONGEST_REPR = 2000


@conformance_check(
    "core",
    "Define it at the top level of a module, with `def` or `class`, and give it a docstring that says what it computes "
    "from which tensors. A default that has no readable repr, such as a function, is better made inside.",
)
def check_resolves_to_callable(subject: Subject) -> None:
    """Its name, path, class and instance all resolve to it; it has a readable repr and a docstring."""
    loss = subject.resolve()
    for form, found in _forms(loss):
        if _inner(found) != _inner(loss):
            fail(f"{form} resolves to something else, {found!r}")
    text = repr(loss)
    if "<lambda>" in text or " at 0x" in text or "\n" in text or len(text) > _LONGEST_REPR:
        fail(f"its repr is not readable: {text[:200]}")
    if not (loss.__doc__ or "").strip():
        fail("it has no docstring")


def _forms(loss: ResolvedLoss) -> Iterator[tuple[str, ResolvedLoss]]:
    """Yield what all that stands for a loss resolves to."""
    yield "it, once resolved,", resolve_loss(loss)
    inner = _inner(loss)
    yield "what it is made of", resolve_loss(inner)
    named: Any = inner
    kwargs: dict[str, Any] = {}
    if not isinstance(loss, ProtocolLoss):
        model: Loss = inner
        named, kwargs = type(model), {name: loss.kwargs[name] for name in model.model_fields_set}
        yield "its class", resolve_loss(named, **kwargs)
    if is_registered(loss.name, named):
        yield f"the name {loss.name!r}", resolve_loss(loss.name, **kwargs)
    name, module = getattr(named, "__qualname__", ""), getattr(named, "__module__", "")
    if name.isidentifier() and hasattr(sys.modules.get(module), name):
        yield f"the path '{module}:{name}'", resolve_loss(f"{module}:{name}", **kwargs)


def _inner(loss: ResolvedLoss) -> Any:
    return loss.fn if isinstance(loss, ProtocolLoss) else vars(loss)["loss"]


@conformance_check(
    "core",
    "End with `return {'loss': loss}`, where loss is a 0-d floating-point tensor: reduce it with .mean(), and leave "
    "out .item() and float(), which cut it off from the model. Scalars for the log go under 'metrics', all else under "
    "'auxiliary'.",
)
def check_returns_mapping_with_scalar_loss(subject: Subject) -> None:
    """It returns `loss`, a 0-d floating-point tensor, and perhaps `metrics` and `auxiliary`, and nothing else."""
    if subject.plain_error is not None:
        raise subject.plain_error
    for what, trial in subject.trials(broken=True):
        at = f" ({what})" if what else ""
        loss = returned(trial)["loss"]
        if not isinstance(loss, Tensor):
            fail(f"it returned a {type(loss).__name__} for a loss{at}; expected a tensor", trial=trial)
        result = trial.call()
        if strange := set(result) - {"loss", "metrics", "auxiliary"}:
            fail(f"it returned {', '.join(sorted(strange))}{at}, which nobody asks for", trial=trial)
        loss = result["loss"]
        if loss.ndim or not loss.is_floating_point():
            fail(f"its loss is {loss.dtype}{list(loss.shape)}{at}; expected a 0-d floating-point tensor", trial=trial)


@conformance_check(
    "core",
    "Return metrics as x.detach(): one that is attached to the graph keeps all that the backward pass needs in memory "
    "for as long as it is logged. A number will do too but, if it comes from a tensor, .item() waits for the device "
    "at each step.",
)
def check_metrics_are_detached_scalars(subject: Subject) -> None:
    """Metrics have names, are numbers or 0-d tensors, and hold no graph; nor does anything auxiliary."""
    found = False
    for _, trial in subject.trials():
        attached = trial._replace(outputs={**trial.outputs, **trial.leaves()})
        result = attached.call()
        metrics = result.get("metrics", {})
        found = found or bool(metrics)
        for name, value in metrics.items():
            if not _is_scalar(value):
                fail(f"the metric {name!r} is no number or 0-d tensor", trial=trial)
        for view in (result, returned(attached)):  # of the latter the adapter lets go, but only where there is one
            _require_no_graph(view, trial)
        if "metrics" in trial.loss.kwargs and trial.bound(metrics=False).call().get("metrics"):
            fail("it returns metrics though metrics=False", "Make metrics only `if self.metrics`.", trial)
    if not found:
        skip("returns no metrics")


def _is_scalar(value: object) -> bool:
    return value.ndim == 0 if isinstance(value, Tensor) else isinstance(value, int | float)


def _require_no_graph(result: Mapping[str, Any], trial: Trial) -> None:
    for part in ("metrics", "auxiliary"):
        held: Mapping[str, Any] = result.get(part, {})
        for name, value in held.items():
            if any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in pytree.tree_leaves(value)):
                fail(f"{part} {name!r} holds on to the graph", trial=trial)


def returned(trial: Trial) -> Mapping[str, Any]:
    """Return what the callable itself gives, before the adapter puts it right; of a typed loss, what that gives."""
    if not isinstance(trial.loss, ProtocolLoss):
        return trial.call()
    trial.call()  # for the report, and because the adapter says best what is wrong
    return validate_loss_return(trial.loss.fn(dict(trial.outputs), dict(trial.batch), **trial.loss.kwargs))

"""A loss and what it is called with, to be run as it is or with something changed."""

from __future__ import annotations

import pprint
import re
import textwrap
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from tensafe.training.losses.errors import LossConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tensafe.training.losses.adapter import ResolvedLoss
    from tensafe.training.losses.contract import TensorSpec
    from tensafe.training.losses.types import LossReturn

__all__ = ["LAST", "Run", "Trial"]

_BATCH_AXES = frozenset({"batch", "*rows", "*shape", "*pairs", "*samples"})

_WIDTH = 110
"""Of the lines that show a tensor."""

_MOST_PRINTED = 4096
"""Numbers of a tensor up to which a report has all of them."""

LAST: ContextVar[Trial | None] = ContextVar("tensafe_last_trial", default=None)
"""The last call that was made, for the report of a check that fails."""


class Run(NamedTuple):
    """What a call gave.

    Attributes:
        result: What the loss returned.
        gradients: The gradient of the summed loss by each output that is learnt; zeros where none reaches it.
    """

    result: LossReturn
    gradients: dict[str, Tensor]

    @property
    def loss(self) -> Tensor:
        """The loss, detached."""
        return self.result["loss"].detach()


class Trial(NamedTuple):
    """A loss and what it is called with.

    Attributes:
        loss: The resolved loss.
        outputs: What a model would have computed.
        batch: What a data set would have provided.
        learnt: The keys of the outputs that get a gradient.
        specs: What is known about the tensor behind each key.
    """

    loss: ResolvedLoss
    outputs: Mapping[str, Any]
    batch: Mapping[str, Any]
    learnt: tuple[str, ...]
    specs: Mapping[str, TensorSpec]

    def call(self, loss: Callable[..., LossReturn] | None = None, **overrides: Any) -> LossReturn:
        """Call the loss on the tensors as they are; another callable may stand in for it, such as a compiled one."""
        LAST.set(self)
        return (loss or self.loss)(dict(self.outputs), dict(self.batch), **overrides)

    def run(self, loss: Callable[..., LossReturn] | None = None, **overrides: Any) -> Run:
        """Call the loss on fresh leaves, and differentiate."""
        return self.run_on(self.leaves(), loss, **overrides)

    def run_on(
        self, leaves: Mapping[str, Tensor], loss: Callable[..., LossReturn] | None = None, **overrides: Any
    ) -> Run:
        """Call the loss on these tensors in place of the outputs that are learnt, and differentiate by them."""
        LAST.set(self)
        result = (loss or self.loss)({**self.outputs, **leaves}, dict(self.batch), **overrides)
        value = result["loss"].sum()
        if not value.requires_grad:
            return Run(result, {key: torch.zeros_like(leaf) for key, leaf in leaves.items()})
        made = torch.autograd.grad(value, list(leaves.values()), allow_unused=True, materialize_grads=True)
        return Run(result, dict(zip(leaves, made, strict=True)))

    def leaves(self) -> dict[str, Tensor]:
        """Return copies of the outputs that are learnt, which require a gradient."""
        return {key: self.outputs[key].detach().clone().requires_grad_() for key in self.learnt}

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Every tensor, by key; where both sides have a key, that of the outputs."""
        return {key: value for key, value in {**self.batch, **self.outputs}.items() if isinstance(value, Tensor)}

    def replaced(self, **tensors: Any) -> Trial:
        """Return the same call with the values of some keys replaced, on whichever side they are."""
        outputs, batch = (
            {key: tensors.get(key, value) for key, value in side.items()} for side in (self.outputs, self.batch)
        )
        return self._replace(outputs=outputs, batch=batch)

    def without(self, key: str) -> Trial:
        """Return the same call without a key."""
        outputs, batch = (
            {name: value for name, value in side.items() if name != key} for side in (self.outputs, self.batch)
        )
        return self._replace(outputs=outputs, batch=batch, learnt=tuple(name for name in self.learnt if name != key))

    def changed(self, change: Callable[[str, Tensor], Any]) -> Trial:
        """Return the same call with each tensor changed by `change(key, tensor)`."""
        return self.replaced(**{key: change(key, tensor) for key, tensor in self.tensors.items()})

    def bound(self, **kwargs: Any) -> Trial:
        """Return the same call of the loss with some kwargs replaced."""
        return self._replace(loss=self.loss.bind(kwargs))

    def has_samples(self, key: str) -> bool:
        """Whether the leading axis of a tensor is that of the samples."""
        tensor, spec = self.tensors[key], self.specs.get(key)
        if not tensor.ndim or tensor.shape[0] != self.batch_size:
            return False
        return spec is None or (bool(spec.dims) and str(spec.dims[0]) in _BATCH_AXES | {"_"})

    @property
    def batch_size(self) -> int:
        """The number of samples: the size of the first axis of the first tensor that has one for them."""
        for key, tensor in self.tensors.items():
            spec = self.specs.get(key)
            if tensor.ndim and (spec is None or (spec.dims and str(spec.dims[0]) in _BATCH_AXES | {"_"})):
                return tensor.shape[0]
        return 0

    def rows(self, index: Tensor | slice) -> Trial:
        """Return the same call on some of the samples, in the given order."""
        return self.changed(lambda key, tensor: tensor[index] if self.has_samples(key) else tensor)

    def as_python(self) -> str:
        """Return the call as Python that can be run."""
        lines = ["import torch", "from tensafe.training.losses import resolve_loss", ""]
        if any(tensor.numel() > _MOST_PRINTED for tensor in self.tensors.values()):
            lines += [f"# tensors of more than {_MOST_PRINTED} numbers are drawn anew: they are too long to print"]
        lines += [f"loss_fn = resolve_loss({_spec(self.loss)})"]
        lines += [f"{side} = {_literal(getattr(self, side))}" for side in ("outputs", "batch")]
        return "\n".join([*lines, "result = loss_fn(outputs, batch)"])


def _spec(loss: ResolvedLoss) -> str:
    try:
        config = loss.to_config()
        name, kwargs = config["type"], config["kwargs"]
    except LossConfigError:  # a local function, a lambda
        name, kwargs = loss.name, loss.kwargs
    return "".join([repr(name), *(f", {kwarg}={value!r}" for kwarg, value in kwargs.items())])


def _literal(side: Mapping[str, Any]) -> str:
    items = "".join(f"    {key!r}: {_one(value)},\n" for key, value in side.items())
    return f"{{\n{items}}}" if items else "{}"


def _one(value: Any) -> str:
    if not isinstance(value, Tensor):
        return repr(value)
    if value.is_meta or value.layout is not torch.strided or type(value) not in {Tensor, nn.Parameter}:
        return f"torch.empty({list(value.shape)}, dtype={value.dtype}, device={str(value.device)!r})"
    if value.numel() > _MOST_PRINTED:
        return _drawn(value)
    elements: Any = value.detach().tolist()  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    numbers = pprint.pformat(elements, width=_WIDTH, compact=True)
    numbers = re.sub(r"\b(nan|inf)\b", r"float('\1')", numbers)
    dtype = "" if value.dtype in {torch.int64, torch.bool} else f", dtype={value.dtype}"
    arguments = f"{numbers}{dtype}"
    if "\n" in numbers:
        arguments = f"\n{textwrap.indent(arguments, ' ' * 8)}\n    "
    shape = "" if value.numel() else f".reshape({list(value.shape)})"
    return f"torch.tensor({arguments}){shape}"


def _drawn(tensor: Tensor) -> str:
    """Return Python that makes a tensor like one that is too large to print."""
    shape = list(tensor.shape)
    if tensor.is_floating_point():
        return f"torch.randn({shape}, dtype={tensor.dtype})"
    if tensor.dtype is torch.bool:
        return f"torch.rand({shape}) < {float(tensor.float().mean()):.2f}"
    return f"torch.randint({int(tensor.min())}, {int(tensor.max()) + 1}, {shape}, dtype={tensor.dtype})"

"""Containers: what outputs and batch may be, and what may be in them."""

from __future__ import annotations

from collections import OrderedDict, UserDict
from collections.abc import Callable, Mapping
from dataclasses import make_dataclass
from types import MappingProxyType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tensafe.training.losses.adapter import TypedLoss
from tensafe.training.losses.errors import LossInputError
from tensafe.training.losses.testing.aids.comparing import change_of
from tensafe.training.losses.testing.catalogue import conformance_check
from tensafe.training.losses.testing.outcome import fail, skip

if TYPE_CHECKING:
    from tensafe.training.losses.testing.subject import Subject
    from tensafe.training.losses.testing.trial import Run, Trial


class _ModelOutput(OrderedDict[Any, Any]):
    """A mapping whose items are attributes too, and whose integer keys count: what models of transformers return."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def __getitem__(self, key: Any) -> Any:
        return list(self.values())[key] if isinstance(key, int) else super().__getitem__(key)


def _as_dataclass(items: Mapping[str, Any]) -> Any:
    return make_dataclass("Outputs", list(items))(**items)


_TO_LIST: Callable[[Tensor], Any] = Tensor.tolist  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]

Container = Callable[[Mapping[str, Any]], Any]

_MAPPINGS: Mapping[str, Container] = {
    "a UserDict": UserDict,
    "a MappingProxyType": MappingProxyType,
    "a ModelOutput": _ModelOutput,
}
_OBJECTS: Mapping[str, Container] = {
    "a namespace": lambda items: SimpleNamespace(**items),
    "a dataclass instance": _as_dataclass,
}


@conformance_check(
    "core",
    "Ask for what a Mapping can do, outputs['logits'], `in` and .get(), and no more: not isinstance(outputs, dict), no "
    ".copy(), .pop() or `|`. Models and tokenizers return mappings that are no dicts.",
)
def check_accepts_mapping_attribute_and_dataclass_outputs(subject: Subject) -> None:
    """Any mapping does for outputs and batch; for a typed loss, any object with attributes too."""
    trial = subject.trial("float64")
    before = trial.run()
    named = all(key.isidentifier() for key in (*trial.outputs, *trial.batch))
    # a plain function is promised mappings: whether it reads attributes too is up to it
    containers = {**_MAPPINGS, **(_OBJECTS if subject.is_typed and named else {})}
    for name, container in containers.items():
        change = change_of(before, _run_in(trial, container, container), rtol=0, atol=0)
        if change is not None:
            fail(f"with outputs and batch in {name} instead of a dict it changed {change}", trial=trial)


def _run_in(trial: Trial, outputs_in: Container, batch_in: Container) -> Run:
    """Run a loss on outputs and batch in other containers than a dict."""

    def call(outputs: Mapping[str, Any], batch: Mapping[str, Any]) -> Any:
        return trial.loss(outputs_in(outputs), batch_in(batch))

    return trial.run(call)


@conformance_check(
    "core",
    "Lists gave another loss than the same numbers as tensors. Convert them, torch.as_tensor(x), or refuse them.",
)
def check_accepts_python_lists(subject: Subject) -> None:
    """Lists of numbers do for tensors, where the loss declares its tensors; a plain function may refuse them."""
    trial = subject.trial("float32")
    expected = trial.call()["loss"]
    in_batch = {key: _as_list(value) for key, value in trial.batch.items()}
    everywhere = {key: _as_list(value) for key, value in trial.outputs.items()}
    for listed in (trial._replace(batch=in_batch), trial._replace(batch=in_batch, outputs=everywhere)):
        try:
            found = listed.call()["loss"]
        except Exception as error:
            if isinstance(trial.loss, TypedLoss):
                raise
            skip("refuses lists" if isinstance(error, LossInputError) else "takes tensors only, no lists")
        if not torch.allclose(found, expected, rtol=1e-6, atol=1e-7):
            fail("with lists of the same numbers its loss is another", trial=listed)


def _as_list(value: Any) -> Any:
    return _TO_LIST(value) if isinstance(value, Tensor) else value

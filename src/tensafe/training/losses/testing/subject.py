"""The loss that is checked: resolved anew for each check, with calls of it that work."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

import torch
from torch import Tensor

from tensafe.training.losses.adapter import ProtocolLoss, TypedLoss
from tensafe.training.losses.contract import TensorSpec, lookup_keys
from tensafe.training.losses.errors import LossConfigError, LossInputError
from tensafe.training.losses.guards import is_class
from tensafe.training.losses.loss import Loss
from tensafe.training.losses.nested import innermost
from tensafe.training.losses.protocol import read_signature
from tensafe.training.losses.resolve import find_loss, resolve_loss
from tensafe.training.losses.sample_values import is_from_model
from tensafe.training.losses.samples import CONVENTIONAL, Sample, SampleSettings, make_sample, sample_kwargs
from tensafe.training.losses.traits import Traits

from .info import LossInfo, SampleCase
from .outcome import NotApplicable, skip
from .trial import Trial

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tensafe.training.losses.adapter import ResolvedLoss
    from tensafe.training.losses.protocol import Parameter
    from tensafe.training.losses.resolve import Spec

__all__ = ["SIZES", "Subject"]

SIZES: Mapping[str, int] = {"batch": 4, "seq": 5, "vocab": 7, "hidden": 64}
"""Sizes of the axes of a sample."""

_MOST_REPAIRS = 4
_NO_SAMPLE = "pass LossInfo(sample_inputs=...), which makes calls that work"


class Subject:
    """A loss under test.

    Args:
        spec: Whatever `resolve_loss` takes.
        info: What the caller says about it.

    Attributes:
        spec: As given.
        info: As given.
    """

    def __init__(self, spec: Spec, info: LossInfo | None = None) -> None:
        self.spec = spec
        self.info = info or LossInfo()

    def resolve(self, **kwargs: Any) -> ResolvedLoss:
        """Resolve the loss anew, with these kwargs over the ones that it needs."""
        return resolve_loss(self.spec, **{**self.kwargs, **kwargs})

    @cached_property
    def name(self) -> str:
        """What the loss is called in messages."""
        return self.resolve().name

    @cached_property
    def kwargs(self) -> dict[str, Any]:
        """The kwargs without which it cannot be resolved, and those that the caller gives."""
        found = find_loss(self.spec) if isinstance(self.spec, str) else self.spec
        needed = sample_kwargs(found) if is_class(found) and issubclass(found, Loss) else {}
        return {**needed, **self.info.kwargs}

    @cached_property
    def loss_class(self) -> type[Loss] | None:
        """The class of a typed loss or a combinator; None for a plain callable."""
        loss = getattr(self.resolve(), "loss", None)
        return type(loss) if isinstance(loss, Loss) else None

    @cached_property
    def traits(self) -> Traits:
        """What the loss claims."""
        if self.info.traits is not None:
            return self.info.traits
        return Traits() if self.loss_class is None else self.loss_class._traits

    @property
    def is_typed(self) -> bool:
        """Whether every tensor is declared, and so checked by the adapter: in a combinator, by each part."""
        return all(isinstance(loss, TypedLoss) for loss in innermost(self.resolve()))

    def declared(self) -> dict[str, TensorSpec]:
        """Return every tensor that the loss, or a part of it, declares, by the key that it is looked up by."""
        typed = [loss for loss in innermost(self.resolve()) if isinstance(loss, TypedLoss)]
        return {lookup_keys(spec, loss.inputs)[1][0]: spec for loss in typed for spec in loss.contract.tensors}

    def choices(self, kwarg: str) -> tuple[Any, ...]:
        """Return the values of a kwarg that is one of a few, such as `reduction`; empty if it is not, or not there."""
        if kwarg in (parameters := self._parameters()):
            return tuple(parameters[kwarg].schema().get("enum", ()))
        field = None if self.loss_class is None else self.loss_class.model_fields.get(kwarg)
        annotation = None if field is None else field.annotation
        return get_args(annotation) if get_origin(annotation) is Literal else ()

    def _parameters(self) -> Mapping[str, Parameter]:
        """Return the kwargs of a plain callable."""
        loss = self.resolve()
        return read_signature(loss.fn, loss.name).parameters if isinstance(loss, ProtocolLoss) else {}

    def trial(
        self, dtype: str = "float64", *, seed: int = 0, sizes: Mapping[str, int] | None = None, **kwargs: Any
    ) -> Trial:
        """Return a call that works, the plainest there is.

        Args:
            dtype: Of the floating-point tensors.
            seed: Of their values.
            sizes: Sizes of some axes.
            **kwargs: Kwargs of the loss.
        """
        if self.info.sample_inputs is not None:
            if sizes is not None:
                skip("the sizes of its samples are those of LossInfo.sample_inputs")
            self._require_plain_call()
            return self._given(self.info.sample_inputs(getattr(torch, dtype), "cpu", seed)[0], kwargs)
        try:
            return self._made(SampleSettings({**SIZES, **(sizes or {})}, dtype, seed=seed), kwargs)
        except NotApplicable:
            raise
        except Exception:
            self._require_plain_call()
            raise

    def _require_plain_call(self) -> None:
        if self.plain_error is not None:
            skip(f"its plainest call raises {type(self.plain_error).__name__}")

    @cached_property
    def plain_error(self) -> Exception | None:
        """What the plainest call raises: one check tells of it, and the others have nothing to look at."""
        try:
            if self.info.sample_inputs is None:
                self._made(SampleSettings(SIZES, "float64"), {}).call()
            else:
                self._given(self.info.sample_inputs(torch.float64, "cpu", 0)[0], {}).call()
        except NotApplicable:
            return None
        except Exception as error:
            return error
        return None

    def trials(self, dtype: str = "float64", *, seed: int = 0, broken: bool = False) -> Iterator[tuple[str, Trial]]:
        """Yield calls that work, each with what is special about it.

        First the plainest, then one for each other value of a kwarg that is one of a few or a bool, and for each
        optional tensor; or all that `sample_inputs` makes.

        Args:
            dtype: Of the floating-point tensors.
            seed: Of their values.
            broken: Whether to yield those too that raise: `check_returns_mapping_with_scalar_loss` tells of them.
        """
        if self.info.sample_inputs is not None:
            self._require_plain_call()
            for index, case in enumerate(self.info.sample_inputs(getattr(torch, dtype), "cpu", seed)):
                yield f"sample {index}", self._given(case, {})
            return
        plain = self.trial(dtype, seed=seed)
        yield "", plain
        settings = SampleSettings(SIZES, dtype, seed=seed)
        for kwargs in self._other_kwargs():
            yield from self._variant(_told(kwargs), settings, kwargs, broken=broken)
        for key, spec in self.declared().items():
            if spec.optional and key not in plain.tensors:
                yield from self._variant(f"with {key}", settings, {}, (key,), broken=broken)

    def ignored_label(self, trial: Trial) -> int | None:
        """Return the label that says that a position does not count, if the loss knows one."""
        losses = list(innermost(trial.loss))
        known = [loss.kwargs["ignore_index"] for loss in losses if "ignore_index" in loss.kwargs]
        if known or self.is_typed:
            return known[0] if known else None
        return self.info.ignore_index

    def labels(self, trial: Trial) -> list[str]:
        """Return the keys of the labels that may be ignored."""
        if self.ignored_label(trial) is None:
            return []
        tensors = trial.tensors
        return [key for key in tensors if key.endswith("labels") and not tensors[key].is_floating_point()]

    def _other_kwargs(self) -> Iterator[dict[str, Any]]:
        fields = {} if self.loss_class is None else self.loss_class.model_fields
        flags = {name for name, field in fields.items() if field.annotation is bool}
        flags |= {name for name, each in self._parameters().items() if each.schema().get("type") == "boolean"}
        now = self.resolve().kwargs
        for name in now:
            values = (True, False) if name in flags else self.choices(name)
            for value in values:
                kwargs = {name: value, **({"max_length": SIZES["seq"]} if value == "sequence_sum_norm" else {})}
                if value != now[name] and value != "none" and name != "metrics" and self._takes(kwargs):
                    yield kwargs

    def _takes(self, kwargs: Mapping[str, Any]) -> bool:
        try:
            self.resolve(**kwargs)
        except LossConfigError:  # this value needs another kwarg
            return False
        return True

    def _variant(
        self,
        told: str,
        settings: SampleSettings,
        kwargs: Mapping[str, Any],
        wanted: Sequence[str] = (),
        *,
        broken: bool,
    ) -> Iterator[tuple[str, Trial]]:
        """Yield a call that is special in one way, with what it needs besides; none where it is refused."""
        try:
            trial = self._repaired(settings, kwargs, wanted)
        except Exception:
            trial = self.trial()._replace(loss=self.resolve(**kwargs)) if broken else None
        if trial is not None:
            yield told, trial

    def _repaired(self, settings: SampleSettings, kwargs: Mapping[str, Any], wanted: Sequence[str]) -> Trial | None:
        wanted, dropped = list(wanted), list[str]()
        for _ in range(_MOST_REPAIRS):
            try:
                trial = self._made(settings, kwargs, wanted)
                for key in dropped:
                    trial = trial.without(key)
                trial.call()
            except NotApplicable:
                return None
            except LossInputError as error:
                missed = {"missing-tensor": wanted, "ambiguous-tensor": dropped}.get(error.code)
                if missed is None or not error.loc or error.loc[0] in {*wanted, *dropped}:
                    return None
                missed.append(str(error.loc[0]))
            else:
                return trial
        return None

    def _made(self, settings: SampleSettings, kwargs: Mapping[str, Any], wanted: Sequence[str] = ()) -> Trial:
        loss = self.resolve(**kwargs)
        try:
            sample = make_sample(loss, settings)
        except LossInputError as error:
            skip(f"no sample could be made ({error}); {_NO_SAMPLE}")
        except KeyError as error:
            skip(f"no sample could be made: it asks for {error}; {_NO_SAMPLE}")
        _add(sample, loss, (*self.traits.sampled_with, *wanted))
        specs = sample.specs()
        outputs, batch = (
            {key: _readable(value.detach(), specs[key]) for key, value in side.items()}
            for side in (sample.outputs, sample.batch)
        )
        return Trial(loss, outputs, batch, tuple(sample.gradients()), specs)

    def _given(self, case: SampleCase, kwargs: Mapping[str, Any]) -> Trial:
        outputs, batch, own = case
        specs = {key: self._spec_of(key, value) for key, value in {**batch, **outputs}.items() if _is_tensor(value)}
        learnt = [key for key, value in outputs.items() if _is_tensor(value) and value.is_floating_point()]
        if self.is_typed:
            learnt = [key for key in learnt if is_from_model(specs[key])]
        made = {key: value.detach() if _is_tensor(value) else value for key, value in outputs.items()}
        return Trial(self.resolve(**{**own, **kwargs}), made, dict(batch), tuple(learnt), specs)

    def _spec_of(self, key: str, tensor: Tensor) -> TensorSpec:
        if key in (declared := self.declared()):
            return declared[key]
        kind = "float" if tensor.is_floating_point() else "bool" if tensor.dtype is torch.bool else "int"
        for spec in CONVENTIONAL:
            if (spec.name, len(spec.dims), spec.kind) == (key, tensor.ndim, kind):
                return spec
        return TensorSpec(key, kind, ("_",) * tensor.ndim)


def _add(sample: Sample, loss: ResolvedLoss, wanted: Sequence[str]) -> None:
    for each in innermost(loss):
        if isinstance(each, TypedLoss):
            for spec in each.contract.tensors:
                if spec.name in wanted:
                    sample.add(spec, each.inputs)


def _readable(tensor: Tensor, spec: TensorSpec) -> Tensor:
    """Return a tensor with numbers of a few digits, for the report of a failure; probabilities stay as they are."""
    if tensor.dtype is not torch.float64 or spec.name.endswith("probs") or (spec.values and spec.values.sums_to_one):
        return tensor
    return tensor.round(decimals=4)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


def _told(kwargs: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in kwargs.items())

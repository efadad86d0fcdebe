"""Batches made from the tensors that a loss declares: what a person would otherwise write by hand to try it.

Meaning follows the names that every loss shares: integer tensors are ids below `vocab`, `*logps` are <= 0, a `mask` is
mostly true. What the data set would provide goes to the batch, what the model would compute to the outputs, with a
gradient.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from pydantic import BaseModel

from tensafe._lazy import torch

from .adapter import CombinedLoss, ResolvedLoss, TypedLoss
from .contract import TensorSpec, is_variadic, lookup_keys
from .errors import LossInputError, make_error
from .guards import is_list

__all__ = ["IGNORED_SHARE", "Sample", "SampleSettings", "make_sample"]

# Names that a data set provides, though they hold floats; so does whatever starts like one of the prefixes.
_FROM_DATA = frozenset({"labels", "targets", "advantages", "returns", "margins", "weights"})
_FROM_DATA_PREFIXES = ("ref_", "old_", "teacher_", "target_", "token_", "sample_")

# What a plain function, which declares no tensors, may ask for by name.
_CONVENTIONAL = (
    TensorSpec("logits", "float", ("batch", "seq", "vocab")),
    TensorSpec("labels", "int", ("batch", "seq")),
    TensorSpec("input_ids", "int", ("batch", "seq")),
    TensorSpec("attention_mask", "int", ("batch", "seq")),
    TensorSpec("mask", "bool", ("batch", "seq")),
    TensorSpec("hidden_states", "float", ("batch", "seq", "hidden")),
    TensorSpec("logps", "float", ("batch", "seq")),
    TensorSpec("old_logps", "float", ("batch", "seq")),
    TensorSpec("ref_logps", "float", ("batch", "seq")),
    TensorSpec("advantages", "float", ("batch", "seq")),
    *(TensorSpec(f"{ref}{side}_logps", "float", ("batch",)) for ref in ("", "ref_") for side in ("chosen", "rejected")),
    *(
        TensorSpec(f"{side}_{what}", "float", ("batch",))
        for side in ("chosen", "rejected")
        for what in ("scores", "rewards")
    ),
    TensorSpec("predictions", "float", ("batch",)),
    TensorSpec("targets", "float", ("batch",)),
    TensorSpec("embeddings_a", "float", ("batch", "hidden")),
    TensorSpec("embeddings_b", "float", ("batch", "hidden")),
)
IGNORED_SHARE = 0.25
"""Share of the labels of a row that are ignored, like the prompt of a chat."""


class SampleSettings(NamedTuple):
    """How to make a batch.

    Attributes:
        sizes: Size of each named axis.
        dtype: Name of the dtype of floating-point tensors.
        device: Where.
        seed: Of the random values.
    """

    sizes: Mapping[str, int]
    dtype: str = "float32"
    device: str = "cpu"
    seed: int = 0


class _Tensors(Mapping[str, Any]):
    """One side of a sample; a tensor of a conventional name is made when it is asked for."""

    def __init__(self, sample: Sample, *, from_model: bool) -> None:
        self._sample = sample
        self._from_model = from_model
        self.made: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self.made:
            spec = next((spec for spec in _CONVENTIONAL if spec.name == name), None)
            if not self._sample.on_demand or spec is None or _is_from_model(spec) is not self._from_model:
                raise KeyError(name)
            self._sample.put(self, name, spec)
        return self.made[name]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in self:
            raise AttributeError(name)
        return self[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.made)

    def __len__(self) -> int:
        return len(self.made)


class Sample:
    """Outputs and batch for one loss.

    Attributes:
        outputs: What a model would have computed; floating-point tensors require a gradient, and are no leaves.
        batch: What a data set would have provided.
        on_demand: Whether tensors of conventional names are made when asked for, as a plain function needs.
        axes: The axes whose sizes were used.
    """

    def __init__(self, settings: SampleSettings, *, on_demand: bool, ignore_index: int | None) -> None:
        self.on_demand = on_demand
        self.axes: set[str] = set()
        self._settings = settings
        self._ignore_index = ignore_index
        self._generator = torch.Generator().manual_seed(settings.seed)
        self._leaves: dict[str, Any] = {}
        self._made: list[tuple[_Tensors, str, TensorSpec]] = []
        self.outputs = _Tensors(self, from_model=True)
        self.batch = _Tensors(self, from_model=False)

    def add(self, spec: TensorSpec, inputs: Mapping[str, str]) -> None:
        """Make a declared tensor and put it where the loss looks for it; one that is there already stays."""
        place, keys = lookup_keys(spec, inputs)
        side = self.outputs if (place or ("outputs" if _is_from_model(spec) else "batch")) == "outputs" else self.batch
        if keys[0] not in side.made:
            self.put(side, keys[0], spec)

    def put(self, side: _Tensors, key: str, spec: TensorSpec) -> None:
        """Make one tensor."""
        shape = [size for dim in spec.dims for size in self._sizes(dim)]
        tensor = self._values(spec, shape).to(self._settings.device)
        if side is self.outputs and tensor.is_floating_point() and _is_from_model(spec):
            # a loss may write over what a model has computed, but not over a leaf; this one takes no memory
            leaf = self._leaves[key] = torch.zeros_like(tensor[:0].sum()).expand(shape).requires_grad_()
            tensor = tensor + leaf
        side.made[key] = tensor
        self._made.append((side, key, spec))

    def renew(self) -> None:
        """Make all tensors again, with the values that they had at first, and without gradients."""
        made, self._made = self._made, []
        self.outputs.made.clear()
        self.batch.made.clear()
        self._leaves.clear()
        self._generator.manual_seed(self._settings.seed)
        for side, key, spec in made:
            self.put(side, key, spec)

    def gradients(self) -> dict[str, Any]:
        """Return the gradient of each tensor for which a training step would use one; None where it has none."""
        return {key: leaf.grad for key, leaf in self._leaves.items()}

    def _values(self, spec: TensorSpec, shape: list[int]) -> Any:
        if spec.kind == "bool":
            return torch.rand(shape, generator=self._generator) < 0.8
        if spec.kind == "int":
            return self._ids(spec, shape)
        values = torch.randn(shape, generator=self._generator).to(getattr(torch, self._settings.dtype))
        return -values.abs() if spec.name.endswith("logps") else values

    def _ids(self, spec: TensorSpec, shape: list[int]) -> Any:
        if spec.name.endswith("mask"):
            return torch.ones(shape, dtype=torch.int64)
        ids = torch.randint(0, self._settings.sizes.get("vocab", 2), shape, generator=self._generator)
        if self._ignore_index is not None and ids.ndim > 1 and spec.name.endswith("labels"):
            ids[:, : int(shape[1] * IGNORED_SHARE)] = self._ignore_index
        return ids

    def _sizes(self, dim: str | int) -> list[int]:
        if isinstance(dim, int):
            return [dim]
        if is_variadic(dim):  # rows of tokens; pairs, samples and the like have one axis
            return [self._size("batch"), self._size("seq")] if dim == "*rows" else [self._size("batch")]
        return [self._size(dim)]

    def _size(self, dim: str) -> int:
        axis = "batch" if dim == "_" else dim
        self.axes.add(axis)
        size = self._settings.sizes.get(axis)
        if size is None:
            raise make_error(
                LossInputError,
                f"no size is known for the axis {dim!r}.",
                code="unknown-axis",
                loc=(dim,),
                hint=f"Give one: --size {dim}=4.",
            )
        return size


def make_sample(loss: ResolvedLoss, settings: SampleSettings) -> Sample:
    """Make outputs and batch for a loss, from the tensors that it and the losses inside it declare.

    Of optional tensors only those are made that the loss, called to find out, cannot do without. A plain function
    declares nothing: it gets the tensors that it asks for by a conventional name.
    """
    losses = list(_inside(loss))
    ignore_index = next((one.kwargs["ignore_index"] for one in losses if "ignore_index" in one.kwargs), None)
    on_demand = not all(isinstance(one, TypedLoss) for one in losses)
    sample = Sample(settings, on_demand=on_demand, ignore_index=ignore_index)
    typed = [one for one in losses if isinstance(one, TypedLoss)]
    for one in typed:
        for spec in one.contract.tensors:
            if not spec.optional:
                sample.add(spec, one.inputs)
    while (needed := _still_needed(loss, typed, sample)) is not None:
        sample.add(*needed)
    sample.renew()  # the loss was called, and may have used them up
    return sample


def _still_needed(
    loss: ResolvedLoss, typed: list[TypedLoss], sample: Sample
) -> tuple[TensorSpec, Mapping[str, str]] | None:
    try:
        loss(sample.outputs, sample.batch)
    except LossInputError as error:
        made = {*sample.outputs.made, *sample.batch.made}
        for one in typed:
            for spec in one.contract.tensors:
                asked_for = error.code == "missing-tensor" and error.loss == one.name and error.loc == (spec.name,)
                if asked_for and spec.optional and lookup_keys(spec, one.inputs)[1][0] not in made:
                    return spec, one.inputs
        raise
    return None


def _inside(loss: ResolvedLoss) -> Iterator[ResolvedLoss]:
    """Yield the losses that do the work: the loss itself, or those that a combinator holds."""
    if isinstance(loss, CombinedLoss):
        for name in type(loss.loss).model_fields:
            yield from _held(getattr(loss.loss, name))
    else:
        yield loss


def _held(value: Any) -> Iterator[ResolvedLoss]:
    if isinstance(value, ResolvedLoss):
        yield from _inside(value)
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from _held(getattr(value, name))
    elif is_list(value):
        for item in value:
            yield from _held(item)


def _is_from_model(spec: TensorSpec) -> bool:
    if spec.kind in {"int", "bool"} or spec.name in _FROM_DATA:
        return False
    return not spec.name.startswith(_FROM_DATA_PREFIXES)

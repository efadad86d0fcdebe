"""Batches made from the tensors that a loss declares: what a person would otherwise write by hand to try it.

What the data set would provide goes to the batch, what the model would compute to the outputs, with a gradient.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from tensafe._lazy import torch

from .adapter import TypedLoss
from .contract import TensorSpec, Values, is_variadic, lookup_keys
from .errors import LossConfigError, LossInputError, make_error
from .nested import innermost, takes_step
from .sample_values import Drawing, is_from_model

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .adapter import ResolvedLoss
    from .loss import Loss

__all__ = ["CONVENTIONAL", "Sample", "SampleSettings", "add_missing", "make_sample", "sample_kwargs"]

CONVENTIONAL = (
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
"""What a plain function, which declares no tensors, may ask for by name."""

_SIZES = {"k": 4, "group": 4, "classes": 10}
"""Sizes of axes that have one of their own where none is asked for."""

_STEP = TensorSpec("step", "int", (), values=Values(0, 0))


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


class Tensors(dict[str, Any]):
    """One side of a sample, as a dict or by attribute; a tensor of a conventional name is made when it is asked for."""

    def __init__(self, sample: Sample, *, from_model: bool) -> None:
        super().__init__()
        self._sample = sample
        self._from_model = from_model

    def __missing__(self, name: str) -> Any:
        spec = next((spec for spec in CONVENTIONAL if spec.name == name), None)
        if not self._sample.on_demand or spec is None or is_from_model(spec) is not self._from_model:
            raise KeyError(name)
        self._sample.put(self, name, spec)
        return self[name]

    def get(self, name: str, default: Any = None) -> Any:
        """Return a tensor, or the default where there is none and none can be made."""
        return self[name] if name in self else default  # noqa: SIM401  # that would be this very method

    def __contains__(self, name: object) -> bool:
        if not isinstance(name, str):
            return False
        try:
            self[name]
        except KeyError:
            return False
        return True

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in self:
            raise AttributeError(name)
        return self[name]


class Sample:
    """Outputs and batch for one loss.

    Attributes:
        outputs: What a model would have computed; floating-point tensors require a gradient, and are no leaves.
        batch: What a data set would have provided.
        on_demand: Whether tensors of conventional names are made when asked for, as a plain function needs.
        axes: The axes whose sizes were used.
    """

    def __init__(
        self, settings: SampleSettings, *, on_demand: bool, ignore_index: int | None, ids: str | None = "vocab"
    ) -> None:
        self.on_demand = on_demand
        self.axes: set[str] = set()
        self._settings = settings
        classes = 2 if ids is None else settings.sizes.get(ids, _SIZES.get(ids, 2))
        self._drawing = Drawing(torch.Generator().manual_seed(settings.seed), classes, ignore_index)
        self._leaves: dict[str, Any] = {}
        self._made: list[tuple[Tensors, str, TensorSpec]] = []
        self.outputs = Tensors(self, from_model=True)
        self.batch = Tensors(self, from_model=False)

    def add(self, spec: TensorSpec, inputs: Mapping[str, str]) -> None:
        """Make a declared tensor and put it where the loss looks for it; one that is there already stays."""
        place, keys = lookup_keys(spec, inputs)
        side = self.outputs if (place or ("outputs" if is_from_model(spec) else "batch")) == "outputs" else self.batch
        if keys[0] not in set(side):  # `in` would make it
            self.put(side, keys[0], spec)

    def put(self, side: Tensors, key: str, spec: TensorSpec) -> None:
        """Make one tensor."""
        shape = [size for dim in spec.dims for size in self._sizes(dim)]
        tensor = self._values(spec, shape).to(self._settings.device)
        if side is self.outputs and tensor.is_floating_point() and is_from_model(spec):
            # a loss may write over what a model has computed, but not over a leaf; this one takes no memory
            leaf = self._leaves[key] = tensor.new_zeros(()).expand(shape).requires_grad_()
            tensor = tensor + leaf
        side[key] = tensor
        self._made.append((side, key, spec))

    def renew(self) -> None:
        """Make all tensors again, with the values that they had at first, and without gradients."""
        made, self._made = self._made, []
        self.outputs.clear()
        self.batch.clear()
        self._leaves.clear()
        self._drawing.generator.manual_seed(self._settings.seed)
        for side, key, spec in made:
            self.put(side, key, spec)

    def gradients(self) -> dict[str, Any]:
        """Return the gradient of each tensor for which a training step would use one; None where it has none."""
        return {key: leaf.grad for key, leaf in self._leaves.items()}

    def specs(self) -> dict[str, TensorSpec]:
        """Return what each tensor was made from, by key."""
        return {key: spec for _, key, spec in self._made}

    def _values(self, spec: TensorSpec, shape: list[int]) -> Any:
        values = self._drawing.values(spec, shape)
        return values.to(getattr(torch, self._settings.dtype)) if values.is_floating_point() else values

    def _sizes(self, dim: str | int) -> list[int]:
        if isinstance(dim, int):
            return [dim]
        if dim == "*rows":  # of tokens
            return [self._size("batch"), self._size("seq")]
        if is_variadic(dim):  # pairs, samples and the like have one axis
            return [self._size(dim[1:] if dim[1:] in self._settings.sizes else "batch")]
        return [self._size(dim)]

    def _size(self, dim: str) -> int:
        axis = "batch" if dim == "_" else dim
        self.axes.add(axis)
        sizes = self._settings.sizes
        size = sizes.get(axis, sizes.get("seq") if axis.endswith("_seq") else _SIZES.get(axis))
        if size is None:
            raise make_error(
                LossInputError,
                f"no size is known for the axis {dim!r}.",
                code="unknown-axis",
                loc=(dim,),
                hint=f"Give one: --size {dim}=4.",
            )
        return size


def sample_kwargs(loss: type[Loss]) -> dict[str, Any]:
    """Return what a class cannot be made without: for each such kwarg the first of its field's `examples`.

    Raises:
        LossConfigError: A kwarg that is required has no example.
    """
    kwargs: dict[str, Any] = {}
    while True:
        try:
            loss(**kwargs)
        except LossConfigError as error:
            missing = [str(problem.loc[0]) for problem in error.problems if problem.code == "missing-kwarg"]
            examples = {name: field.examples for name, field in loss.model_fields.items() if field.examples}
            if not missing or not set(missing) <= examples.keys() - kwargs.keys():
                raise
            kwargs |= {name: examples[name][0] for name in missing}
        else:
            return kwargs


def make_sample(loss: ResolvedLoss, settings: SampleSettings) -> Sample:
    """Make outputs and batch for a loss, from the tensors that it and the losses inside it declare.

    Of optional tensors only those are made that the loss, called to find out, cannot do without. A plain function
    declares nothing: it gets the tensors that it asks for by a conventional name.
    """
    losses = list(innermost(loss))
    ignore_index = next((one.kwargs["ignore_index"] for one in losses if "ignore_index" in one.kwargs), None)
    on_demand = not all(isinstance(one, TypedLoss) for one in losses)
    typed = [one for one in losses if isinstance(one, TypedLoss)]
    sample = Sample(settings, on_demand=on_demand, ignore_index=ignore_index, ids=_axis_of_ids(typed))
    if takes_step(loss):
        sample.put(sample.batch, "step", _STEP)
    for one in typed:
        for spec in one.contract.tensors:
            if not spec.optional:
                sample.add(spec, one.inputs)
    add_missing(sample, loss)
    sample.renew()  # the loss was called, and may have used them up
    return sample


def add_missing(sample: Sample, loss: ResolvedLoss) -> None:
    """Add to a sample the optional tensors that a loss, called to find out, cannot do without."""
    typed = [one for one in innermost(loss) if isinstance(one, TypedLoss)]
    while (needed := _still_needed(loss, typed, sample)) is not None:
        sample.add(*needed)


def _axis_of_ids(losses: list[TypedLoss]) -> str | None:
    """Return the axis whose size integer tensors stay below; None where they are just classes, of which two do."""
    axes = {dim for one in losses for spec in one.contract.tensors for dim in spec.dims}
    if "vocab" in axes or not losses:
        return "vocab"
    return "classes" if "classes" in axes else None


def _still_needed(
    loss: ResolvedLoss, typed: list[TypedLoss], sample: Sample
) -> tuple[TensorSpec, Mapping[str, str]] | None:
    try:
        loss(sample.outputs, sample.batch)
    except LossInputError as error:
        made = {*sample.outputs, *sample.batch}
        for one in typed:
            for spec in one.contract.tensors:
                asked_for = error.code == "missing-tensor" and error.loss == one.name and error.loc == (spec.name,)
                if asked_for and spec.optional and lookup_keys(spec, one.inputs)[1][0] not in made:
                    return spec, one.inputs
        raise
    return None

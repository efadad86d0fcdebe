"""A loss of embeddings, for several lengths of them at once."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NamedTuple

from pydantic import Field, model_validator

from tensafe._lazy import torch
from tensafe.training.losses.adapter import TypedLoss
from tensafe.training.losses.contract import is_variadic, lookup_keys
from tensafe.training.losses.errors import LossInputError, Problem, config_error, make_error, shorten
from tensafe.training.losses.explain import make_reader
from tensafe.training.losses.guards import is_mapping
from tensafe.training.losses.loss import Loss
from tensafe.training.losses.nested import (
    FROM_BATCH,
    NestedLoss,
    count_of,
    innermost,
    scaled,
    takes_step,
    unfit_part,
)
from tensafe.training.losses.schedules import step_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import Self

    from torch import Tensor

    from tensafe.training.losses.adapter import ResolvedLoss
    from tensafe.training.losses.contract import TensorSpec
    from tensafe.training.losses.types import LossReturn

_AXIS = "hidden"


class Matryoshka(Loss, name="matryoshka"):
    r"""Weighted sum of one loss on embeddings cut to several lengths, so that their first numbers say the most.

    .. math:: L = \sum_k w_k\, L(x_{:d_k})

    Args:
        outputs: What the loss looks its tensors up in.
        batch: Likewise.
        loss: Any loss of embeddings, as a spec: its float tensors that have an axis `hidden` are cut along it, wherever
            they are found; all others it gets as they are. It may be a `weighted_sum` of such losses.
        dims: :math:`d_1 > d_2 > \dots \ge 1`, the lengths that embeddings are cut to; usually the first is
            the whole one.
        weights: :math:`w`, a finite number for each length; None is 1 for all. A length of weight 0 is computed for its
            metrics and adds 0, but stays in the graph.
        step: Goes to the loss, where it has a schedule; see `weighted_sum`. So do `num_items_in_batch` and
            `num_sequences_in_batch`, once for each length.
        metrics: Whether the result carries, for each length, its loss, such as `loss_768`, and the metrics of the loss,
            such as `positive_similarity_768`.

    Returns:
        The sum, 0-d. Numbers of an embedding beyond the first length get a gradient of 0.

    Raises:
        LossInputError: An embedding is shorter than the first length, or not as long as the others; or from the loss.
        LossConfigError: A kwarg, here or inside the loss, is unknown or out of range; the lengths do not decrease;
            there are not as many weights; the loss has no tensor with an axis `hidden`, or is unreduced; or a call
            has a step, and the loss takes none.

    Note:
        Equal to sentence-transformers' `MatryoshkaLoss` around a loss of cosines. That one scales what it has cut to
        length 1, whatever the loss; here a loss that takes the length of embeddings to mean something sees it.

    Example:
        >>> import torch
        >>> from tensafe.training.losses import resolve_loss
        >>> pairs = {"embeddings_a": torch.eye(2), "embeddings_b": torch.eye(2)}
        >>> inner = {"type": "contrastive", "kwargs": {"temperature": 1.0}}
        >>> result = resolve_loss("matryoshka", loss=inner, dims=[2, 1])(pairs, {})
        >>> {name: round(value.item(), 4) for name, value in result["metrics"].items() if name.startswith("loss")}
        {'loss_2': 0.3133, 'loss_1': 0.5032}

    References:
        Kusupati et al., Matryoshka Representation Learning, 2022, arXiv:2205.13147, equation 1.
    """

    _family: ClassVar[str] = "composition"

    loss: NestedLoss = Field(description="The loss that each length is put to, as a spec.", examples=["contrastive"])
    dims: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        min_length=1,
        strict=False,
        description="Lengths that embeddings are cut to, decreasing.",
        examples=[[64, 32, 16]],
    )
    weights: Annotated[tuple[float, ...], Field(strict=False)] | None = Field(
        default=None, description="What the loss of each length is multiplied by; null is 1 for all."
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        problems = [*self._wrong_lengths(), *self._wrong_loss()]
        if problems:
            raise config_error(problems, loss=None)
        return self

    def _wrong_lengths(self) -> Iterator[Problem]:
        for index, (longer, shorter) in enumerate(pairwise(self.dims), 1):
            if shorter >= longer:
                message = f"the lengths must decrease; {shorten(shorter)} comes after {shorten(longer)}"
                yield Problem("not-decreasing", ("dims", index), message)
        if self.weights is not None and len(self.weights) != len(self.dims):
            message = f"expected a number for each of the {len(self.dims)} dims, got {len(self.weights)}"
            yield Problem("weights-length", ("weights",), message)

    def _wrong_loss(self) -> Iterator[Problem]:
        problem = unfit_part(self.loss, "the loss of a length")
        if problem is not None:
            yield problem.under("loss")
        for part in innermost(self.loss):
            if not isinstance(part, TypedLoss) or not any(_AXIS in spec.dims for spec in part.contract.tensors):
                message = f"{part.name} takes no tensor with an axis {_AXIS}, so there is nothing to cut"
                yield Problem("nothing-to-cut", ("loss",), message)

    @property
    def takes_step(self) -> bool:
        """Whether the loss has a schedule inside."""
        return takes_step(self.loss)

    def __call__(
        self,
        outputs: Any,
        batch: Any,
        *,
        num_items_in_batch: Any = FROM_BATCH,
        num_sequences_in_batch: Any = FROM_BATCH,
        step: Any = None,
    ) -> LossReturn:
        """Return the weighted sum over the lengths; see the class."""
        step = step_of("matryoshka", self.takes_step, step, batch)
        keywords: dict[str, Any] = {
            "num_items_in_batch": count_of("num_items_in_batch", num_items_in_batch, batch),
            "num_sequences_in_batch": count_of("num_sequences_in_batch", num_sequences_in_batch, batch),
            **({} if step is None else {"step": step}),
        }
        embeddings = list(self._embeddings({"outputs": outputs, "batch": batch}))
        _require_one_length(embeddings)
        self._require_long_enough(embeddings)
        total: Any = None
        metrics: dict[str, Any] = {}
        for dim, weight in zip(self.dims, self.weights or (1.0,) * len(self.dims), strict=True):
            cut = list(_cut(embeddings, dim))
            result = self.loss(self._with(outputs, "outputs", cut), self._with(batch, "batch", cut), **keywords)
            part = scaled(result["loss"], weight)
            total = part if total is None else total + part
            if self.metrics:
                metrics[f"loss_{dim}"] = result["loss"]
                metrics.update({f"{key}_{dim}": value for key, value in result.get("metrics", {}).items()})
        return {"loss": total, "metrics": metrics}

    def joint_counts(self, count: Callable[[ResolvedLoss], Mapping[str, Any]]) -> dict[str, Any]:
        """Return the counts of a call: those of the loss, which has the same for each length."""
        return dict(count(self.loss))

    def _tensors(self) -> Iterator[tuple[int, TensorSpec, str | None, tuple[str, ...]]]:
        """Yield the tensors of each loss inside, with its number, and where and by which keys each is looked for."""
        for number, part in enumerate(innermost(self.loss)):
            assert isinstance(part, TypedLoss)
            for spec in part.contract.tensors:
                yield number, spec, *lookup_keys(spec, part.inputs)

    def _embeddings(self, sides: Mapping[str, Any]) -> Iterator[_Embedding]:
        for number, spec, place, keys in self._tensors():
            if spec.kind != "float" or _AXIS not in spec.dims:
                continue
            for key in keys:
                found = {side: make_reader(source)(key) for side, source in sides.items() if place in {None, side}}
                there = {side: tensor for side, tensor in found.items() if tensor is not None}
                for side, tensor in there.items():
                    yield self._checked(_Embedding(number, side, key, tensor, _axis(spec)))
                if there:
                    break

    def _checked(self, embedding: _Embedding) -> _Embedding:
        tensor, axis = embedding.tensor, embedding.axis
        dense = isinstance(tensor, torch.Tensor) and not tensor.is_nested and tensor.layout is torch.strided
        if not dense or not -tensor.ndim <= axis < tensor.ndim:
            kind = "a nested or sparse tensor" if isinstance(tensor, torch.Tensor) else shorten(tensor)
            got = f"a tensor of shape {list(tensor.shape)}" if dense else kind
            message = f"{shorten(embedding.key)} must be a tensor with an axis {_AXIS} to be cut; got {got}."
            raise make_error(LossInputError, message, code="nothing-to-cut", loss="matryoshka", loc=(embedding.key,))
        return embedding

    def _require_long_enough(self, embeddings: Sequence[_Embedding]) -> None:
        for embedding in embeddings:
            length = embedding.tensor.shape[embedding.axis]
            if length < self.dims[0]:
                raise make_error(
                    LossInputError,
                    f"{shorten(embedding.key)} cannot be cut to {self.dims[0]}: its axis {_AXIS} has {length}.",
                    code="dims-too-large",
                    loss="matryoshka",
                    loc=(embedding.key,),
                    hint=f"Let dims start with at most {length}.",
                )

    def _with(self, source: Any, side: str, cut: Sequence[tuple[str, str, Tensor]]) -> Any:
        """Return outputs or batch with what is cut in it."""
        changed = {key: tensor for at, key, tensor in cut if at == side}
        if not changed:
            return source
        if is_mapping(source):
            return {**source, **changed}
        read = make_reader(source)
        return {**{key: read(key) for *_, keys in self._tensors() for key in keys}, **changed}


class _Embedding(NamedTuple):
    """A tensor to cut: for which of the losses inside, where it is, and along which axis."""

    part: int
    side: str
    key: str
    tensor: Any
    axis: int


def _require_one_length(embeddings: Sequence[_Embedding]) -> None:
    """Refuse embeddings of one loss that are not equally long: once they are cut, it could not tell."""
    first: dict[int, _Embedding] = {}
    for embedding in embeddings:
        other = first.setdefault(embedding.part, embedding)
        mine, theirs = embedding.tensor.shape[embedding.axis], other.tensor.shape[other.axis]
        if mine != theirs:
            keys = f"{shorten(embedding.key)} has {mine}, but {shorten(other.key)} has {theirs}"
            message = f"embeddings must have one length before they are cut; along {_AXIS}, {keys}."
            raise make_error(LossInputError, message, code="shape-mismatch", loss="matryoshka", loc=(embedding.key,))


def _cut(embeddings: Sequence[_Embedding], dim: int) -> Iterator[tuple[str, str, Tensor]]:
    made: list[tuple[Tensor, Tensor]] = []
    for _, side, key, tensor, axis in embeddings:
        # what is one tensor in outputs and batch must be one when it is cut
        shorter = next((new for old, new in made if old is tensor), None)
        if shorter is None:
            shorter = tensor.narrow(axis, 0, dim)
            made.append((tensor, shorter))
        yield side, key, shorter


def _axis(spec: TensorSpec) -> int:
    """Return the place of the axis, counted from the end where any number of axes come before."""
    index = spec.dims.index(_AXIS)
    return index - len(spec.dims) if any(is_variadic(dim) for dim in spec.dims[:index]) else index

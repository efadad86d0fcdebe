"""What a made tensor holds: what its loss declares with `Values`, else what the names that all losses share say."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tensafe._lazy import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Generator, Tensor

    from .contract import TensorSpec, Values

__all__ = ["IGNORED_SHARE", "Drawing", "is_from_model"]

IGNORED_SHARE = 0.25
"""Share of the labels of a row that are ignored, like the prompt of a chat."""

_LONGEST = 8

# Names that a data set, or a model that does not learn, provides, though they hold floats; so does whatever starts or
# ends like one of these.
_FROM_DATA = frozenset({"targets", "advantages", "returns", "relevance"})
_PREFIXES = ("ref_", "old_", "rollout_", "teacher_", "target_", "token_", "sample_", "kl_")
_SUFFIXES = ("labels", "margins", "weights", "lengths")


def is_from_model(spec: TensorSpec) -> bool:
    """Return whether a tensor is what the model that learns has computed."""
    if spec.kind in {"int", "bool"} or spec.name in _FROM_DATA:
        return False
    # the weight of the output layer is the model's own
    return not spec.name.startswith(_PREFIXES) and not spec.name.endswith(_SUFFIXES)


class Drawing(NamedTuple):
    """How values are drawn.

    Attributes:
        generator: Of the random numbers.
        classes: Ids are below this.
        ignore_index: Label of a position that does not count, if the loss knows one.
    """

    generator: Generator
    classes: int
    ignore_index: int | None

    def values(self, spec: TensorSpec, shape: Sequence[int]) -> Tensor:
        """Return values for a tensor: float32, int64 or bool, on the CPU."""
        if spec.values is not None:
            drawn = self._declared(spec.values, shape)
            return drawn.to(torch.int64) if spec.kind == "int" else drawn
        if spec.name.endswith("lengths"):
            lengths = torch.randint(1, _LONGEST + 1, shape, generator=self.generator)
            return lengths if spec.kind == "int" else lengths.float()
        if spec.kind == "bool":
            return self._uniform(shape) < (0.8 if spec.name.endswith("mask") else 0.5)
        if spec.kind == "int":
            return self._ids(spec, shape)
        return self._floats(spec, shape)

    def _declared(self, values: Values, shape: Sequence[int]) -> Tensor:
        if values.among:
            places = torch.randint(0, len(values.among), shape, generator=self.generator)
            return torch.tensor(values.among)[places]
        if values.sums_to_one:
            return torch.softmax(self._normal(shape), -1)
        if values.low is not None and values.high is not None:
            return values.low + (values.high - values.low) * self._uniform(shape)
        sizes = self._normal(shape).abs()
        if values.low is not None:
            return values.low + sizes
        return self._normal(shape) if values.high is None else values.high - sizes

    def _floats(self, spec: TensorSpec, shape: Sequence[int]) -> Tensor:
        if spec.name.endswith("logps") and spec.dims and spec.dims[-1] not in {"batch", "seq"}:
            # of some classes among others: their probabilities do not add up to 1
            return torch.log_softmax(self._normal([*shape[:-1], shape[-1] + 1]), -1)[..., :-1]
        values = self._normal(shape)
        if spec.name.endswith(("logps", "nll", "margins", "weights")):
            return -values.abs() if spec.name.endswith("logps") else values.abs()
        return torch.softmax(values, -1) if spec.name.endswith("probs") else values

    def _ids(self, spec: TensorSpec, shape: Sequence[int]) -> Tensor:
        if spec.name.endswith("mask"):
            return torch.ones(shape, dtype=torch.int64)
        if len(shape) > 2 and shape[-1] <= self.classes:  # several of one position, all different
            return self._uniform([*shape[:-1], self.classes]).topk(shape[-1]).indices
        if spec.name == "segment_ids":  # now and then the next one begins
            return (self._uniform(shape) < 1 / 3).cumsum(-1)
        ids = torch.randint(0, self.classes, shape, generator=self.generator)
        if self.ignore_index is not None and ids.ndim > 1 and spec.name.endswith("labels"):
            ids[:, : int(shape[1] * IGNORED_SHARE)] = self.ignore_index
        return ids

    def _uniform(self, shape: Sequence[int]) -> Tensor:
        return torch.rand(shape, generator=self.generator)

    def _normal(self, shape: Sequence[int]) -> Tensor:
        return torch.randn(shape, generator=self.generator)

"""How a DTensor of scores is laid out over ranks: what of the vocabulary and of the rows is here.

Nothing is imported from torch.distributed until there is a DTensor, so that losses of plain tensors need none of it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Shaped
from torch import Tensor

from tensafe.training.losses.errors import LossInputError, make_error

from .lean import is_plain

__all__ = ["Sharding", "as_peer", "is_spread", "sharding_of"]


class Sharding(NamedTuple):
    """Where a rank stands.

    Attributes:
        mesh: The device mesh.
        rows: Placements of what has one value per row of the logits: all but the vocabulary's are those of the logits.
        group: Process group of the ranks that share the vocabulary; None where it is whole on every rank.
        classes: Which classes are here.
        vocab: How many there are on all ranks.
    """

    mesh: Any
    rows: tuple[Any, ...]
    group: Any
    classes: slice
    vocab: int

    @property
    def rows_are_whole(self) -> bool:
        """Whether every rank has all rows."""
        return all(placement.is_replicate() for placement in self.rows)

    def local(self, tensor: Shaped[Tensor, "*rows"]) -> Shaped[Tensor, "*_"]:
        """Return this rank's part of what has one value per row; a plain tensor is whole on every rank."""
        if self.rows_are_whole and type(tensor) is Tensor:
            return tensor
        local: Tensor = self._spread(tensor).to_local()
        return local

    def _spread(self, tensor: Tensor) -> Any:
        from torch.distributed.tensor import DTensor, Replicate

        whole: Any = tensor
        if not isinstance(tensor, DTensor):
            whole = DTensor.from_local(tensor, self.mesh, [Replicate()] * self.mesh.ndim, run_check=False)
        elif whole.device_mesh != self.mesh:
            raise _error("labels and weights are on another device mesh than the logits.", "Use one mesh for all.")
        return whole.redistribute(placements=self.rows)

    def values(self, local: Shaped[Tensor, "*_"], like: Shaped[Tensor, "*rows"]) -> Shaped[Tensor, "*rows"]:
        """Return values of all rows from this rank's: plain and whole where `like` is plain, else a DTensor."""
        from torch.distributed.tensor import DTensor

        is_dtensor = isinstance(like, DTensor)
        if self.rows_are_whole and not is_dtensor:
            return local
        stride = torch.empty(like.shape, device="meta").stride()
        spread: Any = DTensor.from_local(
            local, self.mesh, self.rows, run_check=False, shape=torch.Size(like.shape), stride=stride
        )
        made: Tensor = spread if is_dtensor else spread.full_tensor()
        return made

    def total(self, local: Shaped[Tensor, ""], like: Shaped[Tensor, "*rows"]) -> Shaped[Tensor, ""]:
        """Return the sum of what the ranks have of it, a plain number where `like` is plain, else a DTensor."""
        from torch.distributed.tensor import DTensor, Partial, Replicate

        is_dtensor = isinstance(like, DTensor)
        if self.rows_are_whole and not is_dtensor:
            return local
        parts = [Replicate() if placement.is_replicate() else Partial() for placement in self.rows]
        whole: Any = DTensor.from_local(local, self.mesh, parts, run_check=False)
        whole = whole.redistribute(placements=[Replicate()] * self.mesh.ndim)
        made: Tensor = whole if is_dtensor else whole.to_local()
        return made


def is_spread(tensor: Shaped[Tensor, "*_"]) -> bool:
    """Return whether a tensor is a DTensor whose shards can be worked on: nothing traces or transforms the call."""
    return type(tensor) is not Tensor and hasattr(tensor, "device_mesh") and not is_plain()


def sharding_of(tensor: Shaped[Tensor, "*_"], axis: int = -1, name: str = "logits") -> Sharding:
    """Read the layout of a DTensor.

    Args:
        tensor: Logits, or a weight that makes logits.
        axis: Which axis of it is the vocabulary.
        name: What messages call it.

    Raises:
        LossInputError: It is laid out in a way that cannot be worked on as it is; the message says which.
    """
    from torch.distributed.tensor import Replicate, Shard

    spread: Any = tensor
    mesh, vocab = spread.device_mesh, tensor.shape[axis]
    rows: list[Any] = list(spread.placements)
    dims = [dim for dim, placement in enumerate(rows) if placement.is_shard(axis % tensor.ndim)]
    for dim, placement in enumerate(spread.placements):
        if type(placement) not in {Shard, Replicate}:
            raise _unusable(name, placement, mesh, dim, "Replicate() or Shard(...)")
    if len(dims) > 1:
        raise _unusable(name, rows[dims[1]], mesh, dims[1], "the vocabulary on one dimension of the mesh alone")
    for dim in dims:
        rows[dim] = Replicate()
    if not dims or mesh.size(dims[0]) == 1:
        return Sharding(mesh, tuple(rows), None, slice(0, vocab), vocab)
    width = -(-vocab // mesh.size(dims[0]))
    start = min(width * mesh.get_local_rank(dims[0]), vocab)
    here = slice(start, min(start + width, vocab))
    found = spread.to_local().shape[axis]
    if found != here.stop - here.start:
        message = f"'{name}' has {found} of {vocab} classes on this rank, where DTensor puts {here.stop - here.start}."
        raise _error(message, "Pass shape and stride of the whole to DTensor.from_local, and cut as torch.chunk does.")
    return Sharding(mesh, tuple(rows), mesh.get_group(dims[0]), here, vocab)


def as_peer(tensor: Shaped[Tensor, "*_"], other: Shaped[Tensor, "*_"]) -> Shaped[Tensor, "*_"]:
    """Return what may meet another in one operation: beside a DTensor, a plain tensor is whole on every rank."""
    mesh: Any = None if type(other) is Tensor else getattr(other, "device_mesh", None)
    if mesh is None or hasattr(tensor, "device_mesh"):
        return tensor
    from torch.distributed.tensor import DTensor, Replicate

    return DTensor.from_local(tensor, mesh, [Replicate()] * mesh.ndim, run_check=False)


def _unusable(name: str, placement: Any, mesh: Any, dim: int, wanted: str) -> LossInputError:
    where = (
        f"dimension {dim} of the mesh" if not mesh.mesh_dim_names else f"mesh dimension {mesh.mesh_dim_names[dim]!r}"
    )
    message = f"'{name}' is {placement!r} on {where}; expected {wanted}."
    return _error(message, f"Redistribute it before the loss: {name}.redistribute(placements=[...]).")


def _error(message: str, hint: str) -> LossInputError:
    return make_error(LossInputError, message, code="placement", loc=("logits",), hint=hint)

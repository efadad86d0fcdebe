"""What ranks must agree on before they gather rows: which tensors there are, and of what dtype and shape."""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from tensafe.training.losses.errors import LossInputError, key_name, make_error

from .ranks import all_gather, device_for, gradient_scale

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor
    from torch.distributed import ProcessGroup

__all__ = ["give_up", "in_one_order", "rows_here", "rows_of_ranks"]

_FAILED = -1
"""What a rank that cannot go on says in place of the number of its rows."""


def rows_here(named: Mapping[str, Tensor]) -> int:
    """Return how many rows all tensors of this rank have.

    Raises:
        LossInputError: They have not as many, or one is no plain tensor.
    """
    for name, tensor in named.items():
        if hasattr(tensor, "device_mesh") or tensor.layout is not torch.strided or tensor.is_quantized:
            kind = "a DTensor" if hasattr(tensor, "device_mesh") else "sparse or quantized"
            message = f"{_called(name)} is {kind}; expected a plain tensor of the rows of this rank."
            raise make_error(
                LossInputError, message, code="not-plain", loc=(name,), hint="Take to_local() or to_dense()."
            )
    sizes = {name: tensor.shape[0] for name, tensor in named.items() if tensor.ndim}
    first = next(iter(sizes), "")
    for name, size in sizes.items():
        if size != sizes[first]:
            raise make_error(
                LossInputError,
                f"{_called(name)} has {size} rows and {_called(first)} {sizes[first]}; expected as many.",
                code="rows-differ",
                loc=(name,),
                hint="Gather what has other rows by a call of its own, and leave out what has none, such as weights.",
            )
    return sizes.get(first, 0)


def rows_of_ranks(named: Mapping[str, Tensor], rows: int, group: ProcessGroup | None) -> list[int]:
    """Return how many rows each rank has, once all have said that the rest is alike: one all-gather of two numbers.

    Raises:
        LossInputError: It is not alike, or a rank has given up; on all ranks.
    """
    layout = {key_name(name): _layout(named[name]) for name in in_one_order(named)}
    mark = int.from_bytes(blake2b(repr(layout).encode(), digest_size=8).digest(), signed=True)
    told = _told([mark, rows], group)
    if any(count == _FAILED for _, count in told):
        raise make_error(LossInputError, "another rank could not gather; see its error.", code="failed-rank")
    if any(other != mark for other, _ in told):
        raise _differ(layout, group)
    return [count for _, count in told]


def give_up(group: ProcessGroup | None) -> None:
    """Tell the other ranks, who call `rows_of_ranks`, that this one cannot go on."""
    _told([0, _FAILED], group)


def _told(numbers: list[int], group: ProcessGroup | None) -> list[list[int]]:
    """Return what each rank says, in one all-gather."""
    said = torch.tensor(numbers, device=device_for(torch.device("cpu"), group))
    heard = said.new_empty((gradient_scale(group), len(numbers)))
    all_gather(heard.view(-1), said, group)
    found: list[list[int]] = heard.tolist()  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    return found


def in_one_order(named: Mapping[str, Tensor]) -> list[str]:
    """Return the names in an order that is the same on all ranks, where that of their mappings may not be."""
    return sorted(named, key=key_name)


def _layout(tensor: Tensor) -> str:
    axes = ["rows", *map(str, tensor.shape[1:])] if tensor.ndim else []
    return f"{str(tensor.dtype).removeprefix('torch.')}[{' '.join(axes)}]"


def _differ(layout: dict[str, str], group: ProcessGroup | None) -> LossInputError:
    layouts: list[Any] = [None] * gradient_scale(group)
    dist.all_gather_object(layouts, layout, group)  # pyright: ignore[reportUnknownMemberType]
    names = sorted({name for each in layouts for name in each})
    found = [(name, [each.get(name, "missing") for each in layouts]) for name in names]
    name, kinds = next((name, kinds) for name, kinds in found if len(set(kinds)) > 1)
    other = next(rank for rank, kind in enumerate(kinds) if kind != kinds[0])
    return make_error(
        LossInputError,
        f"{_called(name)} is {kinds[0]} on rank 0 and {kinds[other]} on rank {other}; ranks may differ in the number "
        "of rows alone.",
        code="ranks-differ",
        loc=(name,),
        hint="Leave out what the loss does not take, and pad the rest to one length.",
    )


def _called(name: str) -> str:
    return repr(key_name(name)) if name else "the tensor"

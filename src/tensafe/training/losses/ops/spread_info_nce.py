"""InfoNCE of pairs that are spread over ranks: each rank scores its own rows, a few at a time, against all candidates.

The candidates are gathered, and their gradients go back to the ranks that have them. Where both directions are wanted,
two small all-reduces tell, of each partner, its largest score and its sum of exponentials.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from tensafe.training.losses.errors import LossInputError, make_error

from .fused import Fused, dot, results
from .info_nce import Part, Scores, Side, go_over
from .lean import compute_dtype
from .sharding import is_spread
from .vocabulary_parallel import differentiate_twice

__all__ = ["Layout", "SpreadPairs", "layout_of"]


class Layout(NamedTuple):
    """How rows are spread.

    Attributes:
        mesh: The device mesh.
        placements: `Shard(0)` on one dimension of it, `Replicate()` on the others.
        dim: That dimension.
        start: How many rows are on ranks before this one.
        rows: How many there are on all ranks.
    """

    mesh: Any
    placements: tuple[Any, ...]
    dim: int
    start: int
    rows: int

    def spread(self, local: Float[Tensor, "*here"], *, partial: bool = False) -> Any:
        """Return a DTensor of the rows of this rank, or of what it adds to each of all rows."""
        from torch.distributed.tensor import DTensor, Partial

        placements = [Partial() if partial and p.is_shard() else p for p in self.placements]
        shape = torch.Size((self.rows, *local.shape[1:]))
        stride = torch.empty(shape, device="meta").stride()
        return DTensor.from_local(local, self.mesh, placements, run_check=False, shape=shape, stride=stride)

    def gathered(self, local: Float[Tensor, "*here"]) -> Float[Tensor, "*whole"]:
        """Return the rows of all ranks."""
        whole: Tensor = self.spread(local).full_tensor()
        return whole

    def returned(self, added: Float[Tensor, "*whole"]) -> Float[Tensor, "*here"]:
        """Return the sum of what all ranks add to the rows of this one."""
        own: Tensor = self.spread(added, partial=True).redistribute(placements=self.placements).to_local()
        return own


def layout_of(a: Float[Tensor, "batch hidden"], *others: Float[Tensor, "*_"] | None) -> Layout | None:
    """Return how rows are spread; None where torch's own operations must do, as for whole rows.

    Raises:
        LossInputError: A rank has other rows than DTensor puts there; on a CPU all ranks raise.
    """
    if not is_spread(a):
        return None
    from torch.distributed.tensor import Replicate

    spread: Any = a
    mesh, placements = spread.device_mesh, tuple(spread.placements)
    dims = [dim for dim, placement in enumerate(placements) if type(placement) is not Replicate]
    if len(dims) != 1 or not placements[dims[0]].is_shard(0):
        return None
    for other in others:
        if other is not None and not (is_spread(other) and _placed(other) == (mesh, placements)):
            return None
    (dim,) = dims
    start = min(-(-a.shape[0] // mesh.size(dim)) * mesh.get_local_rank(dim), a.shape[0])
    layout = Layout(mesh, placements, dim, start, a.shape[0])
    _check(spread.to_local().shape[0], layout, a.device)
    return layout


class SpreadPairs(NamedTuple):
    """Pairs whose rows are spread over ranks.

    Attributes:
        a: One side, a DTensor.
        b: The other side; row i is the partner of row i.
        negatives: Further candidates of every row of `a`.
        scores: How similarities are scored.
        layout: How all of them are spread.
    """

    a: Float[Tensor, "batch hidden"]
    b: Float[Tensor, "batch hidden"]
    negatives: Float[Tensor, "batch k hidden"] | None
    scores: Scores
    layout: Layout

    def values(self) -> Float[Tensor, " batch"]:
        """Return `info_nce`, a DTensor laid out as the rows; gradients are made in the backward pass."""
        (values,) = results(_Spread(self.scores, self.layout), *self._locals())
        made: Tensor = self.layout.spread(values)
        return made

    def dot(self, coefficients: Float[Tensor, " batch"]) -> Float[Tensor, ""]:
        """Return the sum of coefficients times values over all ranks, with the gradients made in the forward pass.

        Args:
            coefficients: Laid out as the rows. Constants: they get no gradient.
        """
        from torch.distributed.tensor import DTensor, Partial, Replicate

        layout = self.layout
        factors: Any = coefficients.detach().to(compute_dtype(self.a.dtype))
        factors = factors.redistribute(placements=layout.placements).to_local()
        total = dot(_Spread(self.scores, layout), factors, *self._locals())
        parts = [Partial() if placement.is_shard() else placement for placement in layout.placements]
        whole = DTensor.from_local(total, layout.mesh, parts, run_check=False)
        made: Tensor = whole.redistribute(placements=[Replicate()] * layout.mesh.ndim)
        return made

    def _locals(self) -> list[Tensor | None]:
        dtype, placements = compute_dtype(self.a.dtype), self.layout.placements
        sides: tuple[Any, ...] = (self.a, self.b, self.negatives)
        return [None if side is None else side.to(dtype).to_local(grad_placements=placements) for side in sides]


class _Spread(Fused):
    """The operation on this rank's rows of both sides and of the negatives."""

    def __init__(self, scores: Scores, layout: Layout) -> None:
        self._scores, self._layout = scores, layout

    def run(
        self, inputs: Sequence[Any], upstream: Sequence[Tensor] | None, wanted: Sequence[bool]
    ) -> tuple[tuple[Tensor, ...], Sequence[Tensor | None]]:
        """Gather the candidates, go over the rows that are here, and send gradients back."""
        a, others = inputs[0], [each for each in inputs[1:] if each is not None]
        gathered = [self._layout.gathered(each) for each in others]
        candidates = torch.cat([each.reshape(-1, a.shape[1]) for each in gathered])
        given = None if upstream is None else upstream[0]
        part = _RankPart(self._layout, a.shape[0])
        values, (of_a, added) = go_over((a, candidates), self._scores, given, (wanted[0], any(wanted[1:])), part)
        if added is None:
            return (values,), (of_a, *[None] * (len(inputs) - 1))
        shares = torch.split(added, [each.shape[:-1].numel() for each in gathered])
        back = [self._layout.returned(share.view_as(each)) for share, each in zip(shares, gathered, strict=True)]
        return (values,), (of_a, *back, *[None] * (len(inputs) - 1 - len(back)))

    def plain(self, *inputs: Any) -> tuple[Tensor, ...]:
        """Refuse."""
        differentiate_twice("embeddings_a")


class _RankPart(Part):
    """The rows of this rank."""

    def __init__(self, layout: Layout, rows: int) -> None:
        super().__init__(layout.start, rows, layout.rows)
        self._layout = layout

    def share(self, columns: Side) -> None:
        """Tell the other ranks, and learn from them: two all-reduces of a number per partner."""
        distributed: Any = torch.distributed
        group = self._layout.mesh.get_group(self._layout.dim)
        largest = columns.largest.clone()
        distributed.all_reduce(largest, distributed.ReduceOp.MAX, group)
        columns.total.mul_((columns.largest - largest).exp())
        distributed.all_reduce(columns.total, distributed.ReduceOp.SUM, group)
        columns.largest = largest

    def of_all(self, upstream: Tensor) -> Tensor:
        """Gather it."""
        return self._layout.gathered(upstream)


def _placed(tensor: Any) -> tuple[Any, tuple[Any, ...]]:
    return tensor.device_mesh, tuple(tensor.placements)


def _check(local: int, layout: Layout, device: torch.device) -> None:
    """Refuse rows that lie elsewhere than DTensor thinks; looking at what other ranks say is free on a CPU alone."""
    width = -(-layout.rows // layout.mesh.size(layout.dim))
    expected = min(width, layout.rows - layout.start)
    message = f"{local} of {layout.rows} rows are on this rank, where DTensor puts {expected}."
    is_wrong = local != expected
    if device.type == "cpu":
        distributed: Any = torch.distributed
        told = torch.tensor([layout.rows, -layout.rows, is_wrong])
        distributed.all_reduce(told, distributed.ReduceOp.MAX, layout.mesh.get_group(layout.dim))
        if not is_wrong and (told[0] != -told[1] or told[2]):
            message = (
                "the ranks have different ideas of how many rows there are, or other rows than DTensor puts there."
            )
            is_wrong = True
    if is_wrong:
        raise make_error(
            LossInputError,
            message,
            code="placement",
            loc=("embeddings_a",),
            hint="Cut as torch.chunk does, and pass shape and stride of the whole to DTensor.from_local; or gather "
            "plain tensors, tensafe.distributed.gather_rows.",
        )

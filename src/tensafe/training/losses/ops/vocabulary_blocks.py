"""A projection to the vocabulary whose logits are never all there: gone over by blocks of the vocabulary."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from .projection import Gradients, Projection
from .row_scores import RowScores, exponentiate
from .rowwise import slices

__all__ = ["BlockScores", "over_vocabulary"]

_LOGITS, _FEWEST = 2**23, 512


def over_vocabulary(
    projection: Projection, upstream: Tensor | None, wanted: Sequence[bool]
) -> tuple[Tensor, Gradients | None]:
    """Do as `over_tokens` does, with four matrix products, all in `projection.dtype`, and no sums in a smaller one."""
    _, weight, bias, labels, class_weight, formula, _ = projection
    count, vocab = labels.shape[0], weight.shape[0]
    rows = BlockScores(formula, labels, class_weight, vocab, projection.dtype)
    hidden = projection.hidden.to(projection.dtype)
    # a block of the weight is widened too, and its gradient is made in one go
    width = min(vocab, max(_FEWEST, _LOGITS // max(count, weight.shape[1], 1)))
    buffer = torch.empty(count * width, dtype=projection.dtype, device=hidden.device)

    def project(classes: slice) -> tuple[Tensor, Tensor]:
        block = weight[classes].to(projection.dtype)
        out = buffer[: count * block.shape[0]].view(count, block.shape[0])
        torch.mm(hidden, block.T, out=out)
        return block, out if bias is None else out.add_(bias[classes])

    rows.start()
    for classes in slices(0, vocab, width):
        rows.add(project(classes)[1], classes)
    rows.check_labels()
    if upstream is None:
        return rows.values(), None
    hidden_wanted, weight_wanted, bias_wanted = wanted
    gradients = Gradients.zeros(projection, (hidden_wanted, False, bias_wanted), hidden_dtype=projection.dtype)
    of_weight = torch.empty_like(weight) if weight_wanted else None
    for classes in slices(0, vocab, width):
        block, logits = project(classes)
        rows.differentiate_block(logits, classes, upstream.unsqueeze(1))
        if gradients.hidden is not None:
            gradients.hidden.addmm_(logits, block)
        if of_weight is not None:
            of_weight[classes] = logits.T @ hidden
        if gradients.bias is not None:
            gradients.bias[classes] = logits.sum(0)
    return rows.values(), gradients._replace(weight=of_weight).cast(weight.dtype)


class BlockScores(RowScores):
    """`RowScores` whose buffers hold a block of classes of every row, `classes` says which."""

    def start(self) -> None:
        """Begin to measure."""
        self._largest.fill_(-torch.inf)
        self._total.zero_()
        self._shifted.zero_()
        self._picked.fill_(torch.nan)
        self._weight_so_far: Tensor | float = 0.0
        self._found = self.ignored.clone()

    def add(self, logits: Float[Tensor, "n width"], classes: slice) -> None:
        """Measure one more block; its buffer is used up."""
        scores, _ = self._scores(logits, logits)
        self._pick(scores, classes)
        largest = torch.maximum(self._largest, scores.amax(1, keepdim=True))
        drop = torch.where(largest == self._largest, 0.0, self._largest - largest)  # inf - inf where all are masked
        torch.sub(scores, largest.clamp(min=torch.finfo(self.dtype).min), out=logits)
        if self.formula.label_smoothing:
            weight = None if self._class_weight is None else self._class_weight[classes]
            shifted = (logits if weight is None else logits * weight).sum(1, keepdim=True)
            so_far = self._weight_so_far * drop if classes.start else torch.zeros_like(drop)
            self._shifted.add_(so_far).add_(shifted)
            self._weight_so_far = self._weight_so_far + (logits.shape[1] if weight is None else weight.sum())
        self._total.mul_(drop.exp()).add_(exponentiate(logits, logits).sum(1, keepdim=True))
        self._largest.copy_(largest)

    def _pick(self, scores: Tensor, classes: slice) -> None:
        inside, place = self._labels_in(classes)
        self._picked.copy_(torch.where(inside, scores.gather(1, place), self._picked))
        self._found |= inside.squeeze(1)

    def check_labels(self) -> None:
        """Refuse labels that no block had.

        Raises:
            IndexError: A label is outside [0, vocab).
        """
        if type(self._found) is Tensor and not self._found.all():
            raise IndexError("Target is out of bounds")

    def differentiate_block(
        self, logits: Float[Tensor, "n width"], classes: slice, upstream: Float[Tensor, "n 1"]
    ) -> None:
        """Turn the logits of a block into their gradient, in place."""
        everywhere = slice(None)
        scores, squashed = self._scores(logits, logits)
        exponentiate(torch.sub(scores, self._largest, out=logits), logits)
        of_exponential, of_label, of_class = self._factors(everywhere, upstream)
        logits.mul_(of_exponential)
        inside, place = self._labels_in(classes)
        logits.scatter_add_(1, place, torch.where(inside, -of_label, 0.0))
        self._finish(logits, squashed, of_class, None if self._class_weight is None else self._class_weight[classes])

    def _labels_in(self, classes: slice) -> tuple[Tensor, Tensor]:
        """Return which rows have their label in a block, and where; 0 or so for those that have not."""
        inside = (self._targets >= classes.start) & (self._targets < classes.stop)
        return inside, (self._targets - classes.start).clamp_(0, classes.stop - classes.start - 1)

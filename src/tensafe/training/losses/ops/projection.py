"""A projection to the vocabulary whose logits are never all there: gone over by chunks of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .lean import compute_dtype, is_predicting, live_rows, rows_per_chunk
from .row_scores import Formula, RowScores
from .rowwise import slices

__all__ = ["Gradients", "Projection", "add_products", "over_tokens", "project"]

_TOKENS, _LOGITS = 256, 2**25


class Projection(NamedTuple):
    """What logits are made of, and scored against: `hidden @ weight.T + bias`, one row per label."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    labels: Tensor
    class_weight: Tensor | None
    formula: Formula
    chunk_size: int | None

    @property
    def dtype(self) -> torch.dtype:
        """What is computed in."""
        return compute_dtype(self.hidden.dtype)

    @property
    def tokens_per_chunk(self) -> int:
        """Tokens whose logits are held at once; fewer of them would touch the gradient of the weight too often."""
        vocab = max(self.weight.shape[0], 1)
        return min(self.chunk_size or max(_TOKENS // 4, min(_TOKENS, _LOGITS // vocab)), max(self.labels.shape[0], 1))

    def only(self, live: Tensor) -> tuple[Projection, Tensor | None]:
        """Return the projection of the rows that are live, and which these are; None where that is all of them.

        Elsewhere than on a CPU how many there are is a sync away: there what the others hold is dropped.
        """
        if live.is_cpu and (type(live) is Tensor or is_predicting()):
            places = live_rows(live)
            if places.shape[0] == live.shape[0]:
                return self, None
            return self._replace(hidden=self.hidden[places], labels=self.labels[places]), places
        hidden = self.hidden.masked_fill(~live.unsqueeze(1), 0.0)
        return self._replace(hidden=hidden, labels=torch.where(live, self.labels, self.formula.ignore_index)), None


class Gradients(NamedTuple):
    """Gradients of a projection; None for one that nobody wants."""

    hidden: Tensor | None
    weight: Tensor | None
    bias: Tensor | None

    @classmethod
    def zeros(cls, projection: Projection, wanted: Sequence[bool], *, hidden_dtype: torch.dtype) -> Gradients:
        """Return room for those that are wanted; what is summed up over chunks is summed in `projection.dtype`."""
        sources = (projection.hidden, projection.weight, projection.bias)
        dtypes = (hidden_dtype, projection.dtype, projection.dtype)
        made = [
            torch.zeros_like(source, dtype=dtype) if is_wanted and source is not None else None
            for source, dtype, is_wanted in zip(sources, dtypes, wanted, strict=True)
        ]
        return cls(*made)

    def cast(self, dtype: torch.dtype) -> Gradients:
        """Return them in the dtype of what they are the gradients of."""
        return Gradients(*(None if gradient is None else gradient.to(dtype) for gradient in self))


def over_tokens(
    projection: Projection, upstream: Tensor | None, wanted: Sequence[bool]
) -> tuple[Tensor, Gradients | None]:
    """Return the values of all rows and, where there is something upstream of them, the gradients.

    Three matrix products, and one more pass over the gradient of the weight for each chunk.
    """
    hidden, weight, bias, labels, class_weight, formula, _ = projection
    vocab, step = weight.shape[0], projection.tokens_per_chunk
    rows = RowScores(formula, labels, class_weight, vocab, projection.dtype)
    gradients = None if upstream is None else Gradients.zeros(projection, wanted, hidden_dtype=hidden.dtype)
    buffer = torch.empty((step, vocab), dtype=projection.dtype, device=hidden.device)
    in_cache = rows_per_chunk(step, vocab, hidden.device)
    for at in slices(0, labels.shape[0], step):
        logits = project(hidden[at], weight, bias, buffer[: at.stop - at.start])
        for part in slices(at.start, at.stop, in_cache):
            scores = logits[part.start - at.start : part.stop - at.start]
            squashed = rows.measure(scores, scores, part)
            if upstream is not None:
                rows.differentiate(scores, squashed, part, upstream[part].unsqueeze(1))
        if gradients is not None:
            add_products(gradients, logits, hidden[at], weight, at)
    return rows.values(), None if gradients is None else gradients.cast(hidden.dtype)


def project(hidden: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> Tensor:
    """Write the logits of a few tokens into `out`."""
    if hidden.dtype is not out.dtype:
        out.copy_(hidden @ weight.T)
    else:
        torch.mm(hidden, weight.T, out=out)
    return out if bias is None else out.add_(bias)


def add_products(gradients: Gradients, of_logits: Tensor, hidden: Tensor, weight: Tensor, at: slice) -> None:
    """Take the gradient of the logits of a few tokens on to what the logits are made of."""
    if gradients.bias is not None:
        gradients.bias.add_(of_logits.sum(0))
    of_logits = of_logits.to(hidden.dtype)
    if gradients.hidden is not None:
        torch.mm(of_logits, weight, out=gradients.hidden[at])
    if gradients.weight is None:
        return
    if hidden.dtype is gradients.weight.dtype:
        gradients.weight.addmm_(of_logits.T, hidden)
    else:
        gradients.weight.add_(of_logits.T @ hidden)

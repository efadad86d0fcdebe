r"""Cross-entropy of tokens against target ids, a few rows at a time.

torch's own keeps the log-probabilities for the backward pass, and makes two more tensors of their size there. Here a
chunk of rows at a time is exponentiated into a small buffer. Where what each row's value will be multiplied by is known
beforehand (`cross_entropy_dot`), the gradient is made in the same go; otherwise each row's largest logit and sum of
exponentials are kept, and the gradient is made from the logits in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Num
from torch import Tensor

from .fused import Fused, dot, results
from .lean import clear_rows, compute_dtype, is_lean, is_plain, rows_per_chunk
from .overwriting import check_untouched, overwritten
from .row_scores import Formula, RowScores
from .rowwise import slices
from .sharding import as_peer, is_spread

__all__ = ["Formula", "cross_entropy", "cross_entropy_dot", "plain_cross_entropy", "shift_left"]

Visit = Callable[[Tensor, Tensor, slice], Tensor | None]


def cross_entropy(
    logits: Float[Tensor, "*rows vocab"],
    labels: Int[Tensor, "*rows"],
    formula: Formula = Formula(),  # noqa: B008  # a value, like a number
    *,
    class_weight: Float[Tensor, " vocab"] | None = None,
    token_weight: Float[Tensor, "*rows"] | None = None,
    overwrite_logits: bool = False,
) -> Float[Tensor, "*rows"]:
    r"""Return the cross-entropy of each row; see `Formula`.

    Args:
        logits: Unnormalised scores :math:`x`, any float dtype; 16-bit ones are computed in float32.
        labels: Target ids :math:`y` in [0, vocab), int64, or `formula.ignore_index`.
        formula: What is scored, and how.
        class_weight: :math:`w` >= 0; None is 1 for every class.
        token_weight: What each row's value is multiplied by; 0 drops it, whatever it is.
        overwrite_logits: Whether the gradient may be written over the logits, which then hold no logits any more; it
            takes no memory. Where the plain formula runs nothing is overwritten.

    Returns:
        Values in nats, float32 (float64 for float64 logits), 0 where a row does not count. The gradient of a row that
        does not count is exactly zero, whatever its logits hold (NaN too).

    Raises:
        IndexError: On CPU, a label is outside [0, vocab) and is not `ignore_index`.
        LossInputError: `overwrite_logits`, and something needs the logits again.
    """
    if is_spread(logits):
        from .vocabulary_parallel import spread_cross_entropy

        return spread_cross_entropy(logits, labels, formula, class_weight=class_weight, token_weight=token_weight)
    flat, targets = _flat(logits, labels)
    if token_weight is not None:
        token_weight = as_peer(token_weight, logits)
        targets = formula.counted(targets, token_weight)
    weight = None if class_weight is None else class_weight.detach().to(compute_dtype(logits.dtype))
    if is_lean(flat.numel(), flat, targets, weight):
        check_untouched(flat)
        fused = _CrossEntropy(targets, weight, formula)
        if overwrite_logits and flat.requires_grad and torch.is_grad_enabled():
            values = overwritten(flat, fused.write_gradient, None)
        else:
            (values,) = results(fused, flat)
    else:
        values = plain_cross_entropy(flat, targets, formula, weight)
    if flat is not logits:
        values = values.reshape(labels.shape)
    return values if token_weight is None else values * token_weight


def cross_entropy_dot(
    logits: Float[Tensor, "*rows vocab"],
    labels: Int[Tensor, "*rows"],
    coefficients: Float[Tensor, "*rows"],
    formula: Formula = Formula(),  # noqa: B008  # a value, like a number
    *,
    class_weight: Float[Tensor, " vocab"] | None = None,
    overwrite_logits: bool = False,
) -> Float[Tensor, ""]:
    """Return the sum of coefficients times `cross_entropy`, with the gradient made in the forward pass.

    Args:
        logits: As in `cross_entropy`.
        labels: Likewise.
        coefficients: What each row's value is multiplied by; 0 drops the row. Constants: they get no gradient.
        formula: As in `cross_entropy`.
        class_weight: Likewise.
        overwrite_logits: Likewise.

    Returns:
        The sum, 0-d, in the dtype of the values.
    """
    if is_spread(logits):
        from .vocabulary_parallel import spread_cross_entropy_dot

        return spread_cross_entropy_dot(logits, labels, coefficients, formula, class_weight=class_weight)
    flat, targets = _flat(logits, labels)
    dtype = compute_dtype(logits.dtype)
    factors = coefficients.detach().reshape(-1).to(dtype)
    # a float16 gradient that is made before the loss scale is known would underflow
    if not is_lean(flat.numel(), flat, targets, class_weight) or flat.dtype is torch.float16:
        values = cross_entropy(
            flat, targets, formula, class_weight=class_weight, token_weight=factors, overwrite_logits=overwrite_logits
        )
        return values.sum()
    check_untouched(flat)
    fused = _CrossEntropy(targets, None if class_weight is None else class_weight.detach().to(dtype), formula)
    if overwrite_logits and flat.requires_grad and torch.is_grad_enabled():
        return overwritten(flat, fused.write_gradient, factors)
    return dot(fused, factors, flat)


def plain_cross_entropy(
    logits: Float[Tensor, "n vocab"],
    labels: Int[Tensor, " n"],
    formula: Formula,
    class_weight: Float[Tensor, " vocab"] | None,
) -> Float[Tensor, " n"]:
    """Return the same by torch's own operations, which it can trace, transform and differentiate twice."""
    is_16_bit = logits.dtype is not compute_dtype(logits.dtype)
    if not (is_16_bit or formula.z_loss) and formula.is_identity and not is_plain(logits, labels, class_weight):
        return _eager_cross_entropy(logits, labels, formula, class_weight)
    ignored = labels == formula.ignore_index
    clean = logits.masked_fill(ignored.unsqueeze(1), 0.0).to(compute_dtype(logits.dtype))
    scores = formula.scores(clean)
    if formula.label_smoothing <= 1:
        values = F.cross_entropy(
            scores,
            labels,
            class_weight,
            ignore_index=formula.ignore_index,
            label_smoothing=formula.label_smoothing,
            reduction="none",
        )
    else:  # more than torch takes
        values = _of_log_probs(torch.log_softmax(scores, 1), labels, formula, class_weight)
    if formula.z_loss:
        values = values + torch.where(ignored, 0.0, formula.z_loss * torch.logsumexp(scores, 1).square())
    return values


def shift_left(
    labels: Num[Tensor, "*batch seq"],
    fill: int,
    steps: int = 1,
    segment_ids: Int[Tensor, "*batch seq"] | None = None,
) -> Num[Tensor, "*batch seq"]:
    """Return labels, or weights of theirs, moved to the left: position t then holds what belongs to t + `steps`.

    Shifting the labels rather than the logits leaves the large tensor as it is. The last positions get `fill`, and so
    do those from which `steps` lead into another sequence of a packed row.
    """
    shifted = F.pad(labels, (0, steps), value=fill)[..., steps:]
    if segment_ids is None:
        return shifted
    ids = as_peer(segment_ids, labels)
    return torch.where(F.pad(ids, (0, steps))[..., steps:] == ids, shifted, fill)


def _eager_cross_entropy(logits: Tensor, labels: Tensor, formula: Formula, class_weight: Tensor | None) -> Tensor:
    """Do as F.cross_entropy does, without a gradient of NaN where an ignored row holds one."""
    # one look at the smallest label is less than the three small operations that masking takes
    known = formula.ignore_index < 0 < labels.numel() and type(labels) is Tensor and labels.is_cpu
    if known and formula.label_smoothing <= 1 and labels.min() >= 0:
        return F.cross_entropy(
            logits,
            labels,
            class_weight,
            ignore_index=formula.ignore_index,
            label_smoothing=formula.label_smoothing,
            reduction="none",
        )
    log_probs = torch.log_softmax(logits, 1)
    # 0 * NaN is NaN: the backward pass of log-softmax must not see an ignored row. It reads this tensor, which
    # nobody else has; masking the logits instead would take a copy of them.
    clear_rows(log_probs.data, labels == formula.ignore_index)
    return _of_log_probs(log_probs, labels, formula, class_weight)


def _of_log_probs(log_probs: Tensor, labels: Tensor, formula: Formula, class_weight: Tensor | None) -> Tensor:
    values = F.nll_loss(log_probs, labels, class_weight, ignore_index=formula.ignore_index, reduction="none")
    if not formula.label_smoothing:
        return values
    weighted = log_probs if class_weight is None else log_probs * class_weight
    uniform = torch.where(labels == formula.ignore_index, 0.0, -weighted.mean(1))
    return (1 - formula.label_smoothing) * values + formula.label_smoothing * uniform


def _flat(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    targets = as_peer(labels, logits)
    if logits.ndim != 2:
        logits, targets = logits.reshape(-1, logits.shape[-1]), targets.reshape(-1)
    return logits, targets


class _CrossEntropy(Fused):
    """The operation on `[n vocab]` logits; what it has measured in one pass it uses in the next."""

    def __init__(self, labels: Tensor, class_weight: Tensor | None, formula: Formula) -> None:
        self._labels, self._class_weight, self._formula = labels, class_weight, formula
        self._rows: RowScores | None = None

    def run(
        self, inputs: Sequence[Any], upstream: Sequence[Tensor] | None, wanted: Sequence[bool]
    ) -> tuple[tuple[Tensor, ...], Sequence[Tensor | None]]:
        """Go over the rows."""
        (logits,) = inputs
        if upstream is not None:
            into = torch.empty_like(logits)
            return (self.write_gradient(into, logits, upstream[0]),), (into,)
        rows, visit = self._measuring(logits)
        for at, chunk, out in _chunks(logits, rows.dtype):
            visit(chunk, out, at)
        return (rows.values(),), (None,)

    def plain(self, *inputs: Any) -> tuple[Tensor, ...]:
        """Return the values, by log-softmax."""
        return (plain_cross_entropy(inputs[0], self._labels, self._formula, self._class_weight),)

    def write_gradient(self, into: Tensor, logits: Tensor, upstream: Tensor) -> Tensor:
        """Write the gradient, which may go over the logits, and return the values."""
        column = upstream.unsqueeze(1)
        rows, visit = self._measuring(logits)
        for at, chunk, out in _chunks(logits, rows.dtype, into):
            squashed = visit(chunk, out, at)
            rows.differentiate(out, squashed, at, column[at])
            if out.dtype is not into.dtype:
                into[at].copy_(out)
        clear_rows(into, rows.ignored | (upstream == 0))
        return rows.values()

    def _measuring(self, logits: Tensor) -> tuple[RowScores, Visit]:
        """Return what keeps the rows' sums, and how to visit them: measuring the first time, using that later."""
        if self._rows is not None:
            return self._rows, self._rows.again
        dtype = compute_dtype(logits.dtype)
        self._rows = rows = RowScores(self._formula, self._labels, self._class_weight, logits.shape[1], dtype)
        return rows, rows.measure


def _chunks(logits: Tensor, dtype: torch.dtype, into: Tensor | None = None) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yield a slice, its rows, and a buffer for as many: rows of `into` where that has the dtype, else scratch."""
    count, width = logits.shape
    step = rows_per_chunk(count, width, logits.device)
    direct = into if into is not None and into.dtype is dtype else None
    scratch = logits.new_empty((0 if direct is not None else step, width), dtype=dtype)
    for at in slices(0, count, step):
        yield at, logits[at], scratch[: at.stop - at.start] if direct is None else direct[at]

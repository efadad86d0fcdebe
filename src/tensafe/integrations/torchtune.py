"""Losses in the recipes of torchtune, which find a loss by its path in their YAML and call it `(logits, labels)`.

A recipe shifts the labels itself and shows the loss one long row of them. It multiplies what comes back by the number
of labels in the micro-batch, and divides the gradients of an optimizer step by their number in all of it, over
micro-batches and ranks. A mean over labels is exact under that, and nothing else is. Nothing of torchtune is imported
before `collate` is called.
"""

# pyright: reportMissingImports=false, reportMissingTypeStubs=false, reportUnknownVariableType=false
from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from tensafe.training.losses import LossConfigError, LossInputError, ResolvedLoss, resolve_loss
from tensafe.training.losses.adapter import CombinedLoss, ProtocolLoss, TypedLoss
from tensafe.training.losses.contract import is_variadic, lookup_keys
from tensafe.training.losses.errors import make_error
from tensafe.training.losses.nested import innermost, takes_step

from .metrics import MetricMeans

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tensafe.training.losses.contract import TensorSpec

__all__ = ["RecipeLoss", "collate"]

_IGNORED = -100  # how the datasets of torchtune mark what is not to be learnt
_LABELS = frozenset({"labels", "shift_labels"})
_AXES = 3
_MOST_NAMED = 4


class RecipeLoss(nn.Module):
    """A loss as a recipe of torchtune calls one, made of the same keys as the `loss:` section of a tensafe config.

    The loss finds `logits` `[1 tokens vocab]` in the outputs. In the batch it finds `labels` `[1 tokens]` as any loss
    of tokens takes them, where position t is scored against label t + 1, and `shift_labels`, aligned with the logits.

    Args:
        **spec: `type`, `kwargs` and perhaps `inputs`. Like any other component of a recipe, `type` may be a path to
            code of your own.

    Attributes:
        loss: The loss.
        ignore_index: Label that does not count; the recipe pads with it.
        metrics: Its metrics while the model learns, for `metrics.read()` in a recipe of your own; none if compiled.

    Raises:
        LossConfigError: The loss is wrong in itself, or a recipe cannot serve it: it needs other tensors or the step,
            labels that are not shifted, or a divisor other than the number of labels.

    Example:
        >>> import torch
        >>> from tensafe.integrations.torchtune import RecipeLoss
        >>> loss_fn = RecipeLoss(type="token_ce", kwargs={"label_smoothing": 0.1})
        >>> loss_fn(torch.zeros(3, 4), torch.tensor([1, 2, -100]))  # log 4
        tensor(1.3863)
    """

    def __init__(self, **spec: Any) -> None:
        super().__init__()
        self.loss = resolve_loss(spec)
        parts = list(innermost(self.loss))
        for part in (self.loss, *parts):
            _check_counts(part)
        for part in parts:
            _check_tensors(part)
            _check_mean(part)
        self.ignore_index = _ignored(self.loss, parts)
        self.metrics = MetricMeans()

    def forward(self, logits: Tensor | list[Tensor], labels: Tensor) -> Tensor:
        """Return the mean over the labels; 0.0, attached to the graph, where none counts.

        Args:
            logits: Scores, `[tokens vocab]`; not in chunks, as a model gives them that was told to.
            labels: Labels, `[tokens]`, aligned with the logits; the last one does not count, as nothing follows it.

        Raises:
            LossInputError: The logits come in chunks, or do not fit the labels.
        """
        if not isinstance(logits, Tensor):
            message = f"logits must be a tensor, and not in chunks; got {type(logits).__name__}."
            hint = "Leave num_output_chunks of the model at 0."
            raise make_error(LossInputError, message, code="not-a-tensor", loss=self.loss.name, hint=hint)
        aligned = labels.reshape(1, -1)
        # as before the shift, position t is scored against label t + 1; the last label, now in front, is ignored
        batch = {"labels": aligned.roll(1), "shift_labels": aligned}
        counts = _counts(self.loss, (labels != self.ignore_index).sum())
        result = self.loss({"logits": logits.reshape(1, -1, logits.shape[-1])}, batch, **counts)
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            self.metrics.add(result.get("metrics", {}))
        return result["loss"]


def collate(
    batch: list[dict[str, Any]], padding_idx: int = 0, ignore_idx: int = _IGNORED, **kwargs: Any
) -> dict[str, Tensor]:
    """Pad as torchtune does, and ignore the label of the first token of each row, which nothing predicts.

    The recipes of torchtune 0.6 count it all the same, so that a micro-batch of short rows would weigh too much. Labels
    that the data set has shifted, as later versions do, are left alone. `collate_fn:` of a recipe takes the path of
    this function; under `packed: true` the recipe does not use it.

    Args:
        batch: Rows with `tokens` and `labels`.
        padding_idx: The token to pad with.
        ignore_idx: The label to pad with.
        **kwargs: As for `padded_collate_sft` of torchtune.

    Returns:
        `tokens` and `labels`, `[batch seq]`.
    """
    from torchtune.data import padded_collate_sft

    pad = cast("Callable[..., dict[str, Tensor]]", padded_collate_sft)
    made = pad(batch, padding_idx=padding_idx, ignore_idx=ignore_idx, **kwargs)
    tokens, labels = made["tokens"], made["labels"]
    aligned = ((labels == tokens) | (labels == ignore_idx)).all(-1)
    labels[..., 0] = torch.where(aligned, ignore_idx, labels[..., 0])
    return made


def _counts(loss: ResolvedLoss, labels: Tensor) -> Mapping[str, Any]:
    """Return what a call is told to divide by; a sum of losses takes it for each of its terms."""
    joint = getattr(loss.loss, "joint_counts", None) if isinstance(loss, CombinedLoss) else None
    if joint is None:
        return {"num_items_in_batch": labels}

    def counts_of(part: ResolvedLoss) -> Mapping[str, Any]:
        return _counts(part, labels)

    counts: Mapping[str, Any] = joint(counts_of)
    return counts


def _check_counts(loss: ResolvedLoss) -> None:
    if takes_step(loss):
        raise _refused(loss, "losses", "a recipe tells no step, and a weight has a schedule.", "Make it a number.")
    taken = loss._signature.counts if isinstance(loss, CombinedLoss | ProtocolLoss) else {"num_items_in_batch"}
    if "num_items_in_batch" not in taken:
        message = "does not declare num_items_in_batch, so it cannot divide by the labels that the recipe counts."
        hint = "Add the keyword num_items_in_batch=None to it and divide by it."
        raise _refused(loss, "num_items_in_batch", message, hint)


def _check_tensors(loss: ResolvedLoss) -> None:
    if not isinstance(loss, TypedLoss):
        return
    tensors = loss.contract.tensors
    given = {spec.name: _given(spec, loss.inputs) for spec in tensors}
    missing = [spec.name for spec in tensors if not spec.optional and not given[spec.name]]
    if missing or not any(_LABELS & keys for keys in given.values()):
        needed = missing or list(given)
        more = " and more" if len(needed) > _MOST_NAMED else ""
        message = f"takes {', '.join(needed[:_MOST_NAMED])}{more}; a recipe has only logits and labels for a loss."
        hint = "Choose a loss of logits and labels, or train with a loop of your own."
        raise _refused(loss, needed[0], message, hint)
    for spec in tensors:
        if "logits" in given[spec.name] and not _fits(spec):
            message = f"takes {spec.name} {spec}, and a recipe has logits of [batch seq vocab]."
            raise _refused(loss, spec.name, message, "Choose a loss of such logits.")


def _given(spec: TensorSpec, inputs: Mapping[str, str]) -> frozenset[str]:
    """Return under which keys a recipe has a tensor, if it has."""
    keys = _LABELS if spec.kind == "int" else frozenset({"logits"})
    return keys.intersection(lookup_keys(spec, inputs)[1])


def _fits(spec: TensorSpec) -> bool:
    return len(spec.dims) == _AXES or (len(spec.dims) <= _AXES + 1 and any(is_variadic(dim) for dim in spec.dims))


def _check_mean(loss: ResolvedLoss) -> None:
    reduction = loss.kwargs.get("reduction", "mean")
    if reduction != "mean":
        message = (
            "a recipe multiplies the loss by the labels of a micro-batch and divides by those of the whole step, "
            f"which is right for a mean over labels and not for reduction {reduction}."
        )
        raise _refused(loss, "reduction", message, "Use mean.")
    if isinstance(loss, TypedLoss) and not type(loss.loss)._divisible:
        message = "is one value for a whole batch, so micro-batches do not add up to it."
        raise _refused(loss, "type", message, "Choose a loss with a value for each label.")
    if loss.kwargs.get("shift") is False:
        message = "shift false scores position t against label t, and a recipe shifts the labels."
        raise _refused(loss, "shift", message, "Leave it at true, or train with a loop of your own.")


def _ignored(loss: ResolvedLoss, parts: list[ResolvedLoss]) -> int:
    found: set[int] = {part.kwargs.get("ignore_index", _IGNORED) for part in parts}
    if len(found) > 1:
        message = f"its terms ignore different labels, {', '.join(map(str, sorted(found)))}; a recipe counts one way."
        raise _refused(loss, "ignore_index", message, "Give all of them the same ignore_index.")
    return found.pop()


def _refused(loss: ResolvedLoss, argument: str, message: str, hint: str) -> LossConfigError:
    return make_error(LossConfigError, message, code="unfit-recipe", loss=loss.name, loc=(argument,), hint=hint)

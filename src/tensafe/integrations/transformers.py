"""Losses in the `Trainer` of transformers.

The Trainer counts the labels of a whole optimizer step, over accumulation and ranks, hands the count to a loss of the
user, and undoes the average that DDP takes of the gradients. `compute_loss_func` divides by that count; `LossTrainer`
counts what the loss counts instead, be it tokens, pairs or sequences, and shows it the whole batch.
"""

# pyright: reportMissingImports=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false, reportUntypedBaseClass=false
from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from transformers import Trainer

from tensafe.distributed import count_items
from tensafe.training.losses import LossConfigError, ResolvedLoss, resolve_loss
from tensafe.training.losses.adapter import ProtocolLoss
from tensafe.training.losses.errors import make_error
from tensafe.training.losses.guards import is_mapping

from .metrics import MetricMeans

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from torch import Tensor, nn

    from tensafe.training.losses.resolve import Spec

__all__ = ["LossFunc", "LossTrainer", "compute_loss_func"]

_IGNORED = -100  # what the Trainer takes for no label, whatever the loss does


class LossFunc:
    """A loss as the Trainer calls one: `(outputs, labels, num_items_in_batch) -> Tensor`.

    Args:
        loss: The loss.

    Attributes:
        loss: The loss.
        metrics: Its metrics while the model learns, for `metrics.read()`.

    Raises:
        LossConfigError: The loss is not one number: its reduction is `none`.
    """

    def __init__(self, loss: ResolvedLoss) -> None:
        if loss.kwargs.get("reduction") == "none":
            raise _refused(loss, "reduction", "a training step needs one number.", "Choose another reduction.")
        self.loss = loss
        self.metrics = MetricMeans()
        self._divides = loss.kwargs.get("reduction") != "sum"

    def __call__(self, outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Tensor:
        """Return the share that this micro-batch has in the loss of the optimizer step.

        Args:
            outputs: What the model returned.
            labels: The labels, or a mapping with all that the loss takes from the batch.
            num_items_in_batch: Labels in the whole optimizer step, None where the Trainer could not count them; or what
                `count_items` returned.

        Raises:
            LossInputError: A tensor that the loss takes is missing or does not fit.
            LossConfigError: The loss cannot honour `num_items_in_batch`.
        """
        batch = labels if is_mapping(labels) else {"labels": labels}
        counts = num_items_in_batch
        if not is_mapping(counts):
            counts = {"num_items_in_batch": num_items_in_batch} if self._divides else {}
        result = self.loss(outputs, batch, **counts)
        if torch.is_grad_enabled():  # not in an evaluation, whose loss the Trainer averages itself
            self.metrics.add(result.get("metrics", {}))
        return result["loss"]


def compute_loss_func(loss: Spec, **kwargs: Any) -> LossFunc:
    """Make a loss for `Trainer(compute_loss_func=...)`, and for trainers built on it, such as TRL's `SFTTrainer`.

    Args:
        loss: What `resolve_loss` takes, such as `load_config("train.yaml").loss`. It gets what the model returned, and
            the labels; for a loss that takes more of the batch there is `LossTrainer`.
        **kwargs: Arguments of the loss; they win over those in the spec.

    Raises:
        LossConfigError: A kwarg is wrong, or the loss divides by something else than the labels that the Trainer
            counts: `reduction` is `none` or one of `sequence_*`, or `ignore_index` is not -100.
    """
    resolved = resolve_loss(loss, **kwargs)
    _check_divisor(resolved)
    return LossFunc(resolved)


class LossTrainer(Trainer):
    """A Trainer whose loss may take anything from the batch, and whose log has the metrics of the loss.

    The model gets what its `forward` names, but for the labels; the loss gets the whole batch. A column of the data set
    that only the loss takes is kept with `TrainingArguments(remove_unused_columns=False)`.

    Args:
        *args: As for `Trainer`.
        loss: What `resolve_loss` takes, such as `load_config("train.yaml").loss`.
        **kwargs: As for `Trainer`, but for `compute_loss_func`.

    Attributes:
        loss_func: The loss and its metrics.

    Raises:
        LossConfigError: The loss is wrong in itself, or ranks do not all have batches of their own and one count:
            under tensor, context or sequence parallelism, DataParallel, or without `average_tokens_across_devices`.
    """

    def __init__(self, *args: Any, loss: Spec, **kwargs: Any) -> None:
        self.loss_func = LossFunc(resolve_loss(loss))
        super().__init__(*args, compute_loss_func=self.loss_func, **kwargs)
        copies = self.get_tp_size() * self.get_cp_size() * self.get_sp_size() * max(self.args.n_gpu, 1)
        apart = self.args.world_size > 1 and not self.args.average_tokens_across_devices
        if copies > 1 or apart:
            message = (
                "the loss is divided by what all ranks count: each must have a batch of its own, and share counts."
            )
            hint = "Use DDP or FSDP without other parallelism, and leave average_tokens_across_devices on."
            raise _refused(self.loss_func.loss, "num_items_in_batch", message, hint)

    def count(self, batches: Sequence[Any]) -> Any:
        """Return what the loss divides by over micro-batches and ranks; override it where `count_items` cannot know.

        Args:
            batches: The micro-batches of this rank in an optimizer step; one in an evaluation.
        """
        if len(batches) == 1 and self.args.world_size == 1:
            return {}  # what the loss does by itself
        return count_items(self.loss_func.loss, batches)

    def compute_loss(self, model: nn.Module, inputs: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Compute the loss as the Trainer does, which hands on as labels what it finds under that name."""
        named = _arguments(self.accelerator.unwrap_model(model))
        forwarded = {name: value for name, value in inputs.items() if name in named}
        return super().compute_loss(model, {**forwarded, "labels": inputs}, *args, **kwargs)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log, with the metrics since the last time: means over the micro-batches of this process."""
        if "loss" in logs:
            logs = {**self.loss_func.metrics.read(), **logs}
        super().log(logs, *args, **kwargs)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: Any) -> Any:
        if isinstance(self.loss_func.loss, ProtocolLoss):  # which says no more than whether it takes the count
            return super()._get_num_items_in_batch(batch_samples, device)
        return self.count(batch_samples)


def _arguments(model: Any) -> Collection[str]:
    """Return the names of what a model's forward takes, below what adapters (PEFT) wrap around it."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return inspect.signature(inner.forward).parameters


def _check_divisor(loss: ResolvedLoss) -> None:
    reduction = loss.kwargs.get("reduction", "mean")
    ignored = loss.kwargs.get("ignore_index", _IGNORED)
    if reduction.startswith("sequence_"):
        message = f"the Trainer counts labels, and reduction {reduction} divides by sequences."
        raise _refused(loss, "reduction", message, "Use LossTrainer, which counts what the loss counts.")
    if reduction == "mean" and ignored != _IGNORED:
        message = f"the Trainer counts labels that are not {_IGNORED}, and this loss those that are not {ignored}."
        raise _refused(loss, "ignore_index", message, "Use LossTrainer, which counts what the loss counts.")


def _refused(loss: ResolvedLoss, argument: str, message: str, hint: str) -> LossConfigError:
    return make_error(LossConfigError, message, code="unused-count", loss=loss.name, loc=(argument,), hint=hint)

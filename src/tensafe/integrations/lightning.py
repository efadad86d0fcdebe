"""Losses in Lightning: a module whose training step is exact over accumulation and ranks, and its log.

Lightning divides what a training step returns by `accumulate_grad_batches`, and DDP and FSDP average the gradients:
both are means of means where micro-batches hold different numbers of tokens. Here each micro-batch brings the count of
its whole optimizer step, and the two divisions are undone.
"""

# pyright: reportMissingImports=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false, reportUntypedBaseClass=false
from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from lightning.pytorch import LightningModule

from tensafe.training.losses import LossConfigError, resolve_loss
from tensafe.training.losses.errors import make_error

from .metrics import MetricMeans
from .windows import CountedBatch

if TYPE_CHECKING:
    from torch import Tensor

    from tensafe.training.losses.resolve import Spec

__all__ = ["LossModule"]


class LossModule(LightningModule):
    """Base of a LightningModule that trains with a loss; add `forward(batch)` and `configure_optimizers`.

    `trainer.fit(module, CountedWindows(loader, module.loss_fn, size))` trains, with the same `size` as the Trainer's
    `accumulate_grad_batches`. Every `log_every_n_steps` the loggers get `loss` (that of the optimizer steps since the
    last time, over all ranks) and the metrics of the loss (means over the micro-batches of this process).

    Args:
        loss: What `resolve_loss` takes, such as `load_config("train.yaml").loss`.
        **kwargs: Arguments of the loss.

    Attributes:
        loss_fn: The loss.
    """

    def __init__(self, loss: Spec, **kwargs: Any) -> None:
        super().__init__()
        self.loss_fn = resolve_loss(loss, **kwargs)
        self._means = MetricMeans()
        self._loss: Tensor | float = 0.0
        self._logged = 0

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the share that a micro-batch has in the loss of its step, scaled so that Lightning's averages cancel.

        Raises:
            LossConfigError: The batch does not say what its step counts, or says it of another number of micro-batches.
        """
        counted = self._counted(batch)
        result = self.loss_fn(self(counted.batch), counted.batch, **counted.counts)
        self._means.add(result.get("metrics", {}))
        loss: Tensor = result["loss"] * self.trainer.world_size
        self._loss = self._loss + loss.detach()
        return loss * counted.size

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log after every `log_every_n_steps` optimizer steps."""
        step, trainer = self.global_step, cast("Any", self.trainer)
        if step == self._logged or step % trainer.log_every_n_steps:
            return
        self._means.add({"loss": trainer.strategy.reduce(self._loss, reduce_op="mean") / (step - self._logged)})
        self._loss, self._logged = 0.0, step
        metrics = self._means.read()
        for logger in self.loggers:
            logger.log_metrics(metrics, step=step)

    def _counted(self, batch: Any) -> CountedBatch:
        size, ranks = self.trainer.accumulate_grad_batches, self.trainer.world_size
        counted = batch if isinstance(batch, CountedBatch) else CountedBatch(batch, {}, 1)
        if counted.size == size and (size * ranks == 1 or counted is batch):
            return counted
        raise make_error(
            LossConfigError,
            f"a step has {size} micro-batches on {ranks} ranks, and this batch does not say what they count together.",
            code="missing-count",
            loss=self.loss_fn.name,
            hint=f"Wrap the data loader: CountedWindows(loader, module.loss_fn, size={size}).",
        )

"""The real Trainer of Lightning on a tiny model: the loss and the gradient do not depend on accumulation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

pytest.importorskip("lightning")

from lightning.pytorch import Trainer
from lightning.pytorch.loggers.logger import Logger

from tensafe.integrations.lightning import LossModule
from tensafe.integrations.windows import CountedWindows
from tensafe.training.losses import LossConfigError, resolve_loss

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),  # which Lightning asks torch about
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
]
VOCAB = 17
Batch = dict[str, torch.Tensor]


class Tiny(LossModule):
    """A bigram model."""

    def __init__(self, loss: Any, **kwargs: Any) -> None:
        super().__init__(loss, **kwargs)
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Embedding(VOCAB, 8), nn.Linear(8, VOCAB)).double()

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        return {"logits": self.net(batch["input_ids"])}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1.0)


class Memory(Logger):  # type: ignore[misc]  # a class of Lightning
    """Keeps what is logged."""

    name = "memory"
    version = 0

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[dict[str, float]] = []

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Keep nothing of these."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        assert all(type(value) is float or name == "epoch" for name, value in metrics.items())
        if "loss" in metrics:
            self.lines.append({**metrics, "step": step or 0})


def batch_of(count: int) -> Batch:
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.randint(0, VOCAB, (count, 12), generator=generator)
    labels = input_ids.clone()
    for number in range(count):
        labels[number, 2 + number % 8 :] = -100
    return {"input_ids": input_ids, "labels": labels}


def loader_of(batches: list[Batch]) -> Any:
    return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]  # a list is a data set, too


def pieces(batch: Batch, parts: int) -> list[Batch]:
    cut = {name: tensor.chunk(parts) for name, tensor in batch.items()}
    return [{name: chunks[part] for name, chunks in cut.items()} for part in range(parts)]


def fit(module: Tiny, loader: Any, **kwargs: Any) -> Memory:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    memory = Memory()
    given = {"log_every_n_steps": 1, "max_epochs": 1, **quiet, **kwargs}
    Trainer(accelerator="cpu", devices=1, logger=memory, **given).fit(module, loader)
    return memory


def expected(batch: Batch, **kwargs: Any) -> tuple[float, list[torch.Tensor]]:
    """Take one step on the whole batch, without a Trainer."""
    module = Tiny("token_ce")
    loss = resolve_loss("token_ce", **kwargs)(module(batch), batch)["loss"]
    slopes = torch.autograd.grad(loss, list(module.parameters()))
    return loss.item(), [(weight - slope).detach() for weight, slope in zip(module.parameters(), slopes, strict=True)]


def assert_same(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> None:
    torch.testing.assert_close([each.detach() for each in found], wanted, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("reduction", ["mean", "sum", "sequence_mean"])
@pytest.mark.parametrize("accumulation", [1, 8])
def test_the_loss_is_that_of_all_rows_at_once(accumulation: int, reduction: str) -> None:
    batch = batch_of(8)
    module = Tiny("token_ce", reduction=reduction)
    loader = CountedWindows(pieces(batch, accumulation), module.loss_fn, accumulation)
    memory = fit(module, loader, accumulate_grad_batches=accumulation)
    loss, parameters = expected(batch, reduction=reduction)
    assert [line["step"] for line in memory.lines] == [1]
    assert memory.lines[0]["loss"] == pytest.approx(loss, rel=1e-6)  # float32, as metrics are
    assert_same(list(module.parameters()), parameters)


def test_the_last_step_of_an_epoch_may_have_fewer_micro_batches() -> None:
    batch = batch_of(6)
    module = Tiny("token_ce")
    fit(module, CountedWindows(pieces(batch, 3), module.loss_fn, 4), accumulate_grad_batches=4)
    assert_same(list(module.parameters()), expected(batch)[1])


def test_without_the_count_it_is_another_loss() -> None:
    """What Lightning does by itself, so that the tests above cannot pass by accident."""

    class Naive(Tiny):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return self.loss_fn(self(batch), batch)["loss"]

    batch = batch_of(8)
    module = Naive("token_ce")
    fit(module, loader_of(pieces(batch, 8)), accumulate_grad_batches=8)
    differences = [(a - b).abs().max() for a, b in zip(module.parameters(), expected(batch)[1], strict=True)]
    assert max(differences) > 1e-3


def test_the_log_has_means_since_the_last_line() -> None:
    batch = batch_of(16)
    module = Tiny("token_ce")
    loader = CountedWindows(pieces(batch, 8), module.loss_fn, 2)
    memory = fit(module, loader, accumulate_grad_batches=2, log_every_n_steps=2)
    assert [line["step"] for line in memory.lines] == [2, 4]
    assert memory.lines[0]["num_tokens"] == pytest.approx(int((batch["labels"][:8, 1:] != -100).sum()) / 4)


@pytest.mark.parametrize("size", [None, 2])
def test_a_batch_that_does_not_say_what_its_step_counts_is_refused(size: int | None) -> None:
    module = Tiny("token_ce")
    loader: Any = loader_of(pieces(batch_of(8), 4))
    loader = loader if size is None else CountedWindows(loader, module.loss_fn, size)
    with pytest.raises(LossConfigError, match="CountedWindows") as error:
        fit(module, loader, accumulate_grad_batches=4)
    assert error.value.code == "missing-count"


def test_one_micro_batch_on_one_rank_needs_no_count() -> None:
    batch = batch_of(8)
    module = Tiny("token_ce")
    fit(module, loader_of([batch]))
    assert_same(list(module.parameters()), expected(batch)[1])

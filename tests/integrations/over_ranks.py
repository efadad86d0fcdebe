"""A script for torchrun: one step of a trainer on each of several processes, and the parameters after it.

`over_ranks.py transformers|lightning FOLDER` leaves `parameters.pt` in the folder.
"""

import sys
import warnings
from pathlib import Path
from typing import Any

import torch

ROWS, ACCUMULATION = 8, 2
VOCAB, SEQ = 31, 12


def batch() -> dict[str, torch.Tensor]:
    """Return rows with very different numbers of labels; a rank may have none at all in a micro-batch."""
    input_ids = torch.randint(0, VOCAB, (ROWS, SEQ), generator=torch.Generator().manual_seed(1))
    labels = input_ids.clone()
    for row in range(ROWS):
        labels[row, max(SEQ - 3 * row, 0) :] = -100
    return {"input_ids": input_ids, "labels": labels}


def rows() -> list[dict[str, torch.Tensor]]:
    whole = batch()
    return [{name: tensor[row] for name, tensor in whole.items()} for row in range(ROWS)]


class Bigram(torch.nn.Module):
    """A model that sees one token."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = torch.nn.Sequential(torch.nn.Embedding(VOCAB, 8), torch.nn.Linear(8, VOCAB)).double()

    def forward(self, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": self.net(input_ids)}


def with_transformers(folder: str, ranks: int) -> Any:
    from transformers import TrainingArguments

    from tensafe.integrations.transformers import LossTrainer

    arguments = TrainingArguments(
        folder,
        max_steps=1,
        per_device_train_batch_size=ROWS // ranks // ACCUMULATION,
        gradient_accumulation_steps=ACCUMULATION,
        learning_rate=1.0,
        max_grad_norm=0.0,
        optim="sgd",
        lr_scheduler_type="constant",
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        report_to=[],
        disable_tqdm=True,
        save_strategy="no",
        use_cpu=True,
        ddp_backend="gloo",
    )
    model = Bigram()
    LossTrainer(model, arguments, train_dataset=rows(), loss="token_ce").train()
    return model


def with_lightning(folder: str, ranks: int) -> Any:
    from lightning.pytorch import Trainer
    from torch.utils.data import DataLoader, DistributedSampler

    from tensafe.integrations.lightning import LossModule
    from tensafe.integrations.windows import CountedWindows

    class Module(LossModule):
        def __init__(self) -> None:
            super().__init__("token_ce")
            self.model = Bigram()

        def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            outputs: dict[str, torch.Tensor] = self.model(batch["input_ids"])
            return outputs

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=1.0)

        def train_dataloader(self) -> CountedWindows:
            data: Any = rows()
            sampler: Any = DistributedSampler(data, shuffle=False)
            loader: Any = DataLoader(data, ROWS // ranks // ACCUMULATION, sampler=sampler)
            return CountedWindows(loader, self.loss_fn, ACCUMULATION)

    module = Module()
    Trainer(
        accelerator="cpu",
        devices=ranks,
        strategy="ddp",
        max_epochs=1,
        accumulate_grad_batches=ACCUMULATION,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(module)
    return module.model


def main() -> None:
    library, folder = sys.argv[1:]
    warnings.simplefilter("ignore")  # those of the libraries are their own business
    torch.set_num_threads(1)
    run = {"transformers": with_transformers, "lightning": with_lightning}[library]
    model = run(folder, ranks=2)
    if torch.distributed.get_rank() == 0:
        torch.save([weight.detach() for weight in model.parameters()], Path(folder) / "parameters.pt")


if __name__ == "__main__":
    main()

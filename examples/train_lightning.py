"""The loss of a config in Lightning, with accumulation 1 and 8 on the same data: the same parameters.

pip install 'tensafe[lightning]'
python examples/train_lightning.py --config configs/train_sft.yaml
"""

import argparse
import time
from pathlib import Path

import lightning
import torch
from byte_lm import Batch, ByteLM, collate, load_samples
from lightning.pytorch import Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from tensafe.config import load_config
from tensafe.integrations.lightning import LossModule
from tensafe.integrations.windows import CountedWindows
from tensafe.training.losses import LossSpec

ROWS = 16  # in an optimizer step, however it is cut


class LightningLM(LossModule):
    """A small byte-level model that learns with the loss of a config."""

    def __init__(self, loss: LossSpec) -> None:
        super().__init__(loss)
        torch.manual_seed(0)
        self.model = ByteLM(width=64, layers=2, heads=4)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        return self.model(batch["input_ids"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


def train(loss: LossSpec, accumulation: int, steps: int) -> LightningLM:
    """Train on the first samples, in order."""
    module = LightningLM(loss)
    samples, _ = load_samples(context=96, holdout=10)
    loader: DataLoader[Batch] = DataLoader(samples, ROWS // accumulation, collate_fn=collate)  # type: ignore[arg-type]
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=steps,
        accumulate_grad_batches=accumulation,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, CountedWindows(loader, module.loss_fn, accumulation))
    return module


@torch.no_grad()
def evaluate(module: LightningLM) -> float:
    """Return the loss on held-out text."""
    _, held_out = load_samples(context=96, holdout=10)
    batch = collate(held_out[:64])
    return float(module.loss_fn(module(batch), batch)["loss"])


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a tiny model with the loss of a config.")
    parser.add_argument("--config", type=Path, default=Path(__file__).parent.parent / "configs" / "train_sft.yaml")
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(1)
    loss = load_config(options.config).loss
    print(f"lightning {lightning.__version__}, torch {torch.__version__}")
    modules: list[LightningLM] = []
    for accumulation in (1, 8):
        started = time.perf_counter()
        modules.append(train(loss, accumulation, options.steps))
        held_out = evaluate(modules[-1])
        print(f"accumulation {accumulation}: held-out loss {held_out:.6f}; {time.perf_counter() - started:.1f} s")
    pairs = zip(*(module.parameters() for module in modules), strict=True)
    print(f"largest difference of the parameters: {max(float((a - b).detach().abs().max()) for a, b in pairs):.1e}")


if __name__ == "__main__":
    main()

"""The loss of a config in the Trainer of transformers, with accumulation 1 and 8 on the same data: the same losses.

pip install 'tensafe[transformers]'
python examples/train_transformers.py --config configs/train_sft.yaml
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from byte_lm import VOCAB, collate, load_samples
from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments

from tensafe.config import load_config
from tensafe.integrations.transformers import LossTrainer
from tensafe.training.losses import LossSpec

ROWS = 16  # in an optimizer step, however it is cut


def tiny_model() -> Any:
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCAB, **shape))


def train(loss: LossSpec, accumulation: int, steps: int, out: str) -> list[dict[str, float]]:
    """Train, and return the log."""
    arguments = TrainingArguments(
        out,
        max_steps=steps,
        per_device_train_batch_size=ROWS // accumulation,
        gradient_accumulation_steps=accumulation,
        learning_rate=3e-3,
        logging_steps=max(steps // 4, 1),
        remove_unused_columns=False,
        report_to=[],
        disable_tqdm=True,
        save_strategy="no",
        use_cpu=True,
    )
    samples, _ = load_samples(context=96, holdout=10)
    trainer = LossTrainer(tiny_model(), arguments, train_dataset=samples, data_collator=collate, loss=loss)
    trainer.train()
    return [line for line in trainer.state.log_history if "loss" in line]


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a tiny Llama with the loss of a config.")
    parser.add_argument("--config", type=Path, default=Path(__file__).parent.parent / "configs" / "train_sft.yaml")
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(1)
    loss = load_config(options.config).loss
    print(f"transformers {transformers.__version__}, torch {torch.__version__}")
    losses: list[list[float]] = []
    for accumulation in (1, 8):
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as out:
            log = train(loss, accumulation, options.steps, out)
        losses.append([line["loss"] for line in log])
        values = ", ".join(f"{value:.6f}" for value in losses[-1])
        print(f"accumulation {accumulation}: loss {values}; {time.perf_counter() - started:.1f} s")
    difference = max(abs(one - other) for one, other in zip(*losses, strict=True))
    print(f"largest difference: {difference:.1e}")


if __name__ == "__main__":
    main()

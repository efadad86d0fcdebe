"""A loss of one's own, named by its path in a config: when the path is followed, and what is checked.

    python examples/custom_loss.py

The loss is in my_losses.py, the config is configs/train_custom.yaml.
"""

import argparse
from pathlib import Path

import torch
from byte_lm import VOCAB, collate, load_samples
from harness import step_count
from train_sft import train

from tensafe.config import ConfigError, load_config
from tensafe.training.losses import LossConfigError, LossInputError, resolve_loss

CONFIG = Path("configs/train_custom.yaml")


def show_the_refusal() -> None:
    print("A config is data. Unless its reader is told to, it runs nobody's code:")
    try:
        load_config(CONFIG)
    except ConfigError as error:
        print(error)


def show_the_checks() -> None:
    config = load_config(CONFIG, allow=["my_losses"])
    print(f"\nAllowed, it becomes {resolve_loss(config.loss.type, **config.loss.kwargs)}.")
    print("Its kwargs are checked by the function's signature:")
    try:
        resolve_loss(config.loss.type, entropy_wieght=0.1, ignore_index="pad")
    except LossConfigError as error:
        print(error)


def compare_function_and_class() -> None:
    training, _ = load_samples(context=128, holdout=10)
    batch = collate(training[:4])
    logits = torch.randn(*batch["labels"].shape, VOCAB, generator=torch.Generator().manual_seed(0))
    print("\nThe function and the class give the same:")
    for path in ("my_losses:entropy_regularized", "my_losses:EntropyRegularized"):
        result = resolve_loss(path, entropy_weight=0.1)({"logits": logits}, batch)
        print(f"  {path:<32}{result['loss']:.5f}, entropy {result['metrics']['entropy']:.5f}")
    print("The class has every reduction, and looks at its tensors before it computes:")
    loss_fn = resolve_loss("my_losses:EntropyRegularized", reduction="sequence_mean")
    print(f"  sequence_mean: {loss_fn({'logits': logits}, batch)['loss']:.5f}")
    try:
        loss_fn({"logits": logits.transpose(1, 2)}, batch)
    except LossInputError as error:
        print(error)


def main() -> None:
    parser = argparse.ArgumentParser(description="Use a loss of one's own by its path.")
    parser.add_argument("--out", type=Path, default=Path("runs/custom"), help="where the log and the figure go")
    parser.add_argument("--steps", type=step_count, help="optimizer steps, instead of those of the config")
    args = parser.parse_args()
    show_the_refusal()
    show_the_checks()
    compare_function_and_class()
    print("\nTraining with it is `train_sft.py --config configs/train_custom.yaml --allow my_losses`:")
    train(CONFIG, args.steps, args.out, allow=["my_losses"])


if __name__ == "__main__":
    main()

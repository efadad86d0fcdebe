"""The metrics of a loss in TensorBoard and MLflow: added up where they are, read once for each line of the log.

pip install tensorboard mlflow  # either will do
python examples/log_metrics.py --config configs/train_sft.yaml
tensorboard --logdir runs/log_metrics
mlflow ui --backend-store-uri sqlite:///runs/log_metrics/mlflow.db
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain, islice, repeat
from pathlib import Path

import torch
from byte_lm import Batch, ByteLM, collate, load_samples
from torch.utils.data import DataLoader

from tensafe.config import load_config
from tensafe.integrations.metrics import MetricMeans
from tensafe.training.losses import ResolvedLoss, resolve_loss

Log = Callable[[dict[str, float], int], object]


@contextmanager
def tensorboard(out: Path) -> Iterator[Log]:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(out)) as writer:

        def log(metrics: dict[str, float], step: int) -> None:
            for name, value in metrics.items():
                writer.add_scalar(name, value, step)

        yield log


@contextmanager
def mlflow(out: Path) -> Iterator[Log]:
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{(out / 'mlflow.db').resolve()}")
    with mlflow.start_run():
        yield mlflow.log_metrics


@contextmanager
def printed(out: Path) -> Iterator[Log]:
    yield lambda metrics, step: print(
        f"step {step}:", ", ".join(f"{name} {value:.6g}" for name, value in metrics.items())
    )


def train(loss_fn: ResolvedLoss, steps: int, every: int, logs: Sequence[Log]) -> None:
    """Train a small model; log the means of the loss and of its metrics over every few steps."""
    torch.manual_seed(0)
    model = ByteLM(width=64, layers=2, heads=4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    samples, _ = load_samples(context=96, holdout=10)
    loader: DataLoader[Batch] = DataLoader(samples, 16, collate_fn=collate)  # type: ignore[arg-type]
    epochs = chain.from_iterable(repeat(loader))
    means = MetricMeans()
    for step, batch in enumerate(islice(epochs, steps), 1):
        result = loss_fn(model(batch["input_ids"]), {**batch, "step": step - 1})
        means.add({"loss": result["loss"], **result.get("metrics", {})})
        result["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % every == 0:
            metrics = means.read()  # the one time that the host waits for the device
            for log in logs:
                log(metrics, step)


def main() -> None:
    parser = argparse.ArgumentParser(description="Log the metrics of the loss of a config to what is installed.")
    parser.add_argument("--config", type=Path, default=Path(__file__).parent.parent / "configs" / "train_sft.yaml")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--every", type=int, default=5, help="optimizer steps for each line of the log")
    parser.add_argument("--out", type=Path, default=Path("runs/log_metrics"), help="where the logs go")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    loss_fn = resolve_loss(load_config(options.config).loss)
    with ExitStack() as stack:
        logs: list[Log] = []
        for open_log in (printed, tensorboard, mlflow):
            try:
                logs.append(stack.enter_context(open_log(options.out)))
            except ModuleNotFoundError as error:
                print(f"no {open_log.__name__}: {error}")
        train(loss_fn, options.steps, options.every, logs)


if __name__ == "__main__":
    main()

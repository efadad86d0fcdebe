"""The example that logs to TensorBoard and MLflow: it reads the device once a line, and they hold what it prints."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from support import SOURCE
from tensafe.training.losses import resolve_loss

ROOT = Path(__file__).parents[2]
COMMAND = ("examples/log_metrics.py", "--config", "configs/train_composite.yaml", "--steps", "4", "--every", "2")


class Logged(NamedTuple):
    """What the example left behind.

    Attributes:
        out: The folder with its logs.
        printed: Values by name and step.
    """

    out: Path
    printed: dict[str, dict[int, float]]


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Logged:
    """Run the example."""
    out = tmp_path_factory.mktemp("log_metrics")
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *COMMAND, "--out", str(out)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    printed: dict[str, dict[int, float]] = {}
    for step, line in re.findall(r"^step (\d+): (.*)$", done.stdout, re.M):
        for name, value in re.findall(r"(\S+) (\S+)(?:, |$)", line):
            printed.setdefault(name, {})[int(step)] = float(value)
    assert list(printed["loss"]) == [2, 4]
    assert "extras/entropy/entropy" in printed
    return Logged(out, printed)


def test_tensorboard_holds_what_is_printed(request: pytest.FixtureRequest) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    out, printed = request.getfixturevalue("logged")
    events = accumulator.EventAccumulator(str(out))
    events.Reload()
    held = {name: {event.step: event.value for event in events.Scalars(name)} for name in events.Tags()["scalars"]}
    assert held.keys() == printed.keys()
    for name, values in printed.items():
        assert held[name] == pytest.approx(values, rel=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what MLflow asks SQLAlchemy for
def test_mlflow_holds_what_is_printed(request: pytest.FixtureRequest) -> None:
    mlflow = pytest.importorskip("mlflow")
    out, printed = request.getfixturevalue("logged")
    client = mlflow.MlflowClient(f"sqlite:///{out / 'mlflow.db'}")
    [run] = client.search_runs(["0"])
    assert run.data.metrics.keys() == printed.keys()
    for name, values in printed.items():
        held = {metric.step: metric.value for metric in client.get_metric_history(run.info.run_id, name)}
        assert held == pytest.approx(values, rel=1e-5)


def test_the_device_is_read_once_for_each_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    example: Any = importlib.import_module("log_metrics")
    reads: list[torch.Size] = []
    tolist, item = torch.Tensor.tolist, torch.Tensor.item

    def counting(tensor: torch.Tensor) -> Any:
        reads.append(tensor.shape)
        return tolist(tensor)

    def refuse(tensor: torch.Tensor) -> Any:
        reader = sys._getframe(1).f_globals["__name__"]  # torch reads what lies on the host: AdamW its count of steps
        assert not reader.startswith(("tensafe", "log_metrics")), "a number read alone"
        return item(tensor)

    monkeypatch.setattr(torch.Tensor, "tolist", counting)
    monkeypatch.setattr(torch.Tensor, "item", refuse)
    monkeypatch.setattr(torch.Tensor, "__float__", refuse)
    lines: list[tuple[int, list[str]]] = []
    terms = ["token_ce", {"type": "entropy", "weight": 0.1}]
    loss_fn = resolve_loss("weighted_sum", losses=terms)
    example.train(loss_fn, 4, 2, [lambda metrics, step: lines.append((step, list(metrics)))])
    assert [step for step, _ in lines] == [2, 4]
    assert [shape.numel() for shape in reads] == [6, 6]  # weights of terms are plain numbers
    assert lines[0][1][0] == "loss"

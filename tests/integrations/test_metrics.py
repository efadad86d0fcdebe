from typing import Any

import pytest
import torch

from tensafe.integrations.metrics import MetricMeans


def test_means_are_over_the_calls_that_had_the_metric() -> None:
    means = MetricMeans()
    means.add({"accuracy": torch.tensor(0.5), "beta": 0.25})
    means.add({"accuracy": torch.tensor(1), "beta": 0.75, "kl": torch.tensor(3.0)})
    assert means.read() == {"accuracy": 0.75, "beta": 0.5, "kl": 3.0}
    assert means.read() == {}


def test_a_metric_may_be_a_number_in_one_call_and_a_tensor_in_the_next() -> None:
    means = MetricMeans()
    means.add({"weight": 1.0})
    means.add({"weight": torch.tensor(2.0)})
    assert means.read() == {"weight": 1.5}


def test_nothing_is_read_before_the_log() -> None:
    means = MetricMeans()
    for _ in range(3):
        means.add({"accuracy": torch.tensor(1.0, device="meta"), "kl": torch.tensor(1.0, device="meta")})
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):  # whose tensors have nothing to read
        means.read()


def test_everything_is_read_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[torch.Size] = []
    real = torch.Tensor.tolist

    def counting(tensor: torch.Tensor) -> Any:
        reads.append(tensor.shape)
        return real(tensor)

    def refuse(tensor: torch.Tensor) -> Any:
        raise AssertionError("a number read alone")

    means = MetricMeans()
    for step in range(3):
        means.add({f"metric {number}": torch.tensor(float(step + number)) for number in range(5)})
    monkeypatch.setattr(torch.Tensor, "tolist", counting)
    monkeypatch.setattr(torch.Tensor, "item", refuse)
    monkeypatch.setattr(torch.Tensor, "__float__", refuse)
    assert means.read() == {f"metric {number}": 1.0 + number for number in range(5)}
    assert reads == [(5,)]


def test_metrics_keep_no_graph_alive() -> None:
    weight = torch.tensor(2.0, requires_grad=True)
    means = MetricMeans()
    means.add({"loss": weight * 3})
    means.add({"loss": weight * 3})
    assert not any(torch.as_tensor(total).requires_grad for total in means._sums.values())
    assert means.read() == {"loss": 6.0}

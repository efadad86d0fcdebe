"""The built-in losses under `torch.compile(fullgraph=True)`: the same values and gradients, and few graphs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tensafe.training.losses import resolve_loss

from .results import Figures, Result
from .timing import one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .rows import Row

__all__ = ["measure"]

_LENGTHS = (7, 12, 17, 24, 33, 48)

Tensors = tuple[dict[str, Tensor], dict[str, Tensor]]


def measure(row: Row, *, device: str, tick: Callable[[str], None]) -> Result:
    """Compile a built-in loss once, and call it at several lengths.

    Args:
        row: The row of the table; `work` is the name of the loss.
        device: Where.
        tick: Told what is being done.
    """
    result = Result(row.name, f"lengths {', '.join(map(str, _LENGTHS))}; float32")
    figures = Figures("tensafe")
    result.contenders.append(figures)
    torch.compiler.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    try:
        loss_fn = resolve_loss(row.work)
        compiled = torch.compile(lambda outputs, batch: loss_fn(outputs, batch)["loss"], fullgraph=True)
        errors = []
        for length in _LENGTHS:
            tick(f"length {length}")
            eager = _run(lambda outputs, batch: loss_fn(outputs, batch)["loss"], row.work, length, device)
            errors.append(_distance(eager, _run(compiled, row.work, length, device)))
    except Exception as error:  # whatever the compiler raises is the finding
        figures.fullgraph = f"no: {one_line(error)}"
        return result
    figures.fullgraph = "yes"
    figures.error = max(errors)
    figures.graphs = counters["stats"]["unique_graphs"]
    return result


def _run(loss_fn: Callable[..., Any], name: str, length: int, device: str) -> list[Tensor]:
    """Return the value and the gradients."""
    outputs, batch = _SAMPLES[name](length)
    outputs = {key: tensor.to(device).requires_grad_() for key, tensor in outputs.items()}
    loss = loss_fn(outputs, {key: tensor.to(device) for key, tensor in batch.items()})
    loss.backward()
    return [loss.detach(), *(tensor.grad for tensor in outputs.values() if tensor.grad is not None)]


def _distance(expected: list[Tensor], got: list[Tensor]) -> float:
    """Return the largest difference, relative to the largest magnitude of each tensor."""
    if len(expected) != len(got):
        raise ValueError(f"{len(got) - 1} gradients, expected {len(expected) - 1}")
    distances = [
        ((theirs - ours).abs().max() / theirs.abs().max().clamp(min=1e-12)).item()
        for theirs, ours in zip(expected, got, strict=True)
    ]
    return max(distances)


def _normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _labels(length: int, vocab: int) -> Tensor:
    return torch.randint(0, vocab, (2, length), generator=torch.Generator().manual_seed(9))


def _token_ce(length: int) -> Tensors:
    return {"logits": _normal(2, length, 300, seed=0)}, {"labels": _labels(length, 300)}


def _linear_ce(length: int) -> Tensors:
    outputs = {"hidden_states": _normal(2, length, 16, seed=0), "lm_head_weight": _normal(300, 16, seed=1)}
    return outputs, {"labels": _labels(length, 300)}


def _contrastive(length: int) -> Tensors:
    return {"embeddings_a": _normal(length, 16, seed=0), "embeddings_b": _normal(length, 16, seed=1)}, {}


def _mse(length: int) -> Tensors:
    return {"predictions": _normal(2, length, seed=0)}, {"targets": _normal(2, length, seed=1)}


def _margin_ranking(length: int) -> Tensors:
    return {"chosen_scores": _normal(length, seed=0), "rejected_scores": _normal(length, seed=1)}, {}


_SAMPLES: Mapping[str, Callable[[int], Tensors]] = {
    "token_ce": _token_ce,
    "linear_ce": _linear_ce,
    "contrastive": _contrastive,
    "mse": _mse,
    "margin_ranking": _margin_ranking,
}

"""A small byte-level language model and the text it learns from, shared by the examples.

The text ships with every Python: the reference topics behind `help("yield")`. A sample is a topic's title as the prompt
and a piece of its text as the completion, so that fine-tuning has prompts to mask, as it does in earnest.
"""

from collections.abc import Sequence
from pydoc_data.topics import topics
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["IGNORED", "VOCAB", "Batch", "ByteLM", "Sample", "collate", "load_samples"]

VOCAB = 256
IGNORED = -100
"""Label of what the model is not asked to predict: prompts and padding."""

Batch = dict[str, Tensor]


class Sample(NamedTuple):
    """Bytes of a prompt and of the completion that is to be learnt."""

    prompt: bytes
    completion: bytes


def load_samples(context: int, holdout: int) -> tuple[list[Sample], list[Sample]]:
    """Return samples of at most `context` bytes for training and, from every `holdout`-th topic, for validation."""
    training: list[Sample] = []
    validation: list[Sample] = []
    for index, (title, text) in enumerate(_distinct_topics().items()):
        prompt = f"{title}\n\n".encode()
        body = text.encode()
        size = context - len(prompt)
        pieces = [Sample(prompt, body[start : start + size]) for start in range(0, len(body), size)]
        (validation if index % holdout == 0 else training).extend(pieces)
    return training, validation


def _distinct_topics() -> dict[str, str]:
    """Keep each paragraph once: topics quote one another, and a held-out topic must not have been seen in training."""
    seen: set[str] = set()
    kept: dict[str, str] = {}
    for title in sorted(topics):
        paragraphs: list[str] = []
        for paragraph in topics[title].split("\n\n"):
            if paragraph not in seen:
                seen.add(paragraph)
                paragraphs.append(paragraph)
        if paragraphs:
            kept[title] = "\n\n".join(paragraphs)
    return kept


def collate(samples: Sequence[Sample]) -> Batch:
    """Pad samples to one length; prompts and padding are labelled IGNORED, and labels stay unshifted."""
    longest = max(len(sample.prompt) + len(sample.completion) for sample in samples)
    input_ids = torch.zeros(len(samples), longest, dtype=torch.int64)
    labels = torch.full_like(input_ids, IGNORED)
    for row, (prompt, completion) in enumerate(samples):
        start, end = len(prompt), len(prompt) + len(completion)
        input_ids[row, :end] = torch.tensor(list(prompt + completion))
        labels[row, start:end] = input_ids[row, start:end]
    return {"input_ids": input_ids, "labels": labels}


class ByteLM(nn.Module):
    """A causal transformer over bytes: pre-norm blocks, rotary positions, tied embeddings."""

    def __init__(self, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, width)
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        for weight in self.parameters():
            if weight.ndim > 1:
                nn.init.normal_(weight, std=0.05)

    def forward(self, input_ids: Tensor) -> dict[str, Tensor]:
        hidden = self.embedding(input_ids)
        for block in self.blocks:
            hidden = block(hidden)
        # No attention mask for padding: it lies to the right, where a causal model does not look.
        return {"logits": F.linear(self.norm(hidden), self.embedding.weight)}


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.Sequential(nn.LayerNorm(width), _Attention(width, heads))
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width)
        )

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = hidden + self.attention(hidden)
        return hidden + self.mlp(hidden)


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(hidden).chunk(3, dim=-1))
        mixed = F.scaled_dot_product_attention(_rotated(q), _rotated(k), v, is_causal=True)
        return self.out(mixed.transpose(1, 2).flatten(-2))


def _rotated(x: Tensor) -> Tensor:
    """Turn pairs of features by an angle that grows with position, so that q . k sees relative positions (RoPE)."""
    seq, features = x.shape[-2:]
    frequencies = 1000.0 ** -torch.linspace(0, 1, features // 2, device=x.device)
    angles = torch.arange(seq, device=x.device).unsqueeze(-1) * frequencies
    left, right = x.chunk(2, dim=-1)
    return torch.cat((left * angles.cos() - right * angles.sin(), left * angles.sin() + right * angles.cos()), dim=-1)

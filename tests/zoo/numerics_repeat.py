"""Losses that differ from call to call, or by how tensors lie in memory."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tensafe.training.losses import Elements
from zoo.healthy import CarefulCE, token_losses
from zoo.mutant import Mutant


class Shuffling(CarefulCE):
    """The samples are shuffled and put back, with numbers that others then do not draw."""

    def compute(self, logits: Float[Tensor, "batch seq vocab"], labels: Int[Tensor, "batch seq"]) -> Elements:
        """Draw the order from the global generator."""
        values, counts = token_losses(logits, labels, self.ignore_index, self.label_smoothing)
        order = torch.randperm(len(values), device=values.device)
        return Elements(values[order][order.argsort()], counts)


class Reseeding(CarefulCE):
    """The global generator is seeded, so that dropout in the model draws the same numbers at every step."""

    def compute(self, logits: Float[Tensor, "batch seq vocab"], labels: Int[Tensor, "batch seq"]) -> Elements:
        """Seed first."""
        torch.manual_seed(0)
        values, counts = token_losses(logits, labels, self.ignore_index, self.label_smoothing)
        return Elements(values, counts)


class Viewing(CarefulCE):
    """Logits are viewed as rows, which takes them to be contiguous."""

    def compute(self, logits: Float[Tensor, "batch seq vocab"], labels: Int[Tensor, "batch seq"]) -> Elements:
        """Flatten and unflatten with view."""
        rows = logits.view(-1, logits.shape[-1])
        values, counts = token_losses(rows.view(logits.shape), labels, self.ignore_index, self.label_smoothing)
        return Elements(values, counts)


class Reinterpreting(CarefulCE):
    """Logits are read from memory as if they were contiguous: wrong numbers, and no error."""

    def compute(self, logits: Float[Tensor, "batch seq vocab"], labels: Int[Tensor, "batch seq"]) -> Elements:
        """Make up the strides."""
        batch, seq, vocab = logits.shape
        rows = logits.as_strided((batch, seq, vocab), (seq * vocab, vocab, 1))
        values, counts = token_losses(rows, labels, self.ignore_index, self.label_smoothing)
        return Elements(values, counts)


MUTANTS = [
    Mutant("shuffles", Shuffling, frozenset({"check_bitwise_repeatable"})),
    Mutant("seeds the global generator", Reseeding, frozenset({"check_bitwise_repeatable"})),
    Mutant("view", Viewing, frozenset({"check_noncontiguous_and_expanded_inputs"})),
    Mutant("made up strides", Reinterpreting, frozenset({"check_noncontiguous_and_expanded_inputs"})),
]

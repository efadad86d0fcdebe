import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ops.cases import Draws, Way, going, gradient_of, seeds
from tensafe.training.losses.ops.logps import logps, logps_and_entropy, sequence_logps

every_way = pytest.mark.parametrize("way", ["chunks", "plain", "traced"])


@every_way
def test_by_hand(way: str) -> None:
    logits = torch.tensor([[0.0, math.log(3.0)], [5.0, 5.0], [1.0, 2.0]])
    labels = torch.tensor([1, 0, 9])
    with going(Way(way)):
        log_probs, entropy = logps_and_entropy(logits, labels, ignore_index=9)
        alone = logps(logits, labels, ignore_index=9)
    assert log_probs.tolist() == pytest.approx([math.log(0.75), -math.log(2), 0.0])
    assert entropy.tolist() == pytest.approx([-0.75 * math.log(0.75) - 0.25 * math.log(0.25), math.log(2), 0.0])
    assert alone.tolist() == pytest.approx(log_probs.tolist())


@every_way
@given(seeds, st.integers(0, 3), st.integers(0, 4), st.sampled_from([1.0, 0.5]))
def test_a_sequence_is_the_sum_of_its_tokens(way: str, draws: Draws, batch: int, seq: int, temperature: float) -> None:
    logits, labels = draws.normal(batch, seq, 5).requires_grad_(), draws.labels(5, batch, seq)
    with going(Way(way)):
        whole = sequence_logps(logits, labels, temperature=temperature)
        tokens = logps_and_entropy(logits, labels, temperature=temperature)[0].sum(1)
    torch.testing.assert_close(whole, tokens)
    upstream = torch.linspace(-1, 1, batch, dtype=torch.float64)
    gradients = [torch.autograd.grad(each, logits, upstream)[0] for each in (whole, tokens)]
    torch.testing.assert_close(gradients[0], gradients[1])


@every_way
def test_either_result_alone_has_its_gradient(way: str) -> None:
    labels, weight = torch.tensor([0, 2, -100]), torch.linspace(1, 2, 3)
    whole = torch.linspace(-1, 1, 12).view(3, 4).sin()
    for index in (0, 1):
        leaf, other = whole.clone().requires_grad_(), whole.clone().requires_grad_()
        with going(Way(way)):
            torch.autograd.backward(logps_and_entropy(leaf, labels)[index], weight)
        log_p = other.log_softmax(1)[:2]
        expected = log_p.gather(1, labels[:2, None]).squeeze(1) if index == 0 else -(log_p.exp() * log_p).sum(1)
        torch.autograd.backward(expected, weight[:2])
        torch.testing.assert_close(gradient_of(leaf), gradient_of(other))


@every_way
def test_bfloat16_costs_no_accuracy(way: str) -> None:
    """Where torch's own log-softmax rounds to 16 bits, and is off by 3 %."""
    logits = torch.linspace(-8, 8, 4096).bfloat16().view(2, 2048)
    labels = torch.tensor([17, 2040])
    with going(Way(way)):
        found = logps(logits, labels)
    expected = torch.log_softmax(logits.double(), 1).gather(1, labels[:, None]).squeeze(1)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)
    assert (torch.log_softmax(logits, 1).gather(1, labels[:, None]).squeeze(1).double() - expected).abs().max() > 1e-3

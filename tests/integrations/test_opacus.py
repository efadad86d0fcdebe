"""What a sample adds to the gradient depends on nothing of another, as Opacus presumes; shown with its own hooks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tensafe.integrations.opacus import PrivateLoss
from tensafe.training.losses import LossConfigError, get_registered_losses, resolve_loss

pytestmark = pytest.mark.filterwarnings(  # all three are Opacus's own business
    "ignore:Secure RNG turned off", "ignore:Optimal order is the", "ignore:Full backward hook"
)
VOCAB = 13
ROWS = 6


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(VOCAB, 5), nn.Linear(5, VOCAB)).double()


def tokens(rows: int = ROWS) -> tuple[torch.Tensor, torch.Tensor]:
    input_ids = torch.randint(0, VOCAB, (rows, 8), generator=torch.Generator().manual_seed(1))
    labels = input_ids.clone()
    for row in range(rows):
        labels[row, 1 + row :] = -100  # the first one has no label that anything predicts
    return input_ids, labels


def gradient(net: nn.Module, private: PrivateLoss, input_ids: torch.Tensor, labels: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(private({"logits": net(input_ids)}, {"labels": labels}), list(net.parameters())))


@pytest.mark.parametrize("reduction", ["sequence_mean", "sequence_sum", "sum"])
def test_a_batch_is_the_sum_of_its_samples(reduction: str) -> None:
    net, private, (input_ids, labels) = model(), PrivateLoss("token_ce", reduction=reduction), tokens()
    alone = [gradient(net, private, input_ids[row : row + 1], labels[row : row + 1]) for row in range(ROWS)]
    together = gradient(net, private, input_ids, labels)
    torch.testing.assert_close(together, [sum(each) for each in zip(*alone, strict=True)], rtol=1e-12, atol=1e-15)


def test_a_mean_over_values_of_samples_becomes_their_sum() -> None:
    names = ("chosen_logps", "rejected_logps", "ref_chosen_logps", "ref_rejected_logps")
    batch = {name: torch.full((4,), -float(number)) for number, name in enumerate(names, 1)}
    mean = resolve_loss("dpo")({}, batch)["loss"]
    torch.testing.assert_close(PrivateLoss("dpo")({}, batch), 4 * mean)


@pytest.mark.parametrize("name", ["multiple_negatives", "contrastive", "supcon"])
def test_a_loss_that_couples_samples_is_refused(name: str) -> None:
    with pytest.raises(LossConfigError, match="couples the samples") as error:
        PrivateLoss(name)
    assert error.value.code == "coupled-samples"


def test_every_loss_is_taken_or_refused_as_it_claims() -> None:
    for name, loss in get_registered_losses().items():
        if getattr(getattr(loss, "_traits", None), "sample_independent", None) is not True:
            with pytest.raises(LossConfigError):
                PrivateLoss(name)


def plain(outputs: Any, batch: Any) -> torch.Tensor:
    mean: torch.Tensor = outputs["logits"].mean()
    return mean


def test_a_callable_claims_nothing_and_is_refused() -> None:
    with pytest.raises(LossConfigError, match="does not claim"):
        PrivateLoss(plain)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_mean_over_tokens_is_refused(reduction: str) -> None:
    with pytest.raises(LossConfigError, match="sequence_mean") as error:
        PrivateLoss("token_ce", reduction=reduction)
    assert error.value.loc == ("reduction",)


def test_opacus_sees_the_gradient_of_each_sample() -> None:
    grad_sample = pytest.importorskip("opacus.grad_sample")
    private, (input_ids, labels) = PrivateLoss("token_ce", reduction="sequence_mean"), tokens()
    hooked = grad_sample.GradSampleModule(model(), loss_reduction="sum")
    loss: Any = private({"logits": hooked(input_ids)}, {"labels": labels})
    loss.backward()
    for row in range(ROWS):
        alone = gradient(model(), private, input_ids[row : row + 1], labels[row : row + 1])
        seen = [weight.grad_sample[row] for weight in hooked.parameters()]
        torch.testing.assert_close(seen, alone, rtol=1e-12, atol=1e-15)


def test_training_goes_on_where_a_poisson_sample_is_empty() -> None:
    opacus = pytest.importorskip("opacus")
    torch.manual_seed(0)
    net, private = model(), PrivateLoss("token_ce", reduction="sequence_mean")
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    loader = DataLoader(TensorDataset(*tokens()), batch_size=1)
    net, optimizer, loader = opacus.PrivacyEngine().make_private(
        module=net,
        optimizer=optimizer,
        data_loader=loader,
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        loss_reduction="sum",
    )
    sizes: list[int] = []
    for _ in range(3):
        for input_ids, labels in loader:
            before = [weight.detach().clone() for weight in net.parameters()]
            loss: Any = private({"logits": net(input_ids)}, {"labels": labels})
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            sizes.append(len(input_ids))
            assert torch.isfinite(loss)
            assert all((new != old).any() for new, old in zip(net.parameters(), before, strict=True))  # by the noise
    assert 0 in sizes
    assert max(sizes) > 0

"""The recipe for Accelerate: what it divides by is undone, so accumulation changes nothing."""

import pytest
import torch

from integrations.over_ranks import Bigram, batch
from tensafe.distributed import gradient_scale
from tensafe.integrations.windows import CountedWindows
from tensafe.training.losses import resolve_loss

accelerate = pytest.importorskip("accelerate")


@pytest.mark.parametrize("parts", [1, 3, 4, 8])  # 1 and 3 are windows that the end of the epoch cuts short
def test_accumulation_changes_nothing(parts: int) -> None:
    whole, loss_fn, size = batch(), resolve_loss("token_ce"), max(parts, 4)
    micro = [{name: tensor.tensor_split(parts)[part] for name, tensor in whole.items()} for part in range(parts)]
    accelerator = accelerate.Accelerator(gradient_accumulation_steps=size, cpu=True)
    model = Bigram()
    net = accelerator.prepare(model)
    for each, counts, divisor in CountedWindows(micro, loss_fn, size):
        with accelerator.accumulate(net):
            loss = loss_fn(net(each["input_ids"]), each, **counts)["loss"]
            accelerator.backward(loss * gradient_scale() * divisor)
    plain = Bigram()
    expected = torch.autograd.grad(loss_fn(plain(whole["input_ids"]), whole)["loss"], list(plain.parameters()))
    found = [weight.grad for weight in model.parameters()]
    torch.testing.assert_close(found, list(expected), rtol=1e-12, atol=1e-15)

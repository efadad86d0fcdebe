"""Two ranks with unequal numbers of labels, and accumulation, under the trainers of others: one step as on one rank."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from integrations.over_ranks import Bigram, batch
from support import SOURCE
from tensafe.training.losses import resolve_loss

SCRIPT = Path(__file__).with_name("over_ranks.py")


@pytest.mark.skipif(not dist.is_gloo_available(), reason="torch was built without gloo")
@pytest.mark.parametrize("library", ["transformers", "lightning"])
def test_two_ranks_step_as_one_does(tmp_path: Path, library: str) -> None:
    pytest.importorskip(library)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launch, str(SCRIPT), library, str(tmp_path)], env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    model, whole = Bigram(), batch()
    loss = resolve_loss("token_ce")(model(whole["input_ids"]), whole)["loss"]
    slopes = torch.autograd.grad(loss, list(model.parameters()))
    expected = [(weight - slope).detach() for weight, slope in zip(model.parameters(), slopes, strict=True)]
    found = torch.load(tmp_path / "parameters.pt")
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)

"""The examples of the integrations, as a user runs them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist

from support import SOURCE

ROOT = Path(__file__).parents[2]


def run(*command: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(not dist.is_gloo_available(), reason="torch was built without gloo")
def test_ddp_and_fsdp_learn_what_one_process_learns() -> None:
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    printed = run(*launch, "examples/train_distributed.py")
    found = dict(re.findall(r"^ *(.*): largest difference of the loss .*, of the parameters (.*); ", printed, re.M))
    assert [name for name, difference in found.items() if float(difference) < 1e-12] == ["DDP", "FSDP2"]
    assert float(found["DDP, mean of means"]) > 1e-3
    assert "[163, 0]" in printed  # the step in which a process has nothing to learn


@pytest.mark.parametrize("library", ["transformers", "lightning"])
def test_accumulation_changes_nothing(library: str) -> None:
    pytest.importorskip(library)
    printed = run(f"examples/train_{library}.py", "--steps", "3")
    [difference] = re.findall(r"^largest difference.*: (.*)$", printed, re.M)
    assert float(difference) < 1e-5  # float32

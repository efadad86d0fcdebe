import os

import pytest
import torch
from hypothesis import settings

from tensafe.training.losses import registry

settings.register_profile("same", max_examples=20, deadline=None, derandomize=True, print_blob=True)
settings.register_profile("new", max_examples=100, deadline=None)
settings.register_profile("deep", max_examples=5000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or "same")

torch.set_num_threads(1)  # the tensors here are tiny, and one thread adds in one order


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with what takes longest, lest one worker is left alone with it at the end."""
    long = {"test_typing.py", "test_memory.py", "test_conform.py", "test_train_examples.py"}
    items.sort(key=lambda item: item.path.name not in long)


@pytest.fixture
def isolated_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget at the end of a test what it registered."""
    monkeypatch.setattr(registry, "_entries", registry._entries)


@pytest.fixture
def in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the smallest tensors go in chunks, of a few rows and classes."""
    ops = "tensafe.training.losses.ops"  # imported by path: their import hook may not be there yet
    monkeypatch.setattr(f"{ops}.lean.LEAST_LEAN", 1)
    monkeypatch.setattr(f"{ops}.lean.CHUNK_ON_CPU", 8)
    monkeypatch.setattr(f"{ops}.vocabulary_blocks._LOGITS", 1)
    monkeypatch.setattr(f"{ops}.vocabulary_blocks._FEWEST", 2)


@pytest.fixture(params=["plain", "in chunks"])
def path(request: pytest.FixtureRequest) -> None:
    """Run a test as small tensors are treated, and as large ones are."""
    if request.param == "in chunks":
        request.getfixturevalue("in_chunks")

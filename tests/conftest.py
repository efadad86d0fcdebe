import os

import pytest
import torch
from hypothesis import settings

from tensafe.training.losses import registry

settings.register_profile("dev", max_examples=30, deadline=None)
settings.register_profile("ci", max_examples=200, deadline=None, derandomize=True, print_blob=True)
settings.register_profile("deep", max_examples=5000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") == "true" else "dev"))

torch.set_num_threads(1)  # the tensors here are tiny, and one thread adds in one order


@pytest.fixture
def isolated_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget at the end of a test what it registered."""
    monkeypatch.setattr(registry, "_entries", registry._entries)

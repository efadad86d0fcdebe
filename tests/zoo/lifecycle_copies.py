"""Losses that cannot be copied, or whose copy is another loss."""

import threading
from typing import TYPE_CHECKING, Any

import torch

from tensafe.training.losses import LossReturn
from tensafe.training.losses.testing.info import LossInfo, SampleCase
from zoo.healthy import careful_ce
from zoo.mutant import Mutant

if TYPE_CHECKING:
    from collections.abc import Callable


def _scaled(scale: float) -> Any:
    def scaled(outputs: Any, batch: Any) -> LossReturn:
        """Scale the loss of `logits` and `labels`."""
        return {"loss": scale * careful_ce(outputs, batch)["loss"]}

    return scaled


_settings: dict[str, float] = {}


def set_elsewhere(outputs: Any, batch: Any) -> LossReturn:
    """Scale the loss of `logits` and `labels` by what the training script has put into a global."""
    return {"loss": _settings["scale"] * careful_ce(outputs, batch)["loss"]}


def _as_the_script_does(dtype: Any, device: str, seed: int) -> list[SampleCase]:
    _settings["scale"] = 2.0
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 4, 5, generator=generator).to(device, dtype)
    return [({"logits": logits}, {"labels": torch.randint(0, 5, (2, 4), generator=generator).to(device)}, {})]


class Scheduled:
    """Loss of `logits` and `labels`, times what a function says."""

    def __init__(self) -> None:
        self._scale: Callable[[int], float] = lambda step: 2.0 / (1 + step)

    def __call__(self, outputs: Any, batch: Any) -> LossReturn:
        """Scale the loss."""
        return {"loss": self._scale(0) * careful_ce(outputs, batch)["loss"]}


class Locked:
    """Loss of `logits` and `labels`, with a lock for a log that a thread of its own writes."""

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def __call__(self, outputs: Any, batch: Any) -> LossReturn:
        """Compute the loss."""
        return careful_ce(outputs, batch)


class Scaled:
    """Loss of `logits` and `labels`, times a scale, with a way of its own to be copied."""

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale

    def __call__(self, outputs: Any, batch: Any) -> LossReturn:
        """Scale the loss."""
        return {"loss": self.scale * careful_ce(outputs, batch)["loss"]}

    def __deepcopy__(self, memo: Any) -> "Scaled":
        return Scaled()


def by_class(outputs: Any, batch: Any, class_weights: dict[int, float] | None = None) -> LossReturn:
    """Weigh the loss of `logits` and `labels`.

    Args:
        outputs: Has `logits`.
        batch: Has `labels`.
        class_weights: The weight of each class, default 1; in JSON the keys of a mapping are strings.
    """
    weights = class_weights or {}
    return {"loss": weights.get(0, 1.0) * careful_ce(outputs, batch)["loss"]}


PICKLE = frozenset({"check_pickle_roundtrip"})

MUTANTS = [
    Mutant("local_function", _scaled(2.0), PICKLE),
    Mutant("set_elsewhere", set_elsewhere, PICKLE, LossInfo(sample_inputs=_as_the_script_does)),
    Mutant("with_a_lambda", Scheduled(), PICKLE),
    Mutant("with_a_lock", Locked(), frozenset({"check_pickle_roundtrip", "check_deepcopy"})),
    Mutant("half_a_copy", Scaled(2.0), frozenset({"check_deepcopy"})),
    Mutant(
        "keys_that_are_ints", by_class, frozenset({"check_config_roundtrip"}), LossInfo({"class_weights": {0: 2.0}})
    ),
]

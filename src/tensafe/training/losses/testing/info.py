"""What a caller may tell about a loss that the loss does not tell itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tensafe.training.losses.traits import Traits

__all__ = ["ErrorCase", "LossInfo", "SampleCase"]

SampleCase = tuple[Mapping[str, Any], Mapping[str, Any], Mapping[str, Any]]
"""Outputs, batch and kwargs of one call."""

ErrorCase = tuple[Mapping[str, Any], Mapping[str, Any], Mapping[str, Any], type[Exception], str]
"""Outputs, batch and kwargs of a call that must fail, the class of the error, and a regex that its text contains."""


@dataclass(frozen=True)
class LossInfo:
    """What the checks need to know of a loss; a typed loss tells nearly all of it itself.

    Attributes:
        kwargs: Kwargs that it is resolved with.
        sample_inputs: `sample_inputs(dtype, device, seed)` makes calls that work, the plainest first: outputs, batch
            and kwargs; floating-point tensors of the outputs are what is learnt. Without it a typed loss gets tensors
            made from its declarations, and a plain function those that it asks for by a conventional name, such as
            `logits` and `labels`.
        error_inputs: Makes calls that must be refused, with the class of the error and a regex for its text.
        reference: `reference(outputs, batch, **kwargs)`, the loss in float64, written independently; it gets every
            kwarg, and raises NotImplementedError for a kwarg or an optional tensor that it knows nothing of.
        traits: What the loss claims; by default what its class says.
        ignore_index: The label of a position that does not count, for a loss that takes `labels` and has no kwarg
            `ignore_index`; None says that every label counts.
    """

    kwargs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    sample_inputs: Callable[[Any, str, int], Sequence[SampleCase]] | None = None
    error_inputs: Callable[[], Sequence[ErrorCase]] | None = None
    reference: Callable[..., float] | None = None
    traits: Traits | None = None
    ignore_index: int | None = -100

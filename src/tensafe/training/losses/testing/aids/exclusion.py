"""What does not count: positions that a mask or an ignored label leaves out of a loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tensafe.training.losses.testing.subject import Subject
    from tensafe.training.losses.testing.trial import Trial

__all__ = ["Exclusion", "exclude"]

_OF_THE_CONTEXT = frozenset({"input_ids", "position_ids", "token_type_ids"})
"""What a model was given: a position that does not count is still what the others stand on."""

_LAST = 2
"""How many of the last positions of each sequence are left out."""


class Exclusion(NamedTuple):
    """A call in which some positions do not count.

    Attributes:
        trial: The call.
        places: Where nothing counts, by key of the mask or the labels that say so.
    """

    trial: Trial
    places: dict[str, Tensor]

    def of(self, key: str) -> Tensor | None:
        """Return where nothing of a tensor counts, in its shape; None if that is said of other tensors alone."""
        tensor = self.trial.tensors[key]
        found = [place for said, place in self.places.items() if self._speaks_of(said, key)]
        if not found or key in _OF_THE_CONTEXT:
            return None
        wide = [place.reshape(*place.shape, *[1] * (tensor.ndim - place.ndim)) for place in found]
        return torch.stack([place.expand_as(tensor) for place in wide]).any(0)

    def junked(self, junk: float, ids: int) -> Trial:
        """Return the same call with junk in everything that does not count."""

        def spoil(key: str, tensor: Tensor) -> Tensor:
            place = None if key in self.places else self.of(key)
            if place is None or tensor.dtype is torch.bool:
                return tensor
            return tensor.masked_fill(place, junk if tensor.is_floating_point() else ids)

        return self.trial.changed(spoil)

    def _speaks_of(self, said: str, key: str) -> bool:
        """Whether a tensor has the axes of a mask or of labels, and perhaps more after them."""
        place, tensor, specs = self.places[said], self.trial.tensors[key], self.trial.specs
        if tensor.shape[: place.ndim] != place.shape:
            return False
        if said not in specs or key not in specs:
            return True
        ours, theirs = ([str(dim).removeprefix("*") for dim in specs[name].dims] for name in (key, said))
        same = (one == other or "_" in {one, other} for one, other in zip(ours, theirs, strict=False))
        return len(ours) >= len(theirs) and all(same)


def exclude(subject: Subject, trial: Trial, *, all_of_it: bool = False) -> Exclusion | None:
    """Leave some positions out of a call, by every mask and all labels that it has; None if it has none.

    By default they are the last ones of each sequence, and the whole of the last sample: those do not count whether a
    position is scored against its own label, the next one or any later one.

    Args:
        subject: The loss.
        trial: The call.
        all_of_it: Leave everything out.
    """
    tensors, ignored = trial.tensors, subject.ignored_label(trial)
    masks = [key for key in tensors if _is_mask(key, tensors[key])]
    said: dict[str, float] = {**dict.fromkeys(masks, 0), **dict.fromkeys(subject.labels(trial), ignored or 0)}
    shapes = {key: tensors[key].shape for key in said if tensors[key].ndim}
    if not shapes:
        return None
    places = {
        key: torch.ones(shape, dtype=torch.bool) if all_of_it else _at_the_end(shape) for key, shape in shapes.items()
    }
    changed = {key: tensors[key].masked_fill(place, said[key]) for key, place in places.items()}
    return Exclusion(trial.replaced(**changed), places)


def _is_mask(key: str, tensor: Tensor) -> bool:
    return key.endswith("mask") and not tensor.is_floating_point()


def _at_the_end(shape: Sequence[int]) -> Tensor:
    place = torch.zeros(*shape, dtype=torch.bool)
    if len(shape) == 1:
        place[-(shape[0] // 2) :] = shape[0] > 1
        return place
    if shape[0] > 1:
        place[-1] = True
    if shape[1] > _LAST:
        place[:, -_LAST:] = True
    return place

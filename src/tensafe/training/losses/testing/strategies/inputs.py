"""Outputs and batches that a loss accepts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from hypothesis import strategies as st

from tensafe.training.losses.contract import DTYPES
from tensafe.training.losses.guards import is_class
from tensafe.training.losses.resolve import find_loss, resolve_loss
from tensafe.training.losses.samples import sample_kwargs

from .needs import Layout
from .prober import Prober
from .tensors import tensors

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from hypothesis.strategies import DrawFn, SearchStrategy
    from torch import Tensor

    from tensafe.training.losses.resolve import Spec

__all__ = ["LossInputs", "loss_inputs"]


class LossInputs(NamedTuple):
    """What a loss is called with: `loss_fn(*inputs)`.

    Attributes:
        outputs: What a model would have computed; no tensor requires a gradient.
        batch: What a data set would have provided.
    """

    outputs: dict[str, Tensor]
    batch: dict[str, Tensor]


def loss_inputs(
    loss: Spec, *, dtypes: Sequence[str] = DTYPES["float"], max_size: int = 3
) -> SearchStrategy[LossInputs]:
    """Return a strategy of outputs and batches that a loss accepts, and of which it makes a finite number.

    Tensors are those that the loss declares, or the losses inside it. Axes of one name have one size; those that may be
    empty (`batch`, `seq`, `group`) sometimes are. Optional tensors are there or not, in combinations that the loss
    accepts. Floats are all of one dtype, integers of any that holds them. What a tensor holds follows from its
    `Values`, else from its name as in `tensafe check`: labels are below the size of `vocab`, or ignored (all, none or
    some); masks are all set, not at all or in part; log-probabilities are at most 0, and probabilities add up to 1; all
    other floats are multiples of 1/8 in [-8, 8]. A plain callable gets the tensors that it asks for by a conventional
    name.

    A loss may be infinite by its own formula, such as one that takes the logarithm of a probability of 0, or with
    kwargs that are extreme.

    Shrinks to axes of size 1, no optional tensors, zeros and float32. Above 200 elements, values repeat.

    Args:
        loss: What `resolve_loss` takes; a class or a name with required kwargs gets those of its examples.
        dtypes: Names of the dtypes of floats.
        max_size: Largest size of an axis, unless the loss needs a larger one, as many classes as it has weights for.

    Raises:
        LossInputError: The loss accepts nothing that was tried: it declares too little of what it needs.
    """
    prober = Prober(resolve_loss(loss, **_required(loss)), max_size)
    return _inputs(prober, tuple(dtypes))


def _required(loss: Spec) -> Mapping[str, Any]:
    found = find_loss(loss) if isinstance(loss, str) else loss
    return sample_kwargs(found) if is_class(found) else {}


@st.composite
def _inputs(draw: DrawFn, prober: Prober, dtypes: Sequence[str]) -> LossInputs:
    dtype = draw(st.sampled_from(dtypes))
    axes = draw(st.sampled_from(prober.ranks))
    sizes = {axis: draw(st.sampled_from(choices)) for axis, choices in prober.sizes.items()}
    wanted = frozenset(need.key for need in prober.needs if need.optional and draw(st.booleans()))
    present = prober.together(wanted, axes)
    layout = Layout(sizes, axes)
    inputs = LossInputs({}, {})
    for need in prober.needs:
        if not need.optional or need.key in present:
            side = inputs.outputs if need.side == "outputs" else inputs.batch
            side[need.key] = draw(tensors(need, layout, dtype))
    return inputs

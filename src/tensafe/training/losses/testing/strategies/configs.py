"""Training configs as YAML, good ones and ones with a mistake."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml
from hypothesis import strategies as st

from tensafe.training.losses.nested import NESTED_SCHEMA

from .drawer import Drawer
from .mistakes import missing, misspelt
from .mutations import KINDS, Mistakes, mutate

if TYPE_CHECKING:
    from collections.abc import Collection

    from hypothesis.strategies import DrawFn, SearchStrategy

    from tensafe.training.losses.errors import Loc

    from .mistakes import Kind

__all__ = ["ConfigText", "training_configs"]

_SECTIONS: dict[str, SearchStrategy[Any]] = {
    "seed": st.integers(0, 100),
    "model": st.fixed_dictionaries({"name": st.sampled_from(["tiny", "org/base-1b"])}),
    "optimizer": st.fixed_dictionaries({"type": st.just("adamw"), "lr": st.sampled_from([0.001, 3e-05])}),
    "notes": st.none() | st.lists(st.sampled_from(["first run", "é: #1", "no"]), max_size=2),
}
_OTHERS = st.fixed_dictionaries({}, optional=_SECTIONS)


class ConfigText(NamedTuple):
    """A training config.

    Attributes:
        text: YAML.
        data: What it says.
        path: Where its mistake is, such as `("loss", "kwargs", "beta")`; None if it has none.
        kind: What kind of mistake that is; None if it has none.
    """

    text: str
    data: dict[str, Any]
    path: Loc | None = None
    kind: Kind | None = None


def training_configs(
    losses: Collection[str] | None = None, *, valid: bool = True, depth: int = 2, extreme: bool = False
) -> SearchStrategy[ConfigText]:
    """Return a strategy of training configs: a section `loss`, a name or a mapping, and perhaps others, in any order.

    The loss has kwargs as `loss_kwargs` draws them, and renames of its tensors.

    Shrinks to one line, with the name of the first loss.

    Args:
        losses: Names of the losses it may be or hold; by default all that are registered.
        valid: Whether it is a good one. If not it has one mistake: of those of `invalid_loss_kwargs`, or in the spec
            around the kwargs (an unknown name, a misspelt, missing or misplaced key, a tensor that there is not), or
            the section itself is missing or misspelt.
        depth: How deep losses are nested at most; 0 is a loss that holds none.
        extreme: See `loss_kwargs`.

    Raises:
        UnknownLossError: A name is not known.
    """
    among = None if losses is None else frozenset(losses)
    good = _configs(Drawer(depth, extreme, inputs=True, among=among).specs())
    return good.map(lambda data: ConfigText(_as_yaml(data), data)) if valid else _spoilt(good)


@st.composite
def _configs(draw: DrawFn, specs: SearchStrategy[Any]) -> dict[str, Any]:
    data = {"loss": deepcopy(draw(specs))} | draw(_OTHERS)
    return dict(reversed(data.items())) if len(data) > 1 and draw(st.booleans()) else data


@st.composite
def _spoilt(draw: DrawFn, good: SearchStrategy[dict[str, Any]]) -> ConfigText:
    wanted = draw(st.sampled_from(KINDS))
    data = draw(good)
    around = [*misspelt(data, ["loss"], ()), *missing(data, ["loss"], ())]
    mistake = mutate(draw, wanted, data, [*around, *Mistakes({}).of_value(NESTED_SCHEMA, data["loss"], ("loss",))])
    return ConfigText(_as_yaml(data), data, mistake.path, mistake.kind)


def _as_yaml(data: dict[str, Any]) -> str:
    text: str = yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
    return text

"""A weighted sum of other losses."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import ConfigDict, Field, model_serializer, model_validator

from tensafe.training.losses.adapter import ResolvedLoss
from tensafe.training.losses.errors import (
    LossInputError,
    Problem,
    config_error,
    key_name,
    make_error,
    near_miss,
    shorten,
)
from tensafe.training.losses.guards import is_list, is_mapping
from tensafe.training.losses.loss import Loss
from tensafe.training.losses.nested import (
    FROM_BATCH,
    TERM_SCHEMA,
    NestedLoss,
    count_of,
    scaled,
    takes_step,
    unfit_part,
)
from tensafe.training.losses.protocol import COUNTS
from tensafe.training.losses.resolve import check_spec
from tensafe.training.losses.schedules import Schedule, Scheduled, step_of
from tensafe.training.losses.spec import SPEC_KEYS
from tensafe.training.losses.strict import StrictModel

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Self

    from torch import Tensor

    from tensafe.training.losses.types import LossReturn

_TERM_KEYS = ("weight", "name")

# what _one_number says, for editors; a pattern, since it may bring its message
_NOT_NONE = {"pattern": "^(?!none$)", "patternErrorMessage": "A term must be one number: not none."}
_KWARGS = {"properties": {"reduction": {**_NOT_NONE, "doNotSuggest": True}}}
_ONE_NUMBER: dict[str, Any] = {"allOf": [{"properties": {"kwargs": {**_KWARGS, "doNotSuggest": True}}}]}


class WeightedTerm(StrictModel):
    """One term of a weighted sum: in a config, a loss spec with a weight and perhaps a name beside its keys."""

    model_config = ConfigDict(json_schema_extra={**TERM_SCHEMA, **_ONE_NUMBER})

    loss: NestedLoss
    weight: Scheduled = Field(
        default=1.0, description="What the loss of this term is multiplied by: a number, or a schedule of the step."
    )
    name: str | None = Field(default=None, min_length=1, description="What to call the term among the metrics.")

    @model_validator(mode="before")
    @classmethod
    def _split(cls, data: Any) -> Any:
        if not is_mapping(data):
            return {"loss": data}
        if isinstance(data.get("loss"), Loss | ResolvedLoss):  # from Python: the term itself, not its config
            return data
        if "loss" in data:
            message = "unknown key; the keys of a loss stand in the term itself, beside weight and name"
            raise config_error([Problem("unknown-key", ("loss",), message, on_key=True)], loss=None)
        own = {key: data[key] for key in _TERM_KEYS if key in data}
        spec = {key: value for key, value in data.items() if key not in own}
        misspelt = [key for key in spec if near_miss(key_name(key), (*SPEC_KEYS, *_TERM_KEYS)) in _TERM_KEYS]
        if not misspelt:
            return {"loss": spec, **own}
        problems = [_misspelt(key_name(key)) for key in misspelt]
        # raised from here, so what else is wrong with the term must be looked for here
        problems += check_spec({key: value for key, value in spec.items() if key not in misspelt})
        raise config_error(problems, loss=None)

    @model_serializer
    def _as_written(self) -> dict[str, Any]:
        weight = self.weight.to_config() if isinstance(self.weight, Schedule) else self.weight
        return {**self.loss.to_config(), "weight": weight, **({} if self.name is None else {"name": self.name})}

    @model_validator(mode="after")
    def _one_number(self) -> Self:
        problem = unfit_part(self.loss, "a term of a weighted sum")
        if problem is not None:
            raise config_error([problem], loss=None)
        return self

    @property
    def takes_step(self) -> bool:
        """Whether the weight has a schedule, or something inside the loss."""
        return isinstance(self.weight, Schedule) or takes_step(self.loss)


def _present(weight: float | Schedule, step: Any, loss: Tensor) -> float | Tensor:
    return weight.at(step, loss.dtype) if isinstance(weight, Schedule) else weight


def _misspelt(key: str) -> Problem:
    nearest = near_miss(key, _TERM_KEYS)
    return Problem("unknown-key", (key,), f"unknown key; did you mean {nearest}?", nearest, on_key=True)


class WeightedSum(Loss, name="weighted_sum"):
    r"""Weighted sum of other losses, on the same outputs and batch.

    .. math:: L = \sum_k w_k L_k

    Args:
        outputs: What each term looks its tensors up in; give a term `inputs` where names collide.
        batch: Likewise.
        losses: The terms, at least one. In a config each is a loss spec with its weight:
            `{type: mse, weight: 0.5, kwargs: {...}, inputs: {...}, name: ...}`. `weight` is finite, default 1; a term
            of weight 0 is computed for its metrics and adds 0, but stays in the graph. `name` defaults to the type
            (with a number when two terms share it). A weight may also change with the step:
            `{schedule: linear, start: 0, end: 1, steps: 1000, warmup: 100}`, where `schedule` is `linear`, `cosine`
            (both from `start` to `end` within `steps`, after `warmup` steps at `start`), `step` (`end` from step
            `steps` on) or `constant` (`start`).
        step: How many steps were taken before this one: an int >= 0 or a 0-d integer tensor, in the call
            (`loss_fn(outputs, batch, step=100)`) or in the batch. Only where a weight has a schedule, here or in a sum
            inside; in a batch it is ignored where none has.
        metrics: Whether the result carries, for each term, `<name>/loss`, `<name>/weight` (the present one) and its own
            metrics as `<name>/<metric>`.

    Returns:
        The sum, 0-d.

    Raises:
        LossInputError: From the terms; or `num_items_in_batch` (`num_sequences_in_batch`) is a single number, in the
            call or in the batch: terms count different things (tokens, pairs), so it takes a list with one entry per
            term, None where there is none. Or a weight has a schedule, and there is no step.
        LossConfigError: A kwarg, here or inside a term, is unknown or out of range; or a call has a step, and no weight
            has a schedule.

    Note:
        A step in the call does not make `torch.compile` start anew at each one: it takes at most two graphs for an int,
        one for a tensor.

    Example:
        >>> import torch
        >>> from tensafe.training.losses import resolve_loss
        >>> loss_fn = resolve_loss("weighted_sum", losses=[{"type": "mse", "weight": 0.5}, "mse"])
        >>> loss_fn({"predictions": torch.tensor([2.0])}, {"targets": torch.tensor([0.0])})["loss"]  # 0.5 * 4 + 4
        tensor(6.)

    References:
        The usual way to combine objectives, such as MPO: Wang et al., 2024, arXiv:2411.10442.
    """

    _family: ClassVar[str] = "composition"

    losses: tuple[WeightedTerm, ...] = Field(
        min_length=1,
        strict=False,
        description="The terms: loss specs, each with a weight.",
        examples=[["mse", {"type": "margin_ranking", "weight": 0.5}]],
    )

    @model_validator(mode="after")
    def _distinct_names(self) -> Self:
        given = Counter(term.name for term in self.losses if term.name is not None)
        repeated = [name for name, count in given.items() if count > 1]
        if repeated:
            last = max(index for index, term in enumerate(self.losses) if term.name == repeated[0])
            message = f"another term has the name {shorten(repeated[0])} already"
            raise config_error([Problem("repeated-name", ("losses", last, "name"), message)], loss=None)
        return self

    @property
    def takes_step(self) -> bool:
        """Whether a weight has a schedule, here or in a term."""
        return any(term.takes_step for term in self.losses)

    def __call__(
        self,
        outputs: Any,
        batch: Any,
        *,
        num_items_in_batch: Any = FROM_BATCH,
        num_sequences_in_batch: Any = FROM_BATCH,
        step: Any = None,
    ) -> LossReturn:
        """Return the weighted sum of the terms; see the class."""
        items = self._per_term("num_items_in_batch", num_items_in_batch, batch)
        sequences = self._per_term("num_sequences_in_batch", num_sequences_in_batch, batch)
        step = step_of("weighted_sum", self.takes_step, step, batch)
        total: Any = None
        metrics: dict[str, Any] = {}
        for index, (term, name) in enumerate(zip(self.losses, self._names(), strict=True)):
            # given explicitly, None included, the term does not look for a count in the batch
            counts = {"num_items_in_batch": items[index], "num_sequences_in_batch": sequences[index]}
            told = {"step": step} if takes_step(term.loss) else {}
            result = term.loss(outputs, batch, **counts, **told)
            weight = _present(term.weight, step, result["loss"])
            part = scaled(result["loss"], weight)
            total = part if total is None else total + part
            if self.metrics:
                metrics[f"{name}/loss"] = result["loss"]
                metrics[f"{name}/weight"] = weight
                metrics.update({f"{name}/{key}": value for key, value in result.get("metrics", {}).items()})
        return {"loss": total, "metrics": metrics}

    def joint_counts(self, count: Callable[[ResolvedLoss], Mapping[str, Any]]) -> dict[str, Any]:
        """Return the counts of a call, made of those of each term: lists with an entry for each."""
        each = [count(term.loss) for term in self.losses]
        return {name: [counts.get(name) for counts in each] for name in COUNTS if any(name in one for one in each)}

    def _names(self) -> list[str]:
        plain = [term.name or term.loss.name for term in self.losses]
        shared = {name for name, count in Counter(plain).items() if count > 1}
        return [f"{name}_{index}" if name in shared else name for index, name in enumerate(plain)]

    def _per_term(self, name: str, counts: Any, batch: Any) -> Sequence[Any]:
        counts = count_of(name, counts, batch)
        if counts is None:
            return [None] * len(self.losses)
        if not is_list(counts):
            raise make_error(
                LossInputError,
                f"{name} must be a list with one entry per term: they count different things; got one number.",
                code="invalid-count",
                loss="weighted_sum",
                loc=(name,),
                hint=f"Pass {name}=[...], None where a term has none.",
            )
        if len(counts) != len(self.losses):
            raise make_error(
                LossInputError,
                f"{name} must have one entry per term, {len(self.losses)}; got {len(counts)}.",
                code="invalid-count",
                loss="weighted_sum",
                loc=(name,),
            )
        return counts

"""What the strategies draw is accepted, or refused where they say, and shrinks to what a person can read."""

import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from math import inf, nan
from textwrap import dedent
from typing import Annotated, Any, Literal, TypeVar

import pytest
import torch
from hypothesis import Phase, event, find, given, reject, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

import tensafe.training.losses.testing as kit
from support import run_child
from tensafe.config import check_source
from tensafe.training.losses import (
    ElementLoss,
    Elements,
    Loss,
    LossConfigError,
    LossInputError,
    NestedLoss,
    UnknownLossError,
    resolve_loss,
)
from tensafe.training.losses.contract import Values
from tensafe.training.losses.registry import builtin_names, lookup, unregister
from tensafe.training.losses.samples import sample_kwargs
from tensafe.training.losses.targets import Policy
from tensafe.training.losses.testing.strategies import (
    ConfigText,
    InvalidKwargs,
    LossInputs,
    invalid_loss_kwargs,
    loss_inputs,
    loss_kwargs,
    training_configs,
)
from tensafe.training.losses.testing.strategies.shapes import read_shape

Drawn = TypeVar("Drawn")
BUILTIN = sorted(builtin_names())
every_loss = pytest.mark.parametrize("name", BUILTIN)

few = settings(max_examples=max(5, settings().max_examples // 8))
"""There are many losses."""


@pytest.fixture(autouse=True)
def _poor_choices_are_allowed() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the gradient of k1", UserWarning)
        warnings.filterwarnings("ignore", "jsd: beta=", UserWarning)
        yield


def least(
    strategy: st.SearchStrategy[Drawn],
    wanted: Callable[[Drawn], bool],
    *,
    phases: Sequence[Phase] = (Phase.generate, Phase.shrink),
) -> Drawn:
    """Return the simplest draw of those that are wanted."""
    only = settings(max_examples=1000, deadline=None, database=None, derandomize=True, phases=phases)
    return find(strategy, wanted, settings=only)


def number(loss: Any, inputs: LossInputs) -> Tensor:
    value = loss(*inputs)["loss"]
    assert isinstance(value, Tensor)
    return value


# Inputs


@every_loss
@few
@given(data=st.data())
def test_a_loss_of_drawn_inputs_is_finite(name: str, data: st.DataObject) -> None:
    loss = resolve_loss(name, **sample_kwargs(lookup(name)))
    inputs = data.draw(inputs_of(name))
    assert number(loss, inputs).isfinite().all()
    assert not any(tensor.requires_grad for side in inputs for tensor in side.values())


@cache
def inputs_of(name: str) -> st.SearchStrategy[LossInputs]:
    return loss_inputs(name)


@given(data=st.data())
def test_a_loss_with_drawn_kwargs_takes_drawn_inputs(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(BUILTIN))
    kwargs = data.draw(loss_kwargs(name).filter(runs_here))
    loss = resolve_loss(name, **kwargs)
    try:
        inputs = data.draw(loss_inputs(loss))
    except LossInputError:  # the parts of a combinator may ask for two tensors of one name, or of two sizes
        if not read_shape(name).holds_losses():
            raise
        event("parts that do not go together")
        reject()
    assert number(loss, inputs).isfinite().all()


def runs_here(kwargs: Mapping[str, Any]) -> bool:
    """Whether a loss, and those inside it, want no backend that is not installed everywhere."""
    return not re.search("'backend': '(liger|cce)'", str(kwargs))


def token_ce_inputs(**kwargs: Any) -> st.SearchStrategy[LossInputs]:
    return loss_inputs(resolve_loss("token_ce", **kwargs))


@pytest.mark.parametrize(
    ("what", "wanted"),
    [
        ("no batch", lambda outputs, batch: outputs["logits"].shape[0] == 0),
        ("no sequence", lambda outputs, batch: outputs["logits"].ndim == 3 and outputs["logits"].shape[1] == 0),
        ("no batch axis", lambda outputs, batch: outputs["logits"].ndim == 2),
        ("half precision", lambda outputs, batch: outputs["logits"].dtype is torch.bfloat16),
        ("double precision", lambda outputs, batch: outputs["logits"].dtype is torch.float64),
        ("small integers", lambda outputs, batch: "labels" in batch and batch["labels"].dtype is torch.uint8),
        ("aligned labels", lambda outputs, batch: "shift_labels" in batch and "labels" not in batch),
        ("both labels", lambda outputs, batch: "shift_labels" in batch and "labels" in batch),
        ("whole weights", lambda outputs, batch: batch.get("token_weights", torch.ones(1)).dtype is torch.int64),
        ("ignored", lambda outputs, batch: "labels" in batch and bool((batch["labels"] == -100).any())),
        ("two kinds", lambda outputs, batch: "labels" in batch and len(batch["labels"].unique()) > 2),
    ],
)
def test_draws_all_kinds_of_inputs(what: str, wanted: Any) -> None:
    least(token_ce_inputs(), lambda inputs: wanted(*inputs), phases=[Phase.generate])


@few
@given(inputs=token_ce_inputs(class_weights=[1.0, 2.0, 3.0, 4.0, 5.0]))
def test_there_are_as_many_classes_as_weights(inputs: LossInputs) -> None:
    assert inputs.outputs["logits"].shape[-1] == 5


@few
@given(inputs=loss_inputs("token_ce", dtypes=["float16"], max_size=2))
def test_dtypes_and_sizes_may_be_chosen(inputs: LossInputs) -> None:
    assert inputs.outputs["logits"].dtype is torch.float16
    assert max(inputs.outputs["logits"].shape) <= 2


def test_inputs_shrink_to_what_can_be_read() -> None:
    found = least(token_ce_inputs(), lambda inputs: bool(number(resolve_loss("token_ce"), inputs) > 1.5))
    logits = found.outputs["logits"]
    assert logits.numel() <= 4
    assert logits.dtype is torch.float32
    assert logits.count_nonzero() == 1


def test_inputs_shrink_to_the_least() -> None:
    outputs, batch = least(loss_inputs("dpo"), lambda _: True)
    assert {key: tensor.tolist() for key, tensor in outputs.items()} == {"chosen_logps": [0], "rejected_logps": [0]}
    assert {key: tensor.tolist() for key, tensor in batch.items()} == {
        "ref_chosen_logps": [0],
        "ref_rejected_logps": [0],
    }


class Everything(ElementLoss):
    """Takes each kind of value."""

    def compute(
        self,
        probs: Float[Tensor, "batch classes"],
        top_logps: Float[Tensor, "batch k"],
        share: Annotated[Float[Tensor, " batch"], Values(0, 1)],
        above: Annotated[Float[Tensor, " batch"], Values(low=2)],
        below: Annotated[Float[Tensor, " batch"], Values(high=-2)],
        sign: Annotated[Int[Tensor, " batch"], Values(among=(-1, 1))],
        lengths: Int[Tensor, " batch"],
        attention_mask: Int[Tensor, "batch seq"],
        label: Int[Tensor, " batch"],
        spare: Float[Tensor, "2 _ ..."] | None = None,
    ) -> Elements:
        checks = [(probs.sum(-1) - 1).abs() < 0.01, top_logps.exp().sum(-1) <= 1.01, (share >= 0) & (share <= 1)]
        checks += [above >= 2, below <= -2, sign.abs() == 1, lengths > 0, (label >= 0) & (label < probs.shape[1])]
        checks += [((attention_mask == 0) | (attention_mask == 1)).all(-1)]
        return Elements(torch.stack(checks).all(0).float())


@given(inputs=loss_inputs(Everything))
def test_tensors_hold_what_is_declared(inputs: LossInputs) -> None:
    result = resolve_loss(Everything, reduction="sum")(*inputs)["loss"]
    assert result == inputs.outputs["share"].numel()


def test_a_plain_callable_gets_what_it_asks_for() -> None:
    def nll(outputs: Any, batch: Any) -> Any:
        return -outputs["logits"].log_softmax(-1).flatten(0, -2)[:, 0].sum() + batch["labels"].sum()

    outputs, batch = least(loss_inputs(nll), lambda inputs: bool(inputs.batch["labels"].sum() > 0))
    assert outputs["logits"].shape == (1, 1, 2)
    assert batch["labels"].tolist() == [[1]]


def test_the_parts_of_a_sum_and_its_step_get_what_they_take() -> None:
    terms = ["token_ce", {"type": "mse", "weight": {"schedule": "linear", "start": 0, "end": 1, "steps": 10}}]
    outputs, batch = least(loss_inputs({"type": "weighted_sum", "kwargs": {"losses": terms}}), lambda _: True)
    assert outputs.keys() == {"logits", "predictions"}
    assert batch.keys() == {"labels", "targets", "step"}
    assert batch["step"] == 0


def test_renamed_tensors_are_where_the_loss_looks() -> None:
    inputs = {"predictions": "batch.guess", "targets": "outputs.truth"}
    outputs, batch = least(loss_inputs({"type": "mse", "inputs": inputs}), lambda _: True)
    assert (set(outputs), set(batch)) == ({"truth"}, {"guess"})


def test_a_loss_that_accepts_nothing_says_so() -> None:
    clash = {"type": "weighted_sum", "kwargs": {"losses": ["token_ce", "supcon"]}}
    with pytest.raises(LossInputError, match="labels"):
        loss_inputs(clash)


# Kwargs


@every_loss
@few
@given(data=st.data())
def test_drawn_kwargs_are_accepted(name: str, data: st.DataObject) -> None:
    kwargs = data.draw(loss_kwargs(name, extreme=data.draw(st.booleans())))
    resolved = resolve_loss(name, **kwargs)
    assert kwargs.keys() <= resolved.kwargs.keys()


@every_loss
@few
@given(data=st.data())
def test_a_mistake_is_refused_at_its_place(name: str, data: st.DataObject) -> None:
    broken = data.draw(invalid_loss_kwargs(name))
    event(broken.kind)
    with pytest.raises(LossConfigError) as refusal:
        resolve_loss(name, **broken.kwargs)
    assert broken.path in [problem.loc for problem in refusal.value.problems]


LEAST_MISTAKES: dict[str, tuple[dict[str, Any], tuple[Any, ...]]] = {
    "misspelt": ({"losses": ["aot"], "metric": 0}, ("metric",)),
    "missing": ({}, ("losses",)),
    "wrong_type": ({"losses": 0.5}, ("losses",)),
    "bool": ({"losses": [{"type": "aot", "weight": True}]}, ("losses", 0, "weight")),
    "nan": ({"losses": [{"type": "aot", "weight": nan}]}, ("losses", 0, "weight")),
    "inf": ({"losses": [{"type": "aot", "weight": inf}]}, ("losses", 0, "weight")),
    "out_of_range": ({"losses": []}, ("losses",)),
    "unknown_choice": ({"losses": ["ao"]}, ("losses", 0)),
}


@pytest.mark.parametrize("kind", LEAST_MISTAKES)
def test_draws_all_kinds_of_mistakes(kind: str) -> None:
    found = least(invalid_loss_kwargs("weighted_sum", depth=1), lambda broken: broken.kind == kind)
    kwargs, path = LEAST_MISTAKES[kind]
    assert (str(found.kwargs), found.path) == (str(kwargs), path)  # nan is not itself


def test_draws_what_is_misplaced() -> None:
    found = least(invalid_loss_kwargs("weighted_sum", depth=1), lambda broken: broken.kind == "misplaced")
    (spec,) = found.kwargs["losses"]
    assert found.path == ("losses", 0, "metrics")
    assert {"type": "aot", "metrics": 0}.items() <= spec.items()
    assert len(spec) <= 3


def test_kwargs_shrink_to_what_can_be_read() -> None:
    assert least(loss_kwargs("token_ce"), lambda _: True) == {}
    assert least(loss_kwargs("weighted_sum"), lambda _: True) == {"losses": [BUILTIN[0]]}
    assert least(loss_kwargs("token_ce"), lambda kwargs: kwargs.get("label_smoothing", 0) > 0) == {"label_smoothing": 1}
    found = least(loss_kwargs("token_ce"), lambda kwargs: kwargs.get("reduction") == "sequence_sum_norm")
    assert found == {"reduction": "sequence_sum_norm", "max_length": 1}
    misspelt = least(invalid_loss_kwargs("mse"), lambda broken: "reduction" in broken.kwargs)
    assert isinstance(misspelt, InvalidKwargs)
    assert (misspelt.path, misspelt.kind) == (("metric",), "misspelt")


@pytest.mark.parametrize("name", ["grpo", "matryoshka"])
def test_what_is_optional_shrinks_away(name: str) -> None:
    shape = read_shape(name)
    for kwarg in shape.properties:
        found = least(loss_kwargs(name), lambda kwargs, kwarg=kwarg: kwarg in kwargs)  # type: ignore[misc]
        assert found.keys() == {*shape.required, kwarg}


def test_a_schedule_is_drawn() -> None:
    def has_cosine(kwargs: Mapping[str, Any]) -> bool:
        return "'schedule': 'cosine'" in str(kwargs)

    found = least(loss_kwargs("weighted_sum", depth=1), has_cosine)
    weight = {"schedule": "cosine", "start": 0, "end": 0, "steps": 1}
    assert found == {"losses": [{"type": BUILTIN[0], "weight": weight}]}


class Part(BaseModel):
    """A model in the annotation of a callable."""

    model_config = ConfigDict(extra="forbid", strict=True)

    share: float = Field(gt=0, lt=0.01)
    inner: "Part | None" = None


Part.model_rebuild()


def plain(  # type: ignore[no-untyped-def]  # one kwarg is not annotated
    outputs: Any,
    batch: Any,
    gamma: float,
    mode: Literal["hard", "soft"] = "soft",
    pair: tuple[int, str] | None = None,
    table: dict[str, bool] | None = None,
    part: Part | None = None,
    teacher: NestedLoss | None = None,
    free=None,
) -> float:
    return 0.0


@given(kwargs=loss_kwargs(plain))
def test_kwargs_of_a_plain_callable(kwargs: dict[str, Any]) -> None:
    assert "gamma" in kwargs
    resolve_loss(plain, **kwargs)


@given(broken=invalid_loss_kwargs(plain))
def test_mistakes_in_kwargs_of_a_plain_callable(broken: InvalidKwargs) -> None:
    with pytest.raises(LossConfigError) as refusal:
        resolve_loss(plain, **broken.kwargs)
    assert broken.path in [problem.loc for problem in refusal.value.problems]


def test_what_is_bound_already_is_not_required() -> None:
    assert least(loss_kwargs(resolve_loss(plain, gamma=1.0)), lambda _: True) == {}
    assert least(loss_kwargs({"type": "dr_grpo", "kwargs": {"max_length": 3}}), lambda _: True) == {}
    assert least(loss_kwargs("dr_grpo"), lambda _: True) == {"max_length": 1}


def test_there_is_no_mistake_to_make_where_anything_goes() -> None:
    def free(outputs: Any, batch: Any, **kwargs: Any) -> float:
        return 0.0

    with pytest.raises(Unsatisfiable):
        least(invalid_loss_kwargs(free), lambda _: True)


def test_a_loss_that_holds_what_fits() -> None:
    class Pair(Loss, name="test_pair"):
        """Holds two."""

        first: NestedLoss = Field(description="One.", examples=["mse"])
        second: NestedLoss | None = Field(default=None, description="Another.")

        def __call__(self, outputs: Any, batch: Any) -> Any:
            return self.first(outputs, batch)

    try:
        assert least(loss_kwargs("test_pair"), lambda _: True) == {"first": BUILTIN[0]}
        found = least(loss_kwargs("test_pair"), lambda kwargs: isinstance(kwargs.get("second"), dict))
        assert found["second"].keys() == {"type", "kwargs"} or found["second"].keys() == {"type"}
        deep = least(loss_kwargs("matryoshka"), lambda kwargs: len(kwargs["dims"]) > 1)
        assert deep == {"loss": "batch_hard_triplet", "dims": [2, 1]}
    finally:
        unregister("test_pair")


# Configs

NO_IMPORTS = Policy(imports=False)


@given(config=training_configs())
def test_a_good_config_is_accepted(config: ConfigText) -> None:
    found, problems = check_source(config.text.encode(), "train.yaml", NO_IMPORTS)
    assert found is not None, problems
    assert {"loss": config.data["loss"], **found.sections} == config.data


@given(config=training_configs(valid=False))
def test_a_config_with_a_mistake_is_refused_at_its_place(config: ConfigText) -> None:
    found, problems = check_source(config.text.encode(), "train.yaml", NO_IMPORTS)
    event(str(config.kind))
    assert found is None
    assert config.path is not None
    assert ".".join(str(part) for part in config.path) in [problem.path for problem in problems]


@given(training_configs(["weighted_sum", "mse", "token_ce"]))
def test_configs_have_the_losses_that_are_asked_for(config: ConfigText) -> None:
    def types(spec: Any) -> Iterator[str]:
        yield spec if isinstance(spec, str) else spec["type"]
        for term in [] if isinstance(spec, str) else spec.get("kwargs", {}).get("losses", []):
            yield from types(term)

    found = set(types(config.data["loss"]))
    event(f"{len(found)} losses")
    assert found <= {"weighted_sum", "mse", "token_ce"}


def test_a_loss_that_is_asked_for_has_to_be_known() -> None:
    with pytest.raises(UnknownLossError, match="did you mean mse"):
        training_configs(["mze"])


def test_configs_shrink_to_what_can_be_read() -> None:
    assert least(training_configs(), lambda _: True).text == f"loss: {BUILTIN[0]}\n"
    found = least(training_configs(valid=False), lambda config: config.kind == "out_of_range")
    assert found.text.count("\n") <= 5, found.text
    assert "metrics" not in found.text
    misplaced = least(training_configs(valid=False), lambda config: config.kind == "misplaced")
    assert misplaced.text == "loss:\n  type: aot\n  metrics: 0\n"


# Without hypothesis


def test_whoever_only_runs_checks_needs_no_hypothesis() -> None:
    code = """
        import sys
        import tensafe.training.losses.testing as kit
        assert "hypothesis" not in sys.modules
        sys.modules["hypothesis"] = None
        try:
            kit.loss_inputs
        except ModuleNotFoundError as error:
            print(error.name, error)
    """
    assert run_child(dedent(code)) == "hypothesis strategies of losses need hypothesis: pip install 'tensafe[testing]'"


def test_the_strategies_are_offered_where_the_checks_are() -> None:
    assert kit.loss_inputs is loss_inputs
    assert {"invalid_loss_kwargs", "loss_kwargs", "training_configs"} <= set(kit.__all__)
    with pytest.raises(AttributeError, match="loss_input'"):
        kit.loss_input  # noqa: B018  # that is what is tested

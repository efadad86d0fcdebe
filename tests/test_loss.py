"""Writing a typed loss: its class line, its fields, and the tensors that its `compute` names."""

import importlib.util
import inspect
import pickle
from pathlib import Path
from types import new_class
from typing import Annotated, Any, ClassVar, Literal, cast

import pytest
import torch
from jaxtyping import Bool, Float, Int, Num, Shaped
from pydantic import BaseModel, Field, field_validator, model_validator
from torch import Tensor

from tensafe.training.losses import (
    LOSS_REGISTRY,
    Alias,
    ElementLoss,
    Elements,
    Loss,
    LossConfigError,
    LossInputError,
    LossReturn,
    NestedLoss,
    ResolvedLoss,
    TokenLoss,
    Values,
    missing_tensor,
    resolve_loss,
)
from tensafe.training.losses.builtin.token_ce import TokenCE

pytestmark = pytest.mark.usefixtures("isolated_registry")

INPUTS = {"x": torch.tensor([1.0, 4.0]), "y": torch.tensor([1.0, 2.0])}


class Scaled(ElementLoss):
    """A loss with one kwarg of each kind."""

    scale: float = Field(default=1.0, gt=0, le=10, description="Factor.")
    power: Literal[1, 2] = 1
    steps: list[int] = Field(default=[], max_length=3)
    label: str | None = None

    def compute(self, x: Float[Tensor, " n"], y: Float[Tensor, " n"]) -> Elements:
        return Elements(self.scale * (x - y) ** self.power)


# The class line


def test_a_name_in_the_class_line_registers_the_class() -> None:
    class Named(Scaled, name="named"):
        """A subclass with a name."""

    assert LOSS_REGISTRY["named"] is Named
    loss_fn = resolve_loss("named", scale=2.0)
    assert loss_fn.name == "named"
    assert loss_fn.__doc__ == "A subclass with a name."
    assert loss_fn(INPUTS, {})["loss"] == 2.0
    with pytest.raises(LossConfigError, match=r"^named: scale: expected a number in \(0, 10\], got 0$"):
        Named(scale=0)


def test_a_class_without_a_name_is_a_loss_all_the_same() -> None:
    assert "Scaled" not in LOSS_REGISTRY
    loss_fn = resolve_loss(Scaled, scale=3)
    assert loss_fn.name == "Scaled"
    assert loss_fn(INPUTS, {})["loss"] == 3.0
    assert resolve_loss(Scaled(scale=3)) == loss_fn


def test_a_subclass_has_a_name_of_its_own_or_none() -> None:
    class Parent(Scaled, name="parent"):
        """Named."""

    class Child(Parent):
        """Not named."""

        scale: float = 5.0

    assert LOSS_REGISTRY["parent"] is Parent
    assert resolve_loss(Child).name == "test_a_subclass_has_a_name_of_its_own_or_none.<locals>.Child"
    assert resolve_loss(Child)(INPUTS, {})["loss"] == 5.0
    assert resolve_loss("parent")(INPUTS, {})["loss"] == 1.0


@pytest.mark.parametrize("base", [Loss, ElementLoss, TokenLoss])
def test_a_name_needs_something_to_compute(base: type[Loss]) -> None:
    with pytest.raises(
        LossConfigError, match=r"empty: class .*Empty has neither compute\(\) nor __call__\(\)"
    ) as caught:
        new_class("Empty", (base,), {"name": "empty"})
    assert caught.value.code == "incomplete-loss"
    assert "Define compute" in (caught.value.hint or "")
    assert "empty" not in LOSS_REGISTRY


@pytest.mark.parametrize("name", ["not-a-name", "", "two words", 3])
def test_a_name_in_the_class_line_is_checked(name: Any) -> None:
    with pytest.raises((LossConfigError, TypeError), match=r"cannot name a loss|registered under a string"):
        new_class("Misnamed", (Scaled,), {"name": name})


def test_compute_may_come_from_a_mixin() -> None:
    class Mixin:
        """Not a Loss itself."""

        def compute(self, x: Float[Tensor, " n"]) -> Elements:
            return Elements(x)

    class Mixed(Mixin, ElementLoss, name="mixed"):
        """It inherits compute."""

    assert resolve_loss("mixed")(INPUTS, {})["loss"] == 2.5


# Fields


def test_a_loss_is_a_value() -> None:
    loss = Scaled(scale=2, power=2)
    assert loss == Scaled(power=2, scale=2.0)
    assert loss != Scaled(scale=2)
    assert (loss.scale, type(loss.scale)) == (2.0, float)
    assert pickle.loads(pickle.dumps(loss)) == loss
    assert repr(loss) == "Scaled(metrics=True, reduction='mean', scale=2.0, power=2, steps=[], label=None)"
    assert not callable(loss)
    with pytest.raises(ValueError, match="frozen"):
        loss.scale = 3.0  # type: ignore[misc]
    assert Scaled.model_json_schema()["properties"]["scale"] == {
        "default": 1.0,
        "description": "Factor.",
        "exclusiveMinimum": 0,
        "maximum": 10,
        "title": "Scale",
        "type": "number",
    }


@pytest.mark.parametrize(
    ("kwargs", "expected"),
    [
        ({"scale": 0}, {("scale",): "expected a number in (0, 10], got 0"}),
        ({"scale": 10.5}, {("scale",): "expected a number in (0, 10], got 10.5"}),
        ({"scale": float("nan")}, {("scale",): "expected a finite number in (0, 10], got nan"}),
        ({"scale": True}, {("scale",): "expected a number in (0, 10], got True"}),
        ({"scale": "1"}, {("scale",): "expected a number in (0, 10], got '1'"}),
        ({"scale": None}, {("scale",): "got None"}),
        ({"scale": torch.tensor(1.0)}, {("scale",): "expected plain data, got Tensor"}),
        ({"power": 3}, {("power",): "expected one of 1, 2, got 3"}),
        ({"power": "1"}, {("power",): "expected one of 1, 2, got '1'"}),
        ({"steps": [1, 2.5, "3"]}, {("steps", 1): "expected an integer, got 2.5", ("steps", 2): "got '3'"}),
        ({"steps": [1, 2, 3, 4]}, {("steps",): "at most 3 items"}),
        ({"steps": (1, 2)}, {("steps",): "expected a list, got tuple"}),
        ({"steps": [2**63, 1, -(2**70)]}, {("steps", 0): "fits 64 bits", ("steps", 2): "fits 64 bits"}),
        ({"steps": [torch.tensor(1)]}, {("steps", 0): "expected an integer, got Tensor"}),
        ({"label": 3}, {("label",): "expected a string or null, got 3"}),
        ({"sacle": 1.0}, {("sacle",): "did you mean scale?"}),
        (
            {"metrics": "yes", "reduction": "avg"},
            {("metrics",): "true or false", ("reduction",): "one of none, sum, mean"},
        ),
        ({"scale": -1, "powr": 2, "steps": 3}, {("scale",): "(0, 10]", ("powr",): "power", ("steps",): "a list"}),
    ],
)
def test_every_wrong_kwarg_is_reported(kwargs: dict[str, Any], expected: dict[tuple[Any, ...], str]) -> None:
    with pytest.raises(LossConfigError, match=r"^Scaled: ") as caught:
        Scaled(**kwargs)
    found = {problem.loc: problem.message for problem in caught.value.problems}
    assert found.keys() == expected.keys()
    assert all(part in found[loc] for loc, part in expected.items()), found
    assert "tensor(" not in str(caught.value)
    assert isinstance(caught.value, ValueError)


def test_positional_arguments_are_refused() -> None:
    with pytest.raises(TypeError, match="positional"):
        Scaled(2.0)  # type: ignore[call-arg, arg-type]


def test_validators_of_ones_own_speak_for_themselves() -> None:
    class Between(ElementLoss):
        """Two kwargs that belong together, and one that is even."""

        low: float = 0.0
        high: float = 1.0
        even: int = 0

        @field_validator("even")
        @classmethod
        def _is_even(cls, value: int) -> int:
            if value % 2:
                raise ValueError("Must be even")
            return value

        @model_validator(mode="after")
        def _in_order(self) -> "Between":
            if self.low > self.high:
                raise ValueError("low must not exceed high")
            return self

        def compute(self, x: Float[Tensor, " n"]) -> Elements:
            return Elements(x)

    with pytest.raises(LossConfigError, match=r"even: must be even$"):
        resolve_loss(Between, even=3)
    with pytest.raises(LossConfigError, match="low must not exceed high"):
        resolve_loss(Between, low=2.0)


def test_a_field_may_be_a_model() -> None:
    class Schedule(BaseModel):
        """A nested kwarg."""

        start: float = Field(gt=0)
        stops: list[int] = []

    class Scheduled(ElementLoss):
        """It has one."""

        schedule: Schedule

        def compute(self, x: Float[Tensor, " n"]) -> Elements:
            return Elements(x * self.schedule.start)

    assert resolve_loss(Scheduled, schedule={"start": 2.0})(INPUTS, {})["loss"] == 5.0
    with pytest.raises(LossConfigError) as caught:
        resolve_loss(Scheduled, schedule={"start": 0, "stops": [1, "x"]})
    assert [problem.loc for problem in caught.value.problems] == [("schedule", "start"), ("schedule", "stops", 1)]
    with pytest.raises(LossConfigError, match=r"schedule: required argument of .*Scheduled is missing"):
        resolve_loss(Scheduled)


def test_numbers_in_a_list_are_plain_too() -> None:
    class Listed(ElementLoss):
        """Numbers inside containers."""

        weights: tuple[float, ...] | None = None
        by_name: dict[str, float] = Field(default={})

        def compute(self, x: Float[Tensor, " n"]) -> Elements:
            return Elements(x)

    assert Listed(weights=(1, 2.0), by_name={"a": 1}).weights == (1.0, 2.0)
    places: dict[tuple[Any, ...], Any] = {
        ("weights", 1): {"weights": (1.0, torch.tensor(2.0))},
        ("by_name", "a"): {"by_name": {"a": torch.tensor(2.0)}},
    }
    for place, kwargs in places.items():
        with pytest.raises(LossConfigError, match="plain data, got Tensor") as caught:
            Listed(**kwargs)
        assert caught.value.loc == place


def test_class_variables_and_private_attributes_are_no_kwargs() -> None:
    class Helped(ElementLoss):
        """It has helpers."""

        limit: ClassVar[int] = 3
        _seen: int = 0

        def compute(self, x: Float[Tensor, " n"]) -> Elements:
            return Elements(self.half(x) * self.limit)

        def half(self, x: Tensor) -> Tensor:
            return x / 2

    assert set(Helped.model_fields) == {"metrics", "reduction"}
    assert resolve_loss(Helped)(INPUTS, {})["loss"] == 3.75
    with pytest.raises(LossConfigError, match="limit: unknown argument"):
        resolve_loss(Helped, limit=4)


@pytest.mark.parametrize("name", ["copy", "json", "schema", "dict", "compute", "explain", "model_dump", "is_concrete"])
def test_a_field_may_not_hide_what_the_base_has(name: str) -> None:
    with pytest.raises(LossConfigError, match=f"field '{name}' of Hiding would hide '{name}' of the base") as caught:
        new_class("Hiding", (Scaled,), exec_body=lambda body: body.update(__annotations__={name: float}))
    assert caught.value.code == "shadowed-name"
    assert caught.value.loc == (name,)


def test_an_inherited_field_may_have_another_default() -> None:
    class Summed(Scaled):
        """Other defaults."""

        metrics: bool = False
        reduction: Literal["none", "sum", "mean"] = "sum"

    assert resolve_loss(Summed).kwargs["metrics"] is False
    assert resolve_loss(Summed)({**INPUTS, "y": torch.zeros(2)}, {})["loss"] == 5.0


# The contract: what annotations mean

FUTURE = "from __future__ import annotations\n"
TYPE_ONLY = """
from typing import TYPE_CHECKING, Annotated
from tensafe.training.losses import Alias, ElementLoss, Elements, Values
if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int, Num, Shaped
    from torch import Tensor
"""
REAL = """
from typing import Annotated, Optional
import jaxtyping, torch
from jaxtyping import Bool, Float, Int, Num, Shaped
from torch import Tensor
from tensafe.training.losses import Alias, ElementLoss, Elements, Values
"""
CLASS = """
class Written(ElementLoss):
    def compute(self, {parameters}):
        return Elements({first} * 1.0)
"""
HEADS = {
    "real": REAL,
    "real, postponed": FUTURE + REAL,
    "type-checking only": FUTURE + TYPE_ONLY,
    "nothing imported": FUTURE + "from tensafe.training.losses import Alias, ElementLoss, Elements, Values\n",
    "real Float, other Tensor": FUTURE + TYPE_ONLY + "from jaxtyping import Bool, Float, Int, Num, Shaped\n",
    "real Tensor, other Float": FUTURE + TYPE_ONLY + "from torch import Tensor\n",
    "lazy torch": FUTURE + TYPE_ONLY + "from tensafe._lazy import torch\n",
}


def written(parameters: str, head: str = HEADS["type-checking only"]) -> type[ElementLoss]:
    """A class in a module of its own, with these parameters of `compute`."""
    first = parameters.partition(":")[0].partition(" =")[0].strip("* ").partition(",")[0] or "1"
    names: dict[str, Any] = {"__name__": "written_by_a_user"}
    exec(compile(head + CLASS.format(parameters=parameters, first=first), "<user>", "exec", dont_inherit=True), names)
    return cast("type[ElementLoss]", names["Written"])


ONE_OF = Values(among=(1, -1))


def contract_of(loss: type[Loss]) -> list[Any]:
    resolved: Any = resolve_loss(loss)
    return [tuple(tensor)[: None if tensor.values else -1] for tensor in resolved.contract.tensors]


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize(
    ("annotation", "expected"),
    [
        ('Float[Tensor, " batch"]', ("float", ("batch",), False, ())),
        ('Float[Tensor, "batch seq vocab"]', ("float", ("batch", "seq", "vocab"), False, ())),
        ('Float[Tensor, "*rows vocab"]', ("float", ("*rows", "vocab"), False, ())),
        ('Float[Tensor, "... 3"]', ("float", ("...", 3), False, ())),
        ('Float[Tensor, "_ 4 _"]', ("float", ("_", 4, "_"), False, ())),
        ('Float[Tensor, "n n"]', ("float", ("n", "n"), False, ())),
        ('Float[Tensor, ""]', ("float", (), False, ())),
        ('Int[Tensor, " n"]', ("int", ("n",), False, ())),
        ('Bool[Tensor, " n"]', ("bool", ("n",), False, ())),
        ('Num[Tensor, " n"]', ("num", ("n",), False, ())),
        ('Shaped[Tensor, " n"]', ("any", ("n",), False, ())),
        ('Float[Tensor, " n"] | None = None', ("float", ("n",), True, ())),
        ('Annotated[Float[Tensor, " n"], Alias("a"), Alias("b")]', ("float", ("n",), False, ("a", "b"))),
        ('Annotated[Float[Tensor, " n"] | None, Alias("a")] = None', ("float", ("n",), True, ("a",))),
        ('Annotated[Float[Tensor, " n"], Alias("a")] | None = None', ("float", ("n",), True, ("a",))),
        ('Annotated[Float[Tensor, " n"], "a note"]', ("float", ("n",), False, ())),
        ('Annotated[Float[Tensor, " n"], Values(0, 1)]', ("float", ("n",), False, (), Values(0, 1))),
        ('Annotated[Int[Tensor, " n"], Values(among=(1, -1)), Alias("a")]', ("int", ("n",), False, ("a",), ONE_OF)),
    ],
)
def test_every_way_to_write_an_annotation_reads_the_same(head: str, annotation: str, expected: Any) -> None:
    assert contract_of(written(f"x: {annotation}", head)) == [("x", *expected)]


@pytest.mark.parametrize(
    ("head", "annotation"),
    [
        (FUTURE + REAL, 'torch.Tensor and jaxtyping.Float[torch.Tensor, " n"]'),
        (FUTURE + TYPE_ONLY, 'jaxtyping.Float[torch.Tensor, " n"]'),
        (FUTURE + TYPE_ONLY + "from tensafe._lazy import torch\n", 'Float[torch.Tensor, " n"]'),
        (REAL, 'Optional[Float[Tensor, " n"]] = None'),
        (FUTURE + TYPE_ONLY, 'Optional[Float[Tensor, " n"]] = None'),
        (FUTURE + TYPE_ONLY, "\"Float[Tensor, ' n']\""),
        (FUTURE + TYPE_ONLY, 'None | Float[Tensor, " n"] = None'),
        (REAL, "'Float[Tensor, \" n\"] | None' = None"),
        (REAL + "Logits = Float[Tensor, ' n']\n", "Logits"),
        (FUTURE + REAL + "Logits = Float[Tensor, ' n']\n", "Logits"),
        (FUTURE + REAL + "Logits = Float[Tensor, ' n']\n", "Logits | None = None"),
        (FUTURE + REAL.replace("import jaxtyping", "import jaxtyping as jt"), 'jt.Float[Tensor, " n"]'),
        (REAL, "Float[torch.nn.Parameter, ' n']"),
    ],
)
def test_other_spellings_of_one_tensor(head: str, annotation: str) -> None:
    optional = annotation.endswith("= None")
    assert contract_of(written(f"x: {annotation}", head)) == [("x", "float", ("n",), optional, ())]


def test_the_classes_of_a_test_may_use_the_names_around_them() -> None:
    Rows = Float[Tensor, "rows _"]  # noqa: N806

    class Inner(ElementLoss):
        """Its annotations are objects."""

        def compute(self, x: Rows, mask: Bool[Tensor, " rows"] | None = None) -> Elements:
            return Elements(x)

    assert contract_of(Inner) == [("x", "float", ("rows", "_"), False, ()), ("mask", "bool", ("rows",), True, ())]


LOCAL = (
    FUTURE
    + """
from tensafe.training.losses import Alias, ElementLoss, Elements

def make(imports):
    if imports:
        from jaxtyping import Float
        from torch import Tensor
        Rows = Float[Tensor, "rows _"]
    else:
        Rows = int
    key = "other"

    class Local(ElementLoss):
        def compute(self, x: Rows, y: Annotated[Float[Tensor, " rows"], Alias(key)]) -> Elements:
            return Elements(x)

    return Local
"""
)


def test_annotations_may_name_locals_that_are_gone_when_they_are_read() -> None:
    names: dict[str, Any] = {"__name__": "local_user"}
    exec(compile(LOCAL, "<local>", "exec", dont_inherit=True), names)
    assert contract_of(names["make"](True)) == [
        ("x", "float", ("rows", "_"), False, ()),
        ("y", "float", ("rows",), False, ("other",)),
    ]
    with pytest.raises(LossConfigError, match="'x'"):
        resolve_loss(names["make"](False))


def test_a_file_that_is_loaded_by_its_path_may_define_a_loss(tmp_path: Path) -> None:
    path = tmp_path / "by_path.py"
    path.write_text(HEADS["type-checking only"] + CLASS.format(parameters="x: Float[Tensor, ' n']", first="x"))
    spec = importlib.util.spec_from_file_location("loaded_by_path", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)  # without an entry in sys.modules, as the documentation of importlib has it
    assert resolve_loss(module.Written)(INPUTS, {})["loss"] == 2.5


def test_a_class_that_is_defined_again_has_its_new_contract() -> None:
    cell = HEADS["type-checking only"] + CLASS.replace("(ElementLoss)", "(ElementLoss, name='cell')")
    for parameter in ("x", "y"):
        source = cell.format(parameters=f"{parameter}: Float[Tensor, ' n']", first=parameter)
        exec(compile(source, "<cell>", "exec", dont_inherit=True), {"__name__": "__main__"})
        assert resolve_loss("cell")({parameter: [1.0, 3.0]}, {})["loss"] == 2.0


# Contracts that are wrong


@pytest.mark.parametrize(
    ("parameters", "name", "parts"),
    [
        ("x", "x", ["has no annotation", "Float[Tensor"]),
        ("x: Tensor", "x", ["is not annotated as one tensor"]),
        ("x: int", "x", ["is not annotated as one tensor"]),
        ("x: 'whatever'", "x", ["unknown name 'whatever'"]),
        ("x: Float", "x", ["is not annotated as one tensor"]),
        ("x: Float[Tensor]", "x", ["has an annotation that fails"]),
        ("x: Float[Tensor, 3]", "x", ["has an annotation that fails"]),
        ("x: Float[int, ' n']", "x", ["has an annotation that fails"]),
        ("x: Flaot[Tensor, ' n']", "x", ["unknown name 'Flaot'", "Did you mean Float?"]),
        ("x: Float[Tenser, ' n']", "x", ["unknown name 'Tenser'", "Did you mean Tensor?"]),
        ("x: np.ndarray", "x", ["unknown name 'np'", "outside TYPE_CHECKING"]),
        ("x: jt.Float[Tensor, ' n']", "x", ["unknown name 'jt'"]),
        ("x: Float[Tensor, 'batch+1']", "x", ["axis 'batch+1'"]),
        ("x: Float[Tensor, '#batch']", "x", ["axis '#batch'"]),
        ("x: Float[Tensor, '?batch']", "x", ["axis '?batch'"]),
        ("x: Float[Tensor, 'n=3']", "x", ["axis 'n=3'"]),
        ("x: Float[Tensor, '_batch']", "x", ["axis '_batch'"]),
        ("x: Float[Tensor, '*_']", "x", ["axis '*_'"]),
        ("x: Float[Tensor, '-1']", "x", ["axis '-1'"]),
        ("x: Float[Tensor, 'a,b']", "x", ["axis 'a,b'"]),
        ("x: Float[Tensor, '*']", "x", ["axis '*'"]),
        ("x: Float[Tensor, '**a']", "x", ["axis '**a'"]),
        ("x: Float[Tensor, '*a *b']", "x", ["more than one variadic axis"]),
        ("x: Float[Tensor, '... *a']", "x", ["more than one variadic axis"]),
        ("x: Float[Tensor, ' n'] = 0.0", "x", ["has a default", "optional"]),
        ("x: Float[Tensor, ' n'] = []", "x", ["has a default", "optional"]),
        ("x: Float[Tensor, ' n'] = None", "x", ["is half optional"]),
        ("x: Float[Tensor, ' n'] | None", "x", ["is half optional"]),
        ("x: Float[Tensor, ' n'], *rest: Float[Tensor, ' n']", "rest", ["collects what it is not told about"]),
        ("x: Float[Tensor, ' n'], **rest: Float[Tensor, ' n']", "rest", ["collects what it is not told about"]),
        ("x: Float[Tensor, ' n'], *, y: Float[Tensor, ' n']", "y", ["is keyword-only", "Drop the star"]),
        ("x: Float[Tensor, ' n'], y: Tensr", "y", ["unknown name 'Tensr'"]),
        ("x: Float[Tensor, ' n'] | Int[Tensor, ' n']", "x", ["is not annotated as one tensor"]),
        ("x: Float[Tensor, ' n'] | float", "x", ["is not annotated as one tensor"]),
        ("x: list[Float[Tensor, ' n']]", "x", ["is not annotated as one tensor"]),
    ],
)
def test_a_contract_that_cannot_be_read_names_its_parameter(parameters: str, name: str, parts: list[str]) -> None:
    loss = written(parameters)
    with pytest.raises(LossConfigError) as caught:
        resolve_loss(loss)
    text = str(caught.value)
    assert f"Written: parameter '{name}' of compute() " in text
    assert all(part in text for part in parts), text
    assert caught.value.code == "invalid-contract"
    assert caught.value.loc == (name,)
    assert "\n" not in text


@pytest.mark.parametrize("kind", ["Float32", "UInt8", "Complex", "Key"])
def test_kinds_that_a_contract_does_not_know(kind: str) -> None:
    real = REAL.replace("Bool, ", f"Bool, {kind}, ")
    for head, part in ((real, f"unsupported kind {kind}"), (FUTURE + real, f"unsupported kind {kind}")):
        with pytest.raises(LossConfigError, match=f"'x' of compute.* {part}"):
            resolve_loss(written(f"x: {kind}[Tensor, ' n']", head))


def test_a_contract_that_cannot_be_read_is_no_surprise_at_the_first_step() -> None:
    loss = written("x: Flaot[Tensor, ' n']")()
    for spec in (loss, type(loss), {"type": "weighted_sum", "kwargs": {"losses": [loss]}}):
        with pytest.raises(LossConfigError, match="Flaot"):
            resolve_loss(spec)


def test_a_compute_without_tensors_is_refused() -> None:
    with pytest.raises(LossConfigError, match=r"Written: compute\(\) takes no tensors") as caught:
        resolve_loss(written(""))
    assert caught.value.code == "invalid-contract"


def test_a_loss_may_be_defined_without_reading_its_contract() -> None:
    assert written("x: Flaot[Tensor, ' n']").model_json_schema()["properties"].keys() == {"metrics", "reduction"}


# Optional tensors and aliases, at work


class Masked(ElementLoss):
    """Either labels or targets, and perhaps a mask."""

    def compute(
        self,
        x: Annotated[Float[Tensor, " n"], Alias("scores"), Alias("logits")],
        labels: Int[Tensor, " n"] | None = None,
        targets: Float[Tensor, " n"] | None = None,
        mask: Bool[Tensor, " n"] | None = None,
    ) -> Elements:
        if labels is None and targets is None:
            raise missing_tensor("labels", "targets")
        wanted = targets if labels is None else labels
        assert wanted is not None
        return Elements(x - wanted, mask)


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        ({"labels": torch.tensor([0, 1])}, 2.0),
        ({"targets": torch.tensor([1.0, 2.0])}, 1.0),
        ({"targets": None, "labels": torch.tensor([0, 1])}, 2.0),
        ({"targets": torch.tensor([1.0, 2.0]), "mask": torch.tensor([True, False])}, 0.0),
        ({"targets": [1.0, 2.0], "mask": None}, 1.0),
    ],
)
def test_optional_tensors_may_be_left_out(batch: dict[str, Any], expected: float) -> None:
    assert resolve_loss(Masked)({"x": torch.tensor([1.0, 4.0])}, batch)["loss"] == expected


def test_a_loss_may_miss_one_of_its_optional_tensors() -> None:
    with pytest.raises(LossInputError, match=r"^Masked: 'labels' or 'targets' must be given") as caught:
        resolve_loss(Masked)({"x": torch.tensor([1.0, 4.0])}, {"lables": 1})
    assert "outputs has x; batch has lables" in str(caught.value)
    assert caught.value.code == "missing-tensor"


class AllOptional(ElementLoss):
    """No tensor is required by its contract, one is by its compute."""

    def compute(self, x: Float[Tensor, " n"] | None = None, y: Float[Tensor, " n"] | None = None) -> Elements:
        given = y if x is None else x
        if given is None:
            raise missing_tensor("x", "y")
        return Elements(given)


def test_all_tensors_may_be_optional() -> None:
    loss_fn = resolve_loss(AllOptional)
    assert loss_fn(INPUTS, {})["loss"] == 2.5
    assert loss_fn({}, {"y": [1.0, 3.0]})["loss"] == 2.0
    with pytest.raises(LossInputError, match=r"AllOptional: 'x' or 'y' must be given.*outputs has nothing"):
        loss_fn({}, {})


@pytest.mark.parametrize("key", ["x", "scores", "logits"])
def test_an_alias_is_another_key(key: str) -> None:
    batch = {"targets": torch.tensor([1.0, 2.0])}
    assert resolve_loss(Masked)({key: torch.tensor([1.0, 4.0])}, batch)["loss"] == 1.0


def test_the_name_comes_before_its_aliases_in_their_order() -> None:
    batch = {"targets": torch.zeros(2)}
    outputs = {"logits": torch.full((2,), 3.0), "scores": torch.full((2,), 2.0), "x": torch.full((2,), 1.0)}
    for expected in ("x", "scores", "logits"):
        assert resolve_loss(Masked)(outputs, batch)["loss"] == outputs[expected][0]
        del outputs[expected]
    with pytest.raises(LossInputError, match=r"'x' or 'scores' or 'logits'"):
        resolve_loss(Masked)(outputs, batch)


class Fixed(ElementLoss):
    """Axes of every kind."""

    def compute(
        self, x: Float[Tensor, "batch _ 3"], y: Num[Tensor, "... batch"], z: Shaped[Tensor, "*lead n n"]
    ) -> Elements:
        return Elements(x)


@pytest.mark.parametrize(
    ("shapes", "part"),
    [
        ({}, None),
        ({"x": (2, 0, 3)}, None),
        ({"x": (0, 1, 3), "y": (5, 0)}, None),
        ({"y": (4, 5, 2)}, None),
        ({"y": (2,)}, None),
        ({"z": (1, 1, 1, 6, 6)}, None),
        ({"x": (2, 3)}, "'x' must be float[batch _ 3]; got float32[2, 3]"),
        ({"x": (2, 3, 4)}, "'x' must be float[batch _ 3]; got float32[2, 3, 4]"),
        ({"y": ()}, "'y' must be num[... batch] with batch=2 (set by 'x'); got float32[]"),
        ({"y": (2, 3)}, "'y' must be num[... batch] with batch=2 (set by 'x'); got float32[2, 3]"),
        ({"z": (4,)}, "'z' must be any[*lead n n]; got float32[4]"),
        ({"z": (4, 5)}, "'z' must be any[*lead n n]; got float32[4, 5]"),
        ({"z": (0, 0)}, "n=0; expected at least 1"),
    ],
)
def test_axes_of_every_kind_are_checked(shapes: dict[str, tuple[int, ...]], part: str | None) -> None:
    tensors = {name: torch.zeros(shape) for name, shape in {"x": (2, 1, 3), "y": (2,), "z": (4, 4), **shapes}.items()}
    loss_fn = resolve_loss(Fixed)
    if part is None:
        assert loss_fn(tensors, {})["loss"] == 0.0
    else:
        with pytest.raises(LossInputError) as caught:
            loss_fn(tensors, {})
        assert part in str(caught.value)


# Losses made of losses


class Halved(Loss, name="halved"):
    """Half of another loss, `times` over."""

    inner: NestedLoss
    times: int = Field(default=1, ge=1)

    def __call__(self, outputs: Any, batch: Any) -> LossReturn:
        result = self.inner(outputs, batch)
        return {"loss": result["loss"] / 2**self.times, "metrics": {"inner": result["loss"]}}


@pytest.mark.parametrize(
    "inner", [Scaled, Scaled(), resolve_loss(Scaled), lambda outputs, batch: 1.0, {"type": "mse", "inputs": {}}, "mse"]
)
def test_a_combinator_holds_whatever_resolves(inner: Any) -> None:
    tensors = {**INPUTS, "predictions": INPUTS["x"], "targets": INPUTS["x"] - 1}
    result = resolve_loss(Halved, inner=inner)(tensors, {})
    assert result["loss"] == 0.5
    assert result["metrics"] == {"inner": 1.0}
    assert resolve_loss(Halved, inner=inner)(tensors, {}, times=2)["loss"] == 0.25


@pytest.mark.parametrize(
    ("kwargs", "loc", "part"),
    [
        ({}, ("inner",), "required argument of halved is missing"),
        ({"inner": "mze"}, ("inner",), "did you mean mse?"),
        ({"inner": 3}, ("inner",), "expected the name of a loss or a mapping"),
        ({"inner": None}, ("inner",), "got null"),
        (
            {"inner": {"type": "mse", "kwargs": {"reductin": 1}}},
            ("inner", "kwargs", "reductin"),
            "did you mean reduction?",
        ),
        ({"inner": {"type": "os:system"}}, ("inner", "type"), "is not a loss"),
        ({"inner": "mse", "times": 0}, ("times",), "expected an integer >= 1, got 0"),
        (
            {"inner": {"type": "halved", "kwargs": {"inner": {"type": "mze"}}}},
            ("inner", "kwargs", "inner", "type"),
            "did you mean mse?",
        ),
    ],
)
def test_what_is_wrong_inside_is_reported_at_its_path(kwargs: dict[str, Any], loc: Any, part: str) -> None:
    with pytest.raises(LossConfigError) as caught:
        resolve_loss(Halved, **kwargs)
    assert [problem.loc for problem in caught.value.problems] == [loc]
    assert part in caught.value.problems[0].message


def test_overrides_reach_only_the_fields_of_the_combinator() -> None:
    loss_fn = resolve_loss("halved", inner="token_ce")
    with pytest.raises(LossConfigError, match="label_smoothing"):
        loss_fn(INPUTS, {}, label_smoothing=0.1)


def test_a_combinator_is_written_as_plain_data() -> None:
    loss_fn = resolve_loss("halved", inner={"type": "mse", "kwargs": {"reduction": "sum"}})
    assert loss_fn.to_config() == {
        "type": "halved",
        "kwargs": {"inner": {"type": "mse", "kwargs": {"reduction": "sum"}}},
    }
    assert resolve_loss(loss_fn.to_config()) == loss_fn


def test_a_combinator_must_take_outputs_and_batch() -> None:
    class Misshapen(Loss):
        """Its call takes nothing."""

        def __call__(self) -> LossReturn:
            return {"loss": torch.zeros(())}

    with pytest.raises(LossConfigError, match=r"a loss takes \(outputs, batch"):
        resolve_loss(Misshapen())


# What nothing built in may do that a user's class may not


def test_built_in_losses_have_no_privilege() -> None:
    source = inspect.getsource(inspect.getmodule(TokenCE) or TokenCE)
    copy = source.replace('name="token_ce"', 'name="my_token_ce"')
    assert copy != source
    exec(compile(copy, "<copy>", "exec", dont_inherit=True), {"__name__": "a_users_module"})
    inputs = {"logits": torch.arange(24.0).reshape(2, 3, 4)}, {"labels": torch.tensor([[0, 1, 2], [3, 3, -100]])}
    mine: ResolvedLoss = resolve_loss("my_token_ce", label_smoothing=0.1)
    assert mine(*inputs)["loss"] == resolve_loss("token_ce", label_smoothing=0.1)(*inputs)["loss"]
    with pytest.raises(LossInputError, match="my_token_ce: 'labels' must lie in"):
        mine(inputs[0], {"labels": torch.tensor([[0, 1, 2], [3, 9, 0]])})

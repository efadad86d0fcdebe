"""`tensafe plot`: what is drawn is the loss and its derivative; what cannot be drawn is said."""

import importlib
import importlib.util
import math
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from typer.testing import CliRunner, Result

from tensafe.cli import app, curves
from tensafe.cli.drawings import Drawing, make_drawing
from tensafe.cli.facts import read_facts
from tensafe.cli.sweeps import Sweep, candidates, parse_pairs, parse_sweep
from tensafe.training.losses import ElementLoss, Elements, LossConfigError, missing_tensor, register_loss
from tensafe.training.losses.figures import Figure
from tensafe.training.losses.registry import builtin_names

pytest.importorskip("matplotlib")
pytestmark = pytest.mark.usefixtures("isolated_registry")
COMMAND = importlib.import_module("tensafe.cli.plot")  # whose name a function of the package has too
PNG = b"\x89PNG\r\n"


@pytest.fixture(autouse=True)
def _few_points(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(curves, "_POINTS", 21)
    monkeypatch.chdir(tmp_path)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def draw(name: str, tensor: str | None = None, sweep: Sweep | None = None, **kwargs: Any) -> Drawing:
    return make_drawing(name, kwargs, sweep, tensor)


class Powers(ElementLoss):
    """Powers of the difference.

    Returns:
        The loss, in nats.
    """

    _figure: ClassVar[Figure | None] = Figure(
        "guesses", -1, 3, "power", (1, 2), fixed={"truths": 1.0, "offsets": 2.0}, given={"scale": 3.0}, label="a guess"
    )

    power: int = Field(default=2, ge=1)
    scale: float = Field(default=1.0, gt=0)
    needs_offsets: bool = False

    def compute(
        self,
        truths: Float[Tensor, " batch"],
        guesses: Float[Tensor, " batch"],
        offsets: Float[Tensor, " batch"] | None = None,
    ) -> Elements:
        if self.needs_offsets and offsets is None:
            raise missing_tensor("offsets")
        return Elements(self.scale * (guesses - truths) ** self.power + (0 if offsets is None else offsets))


def test_the_curves_are_the_loss_and_its_derivative() -> None:
    drawing = draw("mse")
    assert drawing.moved.tensor == "predictions"
    assert drawing.kwarg is None
    target = float(drawing.moved.sample.batch["targets"][drawing.moved.place])
    ((_, curve),) = drawing.curves
    assert len(curve.values) == 21
    for x, value, gradient in zip(drawing.moved.positions, *curve, strict=True):
        assert math.isclose(value, (x - target) ** 2, abs_tol=1e-9)
        assert math.isclose(gradient, 2 * (x - target), abs_tol=1e-9)


def test_of_logits_the_one_of_the_label_moves() -> None:
    drawing = draw("token_ce", sweep=Sweep("label_smoothing", (0.0,)))
    (_, curve), sample = drawing.curves[0], drawing.moved.sample
    row, position, token = drawing.moved.place
    assert sample.batch["labels"][row, position + 1] == token
    others = torch.cat(
        [sample.outputs["logits"][row, position, :token], sample.outputs["logits"][row, position, token + 1 :]]
    )
    for x, value, gradient in zip(drawing.moved.positions, *curve, strict=True):
        rest = float(others.exp().sum())
        assert math.isclose(value, math.log(math.exp(x) + rest) - x, rel_tol=1e-9)
        assert math.isclose(gradient, math.exp(x) / (math.exp(x) + rest) - 1, rel_tol=1e-9)


def test_a_class_says_what_its_figure_shows() -> None:
    register_loss("powers", Powers)
    drawing = draw("powers")
    assert (drawing.moved.positions[0], drawing.moved.positions[-1]) == (-1, 3)
    assert (drawing.label, drawing.kwarg, [value for value, _ in drawing.curves]) == ("a guess", "power", [1, 2])
    for power, curve in drawing.curves:
        expected = [3 * (x - 1) ** power + 2 for x in drawing.moved.positions]
        assert curve.values == pytest.approx(expected)


def test_another_tensor_and_other_kwargs_may_be_asked_for() -> None:
    register_loss("powers", Powers)
    drawing = draw("powers", "offsets", Sweep("scale", (0.5,)), power=3)
    assert drawing.moved.tensor == "offsets"
    assert drawing.label is None
    assert drawing.curves[0][1].gradients == pytest.approx([1.0] * 21)
    assert draw("powers", power=3).kwarg == "scale", "what is given is not swept"


def test_a_line_may_need_a_tensor_that_the_others_do_not() -> None:
    class Plain(Powers):
        """Without a figure of its own."""

        _figure: ClassVar[Figure | None] = None

    register_loss("plain_powers", Plain)
    drawing = draw("plain_powers", sweep=Sweep("needs_offsets", (False, True)))
    assert len(drawing.curves) == 2
    assert draw("plain_powers").kwarg == "scale"


def test_log_probabilities_stay_log_probabilities() -> None:
    for name, tensor in (("grpo", "logps"), ("dpo", "chosen_logps")):
        drawing = draw(name, tensor)
        assert drawing.moved.positions[-1] == 0.0
        assert drawing.moved.positions[0] < -2


def test_the_ratio_to_the_old_policy_moves() -> None:
    drawing = draw("ppo", sweep=Sweep("epsilon_high", (0.1, 10.0)))
    (_, tight), (_, loose) = drawing.curves
    assert tight.gradients[-1] == 0.0
    assert loose.gradients[-1] < 0.0


def test_a_plain_function_is_drawn() -> None:
    def gap(outputs: Any, batch: Any, weight: float = 1.0) -> Any:
        return weight * (outputs["predictions"] - batch["targets"]).abs().mean()

    register_loss("gap", gap)
    drawing = draw("gap")
    assert drawing.moved.tensor == "predictions"
    assert drawing.kwarg == "weight"


def test_a_sweep_is_chosen_whose_lines_differ() -> None:
    assert draw("huber").kwarg == "delta"
    assert [value for value, _ in draw("huber").curves] == [0.5, 1.0, 2.0]


@pytest.mark.parametrize(
    ("kwarg", "values"),
    [("label_smoothing", (0.0, 0.1, 0.5, 0.9)), ("z_loss", (0.0, 0.5, 1.0)), ("logit_scale", (0.5, 1.0, 2.0))],
)  # fmt: skip
def test_values_around_the_default(kwarg: str, values: tuple[Any, ...]) -> None:
    assert Sweep(kwarg, values) in list(candidates(read_facts("token_ce")))


# The command


def test_a_picture_is_written() -> None:
    result = run("plot", "huber", "--sweep", "delta=0.5,2", "-o", "huber.png")
    assert result.exit_code == 0, result.output
    assert "2 values of delta" in result.stdout
    first = Path("huber.png").read_bytes()
    assert first.startswith(PNG)
    assert run("plot", "huber", "--sweep", "delta=0.5,2").exit_code == 0
    assert Path("huber.png").read_bytes() == first, "by default it goes to NAME.png; the same again"
    assert run("plot", "mse", "-o", "mse.svg").exit_code == 0
    assert "<svg" in Path("mse.svg").read_text()


def test_all_are_drawn_but_those_that_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_tensors(outputs: Any, batch: Any) -> Any:
        return torch.zeros((), requires_grad=True)

    register_loss("no_tensors", no_tensors)
    monkeypatch.setattr(COMMAND, "get_registered_losses", lambda: ["mse", "no_tensors", "l1"])
    result = run("plot", "--all", "-o", "figures", "--import", "json")
    assert result.exit_code == 1
    assert "wrote 2 pictures to figures" in result.stdout
    assert "no_tensors: it takes no floating-point tensor" in result.stderr
    assert {file.name for file in Path("figures").iterdir()} == {"mse.png", "l1.png"}


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["tokn_ce"], ["did you mean token_ce?"]),
        (["huber", "--kwarg", "delt=1"], ["unknown argument of huber; did you mean delta?"]),
        (["huber", "--sweep", "delt=1,2"], ["unknown argument of huber; did you mean delta?"]),
        (["huber", "--sweep", "delta=1,-2,x", "--kwarg", "metric=true"],
         ["expected a number > 0, got -2", "got 'x'", "did you mean metrics?"]),
        (["huber", "--input", "prediction"], ["'prediction' is none of its tensors; did you mean predictions?"]),
        (["token_ce", "--input", "labels"], ["'labels' is no floating-point tensor", "There are logits"]),
        (["huber", "--sweep", "delta"], ["--sweep expects NAME=VALUE such as beta=0.05,0.1,0.5, got 'delta'"]),
        (["huber", "--sweep", "delta=1,,2"], ["an empty value"]),
        (["huber", "--sweep", "delta=1,1"], ["a value twice"]),
        (["huber", "--kwarg", "delta"], ["--kwarg expects NAME=VALUE"]),
        (["huber", "--kwarg", "delta=1", "--kwarg", "delta=2"], ["given twice"]),
        (["huber", "--kwarg", "delta=1", "--sweep", "delta=1,2"], ["by --sweep and by --kwarg"]),
        (["mse", "-o", "mse.jepg"], ["a picture ends with one of"]),
        (["mse", "-o", "no/such/folder/mse.png"], ["cannot write no/such/folder/mse.png: No such file"]),
        (["mse", "--import", "no_such_module"], ["cannot import no_such_module"]),
    ],
    ids=lambda value: " ".join(value) if value and not value[0][:1].isspace() and len(" ".join(value)) < 50 else "",
)  # fmt: skip
def test_what_cannot_be_drawn_is_said(arguments: list[str], parts: list[str]) -> None:
    result = run("plot", *arguments)
    assert result.exit_code == 1
    for part in parts:
        assert part in result.stderr
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("arguments", [[], ["mse", "--all"], ["--all", "--sweep", "a=1"], ["--all", "--input", "a"]])
def test_options_that_do_not_go_together_are_refused(arguments: list[str]) -> None:
    assert run("plot", *arguments).exit_code == 2


def test_without_matplotlib_the_cure_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(COMMAND, "find_spec", lambda name: None if name == "matplotlib" else found(name))
    for arguments in (["mse"], ["--all"]):
        result = run("plot", *arguments)
        assert result.exit_code == 1
        assert "pip install 'tensafe[plot]'" in result.stderr


def test_values_are_read_like_those_of_a_config() -> None:
    sweep = parse_sweep("a=1,0.5,1e-3,true,null,word")
    assert sweep == Sweep("a", (1, 0.5, 0.001, True, None, "word"))
    assert parse_pairs(["dims=[4, 2]", "b=x"]) == {"dims": [4, 2], "b": "x"}
    assert parse_sweep(None) is None
    with pytest.raises(LossConfigError, match="NAME=VALUE"):
        parse_sweep("1a=2")


@pytest.mark.parametrize("name", sorted(builtin_names()))
def test_every_loss_of_ours_has_something_to_draw(name: str) -> None:
    drawing = draw(name)
    values = [value for _, curve in drawing.curves for value in curve.values]
    gradients = [gradient for _, curve in drawing.curves for gradient in curve.gradients]
    assert all(map(math.isfinite, values + gradients))
    assert max(gradients) - min(gradients) > 1e-6 or max(map(abs, gradients)) > 1e-6
    if len(drawing.curves) == 1:
        assert not any(kwarg.name == "beta" for kwarg in drawing.facts.kwargs)

"""`tensafe list` and `tensafe show`, of built-in losses and of a stranger's."""

from functools import partial
from pathlib import Path
from typing import Any, ClassVar, cast

import pytest
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from typer.testing import CliRunner, Result

from support import run_child, write_modules, write_plugin
from tensafe._docstrings import parse
from tensafe.cli import app
from tensafe.cli.facts import family_of, read_facts, summary_of
from tensafe.training.losses import ElementLoss, Elements, Loss, register_loss, resolve_loss
from tensafe.training.losses.reduction import MODES
from tensafe.training.losses.registry import builtin_names

pytestmark = pytest.mark.usefixtures("isolated_registry")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


class Strange(ElementLoss):
    r"""Loss of a stranger.

    .. math:: \ell = \underbrace{x}_{y}

    A second paragraph
    of two lines.

    Args:
        guesses: What was guessed, :math:`\frac{a}{b}` and
            more of it.
        power: See `ElementLoss`; or rather not.

    Note:
        It is strange.

    Example:
        >>> 1 + 1
        2
    """

    _family: ClassVar[str] = "strange"

    power: float = Field(gt=0, description="What it is raised to.", examples=[3.0])
    kind: str | None = None

    def compute(self, guesses: Float[Tensor, "*batch 3"], odds: Float[Tensor, " batch"] | None = None) -> Elements:
        """Return nothing of interest."""
        return Elements(guesses.sum(-1) ** self.power)


def plain(outputs: Any, batch: Any, weight: float = 1.0, *, mode: str, **rest: Any) -> Any:
    """A plain function.

    It has no tensors to show.
    """


@pytest.fixture(autouse=True)
def _width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")


def family_lines(text: str) -> dict[str, list[str]]:
    """The lines below each family."""
    blocks = [block.splitlines() for block in text.split("\n\n")]
    return {lines[0]: lines[1:] for lines in blocks if lines}


def test_list_has_every_loss_under_its_family() -> None:
    families = family_lines(run("list").stdout)
    names = [
        line.split()[0] for lines in families.values() for line in lines if line.startswith("  ") and line[2] != " "
    ]
    assert set(names) >= builtin_names()
    assert any(line.startswith("  token_ce ") for line in families["token"])
    ours = [family for family in families if family != "other"]  # what other tests have registered
    assert ours == sorted(ours)
    assert all(len(line) <= 100 for lines in families.values() for line in lines)


def test_list_has_the_losses_of_users_and_of_plugins_and_survives_broken_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register_loss("strange", Strange)
    register_loss("plain", plain)
    register_loss("bound", partial(plain, mode="a"))
    register_loss("instance", cast("Any", Strange(power=2.0)))
    register_loss("resolved", resolve_loss("mse", reduction="sum"))
    write_modules(tmp_path, monkeypatch, {"a_plugin": "def loss(outputs, batch):\n    '''Loss of a plug-in.'''\n"})
    write_plugin(tmp_path, monkeypatch, {"plugged": "a_plugin:loss", "broken": "no_such_module:loss"})
    result = run("list")
    assert result.exit_code == 0
    families = {name: "\n".join(lines) for name, lines in family_lines(result.stdout).items()}
    assert "strange" in families["strange"]
    assert "instance" in families["strange"]
    assert "resolved" in families["regression"]
    assert "A plain function." in families["other"]
    assert "Loss of a plug-in." in families["other"]
    assert "no_such_module" in families["cannot be loaded"]
    assert list(families)[-2:] == ["other", "cannot be loaded"]


def test_list_and_show_import_no_torch() -> None:
    code = """
import sys
from typer.testing import CliRunner
from tensafe.cli import app
for arguments in (["list"], ["show", "token_ce"], ["show", "weighted_sum", "--format", "markdown"]):
    assert CliRunner().invoke(app, arguments).exit_code == 0
print("torch" in sys.modules, "matplotlib" in sys.modules)
"""
    assert run_child(code) == "False False"


@pytest.mark.parametrize(
    "part",
    [
        "ranking",
        "ℓᵢ = max(0, m - (cᵢ - rᵢ))",
        "chosen_scores  float[*pairs], usually in the outputs, also found as logits_chosen",
        "An axis with a star",
        "margin  a number >= 0, default 1.0",
        "reduction  one of none, sum, mean, default mean",
        "`none` gives one value",
        "num_items_in_batch",
        "LossInputError: A tensor is missing",
        "type: margin_ranking",
        "margin: 1.0",
        "# tensor(0.7500)",
        "torch.nn.functional.margin_ranking_loss",
    ],
)
def test_show_says_all_there_is(part: str) -> None:
    result = run("show", "margin_ranking")
    assert result.exit_code == 0
    assert part in result.stdout


def test_show_of_a_strangers_loss() -> None:
    register_loss("strange", Strange)
    text = run("show", "strange").stdout
    assert "strange  (strange)\n\nLoss of a stranger." in text
    assert r"\underbrace{x}_{y}" in text
    assert "A second paragraph of two lines." in text
    assert "guesses  float[*batch 3], usually in the outputs\n      What was guessed, a/b and more of it." in text
    assert "odds  float[batch], usually in the outputs, optional" in text
    assert "power  a number > 0, required\n      What it is raised to. Or rather not." in text
    assert "kind  a string or null, default null" in text
    assert "power: 3.0" in text
    assert "1 + 1\n    # 2" in text


def test_show_of_a_plain_function() -> None:
    register_loss("plain", plain)
    text = run("show", "plain").stdout
    assert "plain  (other)\n\nA plain function." in text
    assert "Tensors" not in text
    assert "weight  a number, default 1.0" in text
    assert "mode  a string, required" in text
    assert "**  any other keyword" in text
    assert 'resolve_loss("plain")' in text
    assert "type: plain" not in text, "no example is known of mode, so there is none of a config"


def test_show_wraps_to_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    text = run("show", "contrastive").stdout
    prose = text.partition("\nExample")[0].splitlines()
    assert max(len(line) for line in prose if not line.startswith("Tensors")) <= 60


def test_show_of_an_unknown_loss_and_of_another_module() -> None:
    missing = run("show", "tokn_ce")
    assert missing.exit_code == 1
    assert "did you mean token_ce?" in missing.stderr
    for command in (["show", "mse"], ["list"]):
        assert run(*command, "--import", "no_such_module").exit_code == 1


@pytest.mark.parametrize("name", sorted(builtin_names()))
def test_every_tensor_and_kwarg_of_ours_is_described(name: str) -> None:
    facts = read_facts(name)
    assert facts.doc.summary
    assert facts.family != "other"
    assert all(tensor.text for tensor in facts.tensors), facts.tensors
    assert all(kwarg.text for kwarg in facts.kwargs)
    assert facts.example is not None
    assert facts.doc.example()


def test_every_reduction_has_a_meaning() -> None:
    assert read_facts("token_ce").reductions.keys() == MODES
    assert all(read_facts("token_ce").reductions.values())


class Undocumented(Loss):
    _family: ClassVar[Any] = 3

    def compute(self, x: Float[Tensor, " n"]) -> Elements:
        return Elements(x)


def test_a_class_without_documentation_does_not_show_that_of_its_base() -> None:
    register_loss("undocumented", Undocumented)
    assert summary_of(Undocumented) == ""
    assert family_of(Undocumented) == "other"
    assert "No documentation." in run("show", "undocumented").stdout


@pytest.mark.parametrize(
    ("doc", "summary", "sections"),
    [
        (None, "", []),
        ("One line.", "One line.", []),
        ("Two\n    lines.\n\n    Args:\n        a: b\n", "Two lines.", ["Args"]),
        ("S.\n\nReturns:\n    x\n\nArgs: not a heading\n", "S.", ["Returns"]),
    ],
)
def test_docstrings(doc: str | None, summary: str, sections: list[str]) -> None:
    parsed = parse(doc)
    assert parsed.summary == summary
    assert list(parsed.sections) == sections

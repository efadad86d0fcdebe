"""The pages in docs/losses: they are what the code makes, and they hold what is in the class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from tensafe.cli import app
from tensafe.cli.facts import read_facts
from tensafe.cli.markdown import cell, formula, prose
from tensafe.cli.pages import page, pages
from tensafe.training.losses import register_loss
from tensafe.training.losses.registry import builtin_names

ROOT = Path(__file__).resolve().parents[1]
COMMITTED = ROOT / "docs" / "losses"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def test_committed_pages_are_up_to_date() -> None:
    committed = {file.name: file.read_text("utf-8") for file in COMMITTED.glob("*.md")}
    assert committed == pages(builtin_names(), COMMITTED)


def test_every_loss_has_a_picture_and_no_picture_is_left_over() -> None:
    assert {file.stem for file in COMMITTED.glob("*.png")} == builtin_names()


def test_check_tells_what_differs(tmp_path: Path) -> None:
    folder = str(tmp_path)
    missing = run("docs", "--write", folder, "--check")
    assert missing.exit_code == 1
    assert "mse.md is missing" in missing.stderr
    assert list(tmp_path.iterdir()) == []
    assert run("docs", "--write", folder).exit_code == 0
    assert run("docs", "--write", folder, "--check").exit_code == 0
    (tmp_path / "mse.md").write_text("changed")
    (tmp_path / "gone.md").write_text("of a loss that was")
    changed = run("docs", "--write", folder, "--check")
    assert changed.exit_code == 1
    assert "mse.md is out of date" in changed.stderr
    assert "gone.md is the page of no loss" in changed.stderr
    assert "dpo.md" not in changed.stderr


def test_a_page_has_its_picture_if_there_is_one(tmp_path: Path) -> None:
    assert "](mse.png)" not in pages(["mse"], tmp_path)["mse.md"]
    (tmp_path / "mse.png").touch()
    assert "](mse.png)" in pages(["mse"], tmp_path)["mse.md"]


def test_show_prints_the_page() -> None:
    result = run("show", "mse", "--format", "markdown")
    assert result.stdout == page(read_facts("mse"))


@pytest.mark.parametrize(
    "part",
    [
        "```math\n\\ell_i = \\max(0,\\; m - (c_i - r_i))\n```",
        "| `chosen_scores` | `float[*pairs]` | usually in the outputs, also found as logits_chosen | Scores $`c`$ of",
        "| `margin` | a number >= 0 | `1.0` | $`m`$ >= 0, in units",
        "| `sum` | the sum of the values that count",
        "- `LossInputError`: A tensor is missing",
        "```yaml\nloss:\n  type: margin_ranking\n  kwargs:\n    margin: 1.0\n",
        '```python\nimport torch\n',
        "# tensor(0.7500)\n```",
        "Family: [ranking](README.md#ranking).",
    ],
)  # fmt: skip
def test_a_page_says_all_there_is(part: str) -> None:
    assert part in page(read_facts("margin_ranking"))


def test_the_index_lists_by_family(tmp_path: Path) -> None:
    index = pages(["mse", "token_ce", "l1"], tmp_path)["README.md"]
    regression, token = index.index("## regression"), index.index("## token")
    assert regression < index.index("[l1](l1.md)") < index.index("[mse](mse.md)") < token < index.index("(token_ce.md)")


@pytest.mark.usefixtures("isolated_registry")
def test_pages_of_a_users_losses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pages_of_mine.py").write_text(
        "from tensafe.training.losses import register_loss\n@register_loss('mine')\n"
        "def mine(outputs, batch, weight: float = 1.0):\n    '''Of my own.'''\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert run("docs", "--write", str(tmp_path / "out"), "--import", "pages_of_mine").exit_code == 0
    assert "Of my own." in (tmp_path / "out" / "mine.md").read_text()
    assert "## other" in (tmp_path / "out" / "README.md").read_text()
    assert run("docs", "--write", str(tmp_path / "out"), "--import", "no_such_module").exit_code == 1


@pytest.mark.usefixtures("isolated_registry")
def test_an_example_that_raises_is_shown_as_it_was_typed() -> None:
    def refuses(outputs: Any, batch: Any) -> Any:
        """Refuse.

        Example:
            >>> 1 / 0
            Traceback (most recent call last):
            ...
            ZeroDivisionError: division by zero
        """

    register_loss("refuses", refuses)
    assert "```pycon\n>>> 1 / 0\nTraceback" in page(read_facts("refuses"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a `b*c` d*e", r"a `b*c` d\*e"),
        ("``x`` and `y`", "`x` and `y`"),
        (r":math:`\sigma_i` > 0", r"$`\sigma_i`$ > 0"),
        ("x <= 1, <name>", r"x <= 1, \<name>"),
    ],
)
def test_prose(text: str, expected: str) -> None:
    assert prose(text) == expected


def test_bars_end_no_cell() -> None:
    assert cell("a | `b | c`\n d") == r"a \| `b \| c` d"
    assert cell(r":math:`|x| + \|y\|`") == r"$`\vert x\vert  + \Vert y\Vert `$"


def test_github_refuses_operatorname() -> None:
    assert formula(r"\operatorname{clip}(a)\,[b](c)") == "```math\n\\mathrm{clip}(a)\\,[b] (c)\n```"

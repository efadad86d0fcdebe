"""Everything that README and docs show is run: Python blocks, commands with their output, configs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import pytest
from typer.testing import CliRunner

from tensafe.cli import app
from tensafe.config import check_source
from tensafe.training.losses import registry
from tensafe.training.losses.targets import Policy

ROOT = Path(__file__).parent.parent
NEEDED = {"integrations.md": ("transformers", "accelerate", "lightning")}
"""What a page shows that is not installed with the tests."""

PAGES = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").rglob("*.md"))]


class Block(NamedTuple):
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    text: str


def blocks(language: str) -> list[Block]:
    found: list[Block] = []
    for page in PAGES:
        text = page.read_text("utf-8")
        for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            if match[1] == language:
                found.append(Block(page, text.count("\n", 0, match.start()) + 1, match[1], match[2]))
    return found


def name_of(block: Block | Path) -> str:
    page = block if isinstance(block, Path) else block.page
    name = str(page.relative_to(ROOT))
    return name if isinstance(block, Path) else f"{name}:{block.line}"


@pytest.fixture
def _as_a_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # which Lightning asks torch about
@pytest.mark.usefixtures("_as_a_user")
@pytest.mark.parametrize("page", [page for page in PAGES if any(b.page == page for b in blocks("python"))], ids=name_of)
def test_python_blocks_run_from_top_to_bottom(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for library in NEEDED.get(page.name, ()):
        pytest.importorskip(library)
    namespace: dict[str, object] = {"__name__": f"page_{page.stem}"}
    for block in blocks("python"):
        if block.page == page:
            # line numbers of the page, so that a failure points at it
            exec(compile("\n" * block.line + block.text, str(page), "exec"), namespace)
            assert_promised_output(block, capsys.readouterr().out)


def assert_promised_output(block: Block, printed: str) -> None:
    """Comments after a print, on its line or below it, are what it prints."""
    promised = re.findall(r"^print\(.*\)  # (.*?)(?:: .*)?$", block.text, re.MULTILINE)
    below = re.search(r"^ +print\(error\)\n((?:# .*\n)+)", block.text, re.MULTILINE)
    if below:
        promised += [line.removeprefix("# ").strip() for line in below[1].splitlines()]
    joined = " ".join(printed.split())
    for text in promised:
        assert " ".join(text.split()) in joined


@pytest.mark.usefixtures("_as_a_user")
@pytest.mark.parametrize("block", blocks("console"), ids=name_of)
def test_commands_print_what_is_shown(block: Block) -> None:
    command, _, shown = block.text.removeprefix("$ tensafe ").partition("\n")
    result = CliRunner().invoke(app, command.split())
    assert result.output.strip() == shown.strip()


@pytest.mark.parametrize(
    "block", [b for b in blocks("yaml") if re.search(r"^loss:", b.text, re.MULTILINE)], ids=name_of
)
def test_configs_are_valid(block: Block) -> None:
    config, problems = check_source(block.text.encode(), name_of(block), Policy(imports=False))
    assert problems == []
    assert config is not None


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{name_of(page)} links to {target}"


def test_the_readme_starts_with_the_two_commands() -> None:
    commands = [block.text.strip() for block in blocks("sh") if block.page == ROOT / "README.md"]
    assert len(commands) == 2
    assert all("python3 -m venv .venv" in command and "-c constraints.txt" in command for command in commands)
    assert commands[0].endswith("tensafe check configs/train_sft.yaml")
    assert commands[1].endswith("pytest -n auto")

"""The examples in docstrings, run as they stand."""

import doctest
import re
from importlib import import_module
from pathlib import Path

import pytest

from support import SOURCE

EXAMPLE = re.compile(r"^ *>>> ", re.MULTILINE)


def modules() -> list[str]:
    """Name the modules that show examples; the others need not be imported."""
    paths = (path for path in SOURCE.rglob("*.py") if EXAMPLE.search(path.read_text(encoding="utf-8")))
    return sorted(".".join(path.relative_to(SOURCE).with_suffix("").parts) for path in paths)


@pytest.mark.parametrize("name", modules())
def test_examples_give_what_they_show(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tried = doctest.testmod(import_module(name.removesuffix(".__init__")), verbose=False)
    assert tried.attempted
    assert not tried.failed

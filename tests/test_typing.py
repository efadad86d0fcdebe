"""What mypy and pyright say about a user's code: nothing about good code, something about each marked mistake."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tensafe.training.losses.registry import builtin_names, lookup
from tensafe.training.losses.stubs import FILE, render

SNIPPETS = Path(__file__).parent / "typing"
FILES = sorted(path for path in SNIPPETS.glob("*.py") if path.name != "conftest.py")
SOURCE = SNIPPETS.parents[1] / "src"

Complaints = dict[tuple[str, int], str]
"""File and line of each complaint, and what it says."""


def run(*command: str | Path) -> str:
    environment = {**os.environ, "MYPYPATH": str(SOURCE)}
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=SNIPPETS, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1, done.stdout + done.stderr  # 0 is no complaint at all, 2 a checker that did not run
    return done.stdout


def by_mypy(files: list[Path]) -> Complaints:
    """Strict, and without pydantic's plugin: most users have none."""
    cache = SNIPPETS.parents[1] / ".mypy_cache" / "typing"  # torch's annotations take half a minute to read
    output = run("mypy", "--config-file", "mypy.ini", "--cache-dir", str(cache), *files)
    found = re.findall(r"^(.+?):(\d+): error: (.*)$", output, re.MULTILINE)
    return {(Path(file).name, int(line)): text for file, line, text in found}


def by_pyright(files: list[Path]) -> Complaints:
    output = run("pyright", "--outputjson", "--project", ".", "--pythonpath", sys.executable, *files)
    return {
        (Path(each["file"]).name, each["range"]["start"]["line"] + 1): each["message"]
        for each in json.loads(output)["generalDiagnostics"]
        if each["severity"] == "error"
    }


def calls() -> Iterator[str]:
    """Yield, for each built-in loss, calls of `resolve_loss` by name: one that is right, and each kind of mistake."""
    yield "from tensafe.training.losses import resolve_loss"
    for name in sorted(builtin_names()):
        fields = lookup(name).model_fields
        needed = {each: field.examples[0] for each, field in fields.items() if field.is_required()}
        usual = {each: field.default for each, field in fields.items() if not field.is_required()}
        yield call(name, {**needed, **usual})
        yield call(name, {**needed, "metrik": True}) + "  # expect-error"
        mistyped = next(each for each in fields if each != "metrics")
        yield call(name, {**needed, mistyped: b"bytes"}) + "  # expect-error"


def call(name: str, kwargs: dict[str, Any]) -> str:
    return f'resolve_loss("{name}", {", ".join(f"{key}={value!r}" for key, value in kwargs.items())})'


def marked(files: list[Path], checker: Any) -> set[tuple[str, int]]:
    """The lines with a mistake that this checker sees; of a built-in's last resort mypy sees less than pyright."""
    marks = ("# expect-error", "# expect-error of pyright") if checker is by_pyright else "# expect-error"
    lines = ((path, number, line) for path in files for number, line in enumerate(read(path), start=1))
    return {(path.name, number) for path, number, line in lines if line.endswith(marks)}


def read(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The snippets, and the calls of every built-in."""
    every = tmp_path_factory.mktemp("typing") / "every_builtin.py"
    every.write_text("\n".join(calls()) + "\n", encoding="utf-8")
    return [*FILES, every]


@pytest.mark.parametrize("checker", [by_mypy, by_pyright])
def test_a_checker_complains_about_each_marked_line_and_no_other(checker: Any, files: list[Path]) -> None:
    expected, complaints = marked(files, checker), checker(files)
    assert {name for name, _ in expected} == {"refuses.py", "every_builtin.py"}
    lines = {(path.name, number): line for path in files for number, line in enumerate(read(path), start=1)}
    assert {lines[place]: text for place, text in complaints.items() if place not in expected} == {}
    assert {place: lines[place] for place in expected - complaints.keys()} == {}


def test_the_overloads_are_what_the_classes_say() -> None:
    assert FILE.read_text(encoding="utf-8") == render(), "run: python -m tensafe.training.losses.stubs --write"

"""What mypy and pyright say about a user's code: nothing about good code, something about each marked mistake."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

SNIPPETS = Path(__file__).parent / "typing"
FILES = sorted(path.name for path in SNIPPETS.glob("*.py") if path.name != "conftest.py")
SOURCE = SNIPPETS.parents[1] / "src"

Complaints = dict[tuple[str, int], str]
"""File and line of each complaint, and what it says."""


def run(*command: str) -> str:
    environment = {**os.environ, "MYPYPATH": str(SOURCE)}
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=SNIPPETS, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1, done.stdout + done.stderr  # 0 is no complaint at all, 2 a checker that did not run
    return done.stdout


def by_mypy() -> Complaints:
    """Strict, and without pydantic's plugin: most users have none."""
    cache = SNIPPETS.parents[1] / ".mypy_cache" / "typing"  # torch's annotations take half a minute to read
    output = run("mypy", "--config-file", "mypy.ini", "--cache-dir", str(cache), *FILES)
    found = re.findall(r"^(.+?):(\d+): error: (.*)$", output, re.MULTILINE)
    return {(file, int(line)): text for file, line, text in found}


def by_pyright() -> Complaints:
    output = run("pyright", "--outputjson", "--project", ".", "--pythonpath", sys.executable, *FILES)
    return {
        (Path(each["file"]).name, each["range"]["start"]["line"] + 1): each["message"]
        for each in json.loads(output)["generalDiagnostics"]
        if each["severity"] == "error"
    }


def marked() -> set[tuple[str, int]]:
    lines = ((name, number, line) for name in FILES for number, line in enumerate(read(name), start=1))
    return {(name, number) for name, number, line in lines if line.endswith("# expect-error")}


def read(name: str) -> list[str]:
    return (SNIPPETS / name).read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("checker", [by_mypy, by_pyright])
def test_a_checker_complains_about_each_marked_line_and_no_other(checker: Callable[[], Complaints]) -> None:
    expected, complaints = marked(), checker()
    assert {name for name, _ in expected} == {"refuses.py"}
    assert {place: text for place, text in complaints.items() if place not in expected} == {}
    assert {place: read(place[0])[place[1] - 1] for place in expected - complaints.keys()} == {}

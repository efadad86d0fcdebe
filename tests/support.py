"""What tests of lookup share: modules written to a temporary directory, and fresh interpreters."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src"


def write_modules(root: Path, monkeypatch: pytest.MonkeyPatch, modules: Mapping[str, str]) -> None:
    """Make modules importable for the length of a test; `{"package.module": source}`."""
    for name, source in modules.items():
        path = root.joinpath(*name.split("."))
        for package in path.relative_to(root).parents:
            if package.name:
                _write(root / package / "__init__.py", "", monkeypatch, ".".join(package.parts), keep=True)
        _write(path.with_suffix(".py"), source, monkeypatch, name)
    monkeypatch.syspath_prepend(str(root))


def _write(path: Path, source: str, monkeypatch: pytest.MonkeyPatch, name: str, *, keep: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not (keep and path.exists()):
        path.write_text(source, encoding="utf-8")
    monkeypatch.setitem(sys.modules, name, sys)  # so that whatever is imported under this name goes away at the end
    del sys.modules[name]


def write_plugin(
    root: Path, monkeypatch: pytest.MonkeyPatch, losses: Mapping[str, str], package: str = "plugin"
) -> None:
    """Make a directory look like an installed package that publishes losses; `{"name": "module:attribute"}`."""
    info = root / f"{package}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n", encoding="utf-8")
    lines = ["[tensafe.losses]", *(f"{name} = {value}" for name, value in losses.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(root))


def run_child(code: str, *paths: Path, arguments: tuple[str, ...] = ()) -> str:
    """Run code in a fresh interpreter, with warnings as errors, and return what it prints."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (SOURCE, *paths)))}
    command = [sys.executable, "-W", "error", "-c", code, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()

"""`tensafe plot`: value and gradient of a loss as a picture."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import typer

from tensafe.training.losses.errors import Problem, TensafeError, config_error
from tensafe.training.losses.registry import builtin_names, get_registered_losses

from .drawings import Drawing, make_drawing
from .source import import_modules
from .sweeps import parse_pairs, parse_sweep

__all__ = ["run", "run_all"]


def run(
    name: str, output: Path | None, modules: list[str], *, sweep: str | None, kwargs: list[str], tensor: str | None
) -> int:
    """Draw one loss; return the exit code."""
    if not _can_draw() or not import_modules(modules):
        return 1
    try:
        lines, given = parse_sweep(sweep), parse_pairs(kwargs)
        if lines is not None and lines.kwarg in given:
            message = f"{lines.kwarg} is given by --sweep and by --kwarg"
            raise config_error([Problem("repeated-option", (), message)], loss=None)
        drawing = make_drawing(name, given, lines, tensor)
    except TensafeError as error:
        typer.echo(str(error), err=True)
        return 1
    file = Path(f"{name}.png") if output is None else output
    failure = _save(drawing, file)
    typer.echo(failure or f"wrote {file}: {_words(drawing)}", err=failure is not None)
    return 0 if failure is None else 1


def run_all(folder: Path, modules: list[str]) -> int:
    """Draw every loss into a folder; return the exit code."""
    if not _can_draw() or not import_modules(modules):
        return 1
    names = sorted(get_registered_losses() if modules else builtin_names())
    folder.mkdir(parents=True, exist_ok=True)
    failures: list[str] = []
    with typer.progressbar(names, label="drawing", item_show_func=lambda name: name or "") as bar:
        for name in bar:
            try:
                failure = _save(make_drawing(name, {}, None, None), folder / f"{name}.png")
            except TensafeError as error:
                failure = str(error)
            except Exception as error:  # a stranger's loss may raise anything; the others are drawn all the same
                failure = f"{name}: {type(error).__name__}: {error}"
            failures += [] if failure is None else [failure]
    typer.echo(f"wrote {len(names) - len(failures)} pictures to {folder}")
    for failure in failures:
        typer.echo(f"not drawn: {failure}", err=True)
    return 1 if failures else 0


def _can_draw() -> bool:
    if find_spec("matplotlib") is not None:
        return True
    typer.echo("tensafe: a picture needs matplotlib: pip install 'tensafe[plot]'", err=True)
    return False


def _save(drawing: Drawing, file: Path) -> str | None:
    """Write a picture; return what went wrong, if anything did."""
    from .picture import formats, save

    if file.suffix.removeprefix(".").lower() not in formats():
        return f"tensafe: {file}: a picture ends with one of {', '.join(formats())}"
    try:
        save(drawing, file)
    except OSError as error:
        return f"tensafe: cannot write {file}: {error.strerror or error}"
    return None


def _words(drawing: Drawing) -> str:
    positions = drawing.moved.positions
    lines = f", {len(drawing.curves)} values of {drawing.kwarg}" if drawing.kwarg else ""
    return f"{drawing.moved.name} from {positions[0]:g} to {positions[-1]:g}{lines}"

"""`tensafe docs`: a page of Markdown for each loss, and one that lists them by family."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from tensafe._docstrings import Formula, blocks, entries
from tensafe.training.losses.errors import TensafeError
from tensafe.training.losses.registry import builtin_names, get_registered_losses

from .examples import python_example, yaml_example
from .facts import VARIADIC, families_in_order, read_facts, tensor_facts
from .markdown import cell, formula, prose, table
from .source import import_modules

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from tensafe._docstrings import Paragraph

    from .facts import Facts

__all__ = ["page", "pages", "run"]

_MARK = "<!-- Made by `tensafe docs`: edit the loss, not this page. -->"
_INDEX = "README.md"


def run(folder: Path, modules: list[str], *, check: bool) -> int:
    """Write the pages, or say which of those that are there differ; return the exit code."""
    if not import_modules(modules):
        return 1
    try:
        made = pages(get_registered_losses() if modules else builtin_names(), folder)
    except TensafeError as error:
        typer.echo(str(error), err=True)
        return 1
    stale = [file for file in sorted(folder.glob("*.md")) if file.name not in made]
    if check:
        differing = [folder / name for name, text in made.items() if _text(folder / name) != text]
        for file in differing:
            typer.echo(f"{file} is {'out of date' if file.exists() else 'missing'}", err=True)
        _report_stale(stale)
        if differing:
            typer.echo(f"Run: tensafe docs --write {folder}", err=True)
        return 1 if differing or stale else 0
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in made.items():
        (folder / name).write_text(text, encoding="utf-8")
        typer.echo(f"wrote {folder / name}")
    _report_stale(stale)
    return 0


def pages(names: Iterable[str], folder: Path) -> dict[str, str]:
    """Return the pages of some losses and their index, file name to text; they show the pictures that the folder has.

    Raises:
        LossConfigError: A loss cannot be described.
    """
    losses = [read_facts(name) for name in sorted(names)]
    made = {f"{facts.name}.md": page(facts, _figure(facts, folder)) for facts in losses}
    return {_INDEX: _index(losses), **made}


def page(facts: Facts, figure: str | None = None) -> str:
    """Return the page of one loss, with the file of its picture if there is one."""
    parts = [f"# {facts.name}", _MARK, prose(facts.doc.summary) or "No documentation.", *map(_block, facts.doc.body)]
    if figure is not None:
        parts.append(f"![{facts.name}: value and gradient against one input]({figure})")
    parts += [*_tensors(facts), *_kwargs(facts), *_reductions(facts), *_claims(facts)]
    for heading in ("Returns", "Raises", "Note", "Notes", "Warning"):
        parts += _section(heading, facts)
    parts += _examples(facts)
    for heading in ("References", "See Also"):
        parts += _section(heading, facts)
    parts.append(f"Family: [{facts.family}]({_INDEX}#{_anchor(facts.family)}).")
    return "\n\n".join(parts) + "\n"


def _index(losses: Sequence[Facts]) -> str:
    families: dict[str, list[Facts]] = {}
    for facts in losses:
        families.setdefault(facts.family, []).append(facts)
    parts = [
        "# Losses",
        _MARK,
        "`tensafe show NAME` prints a page on the terminal, `tensafe plot NAME` draws its loss.",
    ]
    for family in families_in_order(families):
        rows = [(f"[{facts.name}]({facts.name}.md)", cell(facts.doc.summary)) for facts in families[family]]
        parts += [f"## {family}", table(("loss", "what it is"), rows)]
    return "\n\n".join(parts) + "\n"


def _anchor(heading: str) -> str:
    return heading.lower().replace(" ", "-")


def _block(block: Paragraph | Formula) -> str:
    return formula(block) if isinstance(block, Formula) else prose(block)


def _tensors(facts: Facts) -> list[str]:
    if not facts.tensors:
        return []
    rows = [
        (f"`{tensor.spec.name}`", f"`{tensor.spec}`", cell(", ".join(tensor_facts(tensor))), cell(tensor.text))
        for tensor in facts.tensors
    ]
    note = "Each is taken from the outputs or the batch, wherever it is."
    if any("*" in str(tensor.spec) for tensor in facts.tensors):
        note += f" {VARIADIC}"
    return ["## Tensors", table(("tensor", "kind and axes", "where", "what it is"), rows), note]


def _kwargs(facts: Facts) -> list[str]:
    rows = [
        (f"`{kwarg.name}`", cell(kwarg.accepts), "required" if kwarg.default is None else f"`{kwarg.default}`",
         cell(kwarg.text))
        for kwarg in facts.kwargs
    ]  # fmt: skip
    rows += [("`**`", "any other keyword", "", "")] if facts.takes_any else []
    return ["## Kwargs", table(("kwarg", "accepts", "default", "what it does"), rows)] if rows else []


def _reductions(facts: Facts) -> list[str]:
    if not facts.reductions:
        return []
    rows = [(f"`{mode}`", cell(meaning)) for mode, meaning in facts.reductions.items()]
    return ["## Reductions", table(("reduction", "gives"), rows)]


def _claims(facts: Facts) -> list[str]:
    if not facts.claims:
        return []
    claims = "\n".join(f"- {prose(claim)}" for claim in facts.claims)
    return ["## Properties", claims, "With its default kwargs; each is checked."]


def _section(heading: str, facts: Facts) -> list[str]:
    text = facts.doc.sections.get(heading)
    if not text:
        return []
    if heading == "Raises":
        return [f"## {heading}", "\n".join(f"- `{name}`: {prose(what)}" for name, what in entries(text).items())]
    return [f"## {heading}", *map(_block, blocks(text))]


def _examples(facts: Facts) -> list[str]:
    parts = ["## Example"]
    config = yaml_example(facts)
    if config is not None:
        parts.append(f"```yaml\n{config}```")
    if "Traceback (most" in facts.doc.example():  # a script would stop there
        parts.append(f"```pycon\n{facts.doc.example()}\n```")
    else:
        parts.append(f"```python\n{python_example(facts)}```")
    return parts


def _figure(facts: Facts, folder: Path) -> str | None:
    file = f"{facts.name}.png"
    return file if (folder / file).exists() else None


def _text(file: Path) -> str | None:
    return file.read_text(encoding="utf-8") if file.exists() else None


def _report_stale(stale: Iterable[Path]) -> None:
    for file in stale:
        typer.echo(f"{file} is the page of no loss: delete it", err=True)

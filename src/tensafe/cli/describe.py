"""`tensafe list` and `tensafe show`: what losses there are, and what one of them is, on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from tensafe._docstrings import blocks, entries
from tensafe.training.losses.errors import TensafeError
from tensafe.training.losses.registry import lookup, names

from .examples import python_example, yaml_example
from .facts import VARIADIC, families_in_order, family_of, kwarg_facts, read_facts, summary_of, tensor_facts
from .pages import page
from .source import import_modules
from .terminal import Terminal

if TYPE_CHECKING:
    from .facts import Facts

__all__ = ["run_list", "run_show"]

_BROKEN = "cannot be loaded"


def run_list(modules: list[str]) -> int:
    """Print the losses by family; one that fails to load is listed with the reason."""
    if not import_modules(modules):
        return 1
    families: dict[str, list[tuple[str, str]]] = {}
    broken: list[tuple[str, str]] = []
    for name in names():
        try:
            found = lookup(name)
            families.setdefault(family_of(found), []).append((name, summary_of(found)))
        except TensafeError as error:
            broken.append((name, str(error)))
    terminal = Terminal()
    groups = {family: families[family] for family in families_in_order(families)}
    groups.update({_BROKEN: broken} if broken else {})
    width = max((len(name) for losses in groups.values() for name, _ in losses), default=0)
    for index, (family, losses) in enumerate(groups.items()):
        terminal.heading(family, apart=index > 0)
        terminal.rows(losses, width)
    return 0


def run_show(name: str, modules: list[str], *, as_markdown: bool) -> int:
    """Print one loss: formula, tensors, kwargs, reductions, examples and papers."""
    if not import_modules(modules):
        return 1
    try:
        facts = read_facts(name)
    except TensafeError as error:
        typer.echo(str(error), err=True)
        return 1
    if as_markdown:
        typer.echo(page(facts), nl=False)
    else:
        _show(facts, Terminal())
    return 0


def _show(facts: Facts, terminal: Terminal) -> None:
    terminal.heading(facts.name, facts.family, apart=False)
    terminal.gap()
    terminal.prose(facts.doc.summary or "No documentation.")
    for block in facts.doc.body:
        terminal.gap()
        terminal.block(block)
    _show_tensors(facts, terminal)
    terminal.heading("Kwargs", "" if facts.kwargs or facts.takes_any else "none")
    for kwarg in facts.kwargs:
        terminal.entry(kwarg.name, kwarg_facts(kwarg), kwarg.text)
    if facts.takes_any:
        terminal.entry("**", "any other keyword", "")
    if facts.reductions:
        terminal.heading("Reductions")
        terminal.rows(list(facts.reductions.items()))
    _show_claims(facts, terminal)
    for name in ("Returns", "Raises", "Note", "Notes", "Warning"):
        _show_section(name, facts, terminal)
    terminal.heading("Example")
    terminal.verbatim("\n".join(text for text in (yaml_example(facts), python_example(facts)) if text))
    for name in ("References", "See Also"):
        _show_section(name, facts, terminal)


def _show_tensors(facts: Facts, terminal: Terminal) -> None:
    if not facts.tensors:
        return
    terminal.heading("Tensors", "each is taken from the outputs or the batch, wherever it is")
    for tensor in facts.tensors:
        terminal.entry(tensor.spec.name, ", ".join([str(tensor.spec), *tensor_facts(tensor)]), tensor.text)
    if any("*" in str(tensor.spec) for tensor in facts.tensors):
        terminal.prose(VARIADIC, indent=2)


def _show_claims(facts: Facts, terminal: Terminal) -> None:
    if facts.claims:
        terminal.heading("Properties", "with its default kwargs")
        for claim in facts.claims:
            terminal.prose(claim, indent=2)


def _show_section(name: str, facts: Facts, terminal: Terminal) -> None:
    text = facts.doc.sections.get(name)
    if not text:
        return
    terminal.heading(name)
    if name == "Raises":
        for error, what in entries(text).items():
            terminal.prose(f"{error}: {what}", indent=2, hang=4)
        return
    for block in blocks(text):
        terminal.block(block, indent=2)

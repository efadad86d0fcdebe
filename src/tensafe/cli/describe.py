"""`tensafe list` and `tensafe show`: what losses there are, and what one of them is."""

from __future__ import annotations

import inspect
import re
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from tensafe.training.losses.contract import Contract, read_contract
from tensafe.training.losses.errors import TensafeError
from tensafe.training.losses.loss import Loss
from tensafe.training.losses.problems import expectation
from tensafe.training.losses.protocol import read_signature
from tensafe.training.losses.registry import lookup, names

__all__ = ["run_list", "run_show"]


def run_list() -> int:
    """Print a table of the losses; one that fails to load is listed with the reason."""
    table = Table("loss", "what it is", box=None, pad_edge=False)
    for name in names():
        try:
            table.add_row(name, _first_line(lookup(name)))
        except TensafeError as error:
            table.add_row(name, str(error))
    Console(highlight=False).print(table)
    return 0


def run_show(name: str) -> int:
    """Print one loss: its documentation, tensors and kwargs."""
    try:
        loss = lookup(name)
    except TensafeError as error:
        typer.echo(str(error), err=True)
        return 1
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{name}\n")
    console.print(readable(inspect.getdoc(loss) or "No documentation."), markup=False)
    if isinstance(loss, type) and issubclass(loss, Loss):
        if hasattr(loss, "compute"):
            console.print(_tensor_table(read_contract(loss)))
        console.print(_field_table(loss))
    else:
        console.print(_parameter_table(loss, name))
    return 0


def readable(doc: str) -> str:
    """Return a docstring for the terminal: math directives as indented text, inline roles as their content."""
    doc = re.sub(r"^(\s*)\.\. math:: ", r"\1", doc, flags=re.MULTILINE)
    return re.sub(r":math:`([^`]*)`", r"\1", doc)


def _first_line(loss: Any) -> str:
    return (inspect.getdoc(loss) or "").partition("\n")[0]


def _tensor_table(contract: Contract) -> Table:
    table = Table("tensor", "kind and axes", "required", "also found as", title="tensors", title_justify="left")
    for tensor in contract.tensors:
        table.add_row(tensor.name, str(tensor), "no" if tensor.optional else "yes", ", ".join(tensor.aliases))
    return table


def _field_table(loss: type[Loss]) -> Table:
    properties = loss.model_json_schema()["properties"]
    required = {name for name, field in loss.model_fields.items() if field.is_required()}
    table = Table("kwarg", "accepts", "default", "effect", title="kwargs", title_justify="left")
    for name, schema in properties.items():
        default = "required" if name in required else _plain(schema.get("default"))
        table.add_row(name, expectation(schema) or "", default, schema.get("description", ""))
    return table


def _parameter_table(loss: Any, name: str) -> Table:
    signature = read_signature(loss, name)
    table = Table("kwarg", "accepts", "default", title="kwargs", title_justify="left")
    for parameter in signature.parameters.values():
        default = "required" if parameter.required else _plain(parameter.default)
        table.add_row(parameter.name, expectation(parameter.schema()) or "anything", default)
    if signature.takes_any:
        table.add_row("**", "any other keyword", "")
    return table


def _plain(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)

"""The `tensafe` command: validate, check, conform, list, show, plot, docs, schema, init, new.

Each subcommand imports what it needs when it runs, so that `validate` never pays for torch.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["app", "main"]

app = typer.Typer(
    name="tensafe",
    help="Typed, validated, pluggable loss functions for training language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


class Format(StrEnum):
    """How `validate` reports."""

    text = "text"
    json = "json"
    github = "github"


class Results(StrEnum):
    """How `conform` reports."""

    text = "text"
    json = "json"


class Page(StrEnum):
    """How `show` writes."""

    text = "text"
    markdown = "markdown"


class DType(StrEnum):
    """Dtypes that `check` makes its floating-point tensors in."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"
    float64 = "float64"


Allow = Annotated[
    list[str] | None,
    typer.Option("--allow", metavar="MODULE", help="Module that dotted paths in the file may import; repeatable."),
]

Modules = Annotated[
    list[str] | None,
    typer.Option("--import", metavar="MODULE", help="Import a module first, for the losses it registers."),
]


def main() -> None:
    """Run the command."""
    app()


def _version(wanted: bool) -> None:
    if wanted:
        from tensafe import __version__

        typer.echo(f"tensafe {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Typed, validated, pluggable loss functions for training language models."""


@app.command()
def validate(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="Config files; - reads standard input.")],
    format: Annotated[
        Format, typer.Option("--format", help="Text, one JSON list, or GitHub annotations.")
    ] = Format.text,
    allow: Allow = None,
    no_import: Annotated[
        bool, typer.Option("--no-import", help="Check dotted paths by their form only; import none of their modules.")
    ] = False,
    modules: Modules = None,
) -> None:
    """Validate the loss of config files. Exit code 0: valid, 1: invalid, 2: a file cannot be read."""
    from .source import import_modules
    from .validate import run

    if not import_modules(modules or []):
        raise typer.Exit(2)
    raise typer.Exit(run(files, format, allow or [], imports=not no_import))


@app.command()
def check(
    file: Annotated[str, typer.Argument(metavar="FILE", help="Config file; - reads standard input.")],
    batch: Annotated[int, typer.Option(min=0, help="Sequences, pairs or samples.")] = 2,
    seq: Annotated[int, typer.Option(min=0, help="Tokens in a sequence.")] = 128,
    vocab: Annotated[int, typer.Option(min=1, help="Size of the vocabulary.")] = 32_000,
    hidden: Annotated[int, typer.Option(min=1, help="Width of hidden states and embeddings.")] = 768,
    size: Annotated[
        list[str] | None, typer.Option("--size", metavar="AXIS=N", help="Size of any other axis; repeatable.")
    ] = None,
    dtype: Annotated[DType, typer.Option(help="Of the floating-point tensors.")] = DType.float32,
    device: Annotated[str, typer.Option(help="Where to run: cpu, cuda, cuda:1, ...")] = "cpu",
    dry: Annotated[bool, typer.Option("--dry", help="Run on fake tensors: any size, no memory, no values.")] = False,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of the random batch.")] = 0,
    allow: Allow = None,
) -> None:
    """Validate a config, then run its loss forward and backward on a batch made from its tensor contract."""
    from .check import Settings, run

    named = _sizes(size or [])
    sizes = {"batch": batch, "seq": seq, "vocab": vocab, "hidden": hidden, **named}
    raise typer.Exit(run(file, Settings(sizes, frozenset(named), dtype.value, device, dry, seed), allow or []))


@app.command()
def conform(
    losses: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME...", help="Registered names, or package.module:name; all losses by default."),
    ] = None,
    group: Annotated[
        list[str] | None,
        typer.Option("--group", metavar="GROUP", help="core, numerics, tooling or lifecycle; repeatable."),
    ] = None,
    format: Annotated[Results, typer.Option("--format", help="A table, or JSON.")] = Results.text,
    junit: Annotated[Path | None, typer.Option("--junit", metavar="FILE", help="Write JUnit XML too.")] = None,
    listing: Annotated[bool, typer.Option("--list", help="List the checks; run none.")] = False,
    modules: Modules = None,
) -> None:
    """Check that a loss does what every loss should. Exit code 0: it does, 1: a check failed, 2: it cannot be run."""
    from .conform import run, run_list

    if listing:
        raise typer.Exit(run_list(group))
    raise typer.Exit(run(losses or [], modules or [], groups=group, format=format, junit=junit))


@app.command("list")
def list_(modules: Modules = None) -> None:
    """List the losses that there are, by family."""
    from .describe import run_list

    raise typer.Exit(run_list(modules or []))


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="Registered name of a loss.")],
    format: Annotated[Page, typer.Option("--format", help="Text for a terminal, or a page of Markdown.")] = Page.text,
    modules: Modules = None,
) -> None:
    """Show a loss: formula, tensors, kwargs with defaults and ranges, reductions, examples, paper."""
    from .describe import run_show

    raise typer.Exit(run_show(name, modules or [], as_markdown=format is Page.markdown))


@app.command()
def plot(
    name: Annotated[str | None, typer.Argument(help="Registered name of a loss.")] = None,
    sweep: Annotated[
        str | None, typer.Option(metavar="KWARG=A,B,C", help="One line for each of these values of a kwarg.")
    ] = None,
    kwarg: Annotated[
        list[str] | None, typer.Option("--kwarg", metavar="NAME=VALUE", help="Another kwarg; repeatable.")
    ] = None,
    input: Annotated[str | None, typer.Option(metavar="TENSOR", help="The tensor of which one element moves.")] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="NAME.png by default; with --all, a folder.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Draw every loss, as its page shows it.")] = False,
    modules: Modules = None,
) -> None:
    """Draw value and gradient of a loss against one element of a tensor, over the values of a kwarg."""
    from .plot import run, run_all

    if every == (name is not None):
        raise typer.BadParameter("name one loss, or draw them --all", param_hint="NAME")
    if every and (sweep or kwarg or input):
        raise typer.BadParameter("it belongs to one loss; with --all each has its own figure", param_hint="--all")
    if name is None:
        raise typer.Exit(run_all(output or Path(), modules or []))
    raise typer.Exit(run(name, output, modules or [], sweep=sweep, kwargs=kwarg or [], tensor=input))


@app.command()
def docs(
    write: Annotated[Path, typer.Option("--write", metavar="DIR", help="Where the pages are.")],
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; exit with 1 if a page is out of date.")
    ] = False,
    modules: Modules = None,
) -> None:
    """Write a page about each loss, and an index by family; with the pictures of `plot` that lie beside them."""
    from .pages import run

    raise typer.Exit(run(write, modules or [], check=check))


@app.command()
def schema(
    name: Annotated[str | None, typer.Argument(help="A loss; by default the schema of a whole config.")] = None,
    write: Annotated[
        Path | None, typer.Option("--write", metavar="DIR", help="Write all schemas into a directory.")
    ] = None,
    modeline: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="With --write: name the schema in this config's first line; repeatable."),
    ] = None,
    modules: Modules = None,
) -> None:
    """Print the JSON Schema of a config or of one loss, for editors and CI; or write them all."""
    from .schema import run

    if write is not None and name is not None:
        raise typer.BadParameter("--write writes them all; without it, one is printed", param_hint="NAME")
    if modeline and write is None:
        raise typer.BadParameter("it names the schema that --write writes", param_hint="--modeline")
    raise typer.Exit(run(name, write, modeline or [], modules or []))


@app.command()
def init(
    file: Annotated[Path, typer.Argument(help="File to write.")] = Path("train.yaml"),
    loss: Annotated[str, typer.Option(help="Loss to start with.")] = "token_ce",
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
    modules: Modules = None,
) -> None:
    """Write a commented config to start from, with the line that gives editors its schema."""
    from .init import run

    raise typer.Exit(run(file, loss, modules or [], force=force))


@app.command()
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the loss, such as smooth_error.")],
    folder: Annotated[Path, typer.Option("--dir", metavar="DIR", help="Where to write it and its test.")] = Path(),
    force: Annotated[bool, typer.Option("--force", help="Overwrite the files.")] = False,
) -> None:
    """Write a loss of your own and its test, to start from."""
    from .new import run

    raise typer.Exit(run(name, folder, force=force))


def _sizes(pairs: list[str]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for pair in pairs:
        axis, equals, size = pair.partition("=")
        if not equals or not axis.isidentifier() or not size.isdecimal():
            raise typer.BadParameter(f"expected AXIS=N such as group=4, got {pair!r}", param_hint="--size")
        sizes[axis] = int(size)
    return sizes

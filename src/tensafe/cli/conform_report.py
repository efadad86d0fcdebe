"""What `tensafe conform` prints and writes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple
from xml.etree import ElementTree

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tensafe.training.losses.testing import describe_failure, verdict
from tensafe.training.losses.testing.outcome import in_words

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tensafe.training.losses.testing import CheckResult

__all__ = ["Conformed", "as_data", "as_junit", "print_loss", "print_totals"]

_STYLES = {"passed": "green", "skipped": "yellow", "failed": "bold red"}


class Conformed(NamedTuple):
    """What the checks said about one loss."""

    name: str
    results: list[CheckResult]
    seconds: float

    @property
    def failures(self) -> list[CheckResult]:
        """The checks that failed."""
        return [result for result in self.results if result["status"] == "failed"]

    def tally(self, status: str) -> int:
        """How many checks ended in a way."""
        return sum(result["status"] == status for result in self.results)


def print_loss(conformed: Conformed) -> None:
    """Print each check of one loss, then each failure with the input that shows it, then the verdict."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(min_width=2 + max((len(_short(result)) for result in conformed.results), default=0))
    group = None
    for result in conformed.results:
        if result["group"] != group:
            group = result["group"]
            table.add_row(f"[bold]{group}[/]")
        status = f"[{_STYLES[result['status']]}]{result['status']}[/]"
        why = str(result["exception"] or "").partition("\n")[0]
        table.add_row(f"  {_short(result)}", status, f"{result['seconds']:.2f} s", escape(why))
    console = Console(highlight=False)
    console.print(f"[bold]{escape(conformed.name)}[/]", table, sep="\n")
    _print_failures(conformed)
    typer.echo(verdict(conformed.results))


def print_totals(conformed: Sequence[Conformed]) -> None:
    """Print a row for each loss, then each failure with the input that shows it, then the totals."""
    table = Table("loss", *_STYLES, "time", "failed checks")
    for each in conformed:
        failed = ", ".join(_short(result) for result in each.failures)
        table.add_row(
            escape(each.name), *(str(each.tally(status)) for status in _STYLES), f"{each.seconds:.1f} s", failed
        )
    Console(highlight=False).print(table)
    for each in conformed:
        _print_failures(each)
    totals = ", ".join(f"{sum(each.tally(status) for each in conformed)} {status}" for status in _STYLES)
    seconds = sum(each.seconds for each in conformed)
    typer.echo(f"{len(conformed)} losses, {totals}, in {seconds:.0f} s")


def as_data(conformed: Conformed) -> dict[str, Any]:
    """Return the results of one loss as plain data."""
    checks = [{**result, "exception": _as_text(result["exception"])} for result in conformed.results]
    return {"loss": conformed.name, "verdict": verdict(conformed.results), "checks": checks}


def as_junit(conformed: Sequence[Conformed]) -> str:
    """Return the results as the XML that CI servers read."""
    suites = ElementTree.Element("testsuites")
    for each in conformed:
        tallies = {"tests": len(each.results), "failures": each.tally("failed"), "skipped": each.tally("skipped")}
        suite = _element(suites, "testsuite", name=each.name, time=f"{each.seconds:.3f}", **tallies)
        for result in each.results:
            place = {"classname": f"{each.name}.{result['group']}", "name": result["check_name"]}
            case = _element(suite, "testcase", time=f"{result['seconds']:.3f}", **place)
            if result["status"] in {"skipped", "failed"}:
                tag = "skipped" if result["status"] == "skipped" else "failure"
                why = _element(case, tag, message=(_as_text(result["exception"]) or "").partition("\n")[0])
                why.text = _printable(describe_failure(result)) if tag == "failure" else None
    ElementTree.indent(suites)
    return ElementTree.tostring(suites, encoding="unicode", xml_declaration=True) + "\n"


def _element(parent: ElementTree.Element, tag: str, **attributes: object) -> ElementTree.Element:
    return ElementTree.SubElement(parent, tag, {name: _printable(str(value)) for name, value in attributes.items()})


def _short(result: CheckResult) -> str:
    return result["check_name"].removeprefix("check_")


def _print_failures(conformed: Conformed) -> None:
    """Print what failed, what to do, and the call that shows it, once where several checks made the same."""
    shown: dict[str, str] = {}
    for result in conformed.failures:
        call = result["input"]
        seen = result.copy()
        if call is not None and call in shown:
            seen["input"] = f"# the same call as at {shown[call]}"
        elif call is not None:
            shown[call] = result["check_name"]
        typer.echo(f"\n{conformed.name}: {describe_failure(seen)}\n")


def _as_text(exception: BaseException | None) -> str | None:
    return None if exception is None else in_words(exception)


def _printable(text: str) -> str:
    """Return a text without the characters that XML cannot hold."""
    return "".join(char for char in text if char.isprintable() or char in "\n\t")

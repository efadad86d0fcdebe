"""`tensafe conform` and `tensafe new`, as a person and a CI job see them."""

import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner, Result

from support import write_modules
from tensafe.cli import app
from tensafe.training.losses.testing import all_checks, select_checks

BROKEN = """
def mean_square(outputs, batch):
    return (outputs["predictions"].detach() - batch["targets"]).square().mean() + 0 * outputs["predictions"].sum()
"""


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    write_modules(tmp_path, monkeypatch, {"my_losses": BROKEN})


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def test_a_loss_that_conforms() -> None:
    result = run("conform", "mse", "--group", "numerics")
    assert result.exit_code == 0, result.output
    for check in select_checks(["numerics"]):
        assert check.name.removeprefix("check_") in result.output
    assert "0 failed; only numerics checked" in result.output


def test_a_loss_that_does_not_says_why_and_what_to_do_and_shows_the_call() -> None:
    result = run("conform", "my_losses:mean_square", "--group", "numerics")
    assert result.exit_code == 1
    for part in ("gradcheck", "Let autograd differentiate", "resolve_loss('my_losses:mean_square')", "torch.tensor("):
        assert part in result.output
    assert "does not conform" in result.output


def test_several_losses_are_a_row_each() -> None:
    result = run("conform", "mse", "my_losses:mean_square", "--group", "numerics")
    assert result.exit_code == 1
    assert "2 losses, " in result.output
    assert "gradcheck" in next(line for line in result.output.splitlines() if "my_losses:mean_square" in line)


def test_json_has_every_result() -> None:
    result = run("conform", "my_losses:mean_square", "--group", "numerics", "--format", "json")
    (conformed,) = json.loads(result.stdout)
    assert [check["check_name"] for check in conformed["checks"]] == [c.name for c in select_checks(["numerics"])]
    failed = {check["check_name"]: check for check in conformed["checks"] if check["status"] == "failed"}
    assert "mean_square" in failed["check_gradcheck"]["input"]
    assert conformed["verdict"].startswith("tensafe-conformance: ")


def test_junit_is_what_ci_servers_read() -> None:
    assert run("conform", "mse", "my_losses:mean_square", "--group", "numerics", "--junit", "j.xml").exit_code == 1
    suites = ElementTree.parse("j.xml").getroot()
    assert [suite.get("name") for suite in suites] == ["mse", "my_losses:mean_square"]
    for suite in suites:
        assert suite.get("tests") == str(len(select_checks(["numerics"]))) == str(len(suite))
        assert suite.get("failures") == str(len(suite.findall("testcase/failure")))
        assert suite.get("skipped") == str(len(suite.findall("testcase/skipped")))
    failure = suites[1].find("testcase[@name='check_gradcheck']/failure")
    assert failure is not None
    assert "resolve_loss(" in str(failure.text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["token_cee"], "token_ce"),
        (["mse", "--group", "numeric"], "Did you mean numerics?"),
        (["mse", "--import", "no_such_module"], "no_such_module"),
        (["mse", "--group", "core", "--junit", "no/such/folder.xml"], "folder.xml"),
        (["--list", "--group", "cor"], "Did you mean core?"),
    ],
)
def test_what_cannot_be_run_is_no_failed_check(arguments: list[str], message: str) -> None:
    result = run("conform", *arguments)
    assert result.exit_code == 2
    assert message in result.output


def test_the_checks_are_listed() -> None:
    result = run("conform", "--list")
    assert result.exit_code == 0
    for check in all_checks():
        assert check.name in result.output


def test_a_new_loss_and_its_test_pass_as_they_are_written(tmp_path: Path) -> None:
    assert run("new", "smooth_error").exit_code == 0
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--doctest-modules", "-W", "error"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("token_ce", "there is a loss token_ce already"),
        ("class", "a word of Python"),
        ("my-loss", "cannot name a loss"),
        ("smooth_error", "exist already; pass --force"),
    ],
)
def test_a_new_loss_overwrites_nothing(name: str, message: str) -> None:
    Path("smooth_error.py").write_text("mine")
    result = run("new", name)
    assert result.exit_code == 1
    assert message in result.output
    assert Path("smooth_error.py").read_text() == "mine"
    assert not Path(f"test_{name}.py").exists()


def test_a_new_loss_overwrites_by_force_and_makes_its_folder() -> None:
    assert run("new", "smooth_error", "--dir", "losses").exit_code == 0
    assert run("new", "smooth_error", "--dir", "losses", "--force").exit_code == 0
    assert "class SmoothError(TokenLoss" in Path("losses/smooth_error.py").read_text()

"""The `tensafe` command, as a person and a CI job see it."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tensafe.cli import app

ROOT = Path(__file__).parent.parent
VALID = "loss:\n  type: token_ce\n"
INVALID = "loss:\n  type: token_ce\n  kwargs:\n    label_smothing: 0.1\n    shift: no\n"


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    Path("valid.yaml").write_text(VALID)
    Path("invalid.yaml").write_text(INVALID)


def run(*arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, list(arguments), input=stdin)


@pytest.mark.parametrize(
    ("files", "code"),
    [(["valid.yaml"], 0), (["invalid.yaml"], 1), (["valid.yaml", "invalid.yaml"], 1), (["none.yaml"], 2), ([], 2)],
)
def test_exit_codes_of_validate(files: list[str], code: int) -> None:
    assert run("validate", *files).exit_code == code


def test_validate_reads_standard_input() -> None:
    result = run("validate", "-", stdin=INVALID)
    assert result.exit_code == 1
    assert "<stdin>:4:5: loss.kwargs.label_smothing" in result.stdout


def test_json_is_one_list_on_stdout() -> None:
    assert json.loads(run("validate", "valid.yaml", "--format", "json").stdout) == []
    found = json.loads(run("validate", "valid.yaml", "invalid.yaml", "--format", "json").stdout)
    assert [list(problem) for problem in found] == [
        ["file", "line", "column", "path", "code", "message", "suggestion"]
    ] * 2
    assert found[0]["file"] == "invalid.yaml"
    assert (found[0]["line"], found[0]["column"], found[0]["suggestion"]) == (4, 5, "label_smoothing")


def test_github_annotations_are_one_escaped_line_each() -> None:
    lines = run("validate", "invalid.yaml", "--format", "github").stdout.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("::error file=invalid.yaml,line=4,col=5,title=tensafe unknown-kwarg::loss.kwargs.")


def test_a_file_that_cannot_be_read_does_not_hide_the_others() -> None:
    result = run("validate", "none.yaml", "invalid.yaml")
    assert result.exit_code == 2
    assert "cannot read none.yaml" in result.stderr
    assert "label_smothing" in result.stdout


@pytest.fixture
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "cli_losses.py").write_text(
        "def gap(outputs, batch, weight: float = 1.0):\n"
        "    return weight * (outputs['predictions'] - batch['targets']).square().mean()\n"
        "def broken(outputs, batch):\n    return outputs['predictions'].frobnicate()\n"
        "def unknown(outputs, batch):\n    return outputs['surprise'].mean()\n"
        "def infinite(outputs, batch):\n    return (outputs['predictions'] * float('inf')).sum()\n"
        "def stuck(outputs, batch):\n    return outputs['predictions'].detach().mean()\n"
        "def total(outputs, batch):\n    return outputs['predictions'].sum()\n"
        "def curious(outputs, batch):\n    return outputs['predictions'].sum() * outputs['predictions'].max().item()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "cli_losses", raising=False)
    file = tmp_path / "stranger.yaml"
    file.write_text("loss: {type: 'cli_losses:gap', kwargs: {weight: 2}}")
    return file


def test_allow_comes_from_the_option_or_the_operators_pyproject(stranger: Path, tmp_path: Path) -> None:
    assert "--allow cli_losses" in run("validate", str(stranger)).stdout
    assert run("validate", str(stranger), "--allow", "cli_losses").exit_code == 0
    assert run("validate", str(stranger), "--no-import").exit_code == 0
    (tmp_path / "pyproject.toml").write_text("[tool.tensafe]\nallow = ['cli_losses']\n")
    assert run("validate", str(stranger)).exit_code == 0
    (tmp_path / "pyproject.toml").write_text("[tool.tensafe]\nallow = 'cli_losses'\n")
    result = run("validate", str(stranger))
    assert result.exit_code == 1
    assert "must be a list of strings" in result.stderr


def test_check_runs_the_loss_and_shows_what_it_saw() -> None:
    result = run("check", "valid.yaml", "--batch", "3", "--seq", "8", "--vocab", "50")
    assert result.exit_code == 0, result.output
    for part in ["logits", "3 8 50", "float32", "int64", "num_tokens", "forward", "backward", "peak memory", "ok"]:
        assert part in result.stdout
    assert re.search(r"loss +│ [34]\.\d+", result.stdout)
    assert re.search(r"num_tokens +│ 18 ", result.stdout)  # 3 x (8 - 1 - 2 // 1 ignored labels that are predicted)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_check_makes_tensors_of_the_dtype_asked_for(dtype: str) -> None:
    result = run("check", "valid.yaml", "--seq", "8", "--vocab", "50", "--dtype", dtype)
    assert result.exit_code == 0, result.output
    assert re.search(rf"logits +│ outputs +│ {dtype} ", result.stdout)


def test_a_dry_check_takes_no_memory_at_any_size() -> None:
    result = run("check", "valid.yaml", "--dry", "--batch", "512", "--seq", "8192", "--vocab", "256000")
    assert result.exit_code == 0, result.output
    assert "512 8192 256000" in result.stdout
    assert re.search(r"peak memory, predicted +│ \d{4,}\.\d GiB", result.stdout)
    assert "peak memory, measured" not in result.stdout


WITH_RENAMES = "loss: {type: token_ce, kwargs: {label_smoothing: 0.1}, inputs: {logits: outputs.scores}}"
SUM = "loss: {type: weighted_sum, kwargs: {losses: [mse, token_ce]}}"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "config", [VALID, WITH_RENAMES, SUM, *(f"loss: {loss}" for loss in ("linear_ce", "contrastive", "mse"))]
)
def test_check_predicts_the_same_peak_with_and_without_dry(config: str, dtype: str) -> None:
    arguments = ("check", "-", "--batch", "5", "--seq", "64", "--vocab", "5000", "--hidden", "32", "--dtype", dtype)
    outputs = [run(*arguments, *dry, stdin=config).stdout for dry in ([], ["--dry"])]
    predicted = {re.search(r"peak memory, predicted +│ (\S+ \S+) above the tensors", output) for output in outputs}
    assert all(predicted)
    assert len({row[1] for row in predicted if row}) == 1
    assert re.search(r"peak memory, measured +│ \S+ \S+ above the tensors \([a-z ]+\)", outputs[0])


@pytest.mark.parametrize("dry", [[], ["--dry"]], ids=["real", "dry"])
@pytest.mark.parametrize(
    ("config", "is_told"),
    [(VALID, True), (WITH_RENAMES, True), ("loss: linear_ce", False), ("loss: mse", False), (SUM, False)],
)
def test_check_tells_what_a_leaner_loss_would_need(config: str, is_told: bool, dry: list[str]) -> None:
    result = run("check", "-", "--batch", "2", "--seq", "64", "--vocab", "5000", "--hidden", "32", *dry, stdin=config)
    assert result.exit_code == 0, result.output
    sentence = re.search(r"this step needs (\S+) MiB for the loss; linear_ce would need (\S+) MiB\n(.*)", result.stdout)
    assert bool(sentence) is is_told
    if sentence:
        logits, gradients = 2 * 64 * 5000 * 4 / 2**20, (2 * 64 * 32 + 5000 * 32) * 4 / 2**20
        assert float(sentence[1]) >= round(2 * logits + gradients, 1)
        assert float(sentence[2]) >= round(gradients, 1)
        assert "hidden_states [2 64 32] and lm_head_weight [5000 32] to their gradients; logits" in sentence[3]


def test_a_loss_of_ones_own_may_name_a_leaner_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, isolated_registry: None
) -> None:
    (tmp_path / "cli_lean.py").write_text(
        "from jaxtyping import Float\nfrom torch import Tensor\n"
        "from tensafe.training.losses import ElementLoss, Elements\n"
        "from tensafe.training.losses.types import Leaner\n"
        "class Norms(ElementLoss, name='cli_norms'):\n    power: float = 2.0\n"
        "    def compute(self, rows: Float[Tensor, 'batch hidden']) -> Elements:\n"
        "        return Elements(rows.norm(dim=1) ** self.power)\n"
        "class Copied(ElementLoss, name='cli_copied'):\n    power: float = 2.0\n    copies: int = 3\n"
        "    _leaner = Leaner('cli_norms', lambda outputs: {'copies_of_rows': outputs['rows'].repeat(1, 100)})\n"
        "    def compute(self, copies_of_rows: Float[Tensor, 'batch many']) -> Elements:\n"
        "        return Elements(copies_of_rows.norm(dim=1) ** self.power)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    config = "loss: {type: 'cli_lean:Copied', kwargs: {power: 3.0, copies: 100}}"
    result = run("check", "-", "--allow", "cli_lean", "--batch", "4", "--size", "many=76800", stdin=config)
    assert result.exit_code == 0, result.output
    assert re.search(r"this step needs \d\.\d MiB for the loss; cli_norms would need \d\d\.\d KiB", result.stdout)
    assert "rows [4 768] to their gradients; copies_of_rows included, which cli_norms never makes" in result.stdout


@pytest.mark.parametrize("loss", ["margin_ranking", "contrastive", "mse"])
def test_check_makes_a_batch_for_every_loss(loss: str) -> None:
    Path("one.yaml").write_text(f"loss: {loss}")
    result = run("check", "one.yaml")
    assert result.exit_code == 0, result.output
    assert "warning" not in result.stdout


def test_check_makes_a_batch_for_a_composition_with_renamed_tensors() -> None:
    Path("sum.yaml").write_text(
        "loss:\n  type: weighted_sum\n  kwargs:\n    losses:\n"
        "      - {type: mse, inputs: {predictions: outputs.value, targets: batch.returns}}\n"
        "      - {type: token_ce, weight: 0.5}\n"
    )
    result = run("check", "sum.yaml", "--vocab", "50")
    assert result.exit_code == 0, result.output
    for part in ["value", "returns", "logits", "mse/loss", "token_ce/num_tokens"]:
        assert part in result.stdout


def test_check_runs_a_function_on_tensors_of_conventional_names(stranger: Path) -> None:
    result = run("check", str(stranger), "--allow", "cli_losses")
    assert result.exit_code == 0, result.output
    assert "predictions" in result.stdout


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("broken", ["AttributeError", "frobnicate", "cli_losses.py:4 in broken"]),
        ("unknown", ["KeyError", "surprise", "cli_losses.py:6 in unknown"]),
        ("stuck", ["no gradient reaches predictions"]),
        ("curious", ["unknown, for DataDependentOutputException on fake tensors"]),
    ],
)
def test_check_names_the_place_of_a_failure(stranger: Path, name: str, parts: list[str]) -> None:
    stranger.write_text(f"loss: 'cli_losses:{name}'")
    result = run("check", str(stranger), "--allow", "cli_losses")
    assert result.exit_code == (0 if name in {"stuck", "curious"} else 1)
    assert all(part in result.stdout for part in parts), result.stdout


def test_check_shows_the_gradient_of_one_step(stranger: Path) -> None:
    stranger.write_text("loss: 'cli_losses:total'")
    result = run("check", str(stranger), "--allow", "cli_losses", "--batch", "4")
    assert re.search(r"predictions +│ outputs +│ float32 +│ 4 +│ 2 ", result.stdout), result.stdout


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--size", "grup=4"], "no tensor of token_ce has this axis; there are batch, seq, vocab"),
        (["--size", "grup"], "expected AXIS=N"),
        (["--device", "cuda/foo"], "--device cuda/foo"),
        (["--seed", "-1"], "--seed"),
    ],
)
def test_check_refuses_options_that_would_do_nothing(arguments: list[str], part: str) -> None:
    result = run("check", "valid.yaml", "--seq", "8", "--vocab", "50", *arguments)
    assert result.exit_code == 2
    assert part in result.stderr


def test_check_fails_on_what_is_not_finite(stranger: Path) -> None:
    stranger.write_text("loss: 'cli_losses:infinite'")
    result = run("check", str(stranger), "--allow", "cli_losses")
    assert result.exit_code == 1
    assert "not finite: the loss, the gradient of predictions" in result.stdout


def test_check_reports_an_invalid_config_like_validate() -> None:
    result = run("check", "invalid.yaml")
    assert result.exit_code == 1
    assert "invalid.yaml:4:5: loss.kwargs.label_smothing" in result.stdout


def test_list_names_every_loss() -> None:
    result = run("list")
    assert result.exit_code == 0
    assert {line.split()[0] for line in result.stdout.splitlines() if line.startswith("  ")} >= {
        "contrastive",
        "margin_ranking",
        "mse",
        "token_ce",
        "weighted_sum",
    }


def test_show_has_formula_tensors_kwargs_and_paper() -> None:
    result = run("show", "token_ce")
    assert result.exit_code == 0
    for part in ["softmax", "float[*rows vocab]", "label_smoothing", "a number in [0, 1]", "-100", "arXiv:1512.00567"]:
        assert part in result.stdout
    missing = run("show", "tokn_ce")
    assert missing.exit_code == 1
    assert "did you mean token_ce?" in missing.stderr


def test_schema_prints_and_writes_what_is_committed(tmp_path: Path) -> None:
    assert json.loads(run("schema").stdout)["$schema"] == "http://json-schema.org/draft-07/schema#"
    assert json.loads(run("schema", "mse").stdout)["title"] == "mse"
    assert run("schema", "nope").exit_code == 1
    assert run("schema", "--write", str(tmp_path / "out")).exit_code == 0
    written = {path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*.json")}
    assert written == {path.relative_to(ROOT / "schemas") for path in (ROOT / "schemas").rglob("*.json")}


def test_schema_can_add_a_users_own_losses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensafe.training.losses import registry

    monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    (tmp_path / "cli_more_losses.py").write_text(
        "from tensafe.training.losses import register_loss\n@register_loss('cli_gap')\n"
        "def gap(outputs, batch, weight: float = 1.0):\n    ...\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "cli_gap" in run("schema", "--import", "cli_more_losses").stdout
    assert run("schema", "--import", "cli_more_losses", "--write", "out").exit_code == 0
    assert (tmp_path / "out" / "losses" / "cli_gap.json").exists()
    assert run("schema", "--import", "no_such_module").exit_code == 1


@pytest.mark.parametrize("loss", ["token_ce", "weighted_sum", "mse"])
def test_init_writes_a_config_that_is_valid_and_keeps_what_is_there(loss: str, tmp_path: Path) -> None:
    assert run("init", "new.yaml", "--loss", loss).exit_code == 0
    text = Path("new.yaml").read_text()
    assert text.startswith("# yaml-language-server: $schema=")
    assert run("validate", "new.yaml").exit_code == 0
    again = run("init", "new.yaml", "--loss", "contrastive")
    assert again.exit_code == 1
    assert Path("new.yaml").read_text() == text
    assert run("init", "new.yaml", "--loss", "contrastive", "--force").exit_code == 0
    assert "temperature" in Path("new.yaml").read_text()


def test_the_module_and_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert re.fullmatch(r"tensafe \d+\.\d+\.\d+", run("--version").stdout.strip())

"""What CI shows without Python code of ours: check-jsonschema, on the generated schema.

It brings a YAML reader of its own, so it is no dependency of the tests and runs where it is found: on PATH
(`pipx install check-jsonschema`), or at the path in the environment variable TENSAFE_CHECK_JSONSCHEMA.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from own_losses import write_project

COMMAND = os.environ.get("TENSAFE_CHECK_JSONSCHEMA") or shutil.which("check-jsonschema")

pytestmark = pytest.mark.skipif(
    COMMAND is None,
    reason="check-jsonschema is neither on PATH nor in the environment variable TENSAFE_CHECK_JSONSCHEMA",
)

# name: text of the config, where it is wrong, what is said
MISTAKES = {
    "unknown-kwarg": (
        "loss:\n  type: token_ce\n  kwargs:\n    label_smothing: 0.1\n",
        "$.loss.kwargs",
        "'label_smothing' was unexpected",
    ),
    "wrong-type": (
        "loss:\n  type: token_ce\n  kwargs: {label_smoothing: x}\n",
        "$.loss.kwargs.label_smoothing",
        "not of type 'number'",
    ),
    "bool": (
        "loss:\n  type: token_ce\n  kwargs: {ignore_index: true}\n",
        "$.loss.kwargs.ignore_index",
        "not of type 'integer'",
    ),
    "out-of-range": ("loss:\n  type: dpo\n  kwargs: {beta: 0}\n", "$.loss.kwargs.beta", "minimum of 0"),
    "bad-choice": (
        "loss:\n  type: mse\n  kwargs: {reduction: avg}\n",
        "$.loss.kwargs.reduction",
        "'avg' is not one of",
    ),
    "misspelt-loss": ("loss: tokn_ce\n", "$.loss", "'token_ce' was expected"),
    "unknown-loss": ("loss:\n  type: xent\n", "$.loss.type", "'xent' is not one of ['aot'"),
    "bad-path": ("loss:\n  type: a:b:c\n", "$.loss.type", "'a:b:c' does not match"),
    "missing-kwargs": ("loss:\n  type: weighted_sum\n", "$.loss", "'kwargs' is a required property"),
    "missing-kwarg": (
        "loss:\n  type: weighted_sum\n  kwargs: {}\n",
        "$.loss.kwargs",
        "'losses' is a required property",
    ),
    "misplaced-kwarg": ("loss:\n  type: mse\n  reduction: sum\n", "$.loss", "'reduction' was unexpected"),
    "kwarg-of-another": ("loss:\n  type: mse\n  kwargs: {beta: 1}\n", "$.loss.kwargs", "'beta' was unexpected"),
    "term": (
        "loss: {type: weighted_sum, kwargs: {losses: [mse, {type: dpo, kwargs: {beta: x}}]}}\n",
        "$.loss.kwargs.losses[1].kwargs.beta",
        "not of type 'number'",
    ),
    "schedule": (
        "loss:\n  type: weighted_sum\n  kwargs:\n    losses:\n      - type: mse\n        weight: {schedule: step}\n",
        "$.loss.kwargs.losses[0].weight",
        "'start' is a required property",
    ),
    "own-class": ("loss:\n  type: own_gap\n  kwargs: {margin: 0}\n", "$.loss.kwargs.margin", "minimum of 0"),
    "own-function": (
        "loss:\n  type: own_tempered\n  kwargs: {temperature: 11}\n",
        "$.loss.kwargs.temperature",
        "maximum of 10",
    ),
    "own-nested": (
        "loss:\n  type: own_doubled\n  kwargs: {of: {type: own_gap, kwargs: {margin: true}}}\n",
        "$.loss.kwargs.of.kwargs.margin",
        "not of type 'number'",
    ),
}
GOOD = "loss:\n  type: weighted_sum\n  kwargs:\n    losses: [mse, {type: own_tempered, weight: 1e-3}]\n"


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[str, str]]]:
    """Where each config is wrong, and what is said: of all in one run, because the command takes a while to start."""
    folder = tmp_path_factory.mktemp("project")
    write_project(folder)
    (folder / "good.yaml").write_text(GOOD, encoding="utf-8")
    for name, (text, _, _) in MISTAKES.items():
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    configs = sorted(path.name for path in folder.glob("*.yaml"))
    assert COMMAND is not None
    command = [COMMAND, "--output-format", "json", "--schemafile", "schemas/training_config.json", *configs]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1, done.stderr
    errors: dict[str, list[tuple[str, str]]] = {Path(config).stem: [] for config in configs}
    for error in json.loads(done.stdout)["errors"]:
        errors[Path(error["filename"]).stem].append((error["path"], error["message"]))
    return errors


def test_a_good_config_is_left_alone(reported: dict[str, list[tuple[str, str]]]) -> None:
    assert reported["good"] == []


@pytest.mark.parametrize("name", MISTAKES)
def test_each_mistake_is_one_error_at_its_key(name: str, reported: dict[str, list[tuple[str, str]]]) -> None:
    _, path, message = MISTAKES[name]
    if name == "schedule":  # each key that it lacks is one
        assert [at for at, _ in reported[name]] == [path] * 3
    else:
        assert [at for at, _ in reported[name]] == [path]
    assert message in reported[name][0][1]

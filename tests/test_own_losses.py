"""What the command makes of a user's losses, for editors and CI: the schema, the line that names it, a first config."""

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft7Validator  # type: ignore[import-untyped]

from own_losses import run_here, write_project


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    write_project(folder)
    return folder


def spec(name: str, **kwargs: Any) -> dict[str, Any]:
    return {"type": name, "kwargs": kwargs}


def term(*terms: Any) -> dict[str, Any]:
    return spec("weighted_sum", losses=list(terms))


def errors(project: Path, loss: Any) -> list[tuple[tuple[str | int, ...], str]]:
    schema = json.loads((project / "schemas" / "training_config.json").read_text("utf-8"))
    found = Draft7Validator(schema).iter_errors({"loss": loss})
    return [(tuple(error.absolute_path)[1:], error.message) for error in found]


@pytest.mark.parametrize(
    "loss",
    [
        spec("own_gap", margin=1, side="above", reduction="sum"),
        "own_tempered",
        spec("own_tempered", temperature=10, limit=None),
        spec("own_doubled", of=term(spec("own_gap", margin=0.5), "own_tempered"), times=3),
    ],
    ids=["class", "bare-function", "function", "nested"],
)
def test_good_losses(loss: Any, project: Path) -> None:
    assert errors(project, loss) == []


@pytest.mark.parametrize(
    ("loss", "path", "message"),
    [
        pytest.param(spec("own_gap", margn=1, margin=1), ("kwargs",), "'margn' was unexpected", id="unknown-kwarg"),
        pytest.param(spec("own_gap"), ("kwargs",), "'margin' is a required", id="missing-kwarg"),
        pytest.param("own_gap", (), "not of type 'object'", id="bare-with-required-kwargs"),
        pytest.param(spec("own_gap", margin=True), ("kwargs", "margin"), "not of type 'number'", id="bool-for-number"),
        pytest.param(spec("own_gap", margin=0), ("kwargs", "margin"), "minimum of 0", id="out-of-range"),
        pytest.param(spec("own_gap", margin=1, side="up"), ("kwargs", "side"), "'up' is not one of", id="bad-choice"),
        pytest.param("own_gapp", (), "'own_gap' was expected", id="misspelt"),
        pytest.param(spec("own_tempered", temperature=11), ("kwargs", "temperature"), "maximum of 10", id="function"),
        pytest.param(spec("own_tempered", limit=0.5), ("kwargs", "limit"), "0.5", id="function-type"),
        pytest.param(spec("own_tempered", mod="soft"), ("kwargs",), "'mod' was unexpected", id="function-unknown"),
        pytest.param(spec("own_tempered", margin=1), ("kwargs",), "'margin' was", id="kwarg-of-another-loss"),
        pytest.param(
            spec("own_doubled", of=term("mse", spec("own_gap", margin="x"))),
            ("kwargs", "of", "kwargs", "losses", 1, "kwargs", "margin"),
            "not of type 'number'",
            id="nested",
        ),
    ],
)
def test_each_mistake_is_one_error_at_its_place(
    loss: Any, path: tuple[str | int, ...], message: str, project: Path
) -> None:
    found = errors(project, loss)
    assert [at for at, _ in found] == [path], found
    assert message in found[0][1]


def test_the_printed_schema_is_the_written_one(project: Path) -> None:
    written = (project / "schemas" / "training_config.json").read_text("utf-8")
    assert json.loads(run_here(project, "schema", "--import", "my_package.losses")) == json.loads(written)
    alone = json.loads(run_here(project, "schema", "own_gap", "--import", "my_package.losses"))
    assert alone == json.loads((project / "schemas" / "losses" / "own_gap.json").read_text("utf-8"))


def test_writing_says_which_line_names_the_schema(project: Path) -> None:
    printed = run_here(project, "schema", "--import", "my_package.losses", "--write", "schemas")
    assert "# yaml-language-server: $schema=schemas/training_config.json" in printed


@pytest.mark.parametrize(
    "text",
    [
        "loss: own_tempered\n",
        "# yaml-language-server: $schema=old.json\nloss: own_tempered\n",
        "# Mine.\n#yaml-language-server:  $schema=old.json\r\nloss: own_tempered\n",
    ],
    ids=["none", "another", "below"],
)
def test_the_line_is_written_into_configs(text: str, project: Path) -> None:
    config = project / "configs" / "deep" / "train.yaml"
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_bytes(text.encode())
    arguments = ["schema", "--import", "my_package.losses", "--write", "schemas", "--modeline", str(config)]
    run_here(project, *arguments)
    once = config.read_bytes().decode()
    first, _, rest = once.partition("\n")
    assert first == "# yaml-language-server: $schema=../../schemas/training_config.json"
    assert rest == text.replace("# yaml-language-server: $schema=old.json\n", "").replace(
        "#yaml-language-server:  $schema=old.json\r\n", ""
    )
    run_here(project, *arguments)
    assert config.read_bytes().decode() == once


@pytest.mark.parametrize("loss", ["own_gap", "own_tempered", "own_doubled"])
def test_init_starts_a_config_with_them(loss: str, project: Path) -> None:
    printed = run_here(project, "init", f"{loss}.yaml", "--loss", loss, "--import", "my_package.losses")
    command = printed.split("next: tensafe ")[1].split()
    assert command[0] == "validate"
    assert run_here(project, *command) == f"{loss}.yaml: ok, loss {loss}\n"
    assert loss in json.loads((project / "tensafe.schema.json").read_text("utf-8"))["definitions"]

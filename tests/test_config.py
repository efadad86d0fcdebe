"""Config files: what is accepted, and how each mistake is reported."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensafe.config import ConfigError, ConfigProblem, TrainingConfig, check_source, load_config
from tensafe.training.losses import LossSpec, resolve_loss
from tensafe.training.losses.resolve import check_spec
from tensafe.training.losses.targets import Policy

if TYPE_CHECKING:
    from pathlib import Path

NOTHING_ALLOWED = Policy(allow=())


def read(text: str, policy: Policy = NOTHING_ALLOWED) -> tuple[TrainingConfig | None, list[ConfigProblem]]:
    return check_source(text.encode(), "train.yaml", policy)


def only_problem(text: str, policy: Policy = NOTHING_ALLOWED) -> ConfigProblem:
    config, problems = read(text, policy)
    assert config is None
    assert len(problems) == 1, [str(problem) for problem in problems]
    return problems[0]


@pytest.mark.parametrize(
    ("text", "kwargs"),
    [
        ("loss: token_ce", {}),
        ("loss: {type: token_ce}", {}),
        ("loss:\n  type: token_ce\n  kwargs:\n", {}),
        ("loss:\n  type: token_ce\n  kwargs:\n    label_smoothing: 1e-1\n", {"label_smoothing": 0.1}),
        ("loss:\n  type: token_ce\n  kwargs: {label_smoothing: 1}\n", {"label_smoothing": 1}),
        ("a: &a {shift: false}\nloss:\n  type: token_ce\n  kwargs:\n    <<: *a\n", {"shift": False}),
    ],
    ids=["bare-name", "flow", "empty-kwargs", "yaml-1.2-float", "int-for-float", "merge-key"],
)
def test_a_valid_config_gives_its_loss(text: str, kwargs: dict[str, Any]) -> None:
    config, problems = read(text)
    assert problems == []
    assert config is not None
    assert config.loss == LossSpec(type="token_ce", kwargs=kwargs)
    resolved = resolve_loss(config.loss.type, **config.loss.kwargs)
    assert all(resolved.kwargs[name] == value for name, value in kwargs.items())


def test_other_sections_are_passed_through() -> None:
    config, _ = read("model: {layers: [1, 2], 3: x}\nloss: mse\nseed: 7\n")
    assert config is not None
    assert config.sections == {"model": {"layers": [1, 2], 3: "x"}, "seed": 7}
    assert config["seed"] == 7


TABLE = {
    "unknown kwarg": ("loss:\n  type: token_ce\n  kwargs:\n    label_smothing: 0.1\n", 4, 5,
                      "loss.kwargs.label_smothing", "unknown-kwarg", "did you mean label_smoothing?",
                      "label_smoothing"),
    "kwarg of another loss": ("loss:\n  type: mse\n  kwargs:\n    temperature: 0.1\n", 4, 5,
                              "loss.kwargs.temperature", "unknown-kwarg",
                              "temperature is a kwarg of ce_kd, contrastive", None),
    "out of range": ("loss: {type: token_ce, kwargs: {label_smoothing: -0.1}}", 1, 50, "loss.kwargs.label_smoothing",
                     "invalid-value", "expected a number in [0, 1], got -0.1", None),
    "nan": ("loss: {type: contrastive, kwargs: {temperature: .nan}}", 1, 49, "loss.kwargs.temperature",
            "invalid-value", "expected a finite number > 0, got nan", None),
    "inf": ("loss: {type: contrastive, kwargs: {temperature: .inf}}", 1, 49, "loss.kwargs.temperature",
            "invalid-value", "got inf", None),
    "bool for int": ("loss: {type: token_ce, kwargs: {ignore_index: true}}", 1, 47, "loss.kwargs.ignore_index",
                     "invalid-value", "expected an integer, got True", None),
    "name with an underscore": ("loss: {type: mse_, kwargs: {}}", 1, 14, "loss.type", "unknown-loss",
                                "did you mean mse?", "mse"),
    "bool for float": ("loss: {type: contrastive, kwargs: {temperature: true}}", 1, 49, "loss.kwargs.temperature",
                       "invalid-value", "expected a number > 0, got True", None),
    "quoted number": ("loss: {type: token_ce, kwargs: {label_smoothing: '0.1'}}", 1, 50, "loss.kwargs.label_smoothing",
                      "invalid-value", "got '0.1'", None),
    "int beyond 64 bits": ("loss: {type: token_ce, kwargs: {ignore_index: 99999999999999999999}}", 1, 47,
                           "loss.kwargs.ignore_index", "invalid-value", "64 bits", None),
    "enum value": ("loss: {type: mse, kwargs: {reduction: meen}}", 1, 39, "loss.kwargs.reduction", "invalid-value",
                   "did you mean mean?", "mean"),
    "yaml 1.1 boolean for an enum": ("loss: {type: mse, kwargs: {reduction: no}}", 1, 39, "loss.kwargs.reduction",
                                     "invalid-value", "`no` is a boolean in YAML 1.1", "none"),
    "yaml 1.1 boolean": ("loss: {type: token_ce, kwargs: {shift: off}}", 1, 40, "loss.kwargs.shift", "invalid-value",
                         "write false", "false"),
    "yaml 1.1 number": ("loss: {type: token_ce, kwargs: {ignore_index: 1_000}}", 1, 47, "loss.kwargs.ignore_index",
                        "invalid-value", "write 1000", "1000"),
    "loss name": ("loss:\n  type: tokn_ce\n", 2, 9, "loss.type", "unknown-loss", "did you mean token_ce?", "token_ce"),
    "bare loss name": ("loss: tokn_ce\n", 1, 7, "loss", "unknown-loss", "did you mean token_ce?", "token_ce"),
    "kwarg for kwargs": ("loss:\n  type: mse\n  kwarg: {}\n", 3, 3, "loss.kwarg", "unknown-key", "did you mean kwargs?",
                         "kwargs"),
    "los for loss": ("los: mse\n", 1, 1, "los", "unknown-key", "did you mean loss?", "loss"),
    "no loss": ("model: {}\n", 1, 1, "loss", "missing-key", "required section is missing", None),
    "no type": ("a: 1\nloss:\n  kwargs: {}\n", 2, 1, "loss.type", "missing-key", "required key is missing", None),
    "typ for type": ("loss: {typ: mse}\n", 1, 8, "loss.typ", "unknown-key", "did you mean type?", "type"),
    "misplaced kwarg": ("loss:\n  type: contrastive\n  temperature: 0.1\n", 3, 3, "loss.temperature", "misplaced-kwarg",
                        "belongs under kwargs", "kwargs: {temperature: ...}"),
    "misplaced and misspelt": ("loss:\n  type: contrastive\n  temprature: 0.1\n", 3, 3, "loss.temprature",
                               "misplaced-kwarg", "did you mean temperature, which belongs under kwargs?",
                               "kwargs: {temperature: ...}"),
    "null loss": ("loss:\n", 1, 6, "loss", "invalid-spec", "got null", None),
    "list for loss": ("loss: [mse]\n", 1, 7, "loss", "invalid-spec", "got list", None),
    "list for the file": ("- loss\n", 1, 1, "", "invalid-value", "expected a mapping with a loss section", None),
    "type is a number": ("loss: {type: 3}\n", 1, 14, "loss.type", "invalid-value", "got 3", None),
    "kwargs is a list": ("loss: {type: mse, kwargs: [1]}\n", 1, 27, "loss.kwargs", "invalid-value", "got list", None),
    "unknown tensor": ("loss: {type: mse, inputs: {prediction: x}}\n", 1, 28, "loss.inputs.prediction",
                       "unknown-tensor",
                       "did you mean predictions?", "predictions"),
    "max_length is missing": ("loss: {type: token_ce, kwargs: {reduction: sequence_sum_norm}}\n", 1, 24,
                              "loss.kwargs.max_length", "missing-kwarg",
                              "required by reduction sequence_sum_norm", None),
    "max_length is unused": ("loss: {type: token_ce, kwargs: {max_length: 5}}\n", 1, 33, "loss.kwargs.max_length",
                             "unused-kwarg", "has no effect with reduction mean", None),
    "nested kwarg": ("loss:\n  type: weighted_sum\n  kwargs:\n    losses:\n      - mse\n      - type: margin_ranking\n"
                     "        kwargs: {margn: 1}\n", 7, 18, "loss.kwargs.losses.1.kwargs.margn", "unknown-kwarg",
                     "did you mean margin?", "margin"),
    "nested name": ("loss: {type: weighted_sum, kwargs: {losses: [mse, tokn_ce]}}", 1, 51, "loss.kwargs.losses.1",
                    "unknown-loss", "did you mean token_ce?", "token_ce"),
    "nested weight": ("loss: {type: weighted_sum, kwargs: {losses: [{type: mse, weight: .inf}]}}", 1, 66,
                      "loss.kwargs.losses.0.weight", "invalid-value", "got inf", None),
    "nested key": ("loss: {type: weighted_sum, kwargs: {losses: [{type: mse, weigth: 1}]}}", 1, 58,
                   "loss.kwargs.losses.0.weigth", "unknown-key", "did you mean weight?", "weight"),
    "loss in a term": ("loss: {type: weighted_sum, kwargs: {losses: [{loss: mse, weight: 1}]}}", 1, 47,
                       "loss.kwargs.losses.0.loss", "unknown-key", "stand in the term itself", None),
    "no terms": ("loss: {type: weighted_sum, kwargs: {losses: []}}", 1, 45, "loss.kwargs.losses", "invalid-value",
                 "at least 1 item", None),
    "losses is missing": ("loss: {type: weighted_sum}", 1, 1, "loss.kwargs.losses", "missing-kwarg",
                          "is missing", None),
    "merged from an anchor": ("a: &a\n  margn: 1\nloss:\n  type: margin_ranking\n  kwargs:\n    <<: *a\n", 2, 3,
                              "loss.kwargs.margn", "unknown-kwarg", "did you mean margin?", "margin"),
    "dotted path": ("loss: {type: 'a.b:c'}", 1, 14, "loss.type", "target-not-allowed", "--allow a.b", None),
    "standard library": ("loss: {type: 'os:system'}", 1, 14, "loss.type", "unsafe-target", "not a loss", None),
    "malformed path": ("loss: {type: 'a.b:c.d'}", 1, 14, "loss.type", "malformed-target", "package.module:name", None),
    "duplicate key": ("loss: mse\nloss: mse\n", 2, 1, "loss", "duplicate-key", "line 1", None),
    "tag": ("loss: !!python/object/apply:os.system [id]\n", 1, 7, "loss", "unknown-tag", "os.system", None),
}  # fmt: skip


@pytest.mark.parametrize("case", TABLE.values(), ids=TABLE.keys())
def test_each_mistake_has_its_place_and_its_fix(case: tuple[str, int, int, str, str, str, str | None]) -> None:
    text, line, column, path, code, message, suggestion = case
    problem = only_problem(text)
    assert (problem.line, problem.column, problem.path, problem.code) == (line, column, path, code)
    assert message in problem.message
    assert problem.suggestion == suggestion


TERMS = "loss:\n  type: weighted_sum\n  kwargs:\n    losses:\n"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (TERMS + "      - tokn_ce\n" * 9_000, "too-many-problems"),
        (TERMS + "      - {type: mse, kwargs: {zzz: 1}}\n" * 2_000, "too-many-problems"),
        (TERMS + "      - {type: mse, weight: x}\n" * 2_000, "too-many-problems"),
        ("loss:\n  type: mse\n  kwargs:\n" + "".join(f"    k{at}: 1\n" for at in range(4_000)), "too-many-problems"),
        ("loss:\n  type: mse\n" + "".join(f"  k{at}: 1\n" for at in range(9_000)), "unknown-key"),
        (TERMS + "      - tokn_ce\n" * 20_000, "too-large"),
    ],
    ids=["names", "kwargs of terms", "weights", "kwargs", "keys", "size"],
)
def test_thousands_of_mistakes_take_no_time(text: str, code: str) -> None:
    started = time.process_time()
    _, problems = read(text)
    assert time.process_time() - started < 2  # one by one they would take minutes
    assert problems[-1].code == code
    assert len(problems) <= 1_000


def test_a_hundred_mistakes_are_shown_and_then_where_reading_stops() -> None:
    _, problems = read(TERMS + "      - tokn_ce\n" * 150)
    assert [problem.code for problem in problems] == ["unknown-loss"] * 100 + ["too-many-problems"]
    assert (problems[100].line, problems[100].path) == (105, "loss.kwargs.losses.100")
    _, again = read(TERMS + "      - tokn_ce\n" * 3)  # the count starts anew with each file
    assert len(again) == 3


@pytest.mark.parametrize("before", [b"", b"\xef\xbb\xbf"], ids=["plain", "with a mark"])
@pytest.mark.parametrize("text", ["a", "\x85", "\u2028", "\x0c\x1c"], ids=["letter", "next line", "separator", "feeds"])
def test_a_caret_stands_under_the_byte_that_is_not_utf_8(text: str, before: bytes) -> None:
    source = before + b"x: 1\nloss: " + text.encode() * 300 + b"\xff"
    _, problems = check_source(source, "x", NOTHING_ALLOWED)
    shown, caret = str(problems[0]).split("\n")[1:]
    assert shown[len(caret) - 1] == "\N{REPLACEMENT CHARACTER}"
    assert len(caret) < 200


def test_losses_nested_too_deep_are_refused() -> None:
    spec: dict[str, Any] = {"type": "mse"}
    for _ in range(400):
        spec = {"type": "weighted_sum", "kwargs": {"losses": [spec]}}
    assert [problem.code for problem in check_spec(spec)] == ["too-deep"]


def test_all_mistakes_are_reported_at_once_in_the_order_of_the_file() -> None:
    _, problems = read(
        "loss:\n  type: token_ce\n  kwargs:\n    shift: 3\n    beta: 1\n    label_smoothing: 2\n  inptus: {}\n"
    )
    assert [(problem.line, problem.path) for problem in problems] == [
        (4, "loss.kwargs.shift"),
        (5, "loss.kwargs.beta"),
        (6, "loss.kwargs.label_smoothing"),
        (7, "loss.inptus"),
    ]


def test_mistakes_of_a_wrong_yaml_and_of_its_loss_are_reported_together() -> None:
    _, problems = read("loss:\n  type: mse\n  type: mse\n  kwargs: {margn: 1}\n")
    assert [problem.code for problem in problems] == ["duplicate-key", "unknown-kwarg"]


def test_the_text_has_the_source_line_and_a_caret_under_the_key() -> None:
    problem = only_problem("loss:\n  type: token_ce\n  kwargs:\n    label_smothing: 0.1\n")
    first, source, caret = str(problem).splitlines()
    assert first.startswith("train.yaml:4:5: loss.kwargs.label_smothing: ")
    assert source.endswith("|     label_smothing: 0.1")
    assert caret[source.index("label_smothing") :] == "^" * len("label_smothing")


def test_a_long_line_is_shown_around_its_mistake() -> None:
    problem = only_problem("x: " + "y" * 500 + "\nloss: {type: mse, kwargs: {" + " " * 400 + "margn: 1}}")
    lines = str(problem).splitlines()
    assert all(len(line) < 250 for line in lines)
    assert lines[1][lines[2].index("^") :].startswith("margn")


def test_load_config_raises_one_error_with_every_mistake(tmp_path: Path) -> None:
    file = tmp_path / "train.yaml"
    file.write_text("loss:\n  type: token_ce\n  kwargs: {a: 1, b: 2}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    assert len(caught.value.config_problems) == 2
    assert str(caught.value).startswith(f"{file}:3:12: ")
    with pytest.raises(FileNotFoundError):
        load_config(tmp_path / "none.yaml")


@pytest.fixture
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module beside the config, which leaves a trace when it is imported."""
    (tmp_path / "stranger_losses.py").write_text(
        "import functools, os\nopen(os.path.join(os.path.dirname(__file__), 'imported'), 'w').close()\n"
        "def mine(outputs, batch, weight: float = 1.0):\n    return weight * outputs['x'].mean()\n"
        "system = os.system\npartial = functools.partial(os.system, 'true')\nclass Thing:\n    pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "stranger_losses", raising=False)
    return "stranger_losses"


def test_a_dotted_path_is_not_imported_unless_allowed(stranger: str, tmp_path: Path) -> None:
    text = f"loss: {{type: '{stranger}:mine', kwargs: {{weight: 2}}}}"
    assert only_problem(text).code == "target-not-allowed"
    assert stranger not in sys.modules
    assert not (tmp_path / "imported").exists()
    config, problems = read(text, Policy(allow=(stranger,)))
    assert problems == []
    assert config is not None
    assert (tmp_path / "imported").exists()
    assert only_problem(text).code == "target-not-allowed"  # allowed once is not allowed for good


@pytest.mark.parametrize("name", ["system", "partial"])
def test_a_re_exported_gadget_is_refused_though_its_module_is_allowed(stranger: str, name: str) -> None:
    text = f"loss: {{type: '{stranger}:{name}'}}"
    assert only_problem(text, Policy(allow=(stranger,))).code == "unsafe-target"
    assert only_problem(text, Policy(allow=(f"{stranger}:{name}",))).code == "unsafe-target"


@pytest.mark.parametrize(
    ("kwargs", "code"),
    [("weigth: 1", "unknown-kwarg"), ("weight: true", "invalid-value"), ("weight: x", "invalid-value")],
)
def test_kwargs_of_a_dotted_function_are_checked_by_its_signature(stranger: str, kwargs: str, code: str) -> None:
    problem = only_problem(f"loss: {{type: '{stranger}:mine', kwargs: {{{kwargs}}}}}", Policy(allow=(stranger,)))
    assert problem.code == code


def test_one_module_may_be_allowed_as_a_string(stranger: str, tmp_path: Path) -> None:
    file = tmp_path / "train.yaml"
    file.write_text(f"loss: '{stranger}:mine'")
    assert load_config(file, allow=stranger).loss.type == f"{stranger}:mine"


def test_a_class_is_not_constructed(stranger: str) -> None:
    assert only_problem(f"loss: '{stranger}:Thing'", Policy(allow=(stranger,))).code == "not-a-loss"


def test_without_imports_only_the_form_of_a_path_is_checked(stranger: str) -> None:
    config, problems = read(f"loss: {{type: '{stranger}:anything', kwargs: {{a: 1}}}}", Policy(imports=False))
    assert problems == []
    assert config is not None
    assert stranger not in sys.modules
    assert only_problem("loss: {type: 'a:b c'}", Policy(imports=False)).code == "malformed-target"


def test_validating_a_registered_loss_imports_neither_torch_nor_other_losses() -> None:
    program = (
        "import sys; from tensafe.config import check_source; from tensafe.training.losses.targets import Policy\n"
        "config, problems = check_source(b'loss: token_ce', 'x', Policy(allow=())); assert config and not problems\n"
        "loaded = [name for name in sys.modules if name.split('.')[0] in {'torch', 'numpy', 'jaxtyping'}]\n"
        "assert loaded == [], loaded[:5]\n"
        "builtin = [name for name in sys.modules if name.startswith('tensafe.training.losses.builtin.')]\n"
        "assert builtin == ['tensafe.training.losses.builtin.token_ce'], builtin\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@given(st.binary(max_size=200))
def test_no_bytes_give_a_traceback(source: bytes) -> None:
    config, problems = check_source(source, "x", NOTHING_ALLOWED)
    assert (config is None) == bool(problems)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(type_=st.sampled_from(["token_ce", "mse", "weighted_sum"]) | PLAIN, kwargs=PLAIN, losses=PLAIN)
def test_no_data_gives_a_traceback(type_: Any, kwargs: Any, losses: Any) -> None:
    import yaml

    if isinstance(kwargs, dict):
        kwargs = {**kwargs, "losses": losses}
    source = yaml.safe_dump({"loss": {"type": type_, "kwargs": kwargs}}, allow_unicode=True).encode()
    config, problems = check_source(source, "x", NOTHING_ALLOWED)
    assert (config is None) == bool(problems)
    assert all(len(str(problem)) < 2000 for problem in problems)

"""The examples run as their pages say: text in, a falling loss, a log and a figure out; mistakes told in a line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema  # type: ignore[import-untyped]
import pytest
import torch
import yaml

from support import SOURCE
from tensafe.config import load_config
from tensafe.training.losses import resolve_loss

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).parent.parent
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
CUSTOM = "train_custom.yaml"
HAS_MATPLOTLIB = find_spec("matplotlib") is not None


@pytest.fixture(autouse=True)
def _from_the_examples_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    monkeypatch.chdir(ROOT)


def run_example(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "COLUMNS": "200"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


def records_of(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text("utf-8").splitlines()]


def series(records: Sequence[dict[str, Any]], key: str) -> list[float]:
    return [record[key] for record in records if key in record]


def edited(tmp_path: Path, *edits: tuple[str, str], config: str = "train_sft.yaml") -> Path:
    text = (ROOT / "configs" / config).read_text("utf-8")
    for old, new in edits:
        assert old in text
        text = text.replace(old, new)
    file = tmp_path / "edited.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def test_sft_lowers_the_loss_and_leaves_a_log_and_a_figure(tmp_path: Path) -> None:
    done = run_example(
        "examples/train_sft.py", "--config", "configs/train_sft.yaml", "--steps", "25", "--out", str(tmp_path / "sft")
    )
    assert done.returncode == 0, done.stderr
    records = records_of(tmp_path / "sft" / "log.jsonl")
    losses = series(records, "loss")
    assert len(losses) == 25
    assert losses[0] == pytest.approx(5.6, abs=0.3)  # ln 256 = 5.55 is a guess among all bytes
    assert losses[-1] < losses[0] - 1
    for key in ("validation_loss", "validation_nats_per_byte"):
        before, *_, after = series(records, key)
        assert after < before - 1
    assert all(record["metrics"]["num_tokens"] > 0 for record in records if "metrics" in record)
    assert "nats per byte" in done.stdout
    assert ("matplotlib is missing" in done.stdout) is not HAS_MATPLOTLIB
    assert (tmp_path / "sft" / "loss.png").exists() is HAS_MATPLOTLIB


def test_the_custom_loss_is_refused_then_allowed_then_trained_with(tmp_path: Path) -> None:
    done = run_example("examples/custom_loss.py", "--steps", "20", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    for part in ("not allowed here", "--allow my_losses", "did you mean entropy_weight?", "got 'pad'", "look swapped"):
        assert part in done.stdout
    records = records_of(tmp_path / "log.jsonl")
    losses = series(records, "loss")
    assert losses[-1] < losses[0] - 1
    assert all(record["metrics"]["entropy"] > 0 for record in records if "metrics" in record)


def test_without_matplotlib_the_run_says_how_to_get_the_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    file = edited(
        tmp_path, ("my_losses:entropy_regularized", "token_ce"), ("    entropy_weight: 0.1\n", ""), config=CUSTOM
    )
    import_module("train_sft").train(file, 1, tmp_path / "out", allow=[])
    assert "pip install 'tensafe[plot]'" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["log.jsonl"]


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.name)
def test_configs_satisfy_the_schema_that_their_first_line_names(file: Path) -> None:
    first, *_ = file.read_text("utf-8").splitlines()
    schema = file.parent / first.removeprefix("# yaml-language-server: $schema=")
    jsonschema.validate(yaml.safe_load(file.read_text("utf-8")), json.loads(schema.read_text("utf-8")))


def test_prompts_and_padding_are_ignored() -> None:
    byte_lm = import_module("byte_lm")
    batch = byte_lm.collate([byte_lm.Sample(b"if\n\n", b"text"), byte_lm.Sample(b"if\n\n", b"a")])
    assert batch["input_ids"].tolist() == [list(b"if\n\ntext"), [*b"if\n\na", 0, 0, 0]]
    ignored = [-100] * 4
    assert batch["labels"].tolist() == [[*ignored, *b"text"], [*ignored, *b"a", -100, -100, -100]]


def test_held_out_topics_are_not_seen_in_training() -> None:
    byte_lm = import_module("byte_lm")
    training, validation = byte_lm.load_samples(context=128, holdout=10)
    assert all(sample.completion and len(sample.prompt + sample.completion) <= 128 for sample in training + validation)
    assert not {sample.prompt for sample in training} & {sample.prompt for sample in validation}
    assert not paragraphs_of(training) & paragraphs_of(validation)


def paragraphs_of(samples: Sequence[Any]) -> set[bytes]:
    topics: dict[bytes, bytes] = {}
    for prompt, completion in samples:
        topics[prompt] = topics.get(prompt, b"") + completion
    return {paragraph for text in topics.values() for paragraph in text.split(b"\n\n")}


WINDOWED: list[tuple[str, dict[str, str]]] = [
    *[
        (loss, {"reduction": reduction})
        for loss in ("token_ce", "my_losses:EntropyRegularized")
        for reduction in ("mean", "sum", "sequence_mean", "sequence_sum")
    ],
    ("my_losses:entropy_regularized", {}),
]


@pytest.mark.parametrize(
    ("loss", "kwargs"), WINDOWED, ids=[" ".join([loss, *kwargs.values()]) for loss, kwargs in WINDOWED]
)
def test_a_window_of_micro_batches_gives_the_gradient_of_one_large_batch(loss: str, kwargs: dict[str, str]) -> None:
    byte_lm, train_sft = import_module("byte_lm"), import_module("train_sft")
    loss_fn = resolve_loss(loss, **kwargs)
    training, _ = byte_lm.load_samples(context=64, holdout=10)
    ragged = sorted(training, key=lambda sample: len(sample.completion))[:2] + training[:3]
    torch.manual_seed(0)
    model = byte_lm.ByteLM(width=16, layers=1, heads=2).double()

    def gradient_of(*micro_batches: Sequence[Any]) -> tuple[float, torch.Tensor]:
        model.zero_grad()
        value, _ = train_sft.accumulate(model, loss_fn, [byte_lm.collate(samples) for samples in micro_batches])
        return value, torch.cat([weight.grad.flatten() for weight in model.parameters()])

    whole, expected = gradient_of(ragged)
    split, gradient = gradient_of(ragged[:2], ragged[2:])
    assert split == pytest.approx(whole)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("num_items", [None, 7], ids=["own count", "count of a window"])
def test_the_function_and_the_class_are_one_loss(num_items: int | None) -> None:
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, 11, (2, 6), generator=generator)
    labels[0, 2:4] = -100
    values: list[torch.Tensor] = []
    gradients: list[torch.Tensor] = []
    for path in ("my_losses:entropy_regularized", "my_losses:EntropyRegularized"):
        logits = torch.randn(2, 6, 11, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        logits.requires_grad_()
        loss_fn = resolve_loss(path, entropy_weight=0.3)
        loss = loss_fn({"logits": logits}, {"labels": labels}, num_items_in_batch=num_items)["loss"]
        values.append(loss)
        gradients += torch.autograd.grad(loss, logits)
    chances = logits.detach()[:, :-1].softmax(-1)
    total, count = 0.0, 0
    for row, position in (labels[:, 1:] != -100).nonzero().tolist():
        chance = chances[row, position]
        total += -chance[labels[row, position + 1]].log().item() + 0.3 * (chance * chance.log()).sum().item()
        count += 1
    reference = total / (num_items or count)
    for value in values:
        assert value.item() == pytest.approx(reference)
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize(
    ("edit", "parts"),
    [
        (("  learning_rate: 3e-3", "  lr: 3e-3"), ["optimizer.lr: unknown key; expected one of learning_rate, "]),
        (("  learning_rate: 3e-3\n", ""), ["optimizer.learning_rate: required key is missing"]),
        (("batch_size: 4", "batch_size: '4'"), ["data.batch_size: ", "integer"]),
        (("holdout: 10", "holdout: 1"), ["data.holdout: ", "greater than or equal to 2"]),
        (("width: 128", "width: 129"), ["model: width must be a multiple of 2 * heads = 8, got 129"]),
        (("betas: [0.9, 0.95]", "betas: [0.9, 1.5]"), ["optimizer.betas.1: ", "less than 1"]),
        (("training:", "trainning:"), ["trainning: unknown key; expected one of model, data, ", "training: required"]),
    ],
    ids=["unknown key", "missing key", "text for a number", "range", "heads", "item of a list", "unknown section"],
)
def test_a_mistake_in_a_section_is_told_with_its_path(tmp_path: Path, edit: tuple[str, str], parts: list[str]) -> None:
    train_sft = import_module("train_sft")
    file = edited(tmp_path, edit)
    with pytest.raises(train_sft.SettingsError) as caught:
        train_sft.read_settings(load_config(file), file)
    for part in [str(file), *parts]:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("edits", "part"),
    [
        ([("clip_norm: 1.0", "clip_norm: 0")], "optimizer.clip_norm: Input should be greater than 0"),
        ([("label_smoothing", "label_smothing")], "did you mean label_smoothing?"),
        ([("reduction: mean", "reduction: none")], "loss.kwargs.reduction: training needs one number"),
        ([("type: token_ce", "type: my_losses:entropy_regularized")], "--allow my_losses"),
    ],
    ids=["section", "kwarg", "unreduced", "not allowed"],
)
def test_the_script_ends_with_the_message_and_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, edits: list[tuple[str, str]], part: str
) -> None:
    arguments = ["train_sft.py", "--config", str(edited(tmp_path, *edits)), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as caught:
        import_module("train_sft").main()
    assert part in str(caught.value)
    assert not (tmp_path / "out").exists()

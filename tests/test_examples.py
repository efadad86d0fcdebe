"""The examples run as their pages say: text in, a falling loss, a log and a figure out; mistakes told in a line."""

from __future__ import annotations

import json
import os
import random
import runpy
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
    from collections.abc import Mapping, Sequence

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


def run_here(monkeypatch: pytest.MonkeyPatch, script: str, *arguments: str) -> None:
    """Run an example as a script, in this process: a fresh one spends most of its time on importing torch."""
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    runpy.run_path(str(ROOT / "examples" / script), run_name="__main__")


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


SMALL = (  # less to learn, and fewer completions of it
    ("longest: 5", "longest: 3"),
    ("prompts: 16", "prompts: 8"),
    ("  steps: 300", "  steps: 120"),
    ("held_out: 200", "held_out: 100"),
    ("learning_rate: 5e-4", "learning_rate: 1e-3"),
)


def test_rlvr_raises_the_reward_and_leaves_a_log_and_a_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = edited(tmp_path, *SMALL, config="train_rlvr.yaml")
    run_here(monkeypatch, "train_rlvr.py", "--config", str(file), "--steps", "12", "--out", str(tmp_path / "rlvr"))
    records = records_of(tmp_path / "rlvr" / "log.jsonl")
    assert len(series(records, "loss")) == len(series(records, "reward")) == 12
    for key in ("greedy_reward", "sampled_reward"):
        before, *_, after = series(records, key)
        assert before < 0.3  # the order of the digits is not in what the warm start is shown
        assert after > before + 0.15
    metrics = [record["metrics"] for record in records if "metrics" in record]
    assert all(values["approx_kl"] > 0 for values in metrics)
    assert any(values["clip_fraction"] > 0 for values in metrics)
    assert "reward, held out, sampled" in capsys.readouterr().out
    assert (tmp_path / "rlvr" / "reward.png").exists() is HAS_MATPLOTLIB


def test_dpo_tells_held_out_pairs_apart_and_leaves_a_log_and_a_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    edits = [
        ("longest: 5", "longest: 3"),
        ("  steps: 300\n  batch", "  steps: 120\n  batch"),
        ("count: 4000", "count: 600"),
        ("learning_rate: 5e-4", "learning_rate: 1e-3"),
    ]
    file = edited(tmp_path, *edits, config="train_dpo.yaml")
    run_here(monkeypatch, "train_dpo.py", "--config", str(file), "--steps", "40", "--out", str(tmp_path / "dpo"))
    records = records_of(tmp_path / "dpo" / "log.jsonl")
    losses = series(records, "loss")
    assert losses[0] == pytest.approx(0.6931, abs=1e-3)  # ln 2: the policy is the reference
    assert losses[-1] < losses[0]
    before, *_, after = series(records, "reward_accuracy")
    assert before == 0.5
    assert after > 0.65
    assert series(records, "sorted")[-1] > series(records, "sorted")[0]
    assert "accuracy, gain over reference" in capsys.readouterr().out
    assert (tmp_path / "dpo" / "accuracy.png").exists() is HAS_MATPLOTLIB


def test_the_custom_loss_is_refused_then_allowed_then_trained_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_here(monkeypatch, "custom_loss.py", "--steps", "20", "--out", str(tmp_path))
    printed = capsys.readouterr().out
    for part in ("not allowed here", "--allow my_losses", "did you mean entropy_weight?", "got 'pad'", "look swapped"):
        assert part in printed
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


WINDOWED: list[tuple[str, dict[str, Any]]] = [
    *[
        (loss, {"reduction": reduction})
        for loss in ("token_ce", "my_losses:EntropyRegularized")
        for reduction in ("mean", "sum", "sequence_mean", "sequence_sum")
    ],
    ("my_losses:entropy_regularized", {}),
    ("weighted_sum", {"losses": ["token_ce", {"type": "token_ce", "kwargs": {"reduction": "sequence_mean"}}]}),
]


@pytest.mark.parametrize(
    ("loss", "kwargs"), WINDOWED, ids=[" ".join([loss, *map(str, kwargs.values())])[:40] for loss, kwargs in WINDOWED]
)
def test_a_window_of_micro_batches_gives_the_gradient_of_one_large_batch(loss: str, kwargs: dict[str, Any]) -> None:
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
    harness, train_sft = import_module("harness"), import_module("train_sft")
    file = edited(tmp_path, edit)
    with pytest.raises(harness.SettingsError) as caught:
        harness.read_settings(train_sft.Settings, load_config(file), file)
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


@pytest.mark.parametrize(
    ("completion", "reward", "disorder"),
    [
        (b"1147\n", 1.0, 0),
        (b"1417\n", 0.0, 1),
        (b"7411\n", 0.0, 5),
        (b"1147", 0.0, 99),
        (b"147\n", 0.0, 99),
        (b"1148\n", 0.0, 99),
        (b"\n1147", 0.0, 99),
        (b"", 0.0, 99),
    ],
    ids=["right", "one pair", "backwards", "no end", "one missing", "other digit", "end first", "empty"],
)
def test_the_checker(completion: bytes, reward: float, disorder: int) -> None:
    sorting = import_module("sorting")
    assert sorting.is_sorted(b" 4171=", completion) == reward
    assert sorting.disorder(b" 4171=", completion) == disorder


def test_what_comes_after_the_first_end_does_not_count() -> None:
    sorting = import_module("sorting")
    rows = [list(b"21=12\n9\n"), list(b"21=1\n\n\n\n"), list(b"21=12121")]
    labels = sorting.labels_of(torch.tensor(rows), 5)
    assert sorting.answers(labels) == [b"12\n", b"1\n", b"12121"]
    assert (labels != -100).tolist() == [[True] * 3 + [False] * 2, [True] * 2 + [False] * 3, [True] * 5]


def test_held_out_numbers_are_not_seen_in_training() -> None:
    sorting = import_module("sorting")
    digits = sorting.Digits(shortest=1, longest=2, held_out=1)
    trained = set(sorting.draw_prompts(random.Random(0), digits, 2000))
    held_out = set(sorting.draw_prompts(random.Random(0), digits, 200, held_out=True))
    assert held_out
    assert not trained & held_out
    assert {len(prompt) for prompt in trained} == {3}


def test_log_probabilities_are_those_of_the_bytes_that_were_sampled() -> None:
    byte_lm, sorting = import_module("byte_lm"), import_module("sorting")
    torch.manual_seed(0)
    model = byte_lm.ByteLM(width=8, layers=1, heads=2).double()
    input_ids = sorting.complete(model, sorting.encode([b" 21=", b"312="]), 3, 1.0, torch.Generator().manual_seed(0))
    scores = sorting.score(model, {"input_ids": input_ids, "labels": sorting.labels_of(input_ids, 3)}, 0.5)
    for row in range(2):
        for position in range(3):
            logits = model(input_ids[row : row + 1, : 4 + position])["logits"][0, -1] / 0.5
            chances = logits.softmax(-1)
            expected = chances[input_ids[row, 4 + position]].log()
            torch.testing.assert_close(scores["logps"][row, position], expected)
            torch.testing.assert_close(scores["entropies"][row, position], -(chances * chances.log()).sum())


TINY = (
    ("shortest: 3", "shortest: 1"),
    ("longest: 5", "longest: 2"),
    ("width: 64", "width: 16"),
    ("layers: 2", "layers: 1"),
    ("  steps: 300\n  batch_size: 64\n  learning_rate: 3e-3", "  steps: 60\n  batch_size: 16\n  learning_rate: 2e-2"),
)
TINY_RLVR = (*TINY, ("prompts: 16", "prompts: 3"), ("group: 16", "group: 4"), ("held_out: 200", "held_out: 10"))
TINY_DPO = (*TINY, ("count: 4000", "count: 60"), ("held_out: 300", "held_out: 20"), ("batch_size: 64", "batch_size: 8"))


def config_with_loss(tmp_path: Path, config: str, edits: Sequence[tuple[str, str]], loss: Mapping[str, Any]) -> Path:
    file = edited(tmp_path, *edits, config=config)
    head, _, rest = file.read_text("utf-8").partition("loss:")
    _, _, sections = rest.partition("\nmodel:")
    file.write_text(f"{head}loss: {json.dumps(loss)}\n\nmodel:{sections}", encoding="utf-8")
    return file


POLICY_LOSSES: list[dict[str, Any]] = [
    {"type": "grpo"},
    {"type": "grpo", "kwargs": {"kl_coef": 0.1}},
    {"type": "dapo"},
    {"type": "dr_grpo", "kwargs": {"max_length": 3}},
    {"type": "gspo"},
    {"type": "cispo"},
    {"type": "sapo"},
    {"type": "ppo"},
    {"type": "reinforce"},
    {"type": "weighted_sum", "kwargs": {"losses": [{"type": "dapo"}, {"type": "kl_penalty", "weight": 0.1}]}},
]


@pytest.mark.parametrize("loss", POLICY_LOSSES, ids=lambda loss: " ".join([loss["type"], *loss.get("kwargs", {})]))
def test_rlvr_takes_any_policy_loss_and_accumulates_to_one_large_batch(tmp_path: Path, loss: dict[str, Any]) -> None:
    harness, train_rlvr = import_module("harness"), import_module("train_rlvr")
    file = config_with_loss(tmp_path, "train_rlvr.yaml", TINY_RLVR, loss)
    config = load_config(file)
    settings = harness.read_settings(train_rlvr.Settings, config, file)
    trainer = train_rlvr.Trainer(settings, harness.make_loss(config, file))
    trainer.policy.double()
    batch = trainer.roll_out()
    batch["advantages"] = torch.linspace(-1, 1, 12, dtype=torch.float64)
    batch["ref_logps"] = batch["ref_logps"].double() - 0.3
    assert len(set(batch["mask"].sum(1).tolist())) > 1  # else a mean of means would do

    def gradient_of(parts: int) -> tuple[float, torch.Tensor]:
        training = settings.training.model_copy(update={"accumulation": parts})
        trainer.settings = settings.model_copy(update={"training": training})
        trainer.policy.zero_grad()
        value, _ = trainer.accumulate(batch, 0)
        return value, torch.cat([weight.grad.flatten() for weight in trainer.policy.parameters()])

    whole, expected = gradient_of(1)
    split, gradient = gradient_of(3)
    assert expected.abs().max() > 0
    assert split == pytest.approx(whole)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("loss", ["dpo", "cdpo", "ipo", "hinge_dpo", "simpo", "cpo", "orpo", "apo_zero", "rpo"])
def test_dpo_takes_any_loss_of_pairs(tmp_path: Path, loss: str) -> None:
    train_dpo = import_module("train_dpo")
    file = config_with_loss(tmp_path, "train_dpo.yaml", TINY_DPO, {"type": loss})
    train_dpo.train(file, 2, tmp_path / "out", allow=[])
    assert len(series(records_of(tmp_path / "out" / "log.jsonl"), "loss")) == 2


@pytest.mark.parametrize(
    ("script", "edits"), [("train_rlvr", TINY_RLVR), ("train_dpo", TINY_DPO)], ids=["train_rlvr", "train_dpo"]
)
def test_a_seed_repeats_a_run_to_the_last_digit(tmp_path: Path, script: str, edits: Sequence[tuple[str, str]]) -> None:
    def run_with(seed: int) -> list[dict[str, Any]]:
        file = edited(tmp_path, *edits, ("seed: 0", f"seed: {seed}"), config=f"{script}.yaml")
        import_module(script).train(file, 3, tmp_path / "out", allow=[])
        records = records_of(tmp_path / "out" / "log.jsonl")
        return [{key: value for key, value in record.items() if not key.endswith("_per_s")} for record in records]

    first = run_with(0)
    torch.rand(3)  # nor does it depend on what came before
    assert run_with(0) == first
    assert run_with(1) != first


def test_a_sum_of_losses_is_divided_term_by_term(tmp_path: Path) -> None:
    train_sft = import_module("train_sft")
    file = edited(tmp_path, ("steps: 150", "steps: 3"), ("start: 0.0", "start: 0.1"), config="train_composite.yaml")
    train_sft.train(file, None, tmp_path / "out", allow=[])
    record = records_of(tmp_path / "out" / "log.jsonl")[1]
    assert record["metrics"]["extras/weight"] == pytest.approx(0.1)
    terms = record["metrics"]["token_ce/loss"] * 2, record["metrics"]["extras/loss"] * 2 * 0.1
    assert record["loss"] == pytest.approx(sum(terms))

"""The real Trainer on a tiny random Llama: the loss and the gradient do not depend on accumulation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from tensafe.config import load_config
from tensafe.integrations.transformers import LossTrainer, _arguments, compute_loss_func
from tensafe.training.losses import LossConfigError, LossInputError, resolve_loss

Row = dict[str, torch.Tensor]
VOCAB = 31


def tiny_model() -> Any:
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCAB, **shape)).double()


def rows(count: int = 8, seq: int = 12) -> list[Row]:
    """Rows with very different numbers of labels; the first label of each is one, though nothing predicts it."""
    generator = torch.Generator().manual_seed(1)
    made: list[Row] = []
    for number in range(count):
        input_ids = torch.randint(0, VOCAB, (seq,), generator=generator)
        labels = input_ids.clone()
        labels[2 + number :] = -100
        made.append({"input_ids": input_ids, "labels": labels})
    return made


def stacked(data: list[Row]) -> Row:
    return {name: torch.stack([row[name] for row in data]) for name in data[0]}


def arguments(out: Path, accumulation: int, batch: int = 8, **rest: Any) -> TrainingArguments:
    plain = {"optim": "sgd", "learning_rate": 1.0, "lr_scheduler_type": "constant", "max_grad_norm": 0.0}
    quiet = {"report_to": [], "disable_tqdm": True, "save_strategy": "no", "use_cpu": True}
    given = {
        "max_steps": 1,
        "logging_steps": 1,
        "train_sampling_strategy": "sequential",
        "remove_unused_columns": False,
        **rest,
    }
    size = {"per_device_train_batch_size": batch // accumulation, "gradient_accumulation_steps": accumulation}
    return TrainingArguments(str(out), **plain, **quiet, **given, **size)


def trained(trainer: Any) -> tuple[float, list[torch.Tensor]]:
    """Take one step of plain SGD; return its loss, and the gradient as the change of the parameters."""
    before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    trainer.train()
    after = [parameter.detach() for parameter in trainer.model.parameters()]
    return trainer.state.log_history[0]["loss"], [old - new for old, new in zip(before, after, strict=True)]


def expected(data: list[Row], loss: Any, **kwargs: Any) -> tuple[float, list[torch.Tensor]]:
    """Compute the loss of all rows at once, without a Trainer."""
    model, batch = tiny_model(), stacked(data)
    value = resolve_loss(loss, **kwargs)(model(input_ids=batch["input_ids"]), batch)["loss"]
    return value.item(), list(torch.autograd.grad(value, list(model.parameters())))


def assert_same(found: tuple[float, list[torch.Tensor]], wanted: tuple[float, list[torch.Tensor]]) -> None:
    assert found[0] == pytest.approx(wanted[0], rel=1e-6)  # the Trainer adds its losses up in float32
    torch.testing.assert_close(found[1], wanted[1], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("accumulation", [1, 8])
def test_the_loss_is_that_of_all_rows_at_once(tmp_path: Path, accumulation: int) -> None:
    data = rows()
    func = compute_loss_func("token_ce", label_smoothing=0.1)
    trainer = Trainer(tiny_model(), arguments(tmp_path, accumulation), train_dataset=data, compute_loss_func=func)
    assert_same(trained(trainer), expected(data, "token_ce", label_smoothing=0.1))


@pytest.mark.parametrize("reduction", ["mean", "sum", "sequence_mean"])
@pytest.mark.parametrize("accumulation", [1, 8])
def test_a_loss_trainer_counts_what_the_loss_counts(tmp_path: Path, accumulation: int, reduction: str) -> None:
    data = rows()
    spec = {"type": "token_ce", "kwargs": {"reduction": reduction, "ignore_index": 3}}
    for row in data:
        row["labels"] = torch.where(row["labels"] == -100, 3, row["labels"])
    trainer = LossTrainer(tiny_model(), arguments(tmp_path, accumulation), train_dataset=data, loss=spec)
    assert_same(trained(trainer), expected(data, spec))


def test_the_trainers_own_mean_of_means_is_another_loss(tmp_path: Path) -> None:
    """What there would be without the count, so that the tests above cannot pass by accident."""
    data, loss_fn = rows(), resolve_loss("token_ce")

    def naive(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        return loss_fn(outputs, {"labels": labels})["loss"] / 8

    trainer = Trainer(tiny_model(), arguments(tmp_path, 8), train_dataset=data, compute_loss_func=naive)
    found, wanted = trained(trainer), expected(data, "token_ce")
    assert abs(found[0] - wanted[0]) > 1e-3
    assert max((a - b).abs().max().item() for a, b in zip(found[1], wanted[1], strict=True)) > 1e-3


@pytest.mark.parametrize("accumulation", [1, 4])
def test_the_trainer_counts_the_labels_that_something_predicts(tmp_path: Path, accumulation: int) -> None:
    data, counts = rows(), []

    def noting(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        counts.append(int(num_items_in_batch))
        zero: torch.Tensor = outputs.logits.sum() * 0
        return zero

    trained(Trainer(tiny_model(), arguments(tmp_path, accumulation), train_dataset=data, compute_loss_func=noting))
    labels = stacked(data)["labels"]
    assert counts == [int((labels[:, 1:] != -100).sum())] * accumulation
    assert counts[0] == int((labels != -100).sum()) - len(data)


def test_a_loss_may_take_more_of_the_batch_than_labels(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(2)
    data = [{**row, "teacher_logits": torch.randn(12, VOCAB, generator=generator).double()} for row in rows()]
    trainer = LossTrainer(tiny_model(), arguments(tmp_path, 4), train_dataset=data, loss="forward_kl")
    assert_same(trained(trainer), expected(data, "forward_kl"))


def test_what_a_model_takes_is_read_below_an_adapter_around_it() -> None:
    class Adapter(torch.nn.Module):
        """As PEFT wraps models."""

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            raise NotImplementedError

        def get_base_model(self) -> Any:
            return tiny_model()

    assert "input_ids" in _arguments(Adapter())
    assert "args" not in _arguments(Adapter())


def test_a_loss_of_labels_alone_says_what_it_misses(tmp_path: Path) -> None:
    func = compute_loss_func("forward_kl")
    trainer = Trainer(tiny_model(), arguments(tmp_path, 1), train_dataset=rows(), compute_loss_func=func)
    with pytest.raises(LossInputError, match="teacher_logits"):
        trainer.train()


def test_metrics_are_in_the_log_read_once_per_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = LossTrainer(
        tiny_model(), arguments(tmp_path, 4, max_steps=4, logging_steps=2), train_dataset=rows(32), loss="token_ce"
    )
    reads: list[dict[str, float]] = []
    real = trainer.loss_func.metrics.read

    def noting() -> dict[str, float]:
        reads.append(real())
        return reads[-1]

    monkeypatch.setattr(trainer.loss_func.metrics, "read", noting)
    trainer.train()
    lines = [line for line in trainer.state.log_history if "loss" in line]
    labels = stacked(rows(32))["labels"][:16, 1:]
    assert [line["step"] for line in lines] == [2, 4]
    assert lines[0]["num_tokens"] == pytest.approx(int((labels != -100).sum()) / 8)  # the mean of 8 micro-batches
    assert len(reads) == 2


def test_an_evaluation_gives_the_loss_and_leaves_the_metrics_of_training_alone(tmp_path: Path) -> None:
    data = rows()
    given = arguments(tmp_path, 1, per_device_eval_batch_size=8)
    trainer = LossTrainer(tiny_model(), given, eval_dataset=data, loss="token_ce")
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected(data, "token_ce")[0], rel=1e-6)
    assert trainer.loss_func.metrics.read() == {}


def test_the_loss_comes_from_a_config(tmp_path: Path) -> None:
    config = load_config(Path(__file__).parents[2] / "configs" / "train_sft.yaml")
    assert compute_loss_func(config.loss).loss.kwargs["label_smoothing"] == 0.1


def blind(outputs: Any, batch: Any) -> torch.Tensor:
    mean: torch.Tensor = outputs["logits"].mean()
    return mean


def counting(outputs: Any, batch: Any, num_items_in_batch: Any = None) -> torch.Tensor:
    share: torch.Tensor = outputs["logits"][:, :-1][batch["labels"][:, 1:] != -100].sum() / num_items_in_batch
    return share


@pytest.mark.parametrize("how", ["func", "trainer"])
def test_a_callable_that_cannot_divide_by_the_count_is_refused(tmp_path: Path, how: str) -> None:
    with pytest.raises(LossConfigError, match="num_items_in_batch"):
        trainer_of(how, tmp_path, blind, 4).train()


@pytest.mark.parametrize("how", ["func", "trainer"])
def test_a_callable_may_divide_by_the_count(tmp_path: Path, how: str) -> None:
    one, four = (trained(trainer_of(how, tmp_path, counting, accumulation)) for accumulation in (1, 4))
    assert_same(four, one)


def trainer_of(how: str, out: Path, loss: Any, accumulation: int) -> Any:
    given = {"args": arguments(out, accumulation), "train_dataset": rows()}
    if how == "trainer":
        return LossTrainer(tiny_model(), **given, loss=loss)
    return Trainer(tiny_model(), **given, compute_loss_func=compute_loss_func(loss))


def test_a_loss_of_the_whole_batch_is_refused_in_parts_only(tmp_path: Path) -> None:
    """It is no sum over rows that a count could divide; of one micro-batch it is what it is."""
    whole = LossTrainer(tiny_model(), arguments(tmp_path, 1), train_dataset=rows(), loss="cosent")
    assert whole.count([{}]) == {}
    with pytest.raises(LossConfigError, match="whole batch"):
        whole.count([{"targets": torch.zeros(2)}, {"targets": torch.zeros(2)}])


@pytest.mark.parametrize(
    ("kwargs", "said"), [({"reduction": "sequence_mean"}, "sequences"), ({"ignore_index": 0}, "-100")]
)
def test_what_the_trainer_does_not_count_is_refused(kwargs: dict[str, Any], said: str) -> None:
    with pytest.raises(LossConfigError, match=said) as error:
        compute_loss_func("token_ce", **kwargs)
    assert error.value.loc == tuple(kwargs)
    assert "LossTrainer" in str(error.value)


def test_a_loss_that_is_no_number_is_refused() -> None:
    with pytest.raises(LossConfigError, match="one number"):
        compute_loss_func("token_ce", reduction="none")


def test_ranks_without_a_common_count_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = arguments(tmp_path, 1, average_tokens_across_devices=False)
    monkeypatch.setattr(type(given), "world_size", 2)
    with pytest.raises(LossConfigError, match="average_tokens_across_devices"):
        LossTrainer(tiny_model(), given, train_dataset=rows(), loss="token_ce")

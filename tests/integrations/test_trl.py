"""TRL's SFTTrainer takes a loss as the Trainer does that it is built on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

pytest.importorskip("trl")

from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

from tensafe.integrations.transformers import compute_loss_func
from tensafe.training.losses import resolve_loss

if TYPE_CHECKING:
    from pathlib import Path

VOCAB = 31
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


def tiny_model() -> Any:
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCAB, pad_token_id=0, **shape)).double()


def tokenizer() -> Any:
    words = {"<pad>": 0, **{f"w{number}": number for number in range(1, VOCAB)}}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="w1")), pad_token="<pad>", eos_token="w1"
    )


def rows() -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(1, VOCAB, (3 + 2 * row,), generator=generator).tolist() for row in range(8)]


@pytest.mark.parametrize("accumulation", [1, 8])
def test_the_loss_is_that_of_all_rows_at_once(tmp_path: Path, accumulation: int) -> None:
    data = rows()
    config = SFTConfig(
        str(tmp_path),
        per_device_train_batch_size=8 // accumulation,
        gradient_accumulation_steps=accumulation,
        max_steps=1,
        logging_steps=1,
        report_to=[],
        disable_tqdm=True,
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        train_sampling_strategy="sequential",
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    func = compute_loss_func("token_ce", label_smoothing=0.1)
    trainer = SFTTrainer(
        tiny_model(),
        config,
        train_dataset=Dataset.from_dict({"input_ids": data}),
        processing_class=tokenizer(),
        compute_loss_func=func,
    )
    trainer.train()
    width = max(map(len, data))
    input_ids = torch.tensor([row + [0] * (width - len(row)) for row in data])
    labels = torch.tensor([row + [-100] * (width - len(row)) for row in data])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in data])
    logits = tiny_model()(input_ids=input_ids, attention_mask=mask).logits
    expected = resolve_loss("token_ce", label_smoothing=0.1)({"logits": logits}, {"labels": labels})["loss"].item()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected, rel=1e-6)

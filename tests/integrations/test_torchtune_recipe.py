"""A recipe of torchtune, as `tune run full_finetune_single_device` runs it, on a tiny model of random weights."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from support import write_modules

pytest.importorskip("torchtune")

import torchtune
from omegaconf import OmegaConf
from torchtune import config, training
from torchtune.models.llama2 import llama2

from tensafe.training.losses import LossConfigError, resolve_loss

if TYPE_CHECKING:
    from torch import Tensor, nn

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")

SHAPE = {"vocab_size": 31, "num_layers": 1, "num_heads": 2, "num_kv_heads": 2, "embed_dim": 16, "max_seq_len": 32}
LEARNING_RATE = 0.5
RECIPE_PARTS = "tensafe.integrations.torchtune"
LOSS = """
_component_: tensafe.integrations.torchtune.RecipeLoss
type: token_ce
kwargs: {label_smoothing: 0.1}
"""
PARTS = """
from types import SimpleNamespace

import torch

def tokenizer():
    return SimpleNamespace(pad_id=0)

def rows(tokenizer, with_prompts=False):
    tokens = [torch.randint(1, 31, (3 + 2 * row,), generator=torch.Generator().manual_seed(row)) for row in range(8)]
    # as many labels: all of them, or none at all in three of the rows
    kept = [3 + 2 * row if with_prompts else max(0, 3 * row - 6) for row in range(8)]
    labels = [torch.where(torch.arange(len(row)) >= len(row) - number, row, -100) for row, number in zip(tokens, kept)]
    return [{"tokens": row.tolist(), "labels": told.tolist()} for row, told in zip(tokens, labels)]
"""


def model() -> nn.Module:
    torch.manual_seed(0)
    built: nn.Module = llama2(**SHAPE)
    return built.double()


def recipe_config(folder: Path, accumulation: int, *, with_prompts: bool) -> Any:
    torch.save(model().state_dict(), folder / "in" / "model.pt")
    return OmegaConf.create(
        {
            "output_dir": str(folder / "out"),
            "model": {"_component_": "torchtune.models.llama2.llama2", **SHAPE},
            "tokenizer": {"_component_": "tiny_parts.tokenizer"},
            "dataset": {"_component_": "tiny_parts.rows", "with_prompts": with_prompts},
            "collate_fn": f"{RECIPE_PARTS}.collate" if with_prompts else "torchtune.data.padded_collate_sft",
            "checkpointer": {
                "_component_": "torchtune.training.FullModelTorchTuneCheckpointer",
                "checkpoint_dir": str(folder / "in"),
                "checkpoint_files": ["model.pt"],
                "output_dir": "${output_dir}",
                "model_type": "LLAMA2",
            },
            "resume_from_checkpoint": False,
            "loss": OmegaConf.create(LOSS),
            "seed": 0,
            "shuffle": False,
            "batch_size": 8 // accumulation,
            "gradient_accumulation_steps": accumulation,
            "epochs": 1,
            "max_steps_per_epoch": None,
            "optimizer": {"_component_": "torch.optim.SGD", "lr": LEARNING_RATE},
            "optimizer_in_bwd": False,
            "compile": False,
            "device": "cpu",
            "dtype": "fp64",
            "metric_logger": {
                "_component_": "torchtune.training.metric_logging.DiskLogger",
                "log_dir": str(folder / "out"),
                "filename": "log.txt",
            },
        }
    )


def recipes() -> Any:
    """Import a script that torchtune installs beside itself, and that its `tune` runs by its path."""
    path = Path(torchtune.__file__).parents[1] / "recipes" / "full_finetune_single_device.py"
    spec = importlib.util.spec_from_file_location("recipe", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def expected_step(*, with_prompts: bool) -> tuple[float, list[Tensor]]:
    """Return the loss of all rows at once, and the parameters after a step against its gradient."""
    names: dict[str, Any] = {}
    exec(PARTS, names)
    rows = names["rows"](None, with_prompts)
    width = max(len(row["tokens"]) for row in rows)
    tokens = torch.tensor([row["tokens"] + [0] * (width - len(row["tokens"])) for row in rows])
    labels = torch.tensor([row["labels"] + [-100] * (width - len(row["labels"])) for row in rows])
    net = model()
    loss = resolve_loss("token_ce", label_smoothing=0.1)({"logits": net(tokens)}, {"labels": labels})["loss"]
    slopes = torch.autograd.grad(loss, list(net.parameters()))
    moved = zip(net.parameters(), slopes, strict=True)
    return loss.item(), [(weight - LEARNING_RATE * slope).detach() for weight, slope in moved]


@pytest.mark.parametrize("with_prompts", [False, True])
@pytest.mark.parametrize("accumulation", [1, 4])
def test_a_step_is_that_of_all_rows_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accumulation: int, *, with_prompts: bool
) -> None:
    write_modules(tmp_path, monkeypatch, {"tiny_parts": PARTS})
    (tmp_path / "in").mkdir()
    cfg = recipe_config(tmp_path, accumulation, with_prompts=with_prompts)
    config.validate(cfg)
    recipe = recipes().FullFinetuneRecipeSingleDevice(cfg=cfg)
    recipe.setup(cfg=cfg)
    recipe.train()
    recipe.cleanup()
    loss, parameters = expected_step(with_prompts=with_prompts)
    logged = (tmp_path / "out" / "log.txt").read_text("utf-8")
    assert float(logged.partition("loss:")[2].split()[0]) == pytest.approx(loss, rel=1e-6)
    # torchtune's models return float32 logits, whatever they compute in
    torch.testing.assert_close(
        [weight.detach() for weight in recipe._model.parameters()], parameters, rtol=0, atol=1e-7
    )


def test_a_mistake_in_the_config_ends_the_recipe_before_it_starts() -> None:
    cfg = OmegaConf.create(LOSS.replace("label_smoothing", "label_smothing"))
    with pytest.raises(LossConfigError, match="label_smothing: unknown argument of token_ce; did you mean"):
        config.instantiate(cfg)


def test_torchtune_compiles_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_COMPILE_BACKEND", "aot_eager")
    loss_fn = config.instantiate(OmegaConf.create(LOSS))
    compiled = training.compile_loss(loss_fn, verbose=False)
    logits, labels = torch.randn(5, 7, generator=torch.Generator().manual_seed(0)), torch.tensor([1, -100, 2, 3, -100])
    torch.testing.assert_close(compiled(logits, labels), loss_fn(logits, labels))
    assert compiled.ignore_index == -100


def test_collate_leaves_labels_alone_that_are_shifted_already() -> None:
    rows = [{"tokens": [5, 6, 7], "labels": [6, 7, -100]}, {"tokens": [5, 6], "labels": [5, 6]}]
    made = config.instantiate(OmegaConf.create({"_component_": f"{RECIPE_PARTS}.collate", "padding_idx": 1}), rows)
    assert made["tokens"].tolist() == [[5, 6, 7], [5, 6, 1]]
    assert made["labels"].tolist() == [[6, 7, -100], [-100, 6, -100]]

"""Preference losses against the functions of TRL, torchtune and Liger: values and gradients, in float64 where they can.

TRL computes the losses of pairs in a method of its trainer, which is called here with just what it reads.
"""

import importlib
import importlib.metadata
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from reference import loss_and_gradients
from tensafe.training.losses import resolve_loss

PAIRS = 6
TOKENS = 9
Record = Callable[[str, object], None]
Peer = Callable[..., Tensor]


def peer(distribution: str, module: str, record: Record) -> ModuleType:
    """Import a module of a peer, or skip; the report says which version."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip(distribution)
        found = importlib.import_module(module)
    record(distribution, importlib.metadata.version(distribution.replace("_", "-")))
    return found


def completions(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the tokens of chosen and then rejected completions, and which tokens count."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, TOKENS, (2 * PAIRS, 1), generator=generator)
    mask = torch.arange(TOKENS) < lengths
    return torch.where(mask, -torch.rand(2 * PAIRS, TOKENS, generator=generator, dtype=dtype) * 3, 0.0), mask


def summed(log_probs: Tensor, mask: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What the losses here take."""
    chosen, rejected = log_probs.sum(1).chunk(2)
    generator = torch.Generator().manual_seed(1)
    ref = [torch.randn(PAIRS, generator=generator, dtype=log_probs.dtype) for _ in range(2)]
    lengths = mask.sum(1).chunk(2)
    outputs = {"chosen_logps": chosen, "rejected_logps": rejected}
    return outputs, {
        "ref_chosen_logps": chosen + ref[0],
        "ref_rejected_logps": rejected + ref[1],
        "chosen_lengths": lengths[0],
        "rejected_lengths": lengths[1],
    }


def compare(name: str, theirs: Peer, dtype: torch.dtype = torch.float64, **kwargs: Any) -> None:
    """Compare the loss of `name` with `theirs(outputs, batch)`, and both gradients."""
    outputs, batch = summed(*completions(dtype))
    loss, gradients = loss_and_gradients(resolve_loss(name, **kwargs), outputs, batch)
    leaves = {key: tensor.clone().requires_grad_() for key, tensor in outputs.items()}
    expected = theirs(leaves, batch)
    torch.autograd.backward(expected)
    rtol, atol = (1e-9, 1e-12) if dtype is torch.float64 else (1e-5, 1e-6)
    torch.testing.assert_close(loss, expected.detach(), rtol=rtol, atol=atol)
    for key, leaf in leaves.items():
        found = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        torch.testing.assert_close(gradients[key], found, rtol=rtol, atol=atol)


# TRL


def trl_dpo(module: ModuleType, loss_type: str | list[str], **settings: Any) -> Peer:
    """Call the method of TRL's trainer on log-probabilities that add up to the given ones."""

    def theirs(outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Tensor:
        log_probs, mask = completions(outputs["chosen_logps"].dtype)
        given = torch.cat([outputs["chosen_logps"], outputs["rejected_logps"]])
        # the leaves are what ours differentiates: spread what they differ by, which is nothing, over the first token
        spread = (given - log_probs.sum(1)).unsqueeze(1)
        log_probs = torch.cat([log_probs[:, :1] + spread, log_probs[:, 1:]], 1)
        zeros = torch.zeros(2 * PAIRS, TOKENS)
        result = SimpleNamespace(
            log_probs=log_probs, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool(), log_sum_sq_probs=zeros
        )

        def model(**_: Any) -> SimpleNamespace:
            return result

        same = SimpleNamespace(device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x)
        trainer = SimpleNamespace(
            **{
                "beta": 0.3,
                "label_smoothing": 0.0,
                "loss_types": [loss_type] if isinstance(loss_type, str) else loss_type,
                "loss_weights": [1.0] if isinstance(loss_type, str) else [1.0] * len(loss_type),
                "f_divergence_type": "reverse_kl",
                "f_alpha_divergence_coef": 0.5,
                **settings,
            },
            model=SimpleNamespace(training=False),
            accelerator=same,
            aux_loss_enabled=False,
            ld_alpha=None,
            precompute_ref_logps=True,
            use_weighting=False,
            _metrics=defaultdict(lambda: defaultdict(list)),
            _total_train_tokens=0,
            _tp_size=1,
        )
        whole = torch.cat([torch.zeros(2 * PAIRS, 1, dtype=torch.int64), mask.long()], 1)
        inputs = {"input_ids": whole, "attention_mask": whole, "completion_mask": whole, **batch}
        loss: Tensor = module.DPOTrainer._compute_loss(trainer, model, inputs, False)
        return loss

    return theirs


@pytest.mark.parametrize(
    ("name", "loss_type", "kwargs", "settings"),
    [
        ("dpo", "sigmoid", {}, {}),
        ("hinge_dpo", "hinge", {}, {}),
        ("ipo", "ipo", {}, {}),
        ("exo", "exo_pair", {"label_smoothing": 0.125}, {"label_smoothing": 0.125}),
        ("nca", "nca_pair", {}, {}),
        ("robust_dpo", "robust", {"label_smoothing": 0.125}, {"label_smoothing": 0.125}),
        ("bco_pair", "bco_pair", {}, {}),
        ("sppo", "sppo_hard", {}, {}),
        ("aot", "aot", {"label_smoothing": 0.125}, {"label_smoothing": 0.125}),
        ("aot_unpaired", "aot_unpaired", {"label_smoothing": 0.125}, {"label_smoothing": 0.125}),
        ("apo_zero", "apo_zero", {}, {}),
        ("apo_down", "apo_down", {}, {}),
        ("sigmoid_norm", "sigmoid_norm", {}, {}),
        ("f_dpo", "sigmoid", {"divergence": "forward_kl"}, {"f_divergence_type": "forward_kl"}),
        ("f_dpo", "sigmoid", {"divergence": "js"}, {"f_divergence_type": "js_divergence"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_trl_pairs(name: str, loss_type: str, kwargs: Any, settings: Any, record_property: Record) -> None:
    module = peer("trl", "trl.trainer.dpo_trainer", record_property)
    dtype = torch.float32 if name == "exo" else torch.float64  # their label smoothing is a float32 tensor
    compare(name, trl_dpo(module, loss_type, **settings), dtype, beta=0.3, **kwargs)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_trl_alpha_divergence(alpha: float, record_property: Record) -> None:
    module = peer("trl", "trl.trainer.dpo_trainer", record_property)
    settings = {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": alpha}
    kwargs = {"divergence": "alpha", "alpha": alpha}
    compare("f_dpo", trl_dpo(module, "sigmoid", **settings), torch.float32, beta=0.3, **kwargs)  # they know no float64


def test_trl_simpo_and_cpo(record_property: Record) -> None:
    module = peer("trl", "trl.experimental.cpo.cpo_trainer", record_property)

    def theirs(loss_type: str, per_token: bool) -> Peer:
        accelerator = SimpleNamespace(device="cpu")
        settings = {"beta": 0.7, "alpha": 0.0, "simpo_gamma": 0.4, "label_smoothing": 0.125}
        trainer = SimpleNamespace(loss_type=loss_type, accelerator=accelerator, **settings)

        def loss(outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Tensor:
            sides = ("chosen", "rejected")
            divisors = [batch[f"{side}_lengths"] if per_token else 1 for side in sides]
            logps = [outputs[f"{side}_logps"] / by for side, by in zip(sides, divisors, strict=True)]
            values: Tensor = module.CPOTrainer.cpo_loss(trainer, *logps)[0]
            return values.mean()

        return loss

    compare("simpo", theirs("simpo", True), beta=0.7, gamma=0.4, label_smoothing=0.125)
    compare("cpo", theirs("sigmoid", False), beta=0.7, alpha=0.0, label_smoothing=0.125)


def test_trl_orpo(record_property: Record) -> None:
    module = peer("trl", "trl.experimental.orpo.orpo_trainer", record_property)
    trainer = SimpleNamespace(beta=0.7, accelerator=SimpleNamespace(device="cpu"))

    def theirs(outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Tensor:
        chosen, rejected = (outputs[f"{side}_logps"] / batch[f"{side}_lengths"] for side in ("chosen", "rejected"))
        ratios: Tensor = module.ORPOTrainer.odds_ratio_loss(trainer, chosen, rejected)[0]
        return -chosen.mean() - ratios.mean()

    compare("orpo", theirs, torch.float32, beta=0.7)  # they compute in float32


def test_trl_rpo_where_the_completions_are_equally_long(record_property: Record) -> None:
    module = peer("trl", "trl.trainer.dpo_trainer", record_property)
    outputs, batch = summed(*completions())
    theirs = trl_dpo(module, ["sigmoid", "sft"])(outputs, batch)
    # they average over all tokens of the batch: give the likelihood that makes ours the same
    nll = (-outputs["chosen_logps"].sum() / batch["chosen_lengths"].sum()).expand(PAIRS)
    loss = resolve_loss("rpo", beta=0.3)(outputs, {**batch, "chosen_nll": nll})["loss"]
    torch.testing.assert_close(loss, theirs)


# torchtune


@pytest.mark.parametrize(
    ("name", "peer_class", "kwargs"),
    [
        ("dpo", "DPOLoss", {"beta": 0.3}),
        ("cdpo", "DPOLoss", {"beta": 0.3, "label_smoothing": 0.125}),
        ("hinge_dpo", "RSOLoss", {"beta": 0.3}),
    ],
)
def test_torchtune(name: str, peer_class: str, kwargs: Any, record_property: Record) -> None:
    module = peer("torchtune", "torchtune.rlhf.loss", record_property)
    renamed = {"gamma" if peer_class == "RSOLoss" else key: value for key, value in kwargs.items()}
    criterion = getattr(module, peer_class)(**renamed)

    def theirs(outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Tensor:
        logps = outputs["chosen_logps"], outputs["rejected_logps"]
        values: Tensor = criterion(*logps, batch["ref_chosen_logps"], batch["ref_rejected_logps"])[0]
        return values.mean()

    compare(name, theirs, **kwargs)


# Liger

TARGET = torch.zeros(2 * PAIRS, 1)


@pytest.mark.parametrize(
    ("name", "loss_type", "label_smoothing"),
    [
        ("dpo", "sigmoid", None),
        ("hinge_dpo", "hinge", None),
        ("exo", "exo_pair", 0.125),
        ("nca", "nca_pair", None),
        ("robust_dpo", "robust", 0.125),
        ("bco_pair", "bco_pair", None),
        ("sppo", "sppo_hard", None),
        ("apo_zero", "apo_zero", None),
        ("apo_down", "apo_down", None),
    ],
)
def test_liger_pairs(name: str, loss_type: str, label_smoothing: float | None, record_property: Record) -> None:
    module = peer("liger_kernel", "liger_kernel.chunked_loss.dpo_loss", record_property)
    smoothing = {} if label_smoothing is None else {"label_smoothing": label_smoothing}

    def theirs(outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Tensor:
        references = {key: batch[key] for key in ("ref_chosen_logps", "ref_rejected_logps")}
        loss: Tensor = module.LigerFusedLinearDPOFunction.preference_loss_fn(
            **outputs, full_target=TARGET, **references, beta=0.3, loss_type=loss_type, **smoothing
        )[0]
        return loss

    compare(name, theirs, torch.float32 if name == "exo" else torch.float64, beta=0.3, **smoothing)


def test_liger_orpo(record_property: Record) -> None:
    module = peer("liger_kernel", "liger_kernel.chunked_loss.orpo_loss", record_property)

    def theirs(outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Tensor:
        chosen, rejected = (outputs[f"{side}_logps"] / batch[f"{side}_lengths"] for side in ("chosen", "rejected"))
        loss: Tensor = module.LigerFusedLinearORPOFunction.preference_loss_fn(chosen, rejected, TARGET, beta=0.7)[0]
        return loss - chosen.mean()

    compare("orpo", theirs, beta=0.7)


def test_liger_simpo_and_cpo(record_property: Record) -> None:
    simpo = peer("liger_kernel", "liger_kernel.chunked_loss.simpo_loss", record_property).LigerFusedLinearSimPOFunction
    cpo = peer("liger_kernel", "liger_kernel.chunked_loss.cpo_loss", record_property).LigerFusedLinearCPOFunction

    def of_means(outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Tensor:
        means = [outputs[f"{side}_logps"] / batch[f"{side}_lengths"] for side in ("chosen", "rejected")]
        loss: Tensor = simpo.preference_loss_fn(*means, TARGET, beta=0.7, gamma=0.4, label_smoothing=0.125)[0]
        return loss

    def of_sums(outputs: Mapping[str, Tensor], _: Mapping[str, Tensor]) -> Tensor:
        loss: Tensor = cpo.preference_loss_fn(**outputs, full_target=TARGET, beta=0.7, label_smoothing=0.125)[0]
        return loss

    compare("simpo", of_means, beta=0.7, gamma=0.4, label_smoothing=0.125)
    compare("cpo", of_sums, beta=0.7, alpha=0.0, label_smoothing=0.125)


@pytest.mark.parametrize("with_kl", [False, True])
def test_liger_kto(with_kl: bool, record_property: Record) -> None:
    module = peer("liger_kernel", "liger_kernel.chunked_loss.kto_loss", record_property)
    outputs, batch = summed(*completions())
    logps, ref_logps = outputs["chosen_logps"], batch["ref_chosen_logps"]
    desirable = torch.tensor([True, False, True, True, False, False])
    mismatched = {"kl_logps": torch.full((PAIRS,), -3.0).double(), "ref_kl_logps": torch.full((PAIRS,), -3.5).double()}
    given = {"ref_logps": ref_logps, "desirable": desirable, **(mismatched if with_kl else {})}
    loss, gradients = loss_and_gradients(resolve_loss("kto", beta=0.3), {"logps": logps}, given)
    leaf = logps.clone().requires_grad_()
    expected = module.LigerFusedLinearKTOFunction.preference_loss_fn(
        leaf, desirable, TARGET[:PAIRS], ref_logps, beta=0.3, kl=torch.tensor(0.5) if with_kl else None
    )[0]
    torch.autograd.backward(expected)
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(gradients["logps"], leaf.grad)

"""What is said here of pairs, logits and metrics holds for every loss of pairs, since the base class does it."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from torch import Tensor

from reference import loss_and_gradients
from references.preference import BAD_BETAS, BETAS, EVEN, MODES, Batch, Pair, batches, check, dpo, each, loss_of
from tensafe.training.losses import LossConfigError, LossInputError, resolve_loss


@pytest.mark.parametrize(
    ("pair", "kwargs", "expected"),
    [
        pytest.param(EVEN, {"beta": 0.5}, math.log1p(math.exp(-1)), id="as it should be"),
        pytest.param(EVEN, {"beta": 1}, math.log1p(math.exp(-2)), id="a larger beta"),
        pytest.param(EVEN, {}, math.log1p(math.exp(-0.2)), id="the usual beta"),
        pytest.param(Pair(-12.0, -10.0, -11.0, -11.0), {"beta": 0.5}, math.log1p(math.e), id="the wrong way"),
        pytest.param(Pair(-1.0, -2.0, -1.0, -2.0), {}, math.log(2), id="at the reference"),
    ],
)
def test_a_loss_by_hand(pair: Pair, kwargs: Any, expected: float) -> None:
    assert loss_of("dpo", pair, **kwargs).item() == pytest.approx(expected, rel=1e-14)


@given(batches(), BETAS, MODES)
def test_it_is_the_formula_and_the_gradient_its_slope(drawn: Batch, beta: float, mode: Any) -> None:
    check("dpo", each(dpo), drawn, mode, beta=beta)


@pytest.mark.parametrize("lead", [1e4, -1e4])
def test_it_is_linear_or_nothing_however_far_apart_the_pair(lead: float) -> None:
    outputs = {"chosen_logps": torch.tensor([min(lead, 0.0)]), "rejected_logps": torch.tensor([-max(lead, 0.0)])}
    loss, gradients = loss_and_gradients(resolve_loss("dpo", beta=1.0, reference_free=True), outputs)
    assert loss == max(-lead, 0)
    assert gradients["chosen_logps"] == (0 if lead > 0 else -1)


# The reference


def test_without_a_reference_it_counts_as_indifferent() -> None:
    pair = Pair(-3.0, -5.0)
    assert loss_of("dpo", pair, reference=False, reference_free=True) == loss_of("dpo", pair)


@pytest.mark.parametrize("name", ["ref_chosen_logps", "ref_rejected_logps"])
def test_a_reference_is_asked_for_unless_there_is_none(name: str) -> None:
    drawn = Batch([EVEN], lengths=False)
    without = {key: tensor for key, tensor in drawn.batch.items() if key != name}
    with pytest.raises(LossInputError, match=rf"^dpo: '{name}' must be given; outputs has "):
        resolve_loss("dpo")(drawn.outputs, without)
    only = {name: drawn.batch[name]}
    with pytest.raises(LossInputError, match=rf"^dpo: '{name}' is given, and reference_free says"):
        resolve_loss("dpo", reference_free=True)(drawn.outputs, only)


# Log-probabilities from logits

REF = {"ref_chosen_logps": torch.tensor([-4.0, -3.0]), "ref_rejected_logps": torch.tensor([-2.0, -6.0])}
LABELS = {
    "chosen_labels": torch.tensor([[-100, -100, 1, 2, -100], [-100, 3, 0, 1, 4]]),
    "rejected_labels": torch.tensor([[-100, -100, 1], [-100, 2, 2]]),
}


def made_logits() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "chosen_logits": torch.randn(2, 5, 6, generator=generator, dtype=torch.float64),
        "rejected_logits": torch.randn(2, 3, 6, generator=generator, dtype=torch.float64),
    }


def summed(logits: Tensor, labels: Tensor) -> Tensor:
    """The log-probability of each completion, position by position."""
    sums: list[Tensor] = []
    for scores, ids in zip(logits, labels.tolist(), strict=True):
        terms = [torch.log_softmax(scores[t], 0)[label] for t, label in enumerate(ids[1:]) if label != -100]
        sums.append(torch.stack([scores.new_zeros(()), *terms]).sum())
    return torch.stack(sums)


def test_logits_and_labels_make_the_log_probabilities() -> None:
    logits = made_logits()
    logps = {
        f"{side}_logps": summed(logits[f"{side}_logits"], LABELS[f"{side}_labels"]) for side in ("chosen", "rejected")
    }
    from_logits = resolve_loss("dpo")(logits, {**LABELS, **REF})
    from_logps = resolve_loss("dpo")(logps, REF)
    torch.testing.assert_close(from_logits["loss"], from_logps["loss"])
    for name, metric in from_logps["metrics"].items():
        assert float(from_logits["metrics"][name]) == pytest.approx(float(metric))


def test_aligned_labels_are_not_shifted() -> None:
    logits = made_logits()
    aligned = {name: torch.nn.functional.pad(labels, (0, 1), value=-100)[:, 1:] for name, labels in LABELS.items()}
    found = resolve_loss("dpo", shift=False)(logits, {**aligned, **REF})["loss"]
    assert found == resolve_loss("dpo")(logits, {**LABELS, **REF})["loss"]
    other = {name: torch.where(labels == -100, 99, labels) for name, labels in LABELS.items()}
    assert found == resolve_loss("dpo", ignore_index=99)(logits, {**other, **REF})["loss"]


@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_a_pair_with_an_empty_completion_has_no_effect(side: str) -> None:
    logits, labels = made_logits(), {name: tensor.clone() for name, tensor in LABELS.items()}
    labels[f"{side}_labels"][0] = -100
    spoilt = {name: tensor.clone() for name, tensor in logits.items()}
    spoilt[f"{side}_logits"][0] = math.nan
    ref = {name: torch.tensor([math.nan, float(tensor[1])]) for name, tensor in REF.items()}
    loss, gradients = loss_and_gradients(resolve_loss("dpo"), spoilt, {**labels, **ref})
    alone = {name: tensor[1:] for name, tensor in {**logits, **LABELS, **REF}.items()}
    torch.testing.assert_close(loss, resolve_loss("dpo")(alone, {})["loss"])
    assert all((gradient[0] == 0).all() for gradient in gradients.values())
    assert resolve_loss("dpo", reduction="none")(spoilt, {**labels, **ref})["loss"][0] == 0


def test_each_side_comes_one_way_only() -> None:
    logits = made_logits()
    logps = {"chosen_logps": torch.tensor([-1.0, -2.0])}
    with pytest.raises(LossInputError, match=r"^dpo: 'chosen_logps' and 'chosen_logits' are both given") as caught:
        resolve_loss("dpo")({**logits, **logps}, {**LABELS, **REF})
    assert caught.value.code == "ambiguous-tensor"
    lengths = {"chosen_lengths": torch.tensor([2, 4]), "rejected_lengths": torch.tensor([1, 2])}
    with pytest.raises(LossInputError, match=r"^ipo: 'chosen_lengths' and 'chosen_logits' are both given"):
        resolve_loss("ipo")(logits, {**LABELS, **REF, **lengths})


@pytest.mark.parametrize(
    ("missing", "part"),
    [
        ("chosen_logits", "'chosen_logps' or 'chosen_logits' must be given"),
        ("rejected_logits", "'rejected_logps' or 'rejected_logits' must be given"),
        ("chosen_labels", "'chosen_labels' must be given"),
    ],
)
def test_what_is_missing_is_named(missing: str, part: str) -> None:
    given_ = {name: tensor for name, tensor in {**made_logits(), **LABELS, **REF}.items() if name != missing}
    with pytest.raises(LossInputError, match=f"^dpo: {part}; "):
        resolve_loss("dpo")(given_, {})


def test_a_label_out_of_range_is_named() -> None:
    labels = {**LABELS, "rejected_labels": torch.tensor([[-100, -100, 6], [-100, 2, -1]])}
    with pytest.raises(LossInputError, match=r"^dpo: 'rejected_labels' must lie in \[0, 6\) .*; 2 of 6 do not"):
        resolve_loss("dpo")(made_logits(), {**labels, **REF})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_logits_are_computed_in_float32(dtype: torch.dtype) -> None:
    logits = {name: tensor.to(dtype) for name, tensor in made_logits().items()}
    wide = {name: tensor.float() for name, tensor in logits.items()}
    ref = {name: tensor.to(dtype) for name, tensor in REF.items()}
    loss, gradients = loss_and_gradients(resolve_loss("dpo"), logits, {**LABELS, **ref})
    torch.testing.assert_close(loss, resolve_loss("dpo")(wide, {**LABELS, **REF})["loss"])
    assert {gradient.dtype for gradient in gradients.values()} == {dtype}


# Metrics


def test_the_metrics_are_the_implicit_rewards() -> None:
    drawn = Batch([EVEN, Pair(-4.0, -2.0, -3.0, -3.0)], lengths=False)
    metrics = resolve_loss("dpo", beta=0.5)(drawn.outputs, drawn.batch)["metrics"]
    assert {name: float(metric) for name, metric in metrics.items()} == pytest.approx(
        {"chosen_reward": 0.0, "rejected_reward": 0.0, "reward_margin": 0.0, "reward_accuracy": 0.5}
    )
    one = Batch([EVEN], lengths=False)
    metrics = resolve_loss("dpo", beta=0.5)(one.outputs, one.batch)["metrics"]
    assert [float(metric) for metric in metrics.values()] == [0.5, -0.5, 1.0, 1.0]


def test_metrics_leave_out_what_does_not_count_and_hold_no_graph() -> None:
    logits = {name: tensor.requires_grad_() for name, tensor in made_logits().items()}
    labels = {**LABELS, "chosen_labels": torch.tensor([[-100] * 5, [-100, 3, 0, 1, 4]])}
    metrics = resolve_loss("dpo")(logits, {**labels, **REF})["metrics"]
    alone = resolve_loss("dpo")({name: tensor[1:] for name, tensor in {**logits, **labels, **REF}.items()}, {})[
        "metrics"
    ]
    for name, metric in metrics.items():
        assert isinstance(metric, Tensor)
        assert not metric.requires_grad
        assert float(metric) == pytest.approx(float(alone[name]))


def test_a_tie_is_not_accurate() -> None:
    drawn = Batch([Pair(-1.0, -2.0, -1.0, -2.0)], lengths=False)
    assert resolve_loss("dpo")(drawn.outputs, drawn.batch)["metrics"]["reward_accuracy"] == 0
    assert resolve_loss("dpo", metrics=False)(drawn.outputs, drawn.batch)["metrics"] == {}


@pytest.mark.parametrize(("kwarg", "value"), [*BAD_BETAS, ("reference_free", 1), ("shift", 0), ("ignore_index", 0.5)])
def test_a_kwarg_out_of_range_is_refused(kwarg: str, value: Any) -> None:
    with pytest.raises(LossConfigError, match=rf"^dpo: {kwarg}: "):
        resolve_loss("dpo", **{kwarg: value})


def test_label_smoothing_is_that_of_other_losses() -> None:
    with pytest.raises(LossConfigError, match=r"label_smoothing is a kwarg of .*cdpo"):
        resolve_loss("dpo", label_smoothing=0.1)  # type: ignore[arg-type]

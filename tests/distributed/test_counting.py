"""What losses count, from batches alone: every built-in with every reduction, and what cannot be counted."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import torch
from torch import Tensor

from tensafe.distributed import count_items, gradient_scale, sum_over_ranks
from tensafe.training.losses import (
    Elements,
    Loss,
    LossConfigError,
    LossInputError,
    TokenLoss,
    resolve_loss,
)
from tensafe.training.losses.nested import innermost
from tensafe.training.losses.registry import builtin_names
from tensafe.training.losses.testing.subject import SIZES, Subject

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

    from tensafe.training.losses.testing.trial import Trial

COUNTS = ("num_items_in_batch", "num_sequences_in_batch")
KNOWN: dict[str, Any] = {"*rows": (4, 5), "*shape": (4,), "*pairs": (4,), "batch": 4, "k": 4}
"""Sizes that a training loop knows, for losses of which the batch has no tensor."""


class Case(NamedTuple):
    """A loss with a reduction."""

    loss: str
    reduction: str

    def trial(self) -> Trial:
        kwargs: dict[str, Any] = {"reduction": self.reduction} if self.reduction else {}
        if self.reduction == "sequence_sum_norm":
            kwargs["max_length"] = 5
        return Subject(self.loss).trial(metrics=False, **kwargs)


CASES = [
    Case(name, mode)
    for name in sorted(builtin_names())
    if name != "cosent"
    for mode in Subject(name).choices("reduction") or ("",)
]
COUNTED = [case for case in CASES if case.reduction not in {"none", "sum"}]


def counts_of(trial: Trial) -> dict[str, Any]:
    return count_items(trial.loss, [trial.batch], sizes=KNOWN)


def scaled(counts: Any, factor: float) -> Any:
    """Return counts multiplied; those of a sum of losses are a list."""
    if isinstance(counts, list):
        return [scaled(each, factor) for each in counts]
    return None if counts is None else counts * factor


def as_numbers(count: Any) -> Any:
    if isinstance(count, list):
        return [as_numbers(each) for each in count]
    return count.tolist() if isinstance(count, Tensor) else count


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_a_batch_counted_by_itself_has_the_loss_that_it_has(case: Case) -> None:
    trial = case.trial()
    counts = counts_of(trial)
    assert bool(counts) == (case.reduction not in {"none", "sum"})
    torch.testing.assert_close(trial.call(**counts)["loss"], trial.call()["loss"], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("case", COUNTED, ids="-".join)
def test_a_count_is_honoured_wherever_and_whatever_it_is(case: Case) -> None:
    trial = case.trial()
    (name, count), *_ = counts_of(trial).items()
    whole, half = trial.call()["loss"], scaled(count, 2)
    in_batch = trial._replace(batch={**trial.batch, name: half})
    for found in (
        trial.call(**{name: half}),
        trial.call(**{name: as_numbers(half)}),
        in_batch.call(),
        in_batch._replace(batch={**trial.batch, name: as_numbers(half)}).call(),
        trial.loss(dict(trial.outputs), SimpleNamespace(**{**trial.batch, name: half})),
    ):
        torch.testing.assert_close(found["loss"], whole / 2, rtol=1e-12, atol=1e-14)
    nothing = scaled(count, 0)
    assert trial.call(**{name: nothing})["loss"] == 0
    torch.testing.assert_close(in_batch.call(**{name: count})["loss"], whole, rtol=1e-12, atol=1e-14)  # the call's wins


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_a_count_that_has_no_effect_is_refused(case: Case) -> None:
    trial = case.trial()
    used = set(counts_of(trial))
    for name in set(COUNTS) - used:
        parts = len(list(innermost(trial.loss)))
        count: Any = [7] * parts if case.loss == "weighted_sum" else 7
        with pytest.raises(LossConfigError, match=f"{name} is the denominator of reduction"):
            trial.call(**{name: count})
        with pytest.raises(LossConfigError, match=f"{name} is the denominator of reduction"):
            trial._replace(batch={**trial.batch, name: count}).call()


def test_windows_add_up() -> None:
    loss_fn = resolve_loss("token_ce")
    batches = [{"labels": torch.tensor([[9, 1, 2, -100]])}, {"labels": torch.tensor([[9, 1]])}, {"labels": [[9, 9]]}]
    counts = count_items(loss_fn, iter(batches))
    assert counts == {"num_items_in_batch": torch.tensor(4.0, dtype=torch.float64)}
    assert counts["num_items_in_batch"].dtype is torch.float64
    assert count_items(loss_fn, []) == {"num_items_in_batch": 0}


@pytest.mark.parametrize(
    ("name", "kwargs", "batch", "expected"),
    [
        ("token_ce", {}, {"shift_labels": [[1, 2, -100]]}, 2),
        ("token_ce", {"shift": False}, {"labels": [[1, 2, -100]]}, 2),
        ("token_ce", {}, {"labels": [1, 2, -100]}, 2),
        ("token_ce", {}, {"labels": [[7, 2, 1]], "token_weights": [[9.0, 0.5, 0.25]]}, 0.75),
        ("token_ce", {}, {"labels": [[7, 2, 1]] * 2, "sample_weights": [0.0, 3.0]}, 6),
        ("token_ce", {"class_weights": [1.0, 2.0, 4.0]}, {"labels": [[0, 2, 1]]}, 6),
        ("token_ce", {"reduction": "sequence_mean"}, {"labels": [[7, 2, 1], [7, -100, -100]]}, 1),
        ("linear_ce", {}, {"labels": [[100_000, 100_001]]}, 1),
        ("mtp", {"weights": [1.0, 0.5]}, {"labels": [[7, 3, 2, 1]]}, [3, 2]),
        ("mtp", {"weights": [1.0, 0.0]}, {"labels": [[7, 3, 2, 1]]}, [3, 0]),
        ("mse", {}, {"targets": torch.zeros(2, 3), "mask": torch.tensor([[True, True, False]] * 2)}, 4),
        ("dpo", {}, {"ref_chosen_logps": [0.0, 0.0], "ref_rejected_logps": [0.0, 0.0]}, 2),
        ("simpo", {}, {"chosen_lengths": [3, 0], "rejected_lengths": [1, 1]}, 1),
        ("orpo", {}, {"chosen_labels": [[1, 2]], "rejected_labels": [[1, -100]]}, 0),
        ("grpo", {"reduction": "mean"}, {"mask": torch.tensor([[True, False]]), "advantages": [1.0]}, 1),
    ],
)
def test_what_counts_by_hand(name: str, kwargs: Any, batch: Any, expected: Any) -> None:
    (count,) = count_items(resolve_loss(name, **kwargs), [batch]).values()
    assert count.tolist() == expected


def test_a_sum_of_losses_has_a_count_for_each_term() -> None:
    terms: list[Any] = [
        {"type": "token_ce"},
        {"type": "token_ce", "kwargs": {"reduction": "sequence_mean"}},
        {"type": "token_ce", "kwargs": {"reduction": "sum"}},
        {"type": "weighted_sum", "kwargs": {"losses": [{"type": "token_ce", "kwargs": {"shift": False}}]}},
    ]
    counts = count_items(resolve_loss("weighted_sum", losses=terms), [{"labels": torch.tensor([[1, 2, 3]])}])
    assert {name: as_numbers(count) for name, count in counts.items()} == {
        "num_items_in_batch": [2, None, None, [3]],
        "num_sequences_in_batch": [None, 1, None, None],
    }


def test_renamed_tensors_are_found() -> None:
    loss_fn = resolve_loss({"type": "token_ce", "inputs": {"labels": "batch.targets", "logits": "outputs.scores"}})
    assert count_items(loss_fn, [{"targets": torch.tensor([[1, 2]])}])["num_items_in_batch"] == 1


def test_what_the_model_gives_can_be_said_where_it_matters() -> None:
    loss_fn = resolve_loss("dpo", reference_free=True)
    batch = {"chosen_labels": torch.tensor([[1, 2], [1, -100]]), "rejected_labels": torch.tensor([[1, 2]] * 2)}
    with pytest.raises(LossInputError, match="depends on whether the model gives chosen_logps") as caught:
        count_items(loss_fn, [batch])
    assert caught.value.code == "ambiguous-count"
    for side, expected in (("logps", 2), ("logits", 1)):
        outputs = [f"chosen_{side}", f"rejected_{side}"]
        assert count_items(loss_fn, [batch], outputs=outputs)["num_items_in_batch"] == expected
    full = {key: torch.tensor([[1, 2]]) for key in batch}
    assert count_items(loss_fn, [full])["num_items_in_batch"] == 1
    with pytest.raises(LossInputError, match="Did you mean 'chosen_logits'"):
        count_items(loss_fn, [batch], outputs=["chosen_logit"])


def test_sizes_that_no_batch_tells_may_be_given() -> None:
    loss_fn = resolve_loss("bradley_terry")
    batches = [{"input_ids": torch.zeros(rows, 3)} for rows in (2, 3)]
    with pytest.raises(LossInputError, match="the count depends on the size of batch, and no tensor") as caught:
        count_items(loss_fn, batches)
    assert caught.value.code == "unknown-size"
    assert count_items(loss_fn, batches, sizes={"batch": 4})["num_items_in_batch"] == 8
    by_batch = count_items(loss_fn, batches, sizes=lambda batch: {"batch": len(batch["input_ids"])})
    assert by_batch["num_items_in_batch"] == 5


class Confident(TokenLoss):
    """Count what the model is not sure of."""

    def compute(self, logps: Float[Tensor, "batch seq"], mask: Bool[Tensor, "batch seq"]) -> Elements:
        return Elements(-logps, mask & (logps < -0.1))


class Branching(TokenLoss):
    """Look at values."""

    def compute(self, logps: Float[Tensor, "batch seq"], mask: Bool[Tensor, "batch seq"]) -> Elements:
        return Elements(-logps if logps.max() > 0 else logps, mask)


class Buffered(TokenLoss):
    """Put values into a tensor that was made first, and weigh them by ones."""

    def compute(self, logits: Float[Tensor, "batch seq vocab"], labels: Int[Tensor, "batch seq"]) -> Elements:
        values = torch.empty_like(logits[..., 0])
        values.copy_(logits.logsumexp(-1))
        return Elements(values, torch.ones_like(values) * (labels != -100))


class Whole(Loss):
    """One number, straight from the base class."""

    def compute(self, logps: Float[Tensor, "batch seq"], mask: Bool[Tensor, "batch seq"]) -> Elements:
        return Elements(-(logps * mask).sum())


MASKED = {"mask": torch.tensor([[True, False, True]])}


def test_a_loss_of_ones_own_is_counted() -> None:
    assert count_items(resolve_loss(Buffered()), [{"labels": torch.tensor([[1, -100]])}]) == {"num_items_in_batch": 1}
    assert count_items(resolve_loss(Whole()), [MASKED, MASKED]) == {"num_items_in_batch": 2}


@pytest.mark.parametrize(
    ("loss", "parts"),
    [
        (Confident(), ("Confident: cannot be counted before the model has returned logps", "depends on their values")),
        (Branching(), ("cannot be counted before the model has returned logps: compute() fails", "sum_over_ranks")),
        (lambda outputs, batch: outputs["logps"].mean(), ("is a plain callable, and does not say", "as a typed loss")),
        ("cosent", ("is one value for a whole batch", "whole step at once")),
    ],
)
def test_what_cannot_be_counted_says_why(loss: Any, parts: tuple[str, ...]) -> None:
    with pytest.raises(LossConfigError) as caught:
        count_items(resolve_loss(loss), [MASKED])
    assert caught.value.code == "not-countable"
    assert all(part in str(caught.value) for part in parts), str(caught.value)


class Both(Loss):
    """Hold another loss, and keep quiet about what it counts."""

    def __call__(self, outputs: Any, batch: Any) -> Any:
        return {"loss": outputs["logps"].sum()}


def test_a_combinator_must_say_how_it_is_counted() -> None:
    with pytest.raises(LossConfigError, match="holds other losses, and does not say what it counts"):
        count_items(resolve_loss(Both()), [MASKED])


@pytest.mark.parametrize(
    ("batch", "part"),
    [
        ({"labels": torch.tensor([[0.5]])}, "token_ce: 'labels' must be int"),
        ({"target": torch.tensor([[1]])}, "'labels' or 'shift_labels' must be given"),
        ({"labels": torch.tensor([[1]]), "token_weights": torch.ones(1, 2)}, "'token_weights' must be num"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused_as_in_a_call(batch: Any, part: str) -> None:
    with pytest.raises(LossInputError) as caught:
        count_items(resolve_loss("token_ce"), [batch])
    assert part in str(caught.value)


def test_one_process_is_a_group_of_one() -> None:
    assert gradient_scale() == 1
    assert sum_over_ranks(torch.tensor(3)) == 3


def test_nothing_is_made_for_the_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids as large as those of a real vocabulary cost nothing: the logits have no memory."""
    labels = torch.full((4, 1024), 2**40)
    for name in ("token_ce", "focal", "mtp", "dft"):
        kwargs = {"weights": [1.0]} if name == "mtp" else {}
        (count,) = count_items(resolve_loss(name, **kwargs), [{"labels": labels}]).values()
        assert count.sum() == 4 * 1023


assert SIZES["batch"] == KNOWN["batch"]

"""Rows that hold several sequences: the loss is that of the sequences, however they are packed."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import Bool, Float
from torch import Tensor

from tensafe.distributed import count_items, segment_ids_from, shifted_labels
from tensafe.training.losses import Elements, LossInputError, LossReturnError, TokenLoss, resolve_loss
from tensafe.training.losses.reduction import Reduction, coefficients, denominator

VOCAB = 5
MODES = ["sum", "mean", "sequence_mean", "sequence_sum", "sequence_sum_norm"]
Lengths = Sequence[Sequence[int]]

lengths = st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=3), min_size=1, max_size=3)
"""Of the sequences in each row."""


def packed(given: Lengths, of_sequence: Callable[[int, int], Tensor], fill: float) -> Tensor:
    """Lay the sequences of each row out one after the other, and fill up to the longest row."""
    number, rows = 0, []
    for row in given:
        parts = [of_sequence(number + place, length) for place, length in enumerate(row)]
        number += len(row)
        rows.append(torch.cat(parts))
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=fill)


def alone(given: Lengths) -> list[list[int]]:
    return [[length] for row in given for length in row]


def drawn(seed: int, number: int, length: int, *more: int) -> Tensor:
    generator = torch.Generator().manual_seed(1000 * seed + number)
    return torch.randn(length, *more, generator=generator, dtype=torch.float64)


def ids(seed: int) -> Callable[[int, int], Tensor]:
    def of_sequence(number: int, length: int) -> Tensor:
        found = (drawn(seed, number, length).abs() * 4).long() % VOCAB
        return torch.where(drawn(seed + 1, number, length) < -1, -100, found)

    return of_sequence


def floats(seed: int, *more: int) -> Callable[[int, int], Tensor]:
    return lambda number, length: drawn(seed, number, length, *more)


def positive(seed: int) -> Callable[[int, int], Tensor]:
    return lambda number, length: drawn(seed, number, length).abs()


def flags(seed: int) -> Callable[[int, int], Tensor]:
    return lambda number, length: drawn(seed, number, length) > -1


TOKENS: dict[str, tuple[Callable[[int, int], Tensor], float]] = {"labels": (ids(5), -100)}
POLICY: dict[str, tuple[Callable[[int, int], Tensor], float]] = {
    "logps": (lambda number, length: -drawn(1, number, length).abs(), 0.0),
    "old_logps": (lambda number, length: -drawn(2, number, length).abs(), 0.0),
    "advantages": (floats(3), 0.0),
    "mask": (flags(4), False),
}
LOGITS = (floats(0, VOCAB), 0.0)
CASES: dict[str, tuple[str, dict[str, Any], Mapping[str, tuple[Callable[[int, int], Tensor], float]]]] = {
    "token_ce": ("token_ce", {}, {"logits": LOGITS, **TOKENS}),
    "weighted": (
        "token_ce",
        {"class_weights": [1.0, 0.5, 0.0, 2.0, 1.5]},
        {"logits": LOGITS, **TOKENS, "token_weights": (positive(6), 0.0)},
    ),
    "mtp": ("mtp", {}, {"logits": (floats(0, 2, VOCAB), 0.0), **TOKENS}),
    "kl": ("forward_kl", {}, {"logits": LOGITS, "teacher_logits": (floats(7, VOCAB), 0.0), **TOKENS}),
    "grpo": ("grpo", {}, POLICY),
    "gspo": ("gspo", {"epsilon_low": 0.9, "epsilon_high": 9.0}, POLICY),
}


def run(case: str, mode: str, given: Lengths, segment_ids: Tensor | None) -> tuple[dict[str, Any], Tensor]:
    """Return the result, and the gradients by sequence, one after the other."""
    name, kwargs, makers = CASES[case]
    batch: dict[str, Tensor] = {key: packed(given, maker, fill) for key, (maker, fill) in makers.items()}
    learnt = next(iter(batch))
    leaf = batch.pop(learnt).requires_grad_()
    more = {"segment_ids": segment_ids} if segment_ids is not None else {}
    length = {"max_length": 4} if mode == "sequence_sum_norm" else {}
    result = resolve_loss(name, reduction=mode, **length, **kwargs)({learnt: leaf}, {**batch, **more})
    (gradient,) = torch.autograd.grad(result["loss"], leaf)
    rows = [gradient[index, : sum(row)].reshape(-1) for index, row in enumerate(given)]
    return dict(result), torch.cat(rows)


@pytest.mark.parametrize("case", CASES)
@given(given_lengths=lengths, mode=st.sampled_from(MODES))
def test_packed_or_alone_a_sequence_is_the_same(case: str, given_lengths: Lengths, mode: str) -> None:
    bounds = segment_ids_from(position_ids=packed(given_lengths, lambda _, length: torch.arange(length), 0))
    together, of_together = run(case, mode, given_lengths, bounds)
    apart, of_apart = run(case, mode, alone(given_lengths), None)
    torch.testing.assert_close(together["loss"], apart["loss"])
    torch.testing.assert_close(of_together, of_apart)
    for name, metric in apart["metrics"].items():
        torch.testing.assert_close(together["metrics"][name], metric)


@given(
    st.lists(st.lists(st.integers(-9, 9), min_size=5, max_size=5), min_size=1, max_size=4),
    st.integers(0, 99),
    st.sampled_from(MODES[2:]),
)
def test_equal_ids_are_one_sequence_wherever_they_are(rows: list[list[int]], seed: int, mode: str) -> None:
    """Each coefficient, from the definition."""
    weights = drawn(seed, 0, len(rows), 5).clamp(min=0)
    reduction = Reduction(mode, 3 if mode == "sequence_sum_norm" else None)
    found = coefficients(weights, reduction, torch.tensor(rows))
    totals: dict[tuple[int, int], float] = {}
    for row, numbers in enumerate(rows):
        for place, number in enumerate(numbers):
            totals[row, number] = totals.get((row, number), 0.0) + weights[row, place].item()
    count = sum(total != 0 for total in totals.values())
    assert denominator(weights, reduction, torch.tensor(rows)) == count
    for row, numbers in enumerate(rows):
        for place, number in enumerate(numbers):
            weight, total = weights[row, place].item(), totals[row, number]
            by = {"sequence_mean": total, "sequence_sum": 1.0, "sequence_sum_norm": 3.0}[mode]
            expected = weight / by / count if weight else 0.0
            assert found[row, place].item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("mode", ["mean", "sequence_mean"])
def test_what_a_loss_will_count_is_known_of_packed_rows(mode: Literal["mean", "sequence_mean"]) -> None:
    rows: Lengths = [[3, 1, 2], [2]]
    bounds = segment_ids_from(position_ids=packed(rows, lambda _, length: torch.arange(length), 0))
    in_rows, by_itself = (
        packed(each, lambda _, length: torch.ones(length).long(), -100) for each in (rows, alone(rows))
    )
    loss_fn = resolve_loss("token_ce", reduction=mode)
    together = count_items(loss_fn, [{"labels": in_rows, "segment_ids": bounds}])
    assert together == count_items(loss_fn, [{"labels": by_itself}])
    assert {name: int(count) for name, count in together.items()} == (
        {"num_items_in_batch": 4} if mode == "mean" else {"num_sequences_in_batch": 3}
    )


def test_a_term_of_a_sum_sees_the_segments_under_another_name() -> None:
    spec = {"type": "token_ce", "inputs": {"segment_ids": "seq_idx"}, "kwargs": {"reduction": "sequence_mean"}}
    loss_fn = resolve_loss({"type": "weighted_sum", "kwargs": {"losses": [spec]}})
    labels = torch.tensor([[1, 2, 3, 4]])
    batch = {"labels": labels, "seq_idx": torch.tensor([[0, 0, 0, 1]])}
    assert loss_fn({"logits": torch.zeros(1, 4, VOCAB)}, batch)["metrics"]["token_ce/num_tokens"] == 2


def test_compiled_it_is_one_graph_that_agrees_with_eager() -> None:
    loss_fn = resolve_loss("token_ce", reduction="sequence_mean")
    logits, labels = drawn(0, 0, 2, 6, VOCAB), torch.randint(0, VOCAB, (2, 6))
    batch = {"labels": labels, "segment_ids": torch.tensor([[0, 0, 0, 1, 1, 1], [4, 4, 2, 2, 2, 2]])}
    compiled = torch.compile(loss_fn, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled({"logits": logits}, batch)["loss"], loss_fn({"logits": logits}, batch)["loss"])


@pytest.mark.parametrize("shape", [(1, 0), (0, 3)])
@pytest.mark.parametrize("mode", ["sequence_mean", "sequence_sum"])
def test_of_no_tokens_there_are_no_sequences(
    shape: tuple[int, int], mode: Literal["sequence_mean", "sequence_sum"]
) -> None:
    batch = {key: torch.zeros(shape, dtype=torch.int64) for key in ("labels", "segment_ids")}
    assert resolve_loss("token_ce", reduction=mode)({"logits": torch.zeros(*shape, VOCAB)}, batch)["loss"] == 0
    outputs = {"logits": torch.zeros(*shape, 2, VOCAB)}
    assert resolve_loss("mtp", reduction=mode)(outputs, batch)["loss"] == 0


# What is refused

PLAIN: dict[str, Any] = {"labels": torch.tensor([[1, 2]])}
OUTPUTS = {"logits": torch.zeros(1, 2, VOCAB)}
TWO = torch.tensor([[0, 1]])


@pytest.mark.parametrize(
    ("key", "cure"),
    [
        ("cu_seqlens", "segment_ids_from makes of cu_seqlens or position_ids"),
        ("cu_seq_lens_q", "segment_ids_from makes of cu_seqlens or position_ids"),
        ("seq_idx", r"inputs: \{segment_ids: seq_idx\}"),
    ],
)
def test_packed_rows_are_not_taken_for_sequences(key: str, cure: str) -> None:
    batch = {**PLAIN, key: TWO}
    with pytest.raises(LossInputError, match=f"'{key}'.*sequence_mean would take each row for one.*{cure}") as error:
        resolve_loss("token_ce", reduction="sequence_mean")(OUTPUTS, batch)
    assert error.value.code == "packed-rows"
    resolve_loss("token_ce")(OUTPUTS, batch)  # a mean over tokens does not ask which sequence they are of
    resolve_loss("token_ce", reduction="sequence_mean")(OUTPUTS, {**batch, key: None})
    with torch.autocast("cpu"), pytest.raises(LossInputError, match=key):
        resolve_loss("token_ce", reduction="sequence_mean")(OUTPUTS, batch)


class Unaware(TokenLoss):
    """A loss of tokens that has never heard of packed rows."""

    def compute(self, logps: Float[Tensor, "batch seq"], mask: Bool[Tensor, "batch seq"]) -> Elements:
        """Return the negative log-probabilities."""
        return Elements(-logps, mask)


class Mistaken(TokenLoss):
    """A loss whose segments do not fit its values."""

    def compute(self, logps: Float[Tensor, "batch seq"]) -> Elements:
        """Return a segment for each row."""
        return Elements(-logps, segment_ids=torch.zeros(len(logps), dtype=torch.int64))


def test_a_loss_of_ones_own_says_so_too() -> None:
    outputs, batch = {"logps": torch.zeros(1, 2)}, {"mask": torch.ones(1, 2, dtype=torch.bool), "segment_ids": TWO}
    with pytest.raises(LossInputError, match=r"let compute\(\) take segment_ids"):
        resolve_loss(Unaware(reduction="sequence_mean"))(outputs, batch)
    with pytest.raises(LossReturnError, match=r"segment_ids must be a tensor of integers, \[1, 2\].*got \[1\]"):
        resolve_loss(Mistaken(reduction="sequence_mean"))(outputs, {})


@pytest.mark.parametrize(
    ("name", "outputs", "batch", "message"),
    [
        ("token_ce", OUTPUTS, {**PLAIN, "sample_weights": torch.ones(1)}, "'sample_weights' are one per row.*token_w"),
        (
            "gspo",
            {"logps": torch.zeros(1, 2)},
            {"mask": torch.ones(1, 2, dtype=torch.bool), "advantages": torch.ones(1)},
            "'advantages' are one per row.*Pass one per token",
        ),
    ],
)
def test_a_number_per_row_is_refused_where_rows_are_packed(
    name: str, outputs: dict[str, Any], batch: dict[str, Any], message: str
) -> None:
    resolve_loss(name)(outputs, batch)
    with pytest.raises(LossInputError, match=f"{name}: {message}"):
        resolve_loss(name)(outputs, {**batch, "segment_ids": TWO})


# Segments from what attention is told


@given(lengths)
def test_positions_and_bounds_tell_the_same(given_lengths: Lengths) -> None:
    flat = [length for row in given_lengths for length in row]
    positions = torch.cat([torch.arange(length) for length in flat]).unsqueeze(0)
    bounds = torch.tensor([0, *flat]).cumsum(0).to(torch.int32)
    expected = torch.arange(len(flat)).repeat_interleave(torch.tensor(flat)).unsqueeze(0)
    assert torch.equal(segment_ids_from(position_ids=positions), expected)
    assert torch.equal(segment_ids_from(cu_seqlens=bounds, like=positions), expected)
    labels = torch.arange(positions.numel()).unsqueeze(0)
    ends = shifted_labels(labels, segment_ids=expected)[0, bounds[1:] - 1]
    assert ends.tolist() == [-100] * len(flat)


def test_what_lies_behind_the_last_sequence_is_none_of_them() -> None:
    assert segment_ids_from(cu_seqlens=torch.tensor([0, 2, 2, 3]), like=torch.zeros(2, 2)).tolist() == [[0, 0], [2, 3]]
    assert segment_ids_from(position_ids=torch.tensor([[3, 4, 0, 1], [0, 0, 0, 0]])).tolist() == [
        [0, 0, 1, 1],
        [0, 1, 2, 3],
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "takes position_ids, or cu_seqlens and like"),
        ({"position_ids": TWO, "cu_seqlens": TWO}, "takes position_ids, or cu_seqlens and like"),
        ({"cu_seqlens": TWO[0]}, "takes position_ids, or cu_seqlens and like"),
        ({"position_ids": torch.zeros(1, 2)}, "'position_ids' must be integers; got float32"),
        ({"position_ids": torch.tensor(0)}, "'position_ids' must have an axis"),
        ({"cu_seqlens": torch.zeros(2), "like": TWO}, "'cu_seqlens' must be integers"),
        ({"cu_seqlens": TWO, "like": TWO}, r"must be \[n \+ 1\].*got \[1, 2\]"),
        ({"cu_seqlens": torch.tensor([1, 2]), "like": TWO}, r"rise from 0 to at most 2.*got \[1, 2\]"),
        ({"cu_seqlens": torch.tensor([0, 2, 1]), "like": TWO}, r"rise from 0 to at most 2.*got \[0, 2, 1\]"),
        ({"cu_seqlens": torch.arange(20), "like": TWO}, r"got \[0, 1, 2, 3, 4, 5, 6, 7, \.\.\.\]"),
    ],
)
def test_what_tells_no_segments_is_refused(arguments: dict[str, Tensor], message: str) -> None:
    with pytest.raises(LossInputError, match=message):
        segment_ids_from(**arguments)

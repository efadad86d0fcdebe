import math
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from reference import loss_and_gradients
from references.distillation import (
    IGNORED,
    Pair,
    check_rows,
    check_slopes,
    common,
    entries,
    pairs,
    reductions,
    resolve,
    rows_of,
    topk,
)
from tensafe.training.losses import LossConfigError, LossInputError, resolve_loss

pytestmark = pytest.mark.usefixtures("path")

TAILS = ["bucket", "drop", "renormalise_teacher", "renormalise_both"]
every_tail = pytest.mark.parametrize("tail", TAILS)


# A uniform student over 4 classes, and a teacher that gives 1/2 and 1/8 to two of them: 3/8 are left, and 1/2.
HAND = {"teacher_ids": torch.tensor([[2, 0]]), "teacher_logps": torch.tensor([[1 / 2, 1 / 8]]).double().log()}
KNOWN = 0.5 * math.log(2) + 0.125 * math.log(1 / 2)
SHARP = [0.25, 1 / 64, 9 / 64]  # squares of 1/2, 1/8 and 3/8, of which the student's are 1/16, 1/16 and 1/4


@pytest.mark.parametrize(
    ("kwargs", "expected"),
    [
        pytest.param({}, KNOWN + 0.375 * math.log(3 / 4), id="bucket"),
        pytest.param({"tail": "drop"}, KNOWN, id="drop"),
        pytest.param({"tail": "renormalise_teacher"}, 0.8 * math.log(3.2) + 0.2 * math.log(0.8), id="teacher"),
        pytest.param({"tail": "renormalise_both"}, 0.8 * math.log(1.6) + 0.2 * math.log(0.4), id="both"),
        pytest.param(
            {"temperature": 0.5},
            sum(
                p / sum(SHARP) * math.log(p / sum(SHARP) / q) for p, q in zip(SHARP, [1 / 6, 1 / 6, 2 / 3], strict=True)
            ),
            id="cold bucket",
        ),
        pytest.param(
            {"tail": "renormalise_teacher", "temperature": 0.5, "scale_tau2": True},
            (16 / 17 * math.log(64 / 17) + 1 / 17 * math.log(4 / 17)) / 4,
            id="cold teacher, times the square",
        ),
    ],
)
def test_a_loss_by_hand(kwargs: Any, expected: float) -> None:
    loss = resolve("topk_kl", **kwargs)({"logits": torch.zeros(1, 4).double()}, HAND)["loss"]
    assert loss.item() == pytest.approx(expected, rel=1e-12)


class Given(NamedTuple):
    """A pair, whose teacher is told of by some of its classes."""

    pair: Pair
    ids: Tensor
    logps: Tensor

    @property
    def batch(self) -> dict[str, Tensor]:
        labels = {} if self.pair.labels is None else {"labels": self.pair.labels}
        return {"teacher_ids": self.ids, "teacher_logps": self.logps, **labels}

    def value(self, at: tuple[int, ...], scores: Any, tail: str, temperature: float, scale_tau2: bool) -> float:
        told = list(zip(self.ids[at].tolist(), self.logps[at].tolist(), strict=True))
        return topk(scores, told, tail, temperature) * (temperature**2 if scale_tau2 else 1)


@st.composite
def givens(draw: st.DrawFn, least: int = 0) -> Given:
    pair = draw(pairs(least=least, bound=5.0))
    return Given(pair, *draw(entries(pair.logits.shape[:-1], pair.logits.shape[-1])))


kwargs_of = st.tuples(common, st.sampled_from(TAILS)).map(lambda both: {**both[0], "tail": both[1]})


@given(givens(), st.booleans(), reductions, kwargs_of)
def test_every_reduction_is_that_of_the_formula(drawn: Given, shift: bool, mode: str, kwargs: Any) -> None:
    pair = drawn.pair
    rows = rows_of(lambda at: drawn.value(at, pair.logits[at].tolist(), **kwargs), pair.counts(shift))
    check_rows("topk_kl", pair.outputs, drawn.batch, rows, mode, {"shift": shift, **kwargs})


@given(givens(least=1), kwargs_of)
def test_the_gradient_is_that_of_the_formula(drawn: Given, kwargs: Any) -> None:
    pair = drawn.pair
    check_slopes(
        "topk_kl",
        pair.outputs,
        drawn.batch,
        lambda at, scores: drawn.value(at, scores, **kwargs),
        pair.counts(),
        kwargs,
    )


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def likeliest(teacher: Tensor, k: int) -> dict[str, Tensor]:
    found = torch.log_softmax(teacher, -1).topk(k, -1)
    return {"teacher_ids": found.indices, "teacher_logps": found.values}


@every_tail
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_all_of_the_vocabulary_is_the_forward_kl(tail: str, temperature: float) -> None:
    student, teacher = random(2, 5, 7)
    for mode in ("mean", "none"):
        kwargs: dict[str, Any] = {"reduction": mode, "temperature": temperature}
        found = loss_and_gradients(resolve("topk_kl", tail=tail, **kwargs), {"logits": student}, likeliest(teacher, 7))
        expected = loss_and_gradients(resolve("forward_kl", **kwargs), {"logits": student}, {"teacher_logits": teacher})
        torch.testing.assert_close(found, expected)


@every_tail
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_what_equals_have_to_learn(tail: str, temperature: float) -> None:
    student = random(5, 20)
    loss, gradients = loss_and_gradients(
        resolve("topk_kl", tail=tail, temperature=temperature, reduction="none"),
        {"logits": student},
        likeliest(student, 3),
    )
    zero = loss.abs().max() < 1e-12
    still = gradients["logits"].abs().max() < 1e-12
    assert (bool(zero), bool(still)) == {
        "bucket": (True, True),
        "drop": (True, False),
        "renormalise_teacher": (False, False),
        "renormalise_both": (True, True),
    }[tail]


def test_dropping_the_tail_rewards_more_than_the_teachers_mass() -> None:
    batch = {"teacher_ids": torch.tensor([[0]]), "teacher_logps": torch.tensor([[0.5]]).log()}
    assert resolve("topk_kl", tail="drop")({"logits": torch.tensor([[9.0, 0.0]])}, batch)["loss"] < 0
    assert resolve("topk_kl", tail="bucket")({"logits": torch.tensor([[9.0, 0.0]])}, batch)["loss"] > 0


@every_tail
@pytest.mark.parametrize("junk", [0, 1, 5, -1, 2**40])
def test_an_entry_that_is_not_there_has_no_effect(tail: str, junk: int) -> None:
    student, batch = random(4, 6), likeliest(random(4, 6, seed=1), 2)
    padded = {
        "teacher_ids": torch.cat([torch.full((4, 1), junk), batch["teacher_ids"]], 1),
        "teacher_logps": torch.nn.functional.pad(batch["teacher_logps"], (1, 0), value=-math.inf),
    }
    for mode in ("mean", "none"):
        loss_fn = resolve("topk_kl", tail=tail, reduction=mode)
        expected = loss_and_gradients(loss_fn, {"logits": student}, batch)
        torch.testing.assert_close(loss_and_gradients(loss_fn, {"logits": student}, padded), expected)


@every_tail
@pytest.mark.parametrize("mode", ["mean", "none"])
@pytest.mark.parametrize("junk", [math.nan, math.inf, -math.inf])
def test_what_does_not_count_may_hold_anything(tail: str, mode: str, junk: float) -> None:
    student, batch = random(2, 3, 6), likeliest(random(2, 3, 6, seed=1), 2)
    labels = torch.tensor([[0, IGNORED, 2], [0, 1, IGNORED]])
    dropped = torch.tensor([[1, 0, 1], [0, 1, 1]]).bool().unsqueeze(-1)
    loss_fn = resolve("topk_kl", tail=tail, reduction=mode)
    expected = loss_and_gradients(loss_fn, {"logits": student}, {**batch, "labels": labels})
    spoilt = {
        "teacher_ids": torch.where(dropped, -7, batch["teacher_ids"]),
        "teacher_logps": torch.where(dropped, junk, batch["teacher_logps"]),
        "labels": labels,
    }
    found = loss_and_gradients(loss_fn, {"logits": torch.where(dropped, junk, student)}, spoilt)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1]["logits"], expected[1]["logits"])
    assert torch.equal((found[1]["logits"] == 0).all(-1, keepdim=True), dropped)


@every_tail
def test_a_position_without_an_entry_teaches_nothing(tail: str) -> None:
    batch = {"teacher_ids": torch.tensor([[-1, -1]]), "teacher_logps": torch.full((1, 2), -math.inf)}
    result = resolve("topk_kl", tail=tail)({"logits": random(1, 6)}, batch)
    assert result["loss"] == 0.0
    assert result["metrics"]["num_tokens"] == 1
    _, gradients = loss_and_gradients(resolve("topk_kl", tail=tail), {"logits": random(1, 6)}, batch)
    assert torch.equal(gradients["logits"], torch.zeros(1, 6).double())


@every_tail
@pytest.mark.parametrize("rounding", [0.0, 1e-3, -1e-3])
def test_classes_that_both_have_masked_are_as_good_as_absent(tail: str, rounding: float) -> None:
    """Also where the given classes are all that is left, and their mass is 1 but for rounding."""
    student = random(3, 4)
    for k, logits in ((2, student), (4, student + rounding)):
        batch = likeliest(random(3, 4, seed=1), k)
        batch["teacher_logps"] = batch["teacher_logps"] + rounding
        loss_fn = resolve("topk_kl", tail=tail)
        expected, inner = loss_and_gradients(loss_fn, {"logits": logits}, batch)
        wide = torch.nn.functional.pad(logits, (0, 3), value=-math.inf)
        found, outer = loss_and_gradients(loss_fn, {"logits": wide}, batch)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(outer["logits"], torch.nn.functional.pad(inner["logits"], (0, 3)))
        assert found.isfinite()


def test_a_given_class_that_the_student_has_masked_makes_it_infinite() -> None:
    logits = torch.tensor([[0.0, 0.0, -math.inf, 0.0]])
    batch = {"teacher_ids": torch.tensor([[2, 0]]), "teacher_logps": torch.tensor([[0.5, 0.25]]).log()}
    assert all(resolve("topk_kl", tail=tail)({"logits": logits}, batch)["loss"] == math.inf for tail in TAILS)


def test_a_rest_that_is_far_below_is_not_lost() -> None:
    """In float32 exp(-200) is 0; the teacher's half of the mass is still 200 nats away."""
    logits = torch.tensor([[200.0, 0.0, 0.0]])
    batch = {"teacher_ids": torch.tensor([[0]]), "teacher_logps": torch.tensor([[0.5]]).log()}
    loss, gradients = loss_and_gradients(resolve("topk_kl"), {"logits": logits}, batch)
    assert loss.item() == pytest.approx(0.5 * math.log(0.5) + 0.5 * (math.log(0.5) + 200 - math.log(2)), rel=1e-6)
    torch.testing.assert_close(gradients["logits"], torch.tensor([[0.5, -0.25, -0.25]]))


@every_tail
def test_the_teacher_gets_no_gradient(tail: str) -> None:
    batch = likeliest(random(3, 4), 2)
    batch["teacher_logps"].requires_grad_()
    logits = random(3, 4).requires_grad_()
    torch.autograd.backward(resolve("topk_kl", tail=tail)({"logits": logits}, batch)["loss"])
    assert batch["teacher_logps"].grad is None


@pytest.mark.parametrize("mode", ["mean", "none"])
@pytest.mark.parametrize("bad", [4, -1])
def test_an_id_out_of_range_is_named(mode: str, bad: int) -> None:
    batch = {"teacher_ids": torch.tensor([[2, bad], [0, 1]]), "teacher_logps": torch.full((2, 2), -1.0)}
    with pytest.raises(LossInputError) as caught:
        resolve("topk_kl", reduction=mode)({"logits": torch.zeros(2, 4, requires_grad=True)}, batch)
    assert "topk_kl: 'teacher_ids' must lie in [0, 4) (vocab=4); 1 of 4 do not." in str(caught.value)


@pytest.mark.parametrize(
    ("kwargs", "parts"),
    [
        ({"tail": "renormalise"}, ("tail", "bucket, drop, renormalise_teacher, renormalise_both")),
        ({"tail": None}, ("tail",)),
        ({"temperature": 0.0}, ("temperature", "a number > 0")),
        ({"k": 5}, ("k", "unknown argument")),
    ],
    ids=str,
)
def test_kwargs_out_of_range_are_refused(kwargs: Any, parts: tuple[str, ...]) -> None:
    with pytest.raises(LossConfigError) as caught:
        resolve_loss("topk_kl", **kwargs)
    assert all(part in str(caught.value) for part in ("topk_kl", *parts))

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from reference import Rows, loss_and_gradients
from references.tokens import (
    LN3,
    Weighted,
    assert_nothing_where_nothing_counts,
    assert_reduced,
    resolve,
    slopes,
    soft_target_ce,
    softmax,
    weighted_tokens,
)
from strategies import tensors
from tensafe.training.losses import LossConfigError, LossInputError

pytestmark = pytest.mark.usefixtures("path")


class Soft(NamedTuple):
    """A batch with targets, of which some are 0."""

    tokens: Weighted
    targets: Tensor

    @property
    def outputs(self) -> dict[str, Tensor]:
        return {"logits": self.tokens.logits}

    @property
    def batch(self) -> dict[str, Tensor]:
        return {**self.tokens.batch, "target_probs": self.targets}

    def rows(self) -> Rows:
        sequences = zip(
            self.tokens.logits.tolist(), self.targets.tolist(), self.tokens.positions(shift=False), strict=True
        )
        return [
            [
                (soft_target_ce(row, q), weight) if weight else (0.0, 0.0)
                for row, q, (_, weight) in zip(*each, strict=True)
            ]
            for each in sequences
        ]


@st.composite
def soft_tokens(draw: st.DrawFn, *, least: int = 0) -> Soft:
    tokens = draw(weighted_tokens(least=least))
    scores = draw(tensors(tuple(tokens.logits.shape)))
    targets = torch.softmax(scores.masked_fill(scores < scores.amax(-1, keepdim=True) - 3, -math.inf), -1)
    return Soft(tokens, targets)


@pytest.mark.parametrize(
    ("logits", "targets", "batch", "kwargs", "expected"),
    [
        pytest.param([[0.0] * 4], [[0.1, 0.2, 0.3, 0.4]], {}, {}, math.log(4), id="uniform"),
        pytest.param([[0.0, LN3]], [[0.5, 0.5]], {}, {}, math.log(4) - LN3 / 2, id="half"),
        pytest.param([[0.0, LN3]], [[0.0, 1.0]], {}, {}, math.log(4 / 3), id="one-hot"),
        pytest.param([[-math.inf, 0.0]], [[0.0, 1.0]], {}, {}, 0.0, id="no chance, no target"),
        pytest.param([[-math.inf, 0.0]], [[0.5, 0.5]], {}, {}, math.inf, id="no chance"),
        pytest.param([[0.0, LN3]], [[2.0, 2.0]], {}, {"renormalise": True}, math.log(4) - LN3 / 2, id="renormalised"),
        pytest.param(
            [[0.0, LN3], [5.0, 0.0]],
            [[3.0, 0.0], [0.0, 0.0]],
            {},
            {"renormalise": True},
            math.log(4),
            id="row of zeros",
        ),
        pytest.param(
            [[0.0, LN3]], [[2.0, 2.0]], {}, {"check_targets": False}, 4 * math.log(4) - 2 * LN3, id="as it is"
        ),
        pytest.param(
            [[0.0, LN3], [0.0, 0.0]], [[1.0, 0.0], [5.0, 0.0]], {"labels": [0, -100]}, {}, math.log(4), id="one ignored"
        ),
        pytest.param(
            [[[0.0, LN3], [0.0, 0.0]]],
            [[[1.0, 0.0], [5.0, 0.0]]],
            {"labels": [[0, -100]]},
            {},
            math.log(4),
            id="no shift",
        ),
        pytest.param(
            [[[0.0, LN3], [0.0, 0.0]]],
            [[[1.0, 0.0], [5.0, 0.0]]],
            {"labels": [[-100, 0]]},
            {"shift": True},
            math.log(4),
            id="shifted",
        ),
        pytest.param(
            [[0.0, LN3], [0.0, 0.0]],
            [[1.0, 0.0], [5.0, 0.0]],
            {"mask": [True, False]},
            {},
            math.log(4),
            id="one masked",
        ),
    ],
)
def test_a_loss_by_hand(logits: Any, targets: Any, batch: Any, kwargs: Any, expected: float) -> None:
    outputs = {"logits": torch.tensor(logits, dtype=torch.float64)}
    given = {name: torch.tensor(value) for name, value in batch.items()}
    given["target_probs"] = torch.tensor(targets, dtype=torch.float64)
    found = resolve("soft_target_ce", **kwargs)(outputs, given)["loss"]
    assert found.item() == pytest.approx(expected, rel=1e-14, abs=1e-15)


@given(soft_tokens())
def test_every_reduction_is_that_of_the_formula(drawn: Soft) -> None:
    assert_reduced(resolve("soft_target_ce"), drawn.outputs, drawn.batch, drawn.rows())


@given(soft_tokens())
def test_the_gradient_is_that_of_the_formula(drawn: Soft) -> None:
    _, gradients = loss_and_gradients(resolve("soft_target_ce", reduction="sum"), drawn.outputs, drawn.batch)
    expected = [
        [
            [weight * slope for slope in slopes(_against(q), row)]
            for row, q, (_, weight) in zip(rows, targets, positions, strict=True)
        ]
        for rows, targets, positions in zip(
            drawn.tokens.logits.tolist(), drawn.targets.tolist(), drawn.tokens.positions(shift=False), strict=True
        )
    ]
    reference = torch.tensor(expected, dtype=torch.float64).reshape(gradients["logits"].shape)
    torch.testing.assert_close(gradients["logits"], reference, rtol=1e-6, atol=1e-8)


def _against(targets: Sequence[float]) -> Any:
    return lambda scores: soft_target_ce(scores, targets)


@given(soft_tokens(least=1))
def test_it_is_torchs_where_all_counts(drawn: Soft) -> None:
    everything = {"target_probs": drawn.targets}
    found = loss_and_gradients(resolve("soft_target_ce"), drawn.outputs, everything)
    leaf = drawn.tokens.logits.clone().requires_grad_()
    expected = F.cross_entropy(leaf.flatten(0, 1), drawn.targets.flatten(0, 1))
    torch.testing.assert_close(found[0], expected.detach())
    torch.testing.assert_close(found[1]["logits"], torch.autograd.grad(expected, leaf)[0])


@given(soft_tokens(least=1))
def test_targets_get_a_gradient_where_they_want_one(drawn: Soft) -> None:
    both = {**drawn.outputs, "target_probs": drawn.targets}
    for kwargs in ({"check_targets": False}, {"renormalise": True}):
        _, gradients = loss_and_gradients(
            resolve("soft_target_ce", reduction="sum", **kwargs), both, drawn.tokens.batch
        )
        q, weights = drawn.targets.clone().requires_grad_(), drawn.tokens.positions(shift=False)
        factors = torch.tensor([[weight for _, weight in row] for row in weights], dtype=torch.float64)
        share = q / q.sum(-1, keepdim=True) if kwargs.get("renormalise") else q
        values = -(share * torch.log_softmax(drawn.tokens.logits, -1)).sum(-1)
        (expected,) = torch.autograd.grad((values * factors.reshape(values.shape)).sum(), q)
        torch.testing.assert_close(gradients["target_probs"], expected)


@given(soft_tokens())
def test_the_least_value_is_the_entropy_of_the_targets(drawn: Soft) -> None:
    own = {**drawn.batch, "target_probs": drawn.tokens.logits.softmax(-1)}
    least = resolve("soft_target_ce", reduction="none")(drawn.outputs, own)["loss"]
    entropy = resolve("entropy", reduction="none", coef=1.0, shift=False)(drawn.outputs, drawn.tokens.batch)["loss"]
    torch.testing.assert_close(least, -entropy, atol=1e-10, rtol=1e-9)
    _, gradients = loss_and_gradients(resolve("soft_target_ce"), drawn.outputs, own)
    assert gradients["logits"].abs().sum() < 1e-12


@given(weighted_tokens())
def test_one_hot_targets_make_it_token_ce(drawn: Weighted) -> None:
    vocab = drawn.logits.shape[-1]
    targets = F.one_hot(drawn.labels.clamp(min=0), vocab).double()
    found = loss_and_gradients(
        resolve("soft_target_ce"), {"logits": drawn.logits}, {**drawn.batch, "target_probs": targets}
    )
    expected = loss_and_gradients(resolve("token_ce", shift=False), {"logits": drawn.logits}, drawn.batch)
    torch.testing.assert_close(found, expected)


def test_what_is_ignored_may_hold_anything() -> None:
    logits = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    batch = {"labels": torch.tensor([[0, -100, 3]] * 2), "target_probs": logits.softmax(-1)}
    assert_nothing_where_nothing_counts("soft_target_ce", {"logits": logits}, batch)


@pytest.mark.parametrize("targets", [[0.2, 0.2], [math.log(0.5), math.log(0.5)], [1.0, 1.0], [0.0, 0.0]], ids=str)
def test_targets_that_do_not_add_up_to_1_are_refused(targets: list[float]) -> None:
    rows = torch.tensor([targets, [0.5, 0.5], targets])
    with pytest.raises(
        LossInputError, match=r"^soft_target_ce: each row of 'target_probs' must add up to 1; 1 of 3 do"
    ):
        resolve("soft_target_ce")(
            {"logits": torch.zeros(3, 2)}, {"target_probs": rows, "labels": torch.tensor([0, 0, -100])}
        )


def test_sixteen_bit_targets_are_near_enough() -> None:
    targets = torch.randn(4, 1000, generator=torch.Generator().manual_seed(0)).softmax(-1).bfloat16()
    result = resolve("soft_target_ce")({"logits": torch.zeros(4, 1000)}, {"target_probs": targets})
    assert result["loss"].item() == pytest.approx(math.log(1000), rel=1e-2)


def test_metrics() -> None:
    batch = {"target_probs": torch.tensor([[0.5, 1.0], [1.0, 0.0]]), "labels": torch.tensor([0, -100])}
    metrics = resolve("soft_target_ce", check_targets=False)({"logits": torch.zeros(2, 2)}, batch)["metrics"]
    assert {name: float(value) for name, value in metrics.items()} == {"num_tokens": 1.0, "target_mass": 1.5}


def test_kwargs_are_booleans() -> None:
    for name in ("renormalise", "check_targets", "shift"):
        with pytest.raises(LossConfigError, match=f"^soft_target_ce: {name}: "):
            resolve("soft_target_ce", **{name: 1})


def test_the_reference_is_right() -> None:
    assert soft_target_ce([0.0, LN3], softmax([0.0, LN3])) == pytest.approx(math.log(4) - 0.75 * LN3)

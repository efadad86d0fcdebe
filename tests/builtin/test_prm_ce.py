import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reference import loss_and_gradients
from references.tokens import LN3, MODES, Weighted, assert_nothing_where_nothing_counts, resolve, weighted_tokens
from tensafe.training.losses import LossConfigError, LossInputError

pytestmark = pytest.mark.usefixtures("path")
STEPS = {"logits": torch.tensor([[[0.0, LN3], [5.0, 0.0], [0.0, LN3], [0.0, 0.0]]])}
VERDICTS = {"labels": torch.tensor([[1, -100, 0, -100]])}


def test_a_loss_by_hand() -> None:
    result = resolve("prm_ce")(STEPS, VERDICTS)
    assert result["loss"].item() == pytest.approx((math.log(4 / 3) + math.log(4)) / 2)
    assert {name: float(value) for name, value in result["metrics"].items()} == {"num_tokens": 2.0, "accuracy": 0.5}


def test_a_verdict_stands_where_its_step_ends() -> None:
    late = {"labels": torch.tensor([[-100, 1, -100, 0]])}
    assert resolve("prm_ce", shift=True)(STEPS, late) == resolve("prm_ce")(STEPS, VERDICTS)


@given(weighted_tokens(), st.sampled_from([*MODES, "none"]), st.booleans(), st.booleans())
def test_it_is_token_ce_without_a_shift(drawn: Weighted, mode: str, shift: bool, full: bool) -> None:
    vocab = drawn.logits.shape[-1]
    kwargs = {"label_smoothing": 0.1, "z_loss": 0.01, "class_weights": [1.0, 2.0, 0.0, 0.5][:vocab]} if full else {}
    outputs = {"logits": drawn.logits}
    found = loss_and_gradients(resolve("prm_ce", reduction=mode, shift=shift, **kwargs), outputs, drawn.batch)
    expected = loss_and_gradients(resolve("token_ce", reduction=mode, shift=shift, **kwargs), outputs, drawn.batch)
    torch.testing.assert_close(found, expected, rtol=0.0, atol=0.0)


def test_what_is_ignored_may_hold_anything() -> None:
    logits = torch.randn(2, 3, 2, generator=torch.Generator().manual_seed(0))
    assert_nothing_where_nothing_counts("prm_ce", {"logits": logits}, {"labels": torch.tensor([[0, -100, 1]] * 2)})


def test_accuracy_is_weighted_as_the_loss_is() -> None:
    weighted = {**VERDICTS, "token_weights": torch.tensor([[3.0, 9.0, 1.0, 9.0]])}
    assert resolve("prm_ce")(STEPS, weighted)["metrics"]["accuracy"] == 0.75
    assert resolve("prm_ce", class_weights=[3, 1])(STEPS, VERDICTS)["metrics"]["accuracy"] == 0.25
    assert resolve("prm_ce", metrics=False)(STEPS, VERDICTS)["metrics"] == {}


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(LossInputError, match=r"^prm_ce: 'labels' must lie in \[0, 2\)"):
        resolve("prm_ce")(STEPS, {"labels": torch.tensor([[2, -100, 0, -100]])})
    with pytest.raises(LossInputError, match=r"^prm_ce: class_weights must hold one number per class, 2; it holds 3"):
        resolve("prm_ce", class_weights=[1, 1, 1])(STEPS, VERDICTS)
    with pytest.raises(LossConfigError, match=r"^prm_ce: overwrite_logits: "):
        resolve("prm_ce", overwrite_logits=True)

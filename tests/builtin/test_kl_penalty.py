import math
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reference import Rows, loss_and_gradients, reduced
from references.policy import MAX_LENGTH, MODES, Sampled, kl, kwargs_of, one_token, sampled
from tensafe.training.losses import LossConfigError, ResolvedLoss, resolve_loss

LN2 = math.log(2)
ESTIMATORS = ("k1", "k2", "k3", "k3+", "abs")


def resolve(estimator: str, **kwargs: Any) -> ResolvedLoss:
    with pytest.warns(UserWarning, match="k1 in a loss") if estimator == "k1" else nullcontext():
        return resolve_loss("kl_penalty", kl_estimator=estimator, **kwargs)


@pytest.mark.parametrize(
    ("difference", "estimator", "value", "slope"),
    [
        pytest.param(LN2, "k1", LN2, 1.0, id="k1"),
        pytest.param(LN2, "k2", LN2**2 / 2, LN2, id="k2"),
        pytest.param(LN2, "k3", LN2 - 0.5, 0.5, id="k3"),
        pytest.param(-LN2, "k3", 1 - LN2, -1.0, id="k3 of a token that has fallen"),
        pytest.param(LN2, "k3+", LN2 - 0.5, LN2, id="k3 with the gradient of k2"),
        pytest.param(-LN2, "abs", LN2, -1.0, id="abs"),
        *(pytest.param(0.0, one, 0.0, float(one == "k1"), id=f"{one} of the same policy") for one in ESTIMATORS),
        pytest.param(-20.0, "k3", math.exp(20) - 21, 1 - math.exp(20), id="at the bound"),
        pytest.param(-30.0, "k3", math.exp(20) - 21, 0.0, id="beyond the bound"),
        pytest.param(-1e4, "k3+", math.exp(20) - 21, -1e4, id="k3+ beyond the bound"),
        pytest.param(1e4, "k3", 1e4 - 1, 1.0, id="there is no bound on the other side"),
        pytest.param(1e-9, "k3", 5e-19, 1e-9, id="next to the same policy"),
    ],
)
def test_a_token_by_hand(difference: float, estimator: str, value: float, slope: float) -> None:
    outputs, batch = one_token(0.0, 0.0, 0.0, ref_logps=-difference)
    loss, gradients = loss_and_gradients(resolve(estimator), outputs, batch)
    assert loss.item() == pytest.approx(value, rel=1e-6)
    assert gradients["logps"].item() == pytest.approx(slope, rel=1e-6)


@given(sampled(), st.sampled_from(MODES), st.sampled_from(ESTIMATORS[1:]))
def test_it_is_the_formula(drawn: Sampled, mode: Any, estimator: str) -> None:
    table = zip(*(getattr(drawn, name).tolist() for name in ("logps", "ref_logps", "mask")), strict=True)
    terms = [[(kl(p - q, estimator), float(m)) for p, q, m in zip(*row, strict=True)] for row in table]
    rows: Rows = [[(value, weight) for (value, _), weight in row] for row in terms]
    loss_fn = resolve(estimator, **kwargs_of("kl_penalty", mode))
    loss, gradients = loss_and_gradients(loss_fn, drawn.outputs, drawn.batch)
    slopes = torch.tensor([[slope * w for (_, slope), w in row] for row in terms]).reshape(drawn.logps.shape)
    if mode == "none":
        expected = torch.tensor([[value * w for value, w in row] for row in rows]).reshape(drawn.logps.shape)
        torch.testing.assert_close(loss, expected.double(), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(gradients["logps"], slopes.double(), rtol=1e-6, atol=1e-6)
    else:
        assert loss.item() == pytest.approx(reduced(rows, mode, max_length=MAX_LENGTH), rel=1e-9, abs=1e-12)
    mean = reduced(rows, "mean")
    assert float(loss_fn(drawn.outputs, drawn.batch)["metrics"]["kl"]) == pytest.approx(mean, rel=1e-9, abs=1e-12)


@given(sampled(), st.sampled_from([math.nan, math.inf, -math.inf, 1e30]), st.sampled_from(ESTIMATORS[1:]))
def test_masked_tokens_have_no_effect(drawn: Sampled, junk: float, estimator: str) -> None:
    loss_fn = resolve(estimator)
    clean, gradients = loss_and_gradients(loss_fn, drawn.outputs, drawn.batch)
    outputs = {"logps": torch.where(drawn.mask, drawn.logps, junk)}
    batch = {**drawn.batch, "ref_logps": torch.where(drawn.mask, drawn.ref_logps, junk)}
    found, spoilt = loss_and_gradients(loss_fn, outputs, batch)
    assert torch.equal(found, clean)
    assert torch.equal(spoilt["logps"], gradients["logps"])


def test_on_average_over_the_policy_each_is_what_its_documentation_says() -> None:
    # every token once, weighted by its probability: averages without noise
    scores = torch.tensor([0.3, -0.8, 1.1], dtype=torch.float64)
    ref = torch.log_softmax(torch.tensor([-0.2, 0.9, 0.4], dtype=torch.float64), 0)
    logits = scores.clone().requires_grad_()
    logps = torch.log_softmax(logits, 0)
    chances = logps.detach().exp()
    (reverse,) = torch.autograd.grad((logps.exp() * (logps - ref)).sum(), logits, retain_graph=True)
    (forward,) = torch.autograd.grad((ref.exp() * (ref - logps)).sum(), logits)
    divergence = float((chances * (logps.detach() - ref)).sum())
    gradients, values = {}, {}
    for estimator in ("k1", "k2", "k3", "k3+"):
        logits = scores.clone().requires_grad_()
        outputs = {"logps": torch.log_softmax(logits, 0).unsqueeze(0)}
        batch = {"ref_logps": ref.unsqueeze(0), "mask": torch.ones(1, 3, dtype=torch.bool)}
        each = resolve(estimator, reduction="none")(outputs, batch)["loss"][0]
        torch.autograd.backward((chances * each).sum())
        values[estimator], gradients[estimator] = float((chances * each.detach()).sum()), logits.grad
    assert [values[name] for name in ("k1", "k3", "k3+")] == pytest.approx([divergence] * 3)
    for name, expected in {"k1": torch.zeros(3).double(), "k2": reverse, "k3": forward, "k3+": reverse}.items():
        torch.testing.assert_close(gradients[name], expected, msg=name)


def test_an_unknown_estimator_is_refused() -> None:
    with pytest.raises(LossConfigError, match=r"^kl_penalty: kl_estimator: "):
        resolve_loss("kl_penalty", kl_estimator="k4")  # type: ignore[arg-type]

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ops.cases import Way, going, gradient_of
from strategies import Tokens, tokens
from tensafe.training.losses.ops.cross_entropy import Formula, cross_entropy, cross_entropy_dot, shift_left

LN2, LN4 = 0.6931471805599453, 1.3862943611198906


@pytest.mark.parametrize("way", ["chunks", "plain", "traced"])
@pytest.mark.parametrize(
    ("formula", "kwargs", "expected"),
    [
        (Formula(), {}, [LN4, 0.0]),
        (Formula(ignore_index=3), {}, [0.0, -100.0]),
        (Formula(label_smoothing=1.0), {}, [LN4, 0.0]),
        (Formula(z_loss=0.5), {}, [LN4 + 0.5 * LN4**2, 0.0]),
        (Formula(softcap=1.0, scale=7.0), {}, [LN4, 0.0]),
        (Formula(), {"class_weight": torch.tensor([1.0, 1.0, 1.0, 2.0])}, [2 * LN4, 0.0]),
        (Formula(), {"token_weight": torch.tensor([-0.5, 1.0])}, [-0.5 * LN4, 0.0]),
        (Formula(), {"token_weight": torch.tensor([0.0, 1.0])}, [0.0, 0.0]),
    ],
)
def test_by_hand(formula: Formula, kwargs: dict[str, torch.Tensor], expected: list[float], way: str) -> None:
    """Logits of zero: every class has a probability of a quarter."""
    labels = torch.tensor([3, -100]) if expected[1] == 0 else torch.tensor([3, 3])
    with going(Way(way)):
        values = cross_entropy(torch.zeros(2, 4), labels, formula, **kwargs)  # type: ignore[arg-type]
    assert values.tolist() == pytest.approx([expected[0], 0.0])


@pytest.mark.parametrize("way", ["chunks", "plain", "traced"])
def test_a_token_weight_gets_a_gradient_and_coefficients_do_not(way: str) -> None:
    logits, labels = torch.zeros(3, 2, requires_grad=True), torch.tensor([0, -100, 1])
    weight = torch.tensor([2.0, 1.0, 0.0], requires_grad=True)
    with going(Way(way)):
        torch.autograd.backward(cross_entropy(logits, labels, token_weight=weight).sum())
        total = cross_entropy_dot(logits, labels, weight)
    assert gradient_of(weight).tolist() == pytest.approx([LN2, 0.0, 0.0])
    assert gradient_of(logits).tolist() == [[-1.0, 1.0], [0.0, 0.0], [0.0, 0.0]]
    with pytest.raises(RuntimeError, match="not have been used in the graph"):
        torch.autograd.grad(total, weight)


@pytest.mark.parametrize("lead", [(), (1,), (0,), (2, 0), (2, 3, 1)], ids=str)
def test_any_number_of_axes(lead: tuple[int, ...]) -> None:
    logits, labels = torch.zeros(*lead, 4, requires_grad=True), torch.zeros(lead, dtype=torch.int64)
    values = cross_entropy(logits, labels)
    total = cross_entropy_dot(logits, labels, torch.ones(lead))
    torch.autograd.backward(total)
    assert values.shape == lead
    assert total.item() == pytest.approx(LN4 * labels.numel())
    assert gradient_of(logits).shape == (*lead, 4)


@given(tokens(), st.integers(-100, 100))
def test_shift_left_moves_every_label_one_position(drawn: Tokens, fill: int) -> None:
    moved = shift_left(drawn.labels, fill)
    assert moved.tolist() == [[*row[1:], fill][: len(row)] for row in drawn.labels.tolist()]

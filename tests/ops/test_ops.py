import importlib
import inspect
import math
import pkgutil
import sys
from types import ModuleType
from typing import Any

import jaxtyping
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import Float
from torch import Tensor

import tensafe.training.losses as losses_package
from reference import cross_entropy as cross_entropy_of_row
from reference import logsumexp
from strategies import Tokens, tensors, tokens
from tensafe.training.losses import ElementLoss, Elements, Loss, get_registered_losses, ops, resolve_loss
from tensafe.training.losses.ops.cross_entropy import cross_entropy, shift_left
from tensafe.training.losses.ops.similarity import info_nce, unit
from tensafe.training.losses.samples import SampleSettings, make_sample

OPS = "tensafe.training.losses.ops"
MODULES = sorted(module.name for module in pkgutil.iter_modules(ops.__path__))


def _load_under_the_hook() -> dict[str, ModuleType]:
    """Import the operations a second time, with every annotation enforced at each call; what others see stays plain."""
    plain = {name: module for name, module in sys.modules.items() if f"{name}.".startswith(f"{OPS}.")}
    try:
        for name in plain:
            del sys.modules[name]
        with jaxtyping.install_import_hook(OPS, "beartype.beartype"):
            return {name: importlib.import_module(f"{OPS}.{name}") for name in MODULES}
    finally:
        sys.modules.update(plain)
        losses_package.ops = ops


@pytest.fixture(scope="module")
def checked() -> dict[str, ModuleType]:
    return _load_under_the_hook()


@pytest.fixture
def losses_use_checked(checked: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, module in checked.items():
        monkeypatch.setitem(sys.modules, f"{OPS}.{name}", module)


# Annotations


ROWS, IDS = torch.zeros(2, 3, 4), torch.zeros(2, 3, dtype=torch.int64)
REFUSED: list[tuple[str, str, tuple[Any, ...], dict[str, Any]]] = [
    ("cross_entropy", "cross_entropy", (ROWS, IDS[:, :2]), {"ignore_index": -100, "label_smoothing": 0.0}),
    ("cross_entropy", "cross_entropy", (ROWS, IDS[0]), {"ignore_index": -100, "label_smoothing": 0.0}),
    ("cross_entropy", "cross_entropy", (ROWS, IDS.float()), {"ignore_index": -100, "label_smoothing": 0.0}),
    ("cross_entropy", "cross_entropy", (ROWS.long(), IDS), {"ignore_index": -100, "label_smoothing": 0.0}),
    ("cross_entropy", "cross_entropy", (ROWS, IDS), {"ignore_index": 0.5, "label_smoothing": 0.0}),
    ("cross_entropy", "shift_left", (torch.tensor(1), -100), {}),
    ("cross_entropy", "shift_left", (ROWS, -100), {}),
    ("similarity", "unit", (torch.tensor(1.0),), {}),
    ("similarity", "unit", (IDS,), {}),
    ("similarity", "info_nce", (torch.zeros(2, 3), 1.0, 0.0), {}),
    ("similarity", "info_nce", (torch.zeros(2, 2, 2), 1.0, 0.0), {}),
    ("similarity", "info_nce", (torch.zeros(2, 2), "1", 0.0), {}),
]


@pytest.mark.parametrize(("module", "name", "arguments", "kwargs"), REFUSED)
def test_what_its_annotations_do_not_allow_is_refused_under_the_hook(
    checked: dict[str, ModuleType], module: str, name: str, arguments: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    with pytest.raises(jaxtyping.TypeCheckError, match=name):
        getattr(checked[module], name)(*arguments, **kwargs)


def test_a_wrong_result_is_refused_under_the_hook(checked: dict[str, ModuleType], monkeypatch: Any) -> None:
    monkeypatch.setattr(torch, "logsumexp", lambda scores, axis: scores)
    with pytest.raises(jaxtyping.TypeCheckError, match="info_nce"):
        checked["similarity"].info_nce(torch.zeros(2, 2), 1.0, 0.0)
    assert info_nce(torch.zeros(2, 2), 1.0, 0.0).shape == (2, 2)


@pytest.mark.parametrize(
    ("module", "name"),
    [(module, name) for module in MODULES for name in importlib.import_module(f"{OPS}.{module}").__all__],
)
def test_every_operation_says_all_it_takes_and_gives(checked: dict[str, ModuleType], module: str, name: str) -> None:
    operation = getattr(checked[module], name)
    assert operation is not getattr(importlib.import_module(f"{OPS}.{module}"), name)
    signature = inspect.signature(operation)
    assert signature.return_annotation is not signature.empty
    assert [p.name for p in signature.parameters.values() if p.annotation is p.empty] == []


def _without_required_kwargs() -> list[str]:
    classes = {
        name: loss
        for name, loss in get_registered_losses().items()
        if isinstance(loss, type) and issubclass(loss, Loss)
    }
    return [name for name in classes if not any(field.is_required() for field in classes[name].model_fields.values())]


@pytest.mark.usefixtures("losses_use_checked")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize("name", _without_required_kwargs())
def test_every_loss_keeps_to_the_annotations_of_what_it_calls(name: str, dtype: str) -> None:
    loss_fn = resolve_loss(name)
    sizes = {"batch": 2, "seq": 3, "vocab": 5, "hidden": 4, "group": 2}
    sample = make_sample(loss_fn, SampleSettings(sizes, dtype=dtype))
    assert loss_fn(sample.outputs, sample.batch)["loss"].isfinite()


@pytest.mark.usefixtures("losses_use_checked")
def test_a_loss_that_calls_an_operation_wrongly_is_caught() -> None:
    class Oblong(ElementLoss):
        def compute(self, embeddings: Float[Tensor, "batch hidden"]) -> Elements:
            from tensafe.training.losses.ops.similarity import info_nce

            return Elements(info_nce(embeddings, 1.0, 0.0))

    square, oblong = {"embeddings": torch.zeros(2, 2)}, {"embeddings": torch.zeros(2, 3)}
    assert resolve_loss(Oblong)(square, {})["loss"].item() == pytest.approx(math.log(2))
    with pytest.raises(jaxtyping.TypeCheckError, match="info_nce"):
        resolve_loss(Oblong)(oblong, {})


# Values


@given(tokens(least=1), st.sampled_from([0.0, 0.2, 1.0]))
def test_cross_entropy_of_a_row(drawn: Tokens, smoothing: float) -> None:
    values, counts = cross_entropy(drawn.logits, drawn.labels, ignore_index=-100, label_smoothing=smoothing)
    assert torch.equal(counts, drawn.labels != -100)
    for row, label, value in zip(
        drawn.logits.flatten(0, 1).tolist(), drawn.labels.flatten().tolist(), values.flatten().tolist(), strict=True
    ):
        expected = 0.0 if label == -100 else cross_entropy_of_row(row, label, smoothing)
        assert value == pytest.approx(expected, rel=1e-10, abs=1e-12)


@given(tokens(), st.integers(-100, 100))
def test_shift_left_moves_every_label_one_position(drawn: Tokens, fill: int) -> None:
    moved = shift_left(drawn.labels, fill)
    assert moved.tolist() == [[*row[1:], fill][: len(row)] for row in drawn.labels.tolist()]


@given(tensors((3, 4)))
def test_unit_rows_have_length_1_and_their_direction(rows: Tensor) -> None:
    scaled = unit(rows)
    for row, result in zip(rows.tolist(), scaled.tolist(), strict=True):
        length = math.hypot(*row)
        expected = [number / length for number in row] if length else row
        assert result == pytest.approx(expected, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", ["tiny", "max"])
def test_unit_is_exact_to_the_ends_of_the_range(scale: str, dtype: torch.dtype) -> None:
    rows = torch.tensor([[0.5, 0.25], [-0.5, 0.0]], dtype=dtype) * getattr(torch.finfo(dtype), scale)
    rows = 4 * rows if scale == "tiny" else rows
    torch.testing.assert_close(unit(rows).norm(dim=1), torch.ones(2, dtype=dtype))


def test_unit_of_zero_is_zero_with_the_gradient_of_the_identity() -> None:
    rows = torch.zeros(2, 3, requires_grad=True)
    scaled = unit(rows)
    torch.autograd.backward(scaled, torch.ones(2, 3))
    assert torch.equal(scaled, torch.zeros(2, 3))
    assert rows.grad is not None
    assert torch.equal(rows.grad, torch.ones(2, 3))


@given(tensors((3, 3)), st.floats(0.1, 10), st.floats(0, 2))
def test_info_nce_is_the_cross_entropy_of_the_diagonal(similarity: Tensor, temperature: float, margin: float) -> None:
    values = info_nce(similarity, temperature, margin).tolist()
    for index, (row, value) in enumerate(zip(similarity.tolist(), values, strict=True)):
        scores = [(score - margin * (column == index)) / temperature for column, score in enumerate(row)]
        assert value == pytest.approx(logsumexp(scores) - scores[index], rel=1e-10, abs=1e-10)

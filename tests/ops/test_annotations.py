"""Every operation under the import hook of jaxtyping, which holds it to its annotations."""

from __future__ import annotations

import importlib
import inspect
import math
import pkgutil
from functools import partial
from typing import TYPE_CHECKING, Any

import jaxtyping
import pytest
import torch
from jaxtyping import Float  # annotations of a loss are read
from torch import Tensor

from ops.cases import EXAMPLES
from tensafe.training.losses import ElementLoss, Elements, Loss, get_registered_losses, ops, resolve_loss
from tensafe.training.losses.samples import SampleSettings, make_sample

if TYPE_CHECKING:
    from types import ModuleType

MODULES = sorted(module.name for module in pkgutil.iter_modules(ops.__path__))
PUBLIC = [
    (module.__name__.rpartition(".")[2], name)
    for module in (importlib.import_module(f"{ops.__name__}.{module}") for module in MODULES)
    for name in module.__all__
    if inspect.isfunction(getattr(module, name)) or inspect.isclass(getattr(module, name))
]

ROWS, IDS = torch.zeros(2, 3, 4), torch.zeros(2, 3, dtype=torch.int64)
ONES, SOME = torch.ones(2, 3), torch.ones(2, 3, dtype=torch.bool)
WEIGHT, BIAS = torch.zeros(5, 4), torch.zeros(5)
A = torch.zeros(2, 4)
TEMPERED = {"temperature": 1.0}
REFUSED: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ("cross_entropy.cross_entropy", (ROWS, IDS[:, :2]), {}),
    ("cross_entropy.cross_entropy", (ROWS, IDS[0]), {}),
    ("cross_entropy.cross_entropy", (ROWS, IDS.float()), {}),
    ("cross_entropy.cross_entropy", (ROWS.long(), IDS), {}),
    ("cross_entropy.cross_entropy", (ROWS, IDS, 0.5), {}),
    ("cross_entropy.cross_entropy", (ROWS, IDS), {"class_weight": torch.ones(3)}),
    ("cross_entropy.cross_entropy", (ROWS, IDS), {"class_weight": torch.ones(4, dtype=torch.int64)}),
    ("cross_entropy.cross_entropy", (ROWS, IDS), {"token_weight": torch.ones(2)}),
    ("cross_entropy.cross_entropy", (ROWS, IDS), {"token_weight": SOME}),
    ("cross_entropy.cross_entropy", (ROWS, IDS), {"overwrite_logits": "no"}),
    ("cross_entropy.cross_entropy_dot", (ROWS, IDS, torch.ones(3)), {}),
    ("cross_entropy.cross_entropy_dot", (ROWS, IDS, IDS), {}),
    ("cross_entropy.shift_left", (torch.tensor(1), -100), {}),
    ("cross_entropy.shift_left", (SOME, -100), {}),
    ("linear_cross_entropy.linear_cross_entropy", (ROWS, WEIGHT.T, IDS), {}),
    ("linear_cross_entropy.linear_cross_entropy", (ROWS, WEIGHT, IDS[0]), {}),
    ("linear_cross_entropy.linear_cross_entropy", (ROWS, WEIGHT, IDS), {"bias": torch.zeros(4)}),
    ("linear_cross_entropy.linear_cross_entropy", (ROWS, WEIGHT, IDS), {"chunk_size": 1.5}),
    ("linear_cross_entropy.linear_cross_entropy", (ROWS, WEIGHT, IDS), {"class_weight": torch.ones(4)}),
    ("linear_cross_entropy.linear_cross_entropy_dot", (ROWS, WEIGHT, IDS, torch.ones(6)), {}),
    ("logps.logps", (ROWS, IDS[0]), {}),
    ("logps.logps", (ROWS, IDS), {"temperature": "1"}),
    ("logps.logps_and_entropy", (ROWS, IDS.float()), {}),
    ("logps.sequence_logps", (torch.zeros(4), torch.tensor(0)), {}),
    ("soft_cross_entropy.soft_cross_entropy", (ROWS, ROWS[..., :2]), {}),
    ("soft_cross_entropy.soft_cross_entropy", (ROWS, ROWS), {"counts": ONES}),
    ("unlikelihood.logps_and_unlikelihood", (ROWS, IDS, IDS), {}),
    ("unlikelihood.logps_and_unlikelihood", (ROWS, IDS, ROWS), {}),
    ("divergence.divergence", (ROWS, ROWS[:1]), {}),
    ("divergence.divergence", (ROWS, ROWS[..., :2]), {}),
    ("divergence.divergence", (ROWS, ROWS), {"counts": ONES}),
    ("divergence.divergence", (ROWS, ROWS), {"counts": SOME[0]}),
    ("divergence.divergence_dot", (ROWS, ROWS, ONES[0]), {}),
    ("info_nce.info_nce", (A, A[:, :1]), TEMPERED),
    ("info_nce.info_nce", (ROWS, ROWS), TEMPERED),
    ("info_nce.info_nce", (A, A), {"temperature": "1"}),
    ("info_nce.info_nce_dot", (A, A, torch.ones(3)), TEMPERED),
    ("similarity.unit", (torch.tensor(1.0),), {}),
    ("similarity.unit", (IDS,), {}),
    ("lean.is_plain", (1.0,), {}),
    ("backends.backend", ("torch", IDS), {}),
]


@pytest.mark.parametrize(
    ("name", "arguments", "kwargs"), REFUSED, ids=[f"{i}-{case[0]}" for i, case in enumerate(REFUSED)]
)
def test_what_its_annotations_do_not_allow_is_refused(
    checked: dict[str, ModuleType], name: str, arguments: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    module, _, function = name.partition(".")
    with pytest.raises(jaxtyping.TypeCheckError, match=function):
        getattr(checked[module], function)(*arguments, **kwargs)


def test_a_wrong_result_is_refused(checked: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "logsumexp", lambda scores, axis: scores)
    with pytest.raises(jaxtyping.TypeCheckError, match="info_nce"):
        checked["info_nce"].info_nce(A, A, temperature=1.0)


@pytest.mark.parametrize(("module", "name"), PUBLIC)
def test_every_operation_says_all_it_takes_and_gives(checked: dict[str, ModuleType], module: str, name: str) -> None:
    operation = getattr(checked[module], name)
    assert operation is not getattr(importlib.import_module(f"{ops.__name__}.{module}"), name)
    if inspect.isfunction(operation):
        signature = inspect.signature(operation)
        assert signature.return_annotation is not signature.empty
        assert [p.name for p in signature.parameters.values() if p.annotation is p.empty] == []


@pytest.mark.usefixtures("losses_use_checked")
@pytest.mark.parametrize("way", ["chunks", "plain"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("name", EXAMPLES)
def test_every_operation_keeps_to_its_annotations(
    checked_cases: ModuleType, name: str, dtype: torch.dtype, way: str
) -> None:
    case = checked_cases.EXAMPLES[name]
    coefficients = torch.ones(case.counts.shape[0], dtype=torch.float64)
    with checked_cases.going(checked_cases.Way(way)):
        for form in (case.values, *([partial(case.dot, coefficients)] if case.dot else [])):
            made = form(*case.leaves(dtype)).sum()
            torch.autograd.backward(made)
            assert made.isfinite()


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
            from tensafe.training.losses.ops.info_nce import info_nce

            return Elements(info_nce(embeddings, embeddings.T, temperature=1.0))

    square, oblong = {"embeddings": torch.zeros(2, 2)}, {"embeddings": torch.zeros(2, 3)}
    assert resolve_loss(Oblong)(square, {})["loss"].item() == pytest.approx(math.log(2))
    with pytest.raises(jaxtyping.TypeCheckError, match="info_nce"):
        resolve_loss(Oblong)(oblong, {})

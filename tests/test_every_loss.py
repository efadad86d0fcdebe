"""Every loss that is registered, on a sample made from its own declarations: nothing here is listed by hand."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, get_args

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from tensafe.training.losses import LOSS_REGISTRY, Loss, ResolvedLoss, get_registered_losses, resolve_loss
from tensafe.training.losses.builtin import __path__ as builtin_path
from tensafe.training.losses.samples import SampleSettings, make_sample, sample_kwargs

Tensors = dict[str, Tensor]
SIZES = {"batch": 4, "seq": 5, "vocab": 7, "hidden": 64}
NAMES = sorted(path.stem for path in Path(builtin_path[0]).glob("*.py") if not path.stem.startswith("_"))
ROOT = Path(__file__).parent.parent

SURROGATES = {"dft", "cispo"}
"""Losses whose gradient, by definition, is not that of their value: a factor of it is held fixed."""

every_loss = pytest.mark.parametrize("name", NAMES)


class Given(NamedTuple):
    """A loss and what it is called with."""

    loss: ResolvedLoss
    outputs: Tensors
    batch: dict[str, Any]
    learnt: tuple[str, ...]
    """The outputs that get a gradient."""

    def run(self, loss: Any = None, **overrides: Any) -> tuple[Any, Tensors]:
        """The result, and the gradient of each output that is learnt; zeros where none reaches it."""
        leaves = {name: self.outputs[name].detach().clone().requires_grad_() for name in self.learnt}
        result = (loss or self.loss)({**self.outputs, **leaves}, self.batch, **overrides)
        made = torch.autograd.grad(result["loss"].sum(), list(leaves.values()), allow_unused=True)
        pairs = zip(leaves.items(), made, strict=True)
        return result, {name: torch.zeros_like(leaf) if grad is None else grad for (name, leaf), grad in pairs}

    def changed(self, change: Any) -> "Given":
        """The same with each tensor changed by `change(name, tensor)`."""
        outputs, batch = (
            {name: change(name, value) if isinstance(value, Tensor) else value for name, value in side.items()}
            for side in (self.outputs, self.batch)
        )
        return self._replace(outputs=outputs, batch=batch)


def given(name: str, *, sizes: dict[str, int] = SIZES, dtype: str = "float64", seed: int = 0, **kwargs: Any) -> Given:
    loss = resolve_loss(name, **{**sample_kwargs(class_of(name)), **kwargs})
    sample = make_sample(loss, SampleSettings(sizes, dtype, seed=seed))
    for spec in _tensors(loss):
        if spec.name == "old_logps":  # without it every ratio is 1, whatever the log-probabilities are
            sample.add(spec, {})
    made = {key: tensor.detach() for key, tensor in sample.outputs.made.items()}
    return Given(loss, made, dict(sample.batch.made), tuple(sample.gradients()))


def class_of(name: str) -> type[Loss]:
    found: type[Loss] = LOSS_REGISTRY[name]
    assert issubclass(found, Loss)
    return found


def reductions(name: str) -> tuple[str, ...]:
    field = class_of(name).model_fields.get("reduction")
    return get_args(field.annotation) if field is not None else ()


def with_reduction(name: str, reduction: str, **kwargs: Any) -> Given:
    if reduction == "sequence_sum_norm":
        kwargs["max_length"] = 5
    return given(name, reduction=reduction, **kwargs)


def close(left: Any, right: Any, **tolerance: Any) -> None:
    torch.testing.assert_close(torch.as_tensor(left), torch.as_tensor(right), **tolerance)


def same(left: tuple[Any, Tensors], right: tuple[Any, Tensors], **tolerance: Any) -> None:
    close(left[0]["loss"], right[0]["loss"], **tolerance)
    assert left[0]["metrics"].keys() == right[0]["metrics"].keys()
    for metric, value in left[0]["metrics"].items():
        close(value, right[0]["metrics"][metric], equal_nan=True, check_dtype=False, **tolerance)
    for key, gradient in left[1].items():
        close(gradient, right[1][key], **tolerance)


def by_family(name: str) -> str:
    return class_of(name)._family


@pytest.fixture(autouse=True)
def _fresh_compiler(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "compiled" in request.node.name:
        torch._dynamo.reset()


def test_all_are_registered() -> None:
    assert set(NAMES) <= set(get_registered_losses())


@every_loss
def test_it_has_a_family_a_schema_a_page_and_a_figure(name: str) -> None:
    assert by_family(name) != "other"
    assert (ROOT / "schemas" / "losses" / f"{name}.json").exists()
    assert (ROOT / "docs" / "losses" / f"{name}.md").exists()
    assert (ROOT / "docs" / "losses" / f"{name}.png").exists()


@every_loss
def test_a_result_is_a_finite_scalar_with_detached_metrics(name: str) -> None:
    it = given(name)
    result, gradients = it.run()
    assert result["loss"].shape == ()
    assert result["loss"].isfinite()
    assert result["loss"].dtype is torch.float64
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    assert any(gradient.any() for gradient in gradients.values())
    for metric in result["metrics"].values():
        assert isinstance(metric, int | float) or (metric.shape == () and not metric.requires_grad)
    assert it.run(metrics=False)[0]["metrics"] == {}


@pytest.mark.parametrize("name", sorted(set(NAMES) - SURROGATES))
@pytest.mark.parametrize("seed", range(3))
def test_moving_along_minus_the_gradient_lowers_it(name: str, seed: int) -> None:
    it = given(name, seed=seed)
    result, gradients = it.run()
    squares = sum(float(gradient.square().sum()) for gradient in gradients.values())
    if not squares:
        pytest.skip("this sample is where the loss is flat")
    step = 1e-6 / squares**0.5
    moved = {key: it.outputs[key] - step * gradient for key, gradient in gradients.items()}
    after = it._replace(outputs={**it.outputs, **moved}).run()[0]["loss"]
    expected = -step * squares
    assert float((after - result["loss"]).detach()) == pytest.approx(expected, rel=1e-2)


@every_loss
def test_the_order_of_the_batch_makes_no_difference(name: str) -> None:
    it = given(name)
    order = torch.tensor([2, 0, 3, 1])
    axes = {tensor.name: tensor.dims for tensor in _tensors(it.loss)}

    def permuted(key: str, value: Tensor) -> Tensor:
        leads = axes.get(key, ("batch",))
        moved = value.ndim and value.shape[0] == 4 and leads and leads[0] in {"batch", "*rows", "*shape", "*pairs"}
        return value[order] if moved else value

    result, gradients = it.run()
    again, moved = it.changed(permuted).run()
    close(again["loss"], result["loss"])
    for key, gradient in gradients.items():
        close(moved[key], permuted(key, gradient))


def _tensors(loss: Any) -> Any:
    inner = getattr(loss, "contract", None)
    return inner.tensors if inner is not None else ()


@pytest.mark.parametrize(("name", "reduction"), [(name, each) for name in NAMES for each in reductions(name)])
def test_each_reduction_runs_and_its_gradients_are_finite(name: str, reduction: str) -> None:
    result, gradients = with_reduction(name, reduction).run()
    assert result["loss"].isfinite().all()
    assert (reduction == "none") or result["loss"].shape == ()
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    if reduction == "sum":
        close(with_reduction(name, "none").run()[0]["loss"].sum(), result["loss"])


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_16_bit_inputs_are_computed_in_float32(name: str, dtype: torch.dtype) -> None:
    rounded = given(name).changed(lambda _, value: value.to(dtype) if value.is_floating_point() else value)
    wide = rounded.changed(lambda _, value: value.double() if value.is_floating_point() else value)
    result, gradients = rounded.run()
    exact, reference = wide.run()
    assert result["loss"].dtype is torch.float32
    assert result["loss"].item() == pytest.approx(exact["loss"].item(), rel=1e-4, abs=1e-5)
    for key, gradient in gradients.items():
        assert gradient.dtype is dtype
        eps = torch.finfo(dtype).eps  # terms that are rounded each may cancel
        largest = float(reference[key].abs().max())
        close(gradient.double(), reference[key], rtol=2 * eps, atol=eps * largest + 1e-6)


def _all_ignored(it: Given) -> Given | None:
    """The same batch with nothing that counts, where the loss can be told so."""
    ignored: Any = it.loss.kwargs.get("ignore_index")
    found = False

    def change(key: str, value: Tensor) -> Tensor:
        nonlocal found
        if key == "mask" or (key.endswith("labels") and ignored is not None and not value.is_floating_point()):
            found = True
            return torch.zeros_like(value) if key == "mask" else torch.full_like(value, ignored)
        return value

    changed = it.changed(change)
    return changed if found else None


@every_loss
def test_an_empty_batch_is_zero_with_a_zero_gradient(name: str) -> None:
    it = given(name, sizes={**SIZES, "batch": 0})
    result, gradients = it.run()
    assert result["loss"].item() == 0.0
    assert result["loss"].requires_grad
    assert not any(gradient.any() for gradient in gradients.values())


@every_loss
def test_nothing_that_counts_is_zero_with_a_zero_gradient(name: str) -> None:
    it = _all_ignored(given(name))
    if it is None:
        return  # it has neither a mask nor an ignored label: its empty batch is tried above
    junk = it.changed(
        lambda key, value: torch.full_like(value, torch.nan) if key in it.learnt and value.ndim > 1 else value
    )
    for each in (it, junk) if by_family(name) != "preference" else (it,):
        result, gradients = each.run()
        if by_family(name) == "preference":  # a completion without tokens has log-prob 0, and is still one of a pair
            assert result["loss"].isfinite()
        else:
            assert result["loss"].item() == 0.0
        assert result["loss"].requires_grad
        assert all(gradient.isfinite().all() and not gradient.any() for gradient in gradients.values())


@every_loss
def test_what_the_mask_leaves_out_may_hold_anything(name: str) -> None:
    it = given(name)
    mask = it.batch.get("mask")
    if mask is None:
        return  # labels say what counts: see the tests of that loss
    expected = it.run()

    def junk(key: str, value: Tensor) -> Tensor:
        fits = key != "mask" and value.is_floating_point() and value.shape[: mask.ndim] == mask.shape
        return (
            value.masked_fill(~mask.reshape(*mask.shape, *[1] * (value.ndim - mask.ndim)), torch.nan) if fits else value
        )

    same(it.changed(junk).run(), expected)


@every_loss
def test_it_runs_on_fake_tensors(name: str) -> None:
    it = given(name)
    with FakeTensorMode() as mode:
        result, gradients = it.changed(lambda _, value: mode.from_tensor(value)).run()
    assert result["loss"].shape == ()
    assert {key: gradient.shape for key, gradient in gradients.items()} == {
        key: it.outputs[key].shape for key in it.learnt
    }


@every_loss
def test_compiled_it_is_one_graph_that_agrees_with_eager(name: str) -> None:
    it = given(name)
    compiled = torch.compile(it.loss, fullgraph=True, backend="aot_eager")
    same(it.run(compiled), it.run(), rtol=1e-9, atol=1e-12)


@every_loss
def test_a_config_says_all_of_it(name: str) -> None:
    it = given(name)
    again = it._replace(loss=resolve_loss(it.loss.to_config()))
    same(again.run(), it.run(), rtol=0.0, atol=0.0)

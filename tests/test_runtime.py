"""Every built-in loss in every place that PyTorch lets a function run."""

import copy
import gc
import pickle
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch._dynamo.exc import Unsupported
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode

from support import run_child
from tensafe.training.losses import LossConfigError, LossInputError, ResolvedLoss, resolve_loss

Tensors = dict[str, Tensor]
Batch = tuple[Tensors, Tensors]


class Case(NamedTuple):
    """A loss, and how to make outputs and batch of a size for it."""

    loss: ResolvedLoss
    make: Callable[[int, torch.Generator], Batch]

    def batch(self, size: int = 3, seed: int = 0) -> Batch:
        return self.make(size, torch.Generator().manual_seed(seed))


def _tokens(size: int, generator: torch.Generator) -> Batch:
    labels = torch.randint(0, 7, (size, size + 1), generator=generator)
    labels[:, 0] = -100
    return {"logits": torch.randn(size, size + 1, 7, generator=generator)}, {"labels": labels}


def _hidden(size: int, generator: torch.Generator) -> Batch:
    states = torch.randn(size, size + 1, 4, generator=generator)
    weight, bias = torch.randn(7, 4, generator=generator), torch.randn(7, generator=generator)
    outputs = {"hidden_states": states, "lm_head_weight": weight, "lm_head_bias": bias}
    return outputs, _tokens(size, generator)[1]


def _scores(size: int, generator: torch.Generator) -> Batch:
    chosen, rejected = torch.randn(2, size, generator=generator)
    return {"chosen_scores": chosen, "rejected_scores": rejected}, {}


def _embeddings(size: int, generator: torch.Generator) -> Batch:
    a, b = torch.randn(2, size, size + 2, generator=generator)
    return {"embeddings_a": a, "embeddings_b": b}, {}


def _values(size: int, generator: torch.Generator) -> Batch:
    predictions, targets = torch.randn(2, size, size + 1, generator=generator)
    return {"predictions": predictions}, {"targets": targets}


def _all(size: int, generator: torch.Generator) -> Batch:
    makers = (_tokens, _scores, _values)
    made = [make(size, generator) for make in makers]
    return {k: v for outputs, _ in made for k, v in outputs.items()}, {k: v for _, b in made for k, v in b.items()}


TERMS = [{"type": "token_ce", "weight": 0.5}, "margin_ranking", {"type": "mse", "weight": 2.0}]
SHAPED = {"label_smoothing": 0.1, "z_loss": 0.01, "softcap": 3.0, "logit_scale": 0.5}
CASES = {
    "token_ce": Case(resolve_loss("token_ce"), _tokens),
    "token_ce shaped": Case(resolve_loss("token_ce", reduction="sequence_mean", **SHAPED), _tokens),
    "linear_ce": Case(resolve_loss("linear_ce"), _hidden),
    "linear_ce shaped": Case(resolve_loss("linear_ce", chunk_size=2, **SHAPED), _hidden),
    "margin_ranking": Case(resolve_loss("margin_ranking"), _scores),
    "contrastive": Case(resolve_loss("contrastive", temperature=0.5, margin=0.1), _embeddings),
    "mse": Case(resolve_loss("mse"), _values),
    "weighted_sum": Case(resolve_loss("weighted_sum", losses=TERMS), _all),
}
UNFUSED = {name: case for name, case in CASES.items() if case.loss.name != "linear_ce"}
every_loss = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
each_class = pytest.mark.parametrize(
    "case", {case.loss.name: case for case in CASES.values()}.values(), ids=lambda case: case.loss.name
)
on_both_paths = pytest.mark.usefixtures("path")


@pytest.fixture(autouse=True)
def _fresh_compiler(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "compiled" in request.node.name:
        torch._dynamo.reset()


@pytest.fixture
def _quick_collection() -> Iterator[None]:
    """Let the collector look at new objects alone: the compiler has left it a million old ones."""
    gc.freeze()
    yield
    gc.unfreeze()


def run(loss_fn: Callable[..., Any], outputs: Tensors, batch: Any, **overrides: Any) -> tuple[Any, Tensors]:
    """The result, and the gradient of each output."""
    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in outputs.items()}
    result = loss_fn(leaves, batch, **overrides)
    gradients = torch.autograd.grad(result["loss"].sum(), list(leaves.values()))
    return result, dict(zip(leaves, gradients, strict=True))


def with_reduction(case: Case, reduction: str) -> ResolvedLoss:
    """The loss with a reduction, where it has one."""
    return resolve_loss(case.loss, reduction=reduction) if "reduction" in case.loss.kwargs else case.loss


def assert_same(left: tuple[Any, Tensors], right: tuple[Any, Tensors], **tolerance: Any) -> None:
    (result, gradients), (expected, reference) = left, right
    torch.testing.assert_close(result["loss"], expected["loss"], **tolerance)
    assert list(result["metrics"]) == list(expected["metrics"])
    for name, metric in result["metrics"].items():
        torch.testing.assert_close(torch.as_tensor(metric), torch.as_tensor(expected["metrics"][name]), **tolerance)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, reference[name], **tolerance)


EXACT = {"rtol": 0.0, "atol": 0.0}


def as_compiled(case: Case) -> dict[str, float]:
    """How near eager is to what is compiled: the same formula, but where the eager one never has all the logits."""
    return {"rtol": 1e-5, "atol": 1e-6} if case.loss.name == "linear_ce" else EXACT


# What every result looks like


@on_both_paths
@every_loss
def test_a_result_is_a_scalar_and_detached_metrics(case: Case) -> None:
    outputs, batch = case.batch()
    leaves = {name: tensor.requires_grad_() for name, tensor in outputs.items()}
    result = case.loss(leaves, batch)
    assert set(result) == {"loss", "metrics"}
    assert result["loss"].shape == ()
    assert result["loss"].requires_grad
    for metric in result["metrics"].values():
        assert isinstance(metric, float) or (metric.shape == () and not metric.requires_grad)
    assert case.loss(leaves, batch, metrics=False)["metrics"] == {}
    assert case.loss(leaves, batch, metrics=False)["loss"] == result["loss"]


@on_both_paths
@every_loss
def test_every_output_gets_a_gradient_that_lowers_the_loss(case: Case) -> None:
    outputs, batch = case.batch(4)
    result, gradients = run(case.loss, outputs, batch)
    assert all(gradient.isfinite().all() and gradient.any() for gradient in gradients.values())
    moved = {name: tensor - 1e-3 * gradients[name] for name, tensor in outputs.items()}
    assert case.loss(moved, batch)["loss"] < result["loss"]


@on_both_paths
@every_loss
def test_two_calls_agree_to_the_bit_and_leave_random_numbers_alone(case: Case) -> None:
    outputs, batch = case.batch(8)
    state = torch.get_rng_state()
    first = run(case.loss, outputs, batch)
    assert_same(run(case.loss, outputs, batch), first, **EXACT)
    torch.use_deterministic_algorithms(True)
    try:
        assert_same(run(case.loss, outputs, batch), first, **EXACT)
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(torch.get_rng_state(), state)


@on_both_paths
@every_loss
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_nothing_that_is_passed_in_is_changed(case: Case, reduction: str) -> None:
    loss_fn = with_reduction(case, reduction)
    outputs, batch = case.batch()
    tensors = [*outputs.values(), *batch.values()]
    before = [(tensor.clone(), tensor._version) for tensor in tensors]
    keys = list(outputs), list(batch)
    leaves = {name: tensor.requires_grad_() for name, tensor in outputs.items()}
    torch.autograd.backward(loss_fn(leaves, batch)["loss"].sum())
    assert (list(outputs), list(batch)) == keys
    for tensor, (copied, version) in zip(tensors, before, strict=True):
        assert torch.equal(tensor, copied)
        assert tensor._version == version


@every_loss
def test_other_keys_make_no_difference(case: Case) -> None:
    outputs, batch = case.batch()
    more = {"last_hidden_state": torch.ones(1), "past": [1, 2], "note": "text"}
    expected = case.loss(outputs, batch)
    assert case.loss({**outputs, **more}, {**batch, **more}) == expected
    assert case.loss(SimpleNamespace(**outputs), SimpleNamespace(**batch)) == expected


# Dtypes


@on_both_paths
@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_inputs_are_computed_in_float32(case: Case, dtype: torch.dtype) -> None:
    outputs, batch = case.batch(6)
    rounded, rounded_batch = narrowed(outputs, dtype), narrowed(batch, dtype)
    result, gradients = run(case.loss, rounded, rounded_batch)
    exact, reference = run(case.loss, widened(rounded), widened(rounded_batch))
    assert result["loss"].dtype is torch.float32
    assert exact["loss"].dtype is torch.float64
    assert result["loss"].item() == pytest.approx(exact["loss"].item(), rel=1e-5)
    for name, gradient in gradients.items():
        assert gradient.dtype is dtype
        torch.testing.assert_close(gradient.double(), reference[name], rtol=torch.finfo(dtype).eps, atol=1e-6)


@on_both_paths
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["token_ce", "linear_ce", "margin_ranking", "mse"])
def test_a_long_sum_in_16_bits_is_not_biased(name: str, dtype: torch.dtype) -> None:
    case = CASES[name]
    outputs, batch = case.batch(64)  # 64 * 65 = 4160 tokens or values
    if name == "margin_ranking":
        chosen, rejected = torch.randn(2, 4096, generator=torch.Generator().manual_seed(0))
        outputs = {"chosen_scores": chosen, "rejected_scores": rejected}
    rounded, rounded_batch = narrowed(outputs, dtype), narrowed(batch, dtype)
    found = case.loss(rounded, rounded_batch, reduction="sum")["loss"].item()
    exact = case.loss(widened(rounded), widened(rounded_batch), reduction="sum")["loss"].item()
    assert found == pytest.approx(exact, rel=1e-5)


@on_both_paths
@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_makes_no_difference(case: Case, dtype: torch.dtype) -> None:
    outputs, batch = case.batch(6)
    expected = run(case.loss, outputs, batch)

    def under_autocast(*arguments: Any) -> Any:  # only forward, as torch asks
        with torch.autocast("cpu", dtype=dtype):
            result = case.loss(*arguments)
            assert torch.is_autocast_enabled("cpu")
        return result

    assert_same(run(under_autocast, outputs, batch), expected, **EXACT)


@on_both_paths
@every_loss
def test_gradients_are_those_of_finite_differences_twice_over(case: Case) -> None:
    outputs, batch = case.batch(2)
    names, tensors = list(outputs), [tensor.double().requires_grad_() for tensor in outputs.values()]
    wide = widened(batch)

    def loss(*values: Tensor) -> Tensor:
        return case.loss(dict(zip(names, values, strict=True)), wide)["loss"]

    assert torch.autograd.gradcheck(loss, tensors, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(loss, tensors, fast_mode=True)


@on_both_paths
@every_loss
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_gradients_for_many_directions_may_be_asked_for_at_once(case: Case, reduction: str) -> None:
    outputs, batch = case.batch()
    leaves = {name: tensor.requires_grad_() for name, tensor in outputs.items()}
    loss = with_reduction(case, reduction)(leaves, batch)["loss"]
    directions = torch.randn(4, *loss.shape, generator=torch.Generator().manual_seed(0))
    found = torch.autograd.grad(loss, list(leaves.values()), directions, retain_graph=True, is_grads_batched=True)
    for index, direction in enumerate(directions):
        expected = torch.autograd.grad(loss, list(leaves.values()), direction, retain_graph=True)
        for gradient, reference in zip(found, expected, strict=True):
            torch.testing.assert_close(gradient[index], reference)


@on_both_paths
@every_loss
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_second_backward_pass_gives_the_same(case: Case, reduction: str) -> None:
    outputs, batch = case.batch()
    leaves = {name: tensor.requires_grad_() for name, tensor in outputs.items()}
    loss = with_reduction(case, reduction)(leaves, batch)["loss"].sum()
    first = torch.autograd.grad(loss, list(leaves.values()), retain_graph=True)
    kept = [gradient.clone() for gradient in first]
    second = torch.autograd.grad(2 * loss, list(leaves.values()))
    for before, copied, after in zip(first, kept, second, strict=True):
        assert torch.equal(before, copied)
        torch.testing.assert_close(after, 2 * before)


def narrowed(tensors: Tensors, dtype: torch.dtype) -> Tensors:
    return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


def widened(tensors: Tensors) -> Tensors:
    return narrowed(tensors, torch.float64)


# Kinds of tensor


def _noncontiguous(tensor: Tensor) -> Tensor:
    return torch.stack([tensor, tensor], -1)[..., 0]


def _reversed_strides(tensor: Tensor) -> Tensor:
    return tensor.permute(*reversed(range(tensor.ndim))).contiguous().permute(*reversed(range(tensor.ndim)))


@on_both_paths
@every_loss
@pytest.mark.parametrize("change", [_noncontiguous, _reversed_strides])
def test_strides_make_no_difference(case: Case, change: Callable[[Tensor], Tensor]) -> None:
    outputs, batch = case.batch(4)
    expected = case.loss(outputs, batch)
    strange = [{name: change(tensor) for name, tensor in tensors.items()} for tensors in (outputs, batch)]
    result = case.loss(*strange)
    torch.testing.assert_close(result["loss"], expected["loss"])


@on_both_paths
@every_loss
def test_expanded_tensors_get_the_gradient_of_all_their_rows(case: Case) -> None:
    outputs, batch = case.batch()
    rows = {name: tensor[:1].clone().requires_grad_() for name, tensor in outputs.items()}
    expanded = {name: row.expand(outputs[name].shape) for name, row in rows.items()}
    whole = {name: tensor.detach().clone().requires_grad_() for name, tensor in expanded.items()}
    same = {name: tensor[:1].expand(3, *tensor.shape[1:]) for name, tensor in batch.items()}
    loss, expected = case.loss(expanded, same)["loss"], case.loss(whole, same)["loss"]
    torch.testing.assert_close(loss, expected)
    torch.autograd.backward([loss, expected])
    for name, row in rows.items():
        torch.testing.assert_close(row.grad, whole[name].grad.sum(0, keepdim=True))  # type: ignore[union-attr]


class Tagged(Tensor):
    """A subclass that torch carries through every operation."""


@on_both_paths
@every_loss
@pytest.mark.parametrize("wrap", [torch.nn.Parameter, lambda tensor: tensor.as_subclass(Tagged)], ids=["param", "sub"])
def test_subclasses_of_tensor_are_tensors(case: Case, wrap: Callable[[Tensor], Tensor]) -> None:
    outputs, batch = case.batch()
    wrapped = {name: wrap(tensor.clone()) for name, tensor in outputs.items()}
    found, expected = (case.loss(tensors, batch)["loss"].item() for tensors in (wrapped, outputs))
    assert found == pytest.approx(expected, rel=1e-6)


DTENSOR = """
import os
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import loss_parallel
from tensafe.training.losses import resolve_loss

store = dist.HashStore()
dist.init_process_group("gloo", store=store, rank=0, world_size=1)
mesh = init_device_mesh("cpu", (1,))
loss_fn = resolve_loss("token_ce")
logits, labels = torch.randn(2, 3, 5), torch.tensor([[0, 1, 2], [3, -100, 4]])
leaf = logits.clone().requires_grad_()
expected = loss_fn({"logits": leaf}, {"labels": labels})["loss"]
expected.backward()
for placement in (Shard(0), Shard(2), Replicate()):
    for targets in (labels, distribute_tensor(labels, mesh, [Replicate()])):
        shards = distribute_tensor(logits, mesh, [placement]).requires_grad_()
        loss = loss_fn({"logits": shards}, {"labels": targets})["loss"]
        loss.backward()
        assert type(loss) is type(targets)
        torch.testing.assert_close(getattr(loss, "full_tensor", lambda: loss)(), expected)
        torch.testing.assert_close(shards.grad.full_tensor(), leaf.grad)
with loss_parallel():
    shards = distribute_tensor(logits, mesh, [Shard(2)]).requires_grad_()
    loss = loss_fn({"logits": shards}, {"labels": labels})["loss"]
    loss.backward()
torch.testing.assert_close(loss, expected)
assert shards.grad.placements == (Shard(2),)
torch.testing.assert_close(shards.grad.full_tensor(), leaf.grad)
dist.destroy_process_group()
print("done")
"""


def test_sharded_logits_stay_sharded() -> None:
    assert run_child(DTENSOR) == "done"


# Without values: nothing reads a tensor on the host


def faked(mode: FakeTensorMode, tensors: Tensors) -> Tensors:
    return {name: mode.from_tensor(tensor) for name, tensor in tensors.items()}


@on_both_paths
@every_loss
def test_it_runs_on_the_meta_device(case: Case) -> None:
    outputs, batch = case.batch()
    result, gradients = run(
        case.loss, {k: v.to("meta") for k, v in outputs.items()}, {k: v.to("meta") for k, v in batch.items()}
    )
    assert result["loss"].is_meta
    assert {name: gradient.shape for name, gradient in gradients.items()} == {k: v.shape for k, v in outputs.items()}


@on_both_paths
@every_loss
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_it_runs_on_fake_tensors(case: Case, reduction: str) -> None:
    outputs, batch = case.batch()
    loss_fn = with_reduction(case, reduction)
    expected, _ = run(loss_fn, outputs, batch)
    with FakeTensorMode() as mode:
        result, gradients = run(loss_fn, faked(mode, outputs), faked(mode, batch))
    assert result["loss"].shape == expected["loss"].shape
    assert list(gradients) == list(outputs)


def test_it_counts_without_looking() -> None:
    outputs, batch = CASES["token_ce"].batch()
    with FakeTensorMode() as mode:
        count = mode.from_tensor(torch.tensor(7))
        loss = resolve_loss("token_ce")(faked(mode, outputs), faked(mode, batch), num_items_in_batch=count)["loss"]
    assert loss.shape == ()


# torch.func, torch.export


@on_both_paths
@every_loss
def test_per_sample_gradients_are_those_of_a_loop(case: Case) -> None:
    batches = [case.batch(seed=seed) for seed in range(4)]
    outputs, batch = (
        {name: torch.stack([each[side][name] for each in batches]) for name in batches[0][side]} for side in (0, 1)
    )

    def loss(outputs: Tensors, batch: Tensors) -> Tensor:
        return case.loss(outputs, batch)["loss"]

    gradients = torch.func.vmap(torch.func.grad(loss))(outputs, batch)
    losses = torch.func.vmap(loss)(outputs, batch)
    for index, each in enumerate(batches):
        result, expected = run(case.loss, *each)
        torch.testing.assert_close(losses[index], result["loss"])
        for name, gradient in expected.items():
            torch.testing.assert_close(gradients[name][index], gradient)


class AsModule(torch.nn.Module):
    def __init__(self, loss_fn: ResolvedLoss) -> None:
        super().__init__()
        self.loss_fn = loss_fn

    def forward(self, outputs: Tensors, batch: Tensors) -> Any:
        return self.loss_fn(outputs, batch)


@on_both_paths
@every_loss
def test_it_can_be_exported(case: Case) -> None:
    outputs, batch = case.batch()
    exported = torch.export.export(AsModule(case.loss), (outputs, batch)).module()
    again = case.batch(seed=1)
    torch.testing.assert_close(exported(*again)["loss"], case.loss(*again)["loss"])


@on_both_paths
@every_loss
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_it_evaluates_without_a_graph(case: Case, context: Callable[[], Any]) -> None:
    outputs, batch = case.batch()
    leaves = {name: tensor.requires_grad_() for name, tensor in outputs.items()}
    with context():
        result = case.loss(leaves, batch)
    assert not result["loss"].requires_grad
    assert result["loss"] == case.loss(leaves, batch)["loss"]


# torch.compile


@every_loss
def test_compiled_it_is_one_graph_that_agrees_with_eager(case: Case) -> None:
    outputs, batch = case.batch()
    compiled = torch.compile(case.loss, fullgraph=True, backend="aot_eager")
    assert_same(run(compiled, outputs, batch), run(case.loss, outputs, batch), **as_compiled(case))


def test_compiled_by_inductor_it_agrees_with_eager() -> None:
    case = CASES["token_ce shaped"]  # one is enough to show that kernels can be made of the graphs tested elsewhere
    outputs, batch = case.batch(5)
    compiled = torch.compile(case.loss, fullgraph=True)
    assert_same(run(compiled, outputs, batch), run(case.loss, outputs, batch))


@each_class
def test_compiled_16_bit_inputs_give_float32(case: Case) -> None:
    outputs, batch = (narrowed(tensors, torch.bfloat16) for tensors in case.batch())
    compiled = torch.compile(case.loss, fullgraph=True, backend="aot_eager")
    found = run(compiled, outputs, batch)
    assert found[0]["loss"].dtype is torch.float32
    expected = run(case.loss, outputs, batch)
    if case.loss.name == "linear_ce":  # a gradient is rounded to 16 bits from either side
        assert_same(found, expected, rtol=torch.finfo(torch.bfloat16).eps, atol=1e-5)
    else:
        assert_same(found, expected, **EXACT)


@each_class
def test_compiled_for_two_sizes_it_serves_them_all(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    # what eager calls large is all the same to a graph
    monkeypatch.setattr("tensafe.training.losses.ops.lean.LEAST_LEAN", 300)
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(case.loss, fullgraph=True, backend=counter)
    for size in (3, 4, 6, 9, 13, 20):
        outputs, batch = case.batch(size)
        torch.testing.assert_close(compiled(outputs, batch)["loss"], case.loss(outputs, batch)["loss"])
    assert counter.frame_count <= 2


@pytest.mark.parametrize("kind", [int, float, torch.tensor], ids=["int", "float", "tensor"])
@pytest.mark.parametrize("where", ["call", "batch"])
def test_compiled_for_two_counts_it_serves_them_all(kind: Callable[[int], Any], where: str) -> None:
    loss_fn, (outputs, batch) = CASES["token_ce"].loss, CASES["token_ce"].batch()
    counter = CompileCounterWithBackend("aot_eager")

    @torch.compile(fullgraph=True, backend=counter)
    def step(outputs: Tensors, batch: dict[str, Any], count: Any) -> Any:
        if where == "batch":
            return loss_fn(outputs, {**batch, "num_items_in_batch": count})
        return loss_fn(outputs, batch, num_items_in_batch=count)

    for count in (8, 9, 13, 21, 34):
        expected = loss_fn(outputs, batch, num_items_in_batch=count)["loss"]
        torch.testing.assert_close(step(outputs, batch, kind(count))["loss"], expected)
    assert counter.frame_count <= 2


NOT_FITTING: list[tuple[str, Callable[[Any, Any], Any], list[str]]] = [
    ("token_ce", lambda out, batch: batch.update(labels=batch["labels"][:, 1:]), ["token_ce: 'labels' must be"]),
    ("token_ce", lambda out, batch: batch.update(labels=batch["labels"].float()), ["int[*rows]", "x.long()"]),
    ("token_ce", lambda out, batch: out.pop("logits"), ["'logits' (float[*rows vocab]) must be in", "labels"]),
    ("token_ce", lambda out, batch: batch.pop("labels"), ["'labels' or 'shift_labels' must be given"]),
    ("mse", lambda out, batch: batch.update(targets=batch["targets"][:1]), ["*shape=[3, 4] (set by", "[1, 4]"]),
    ("mse", lambda out, batch: batch.update(target=batch.pop("targets")), ["'targets'", "batch has target"]),
    ("contrastive", lambda out, batch: out.update(embeddings_b=torch.ones(3, 2)), ["hidden=5", "[3, 2]"]),
    ("margin_ranking", lambda out, batch: batch.update(num_items_in_batch=-1), ["number >= 0", "got -1"]),
    ("weighted_sum", lambda out, batch: out.pop("chosen_scores"), ["margin_ranking: 'chosen_scores'"]),
    ("weighted_sum", lambda out, batch: batch.update(num_items_in_batch=8), ["weighted_sum: ", "per term"]),
]


@pytest.mark.parametrize(("loss", "change", "parts"), NOT_FITTING)
def test_compiled_it_refuses_at_trace_what_eager_refuses(
    loss: str, change: Callable[[Any, Any], Any], parts: list[str]
) -> None:
    case = CASES[loss]
    outputs, batch = case.batch()
    change(outputs, batch)
    with pytest.raises((LossInputError, LossConfigError)) as eagerly:
        case.loss(outputs, batch)
    with pytest.raises(Unsupported) as traced:
        torch.compile(case.loss, fullgraph=True, backend="eager")(outputs, batch)
    for part in parts:
        assert part in str(eagerly.value)
        assert part in _unescaped(traced.value)


def test_compiled_overrides_are_refused_with_what_to_do_instead() -> None:
    loss_fn, (outputs, batch) = CASES["mse"].loss, CASES["mse"].batch()

    @torch.compile(fullgraph=True, backend="eager")
    def step(outputs: Tensors, batch: Tensors) -> Any:
        return loss_fn(outputs, batch, reduction="sum")

    with pytest.raises(Unsupported) as caught:
        step(outputs, batch)
    assert "Bind them outside: loss_fn = resolve_loss(loss_fn, reduction=...)" in _unescaped(caught.value)


def _unescaped(error: BaseException) -> str:
    return str(error).replace("\\'", "'")


FIRST_CALL = """
import torch
from tensafe.training.losses import resolve_loss
loss_fn = torch.compile(resolve_loss("token_ce"), fullgraph=True, backend="eager")
try:
    loss_fn({"logits": torch.zeros(2, 3, 4)}, {"labels": torch.zeros(2, 2, dtype=torch.int64)})
except torch._dynamo.exc.Unsupported as error:
    print("was one of them shifted already?" in str(error))
print(loss_fn({"logits": torch.zeros(2, 3, 4)}, {"labels": torch.zeros(2, 3, dtype=torch.int64)})["loss"].item())
"""


def test_compiled_may_be_the_first_call_of_a_process() -> None:
    refused, loss = run_child(FIRST_CALL).split()
    assert refused == "True"
    assert float(loss) == pytest.approx(1.3862944)


# Life of a resolved loss


def test_a_pickle_is_read_in_a_fresh_process(tmp_path: Path) -> None:
    data = [(case.loss, case.batch(), run(case.loss, *case.batch())) for case in CASES.values()]
    (tmp_path / "losses").write_bytes(pickle.dumps([(loss, batch, result) for loss, batch, (result, _) in data]))
    code = """
import pickle, sys
for loss_fn, (outputs, batch), expected in pickle.load(open(sys.argv[1], "rb")):
    assert loss_fn(outputs, batch)["loss"] == expected["loss"]
    print(loss_fn.name)
"""
    assert run_child(code, arguments=(str(tmp_path / "losses"),)).split() == [case.loss.name for case in CASES.values()]


@on_both_paths
@every_loss
@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda loss: pickle.loads(pickle.dumps(loss))])
def test_a_copy_is_equal_and_works(case: Case, again: Callable[[ResolvedLoss], ResolvedLoss]) -> None:
    copied = again(case.loss)
    assert copied is not case.loss
    assert copied == case.loss
    assert repr(copied) == repr(case.loss)
    assert copied(*case.batch())["loss"] == case.loss(*case.batch())["loss"]


class Node(torch.autograd.Function):
    """The identity; its node in the graph is a Python object, which lives as long as the graph."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return tensor.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients


@on_both_paths
@pytest.mark.usefixtures("_quick_collection")
@every_loss
@pytest.mark.parametrize("learn", [True, False], ids=["after backward", "without backward"])
def test_who_keeps_the_metrics_does_not_keep_the_graph(case: Case, learn: bool) -> None:
    outputs, batch = case.batch()
    leaves = {name: tensor.requires_grad_() for name, tensor in outputs.items()}
    computed: Tensors = {name: Node.apply(tensor) for name, tensor in leaves.items()}  # type: ignore[no-untyped-call]
    alive = [weakref.ref(thing) for tensor in computed.values() for thing in (tensor, tensor.grad_fn)]
    result = case.loss(computed, batch)
    metrics = result["metrics"]
    if learn:
        torch.autograd.backward(result["loss"])
    del result, computed
    gc.collect()
    assert [ref() for ref in alive] == [None] * len(alive)
    assert metrics or case.loss.name == "mse"


def kept_by(node: Any) -> list[Tensor]:
    """The tensors that a graph keeps in Python, in the nodes of operations that make their own gradients."""
    found, left = [], [node]
    seen: dict[int, Any] = {}  # kept, so that no other takes an id
    while left:
        thing = left.pop()
        if id(thing) in seen:
            continue
        seen[id(thing)] = thing
        if isinstance(thing, Tensor):
            found.append(thing)
        elif isinstance(thing, list | tuple):
            left += thing
        elif isinstance(thing, dict):
            left += thing.values()
        elif hasattr(thing, "next_functions") or type(thing).__module__.startswith("tensafe."):
            left += [getattr(thing, "next_functions", ()), getattr(thing, "__dict__", {})]
    return found


FUSED = {name: CASES[name] for name in ("token_ce", "linear_ce", "contrastive", "weighted_sum")}
FUSED["token_ce overwriting"] = Case(resolve_loss("token_ce", overwrite_logits=True), _tokens)


@pytest.mark.usefixtures("in_chunks", "_quick_collection")
@pytest.mark.parametrize("case", FUSED.values(), ids=FUSED)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_who_keeps_the_loss_keeps_nothing_large_after_backward(case: Case, reduction: str) -> None:
    outputs, batch = case.batch(30)
    leaves = {name: tensor.requires_grad_() for name, tensor in outputs.items()}
    computed: Tensors = {name: Node.apply(tensor) for name, tensor in leaves.items()}  # type: ignore[no-untyped-call]
    alive = [weakref.ref(tensor) for tensor in computed.values()]
    loss = with_reduction(case, reduction)(computed, batch)["loss"].sum()
    torch.autograd.backward(loss)
    del computed
    gc.collect()
    assert [ref() for ref in alive] == [None] * len(alive)
    # numbers for each row, not for each class or feature of it
    rows = batch["labels"].numel() if "labels" in batch else 30
    assert [kept.shape for kept in kept_by(loss.grad_fn) if kept.numel() > rows] == []


def test_an_override_lasts_for_one_call() -> None:
    loss_fn = resolve_loss("mse")
    outputs, batch = CASES["mse"].batch()
    mean = loss_fn(outputs, batch)["loss"]
    assert loss_fn(outputs, batch, reduction="sum")["loss"] == pytest.approx(12 * mean.item())
    assert loss_fn(outputs, batch)["loss"] == mean
    assert loss_fn.kwargs["reduction"] == "mean"


@on_both_paths
@each_class
def test_threads_share_a_loss(case: Case) -> None:
    outputs, batch = case.batch()
    expected = {flag: case.loss(outputs, batch, metrics=flag) for flag in (True, False)}
    barrier = threading.Barrier(8)
    wrong: list[Any] = []

    def work(index: int) -> None:
        barrier.wait()
        for step in range(20):
            flag = (index + step) % 2 == 0
            result = case.loss(outputs, batch, metrics=flag) if step % 3 else case.loss(outputs, batch)
            if result != expected[flag or not step % 3]:
                wrong.append(result)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.fixture
def _double_by_default() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@every_loss
@pytest.mark.usefixtures("_double_by_default")
def test_the_default_dtype_makes_no_difference(case: Case) -> None:
    outputs, batch = (narrowed(tensors, torch.float32) for tensors in case.batch())
    result, _ = run(case.loss, outputs, batch)
    assert result["loss"].dtype is torch.float32
    floating = [m for m in result["metrics"].values() if isinstance(m, Tensor) and m.is_floating_point()]
    assert all(metric.dtype is torch.float32 for metric in floating)
    lists = [{name: tensor.tolist() for name, tensor in tensors.items()} for tensors in (outputs, batch)]
    assert case.loss(*lists)["loss"].dtype is torch.float32


@every_loss
def test_the_default_device_makes_no_difference(case: Case) -> None:
    outputs, batch = case.batch()
    expected = run(case.loss, outputs, batch)
    with torch.device("meta"):
        found = run(case.loss, outputs, batch)
    assert_same(found, expected, **EXACT)

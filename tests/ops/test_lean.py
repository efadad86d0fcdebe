"""Which of its two ways an operation goes, and that both give the same wherever the plain one has to be gone."""

from __future__ import annotations

import warnings
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx

from ops.cases import EXAMPLES, Way, going, gradient_of
from ops.test_gradients import graph
from tensafe.training.losses.ops.cross_entropy import cross_entropy, cross_entropy_dot
from tensafe.training.losses.ops.divergence import divergence, divergence_dot
from tensafe.training.losses.ops.info_nce import info_nce, info_nce_dot
from tensafe.training.losses.ops.lean import LEAST_LEAN, is_lean, is_plain, predicting, rows_per_chunk
from tensafe.training.losses.ops.linear_cross_entropy import linear_cross_entropy, linear_cross_entropy_dot
from tensafe.training.losses.ops.logps import logps, logps_and_entropy, sequence_logps

if TYPE_CHECKING:
    from collections.abc import Callable

    from ops.cases import Case

make_dual: Any = forward_ad.make_dual
unpack_dual: Any = forward_ad.unpack_dual

every_example = pytest.mark.parametrize("name", EXAMPLES)


class Tagged(Tensor):
    """A subclass of Tensor."""


class Look(torch.nn.Module):
    """Adds 1 where the plain formula must be used, else 2."""

    def forward(self, x: Tensor) -> Tensor:
        return x + (1 if is_plain(x) else 2)


def look(x: Tensor) -> Tensor:
    seen: Tensor = Look()(x)
    return seen


def at_level(x: Tensor) -> Tensor:
    with forward_ad.dual_level():
        return look(x)


def within(mode: Any, x: Tensor) -> Tensor:
    with mode:
        return look(x)


def fake(x: Tensor) -> Tensor:
    """Tell by the shape what values of fake tensors cannot."""
    mode = FakeTensorMode()
    return torch.ones(()) if is_plain(mode.from_tensor(x)) else torch.zeros(())


def traced_by_jit(x: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made: Tensor = torch.jit.trace(Look(), (x,))(x)  # type: ignore[no-untyped-call]
        return made


def exported(x: Tensor, strict: bool) -> Tensor:
    made: Tensor = torch.export.export(Look(), (x,), strict=strict).module()(x)
    return made


PLAIN: dict[str, Callable[[Tensor], Any]] = {
    "compile": lambda x: torch.compile(Look(), backend="eager", fullgraph=True)(x),
    "export": partial(exported, strict=False),
    "strict export": partial(exported, strict=True),
    "jit.trace": traced_by_jit,
    "make_fx": lambda x: make_fx(Look())(x)(x),
    "symbolic make_fx": lambda x: make_fx(Look(), tracing_mode="symbolic")(x)(x),
    "grad": lambda x: torch.func.grad_and_value(lambda y: Look()(y))(x)[1],
    "vmap": lambda x: torch.func.vmap(Look())(x.expand(3))[0],
    "jvp": lambda x: torch.func.jvp(Look(), (x,), (x,))[0],
    "functionalize": lambda x: torch.func.functionalize(Look())(x),
    "forward AD": at_level,
    "subclass": lambda x: Look()(x.as_subclass(Tagged)),
    "fake": fake,
    "meta": lambda x: torch.tensor(float(is_plain(x.to("meta")))),
    "one of several": lambda x: torch.tensor(float(is_plain(x, None, x.as_subclass(Tagged)))),
}
LEAN: dict[str, Callable[[Tensor], Any]] = {
    "eager": Look(),
    "no_grad": partial(within, torch.no_grad()),
    "inference mode": partial(within, torch.inference_mode()),
    "autocast": partial(within, torch.autocast("cpu", torch.bfloat16)),
    "deterministic fill": partial(within, torch.random.fork_rng(devices=[])),
    "parameter": lambda x: Look()(torch.nn.Parameter(x)),
    "after a level": lambda x: at_level(x) * 0 + Look()(x),
    "predicting fake": lambda x: within_predicting(FakeTensorMode().from_tensor(x)),
    "predicting meta": lambda x: within_predicting(x.to("meta")),
    "nothing": lambda x: torch.tensor(2.0 - is_plain(x, None)),
}


def within_predicting(x: Tensor) -> Tensor:
    with predicting():
        found = is_plain(x)
    assert is_plain(x)
    return torch.tensor(2.0 - found)


@pytest.mark.parametrize("state", PLAIN)
def test_the_plain_formula_is_used_where_something_looks_through(state: str) -> None:
    assert PLAIN[state](torch.tensor(0.0)) == 1


@pytest.mark.parametrize("state", LEAN)
def test_elsewhere_it_need_not_be(state: str) -> None:
    assert LEAN[state](torch.tensor(0.0)) == 2


def test_subclasses_stay_plain_while_predicting_and_an_error_ends_it() -> None:
    meta = torch.empty(2, device="meta")
    with predicting():
        assert is_plain(torch.zeros(2).as_subclass(Tagged))
        with pytest.raises(ZeroDivisionError), predicting():
            _ = 1 / is_plain(meta)
        assert not is_plain(meta)
    assert is_plain(meta)


def test_small_tensors_are_not_worth_chunks() -> None:
    here = torch.zeros(1)
    assert [is_lean(size, here) for size in (0, LEAST_LEAN - 1, LEAST_LEAN, 2 * LEAST_LEAN)] == [
        False,
        False,
        True,
        True,
    ]
    assert not is_lean(LEAST_LEAN, here.to("meta"))


@pytest.mark.parametrize(
    ("rows", "width", "expected"),
    [(1000, 2**10, 512), (10, 2**10, 10), (5, 2**19, 1), (5, 2**19 + 1, 1), (5, 2**18, 2), (0, 4, 1), (5, 0, 5)],
)
def test_how_many_rows_go_into_a_chunk(rows: int, width: int, expected: int) -> None:
    assert rows_per_chunk(rows, width, torch.device("cpu")) == expected


# Transforms and compilers see the same values and gradients


def upstream(case: Case) -> Tensor:
    return torch.linspace(-1, 1, case.counts.shape[0], dtype=torch.float64)


def call(case: Case, *inputs: Tensor) -> Tensor:
    total = (case.values(*inputs) * upstream(case)).sum()
    return total if case.dot is None else total + 2 * case.dot(upstream(case), *inputs)


def in_chunks(case: Case) -> tuple[Tensor, list[Tensor]]:
    leaves = case.leaves(torch.float64)
    with going(Way("chunks")):
        total = call(case, *leaves)
        torch.autograd.backward(total)
    return total.detach(), [gradient_of(leaf) for leaf in leaves]


def assert_same(found: tuple[Tensor, list[Tensor]], expected: tuple[Tensor, list[Tensor]]) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@every_example
def test_compiled(name: str) -> None:
    case = EXAMPLES[name]
    leaves = case.leaves(torch.float64)
    torch._dynamo.reset()
    with going(Way("chunks")):
        total = torch.compile(partial(call, case), backend="aot_eager", fullgraph=True)(*leaves)
        torch.autograd.backward(total)
    assert_same((total.detach(), [gradient_of(leaf) for leaf in leaves]), in_chunks(case))


@every_example
def test_transformed_by_grad(name: str) -> None:
    case = EXAMPLES[name]
    inputs = case.leaves(torch.float64)
    with going(Way("chunks")):
        gradients, total = torch.func.grad_and_value(partial(call, case), tuple(range(len(inputs))))(*inputs)
    assert_same((total.detach(), [each.detach() for each in gradients]), in_chunks(case))


@every_example
def test_transformed_by_vmap(name: str) -> None:
    case = EXAMPLES[name]
    batch = [torch.stack([tensor, 2 * tensor.flip(0)]) for tensor in case.inputs]
    with going(Way("chunks")):
        mapped = torch.func.vmap(case.values)(*batch)
        gradients = torch.func.vmap(torch.func.grad(partial(call, case)))(*batch)
    with going(Way("plain")):
        for index in range(2):
            inputs = [tensor[index] for tensor in batch]
            assert_same((mapped[index], []), (case.values(*inputs), []))
            assert_same((gradients[index], []), (torch.func.grad(partial(call, case))(*inputs), []))


@every_example
def test_transformed_by_jvp_and_hessian(name: str) -> None:
    case = EXAMPLES[name]
    tangents = [torch.cos(tensor) for tensor in case.inputs]
    leaves = case.leaves(torch.float64)
    with going(Way("chunks")):
        slope = torch.func.jvp(partial(call, case), case.inputs, tuple(tangents))[1]
        with forward_ad.dual_level():
            duals = [make_dual(*pair) for pair in zip(case.inputs, tangents, strict=True)]
            again = unpack_dual(call(case, *duals)).tangent
        curve = torch.func.jvp(torch.func.grad(partial(call, case)), case.inputs, tuple(tangents))[1]
        gradients = torch.autograd.grad(call(case, *leaves), leaves, create_graph=True)
        (second,) = torch.autograd.grad(gradients[0], leaves[0], torch.ones_like(leaves[0]), retain_graph=True)
        products = [(gradient * tangent).sum() for gradient, tangent in zip(gradients, tangents, strict=True)]
        (direction,) = torch.autograd.grad(sum(products, torch.zeros(())), leaves[:1])
    slope_expected = sum(product.item() for product in products)
    assert slope.item() == pytest.approx(slope_expected, rel=1e-10, abs=1e-10)
    assert again is not None
    assert again.item() == pytest.approx(slope_expected, rel=1e-10, abs=1e-10)
    torch.testing.assert_close(curve, direction, rtol=1e-9, atol=1e-9)
    assert second.isfinite().all()


@pytest.mark.parametrize(
    ("name", "tracing_mode"),
    [
        ("cross_entropy-full", "real"),
        ("linear_cross_entropy-full", "fake"),
        ("logps_and_entropy", "symbolic"),
        ("jsd", "fake"),
        ("info_nce-symmetric", "real"),
    ],
)
def test_traced_by_make_fx(name: str, tracing_mode: Any) -> None:
    case = EXAMPLES[name]

    def step(*inputs: Tensor) -> list[Tensor]:
        leaves = [tensor.detach().requires_grad_() for tensor in inputs]
        total = call(case, *leaves)
        return [total.detach(), *torch.autograd.grad(total, leaves)]

    with going(Way("chunks")):
        traced = make_fx(step, tracing_mode=tracing_mode, _allow_non_fake_inputs=True)(*case.inputs)
    other = case._replace(inputs=tuple(tensor.flip(0) / 2 for tensor in case.inputs))
    total, *gradients = traced(*other.inputs)
    assert_same((total, gradients), in_chunks(other))


class Step(torch.nn.Module):
    """An operation as a module, for export."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self._case = case

    def forward(self, *inputs: Tensor) -> Tensor:
        return call(self._case, *inputs)


@pytest.mark.parametrize("name", ["cross_entropy-full", "linear_cross_entropy", "forward_kl", "info_nce"])
def test_exported(name: str) -> None:
    case = EXAMPLES[name]
    with going(Way("chunks")):
        program = torch.export.export(Step(case), case.inputs, strict=False)
    other = case._replace(inputs=tuple(tensor.flip(0) / 2 for tensor in case.inputs))
    assert_same((program.module()(*other.inputs), []), (in_chunks(other)[0], []))


# Without data


ROWS = (2, 600)
VOCAB, WIDTH = 1024, 8


def bare(*shape: int, dtype: torch.dtype, device: str) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=device, requires_grad=dtype.is_floating_point)


WITHOUT_DATA: dict[str, tuple[list[tuple[int, ...]], Callable[..., Any]]] = {
    "cross_entropy": (
        [(*ROWS, VOCAB)],
        lambda labels, c, x: (cross_entropy(x, labels), cross_entropy_dot(x, labels, c)),
    ),
    "linear_cross_entropy": (
        [(*ROWS, WIDTH), (VOCAB, WIDTH)],
        lambda labels, c, h, w: (linear_cross_entropy(h, w, labels), linear_cross_entropy_dot(h, w, labels, c)),
    ),
    "logps": ([(*ROWS, VOCAB)], lambda labels, c, x: (logps(x, labels), sequence_logps(x, labels).sum())),
    "logps_and_entropy": (
        [(*ROWS, VOCAB)],
        lambda labels, c, x: (*logps_and_entropy(x, labels), c.sum() + 0 * x.sum()),
    ),
    "divergence": (
        [(*ROWS, VOCAB)] * 2,
        lambda labels, c, s, t: (divergence(s, t, counts=labels != 0), divergence_dot(s, t, c)),
    ),
    "info_nce": (
        [(1200, WIDTH)] * 2,
        lambda labels, c, a, b: (
            info_nce(a, b, temperature=1.0).view(ROWS),
            info_nce_dot(a, b, c.flatten(), temperature=1.0, symmetric=True),
        ),
    ),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("name", WITHOUT_DATA)
@pytest.mark.parametrize("device", ["fake", "meta"])
@pytest.mark.parametrize("is_predicted", [False, True], ids=["plain", "predicting"])
def test_without_data(name: str, dtype: torch.dtype, device: str, is_predicted: bool) -> None:
    shapes, run = WITHOUT_DATA[name]
    on = "meta" if device == "meta" else "cpu"
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    with (
        FakeTensorMode() if device == "fake" else torch.device("meta"),
        predicting() if is_predicted else torch.enable_grad(),
    ):
        labels, coefficients = (bare(*ROWS, dtype=each, device=on) for each in (torch.int64, torch.float32))
        inputs = [bare(*shape, dtype=dtype, device=on) for shape in shapes]
        *values, total = run(labels, coefficients.detach(), *inputs)
        torch.autograd.backward(total + sum(each.sum() for each in values))
    assert [each.shape for each in values] == [ROWS] * len(values)
    assert total.shape == ()
    assert {each.dtype for each in (*values, total)} == {wide}
    for tensor in inputs:
        assert (gradient_of(tensor).shape, gradient_of(tensor).dtype) == (tensor.shape, dtype)
    fused = [node.name() in {"_ResultsBackward", "_DotBackward"} for node in graph(values[0])]
    assert any(fused) is is_predicted


@pytest.mark.parametrize("numel", [2, 600, 2000], ids=["short", "long", "longer"])
def test_small_tensors_without_data_while_predicting(numel: int) -> None:
    with FakeTensorMode(), predicting():
        logits, labels = torch.empty(numel, 3, requires_grad=True), torch.empty(numel, dtype=torch.int64)
        values = cross_entropy(logits, labels)
        torch.autograd.backward(values.sum())
    assert gradient_of(logits).shape == (numel, 3)

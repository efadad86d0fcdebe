"""What other libraries are called with, and what is said where they cannot be called."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tensafe.training.losses import LossInputError
from tensafe.training.losses.ops.backends import backend
from tensafe.training.losses.ops.cross_entropy import Formula
from tensafe.training.losses.ops.linear_cross_entropy import linear_cross_entropy, linear_cross_entropy_dot

if TYPE_CHECKING:
    from collections.abc import Callable

    Calls = list[dict[str, Any]]

LABELS = torch.tensor([[1, -7, 0], [3, 2, -7]])
SOME = (LABELS != -7).float() / 4


class OnCuda(Tensor):
    """A tensor that says that it is on CUDA."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("cuda")


def states(*shape: int) -> Tensor:
    return torch.linspace(-1, 1, torch.Size(shape).numel()).sin().reshape(shape)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Put stand-ins where the libraries would be, with their signatures; return what they are called with."""
    made: Calls = []

    def cut(
        e: Tensor,
        c: Tensor,
        targets: Tensor,
        bias: Tensor | None = None,
        ignore_index: int = -100,
        softcap: float | None = None,
        reduction: str = "mean",
        shift: bool | int = 0,
        filter_eps: float | str | None = "auto",
    ) -> Tensor:
        made.append({"rows": e.shape[:-1], "filter_eps": filter_eps, "reduction": reduction})
        logits = (e @ c.T).flatten(0, -2)
        capped = logits if softcap is None else softcap * torch.tanh(logits / softcap)
        found = F.cross_entropy(capped, targets.flatten(), ignore_index=ignore_index, reduction="none")
        return found.to(e.dtype).view(targets.shape)

    def liger(
        input: Tensor,  # as it is called there
        weight: Tensor,
        target: Tensor,
        bias: Tensor | None = None,
        ce_weight: Tensor | None = None,
        ignore_index: int = -100,
        lse_square_scale: float = 0.0,
        label_smoothing: float = 0.0,
        reduction: str = "mean",
        softcap: float | None = None,
    ) -> Tensor:
        made.append({"rows": input.shape[:-1], "reduction": reduction})
        logits = F.linear(input, weight, bias)
        capped = logits if softcap is None else softcap * torch.tanh(logits / softcap)
        smoothing = {"label_smoothing": label_smoothing, "ignore_index": ignore_index}
        values = F.cross_entropy(capped, target, reduction="none", **smoothing)  # type: ignore[arg-type]
        squared = lse_square_scale * torch.logsumexp(capped, 1) ** 2
        return torch.where(target == ignore_index, 0.0, values + squared).sum().to(input.dtype)

    libraries: dict[str, dict[str, Any]] = {
        "cut_cross_entropy": {"linear_cross_entropy": cut},
        "liger_kernel.transformers.functional": {"liger_fused_linear_cross_entropy": liger},
    }
    for name, attributes in libraries.items():
        for parent in ("liger_kernel", "liger_kernel.transformers") if "liger" in name else ():
            monkeypatch.setitem(sys.modules, parent, ModuleType(parent))
        module = ModuleType(name)
        module.__dict__.update(attributes)
        monkeypatch.setitem(sys.modules, name, module)
    return made


FORMULAS = {
    "plain": Formula(-7),
    "capped": Formula(-7, softcap=2.0),
    "scaled": Formula(-7, softcap=2.0, scale=3.0),
    "smoothed": Formula(-7, label_smoothing=0.1, z_loss=0.01, scale=0.5),
}


def gradients(total: Tensor, *leaves: Tensor) -> list[Tensor]:
    return [each.as_subclass(Tensor) for each in torch.autograd.grad(total, leaves)]


@pytest.mark.parametrize("name", ["auto", "torch"])
def test_our_own_is_the_default(name: str) -> None:
    assert backend(name, states(2, 3, 4)) == (linear_cross_entropy, linear_cross_entropy_dot)


@pytest.mark.parametrize("formula", ["plain", "capped", "scaled"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_cut_cross_entropy(calls: Calls, formula: str, dtype: torch.dtype) -> None:
    hidden, weight = states(2, 3, 4).to(dtype).requires_grad_(), states(5, 4).to(dtype).requires_grad_()
    on_cuda, chosen = hidden.as_subclass(OnCuda), FORMULAS[formula]
    values, dot = backend("cce", on_cuda)
    made, total = values(on_cuda, weight, LABELS, chosen), dot(on_cuda, weight, LABELS, SOME, chosen)
    expected = linear_cross_entropy(hidden, weight, LABELS, chosen)
    exactly = {} if dtype is torch.float32 else {"rtol": 2e-2, "atol": 2e-2}  # the stand-in rounds, as they do
    torch.testing.assert_close(made.as_subclass(Tensor), expected, **exactly)  # type: ignore[arg-type]
    torch.testing.assert_close(total.as_subclass(Tensor), (expected * SOME).sum(), **exactly)  # type: ignore[arg-type]
    assert made.dtype is total.dtype is torch.float32
    assert (made[LABELS == -7] == 0).all()
    wanted = gradients((expected * SOME).sum(), hidden, weight)
    torch.testing.assert_close(gradients(total, hidden, weight), wanted, **exactly)  # type: ignore[arg-type]
    assert calls == [{"rows": (2, 3), "filter_eps": None, "reduction": "none"}] * 2


@pytest.mark.parametrize("formula", FORMULAS)
@pytest.mark.parametrize("with_bias", [False, True])
def test_liger(calls: Calls, formula: str, with_bias: bool) -> None:
    hidden, weight = states(2, 3, 4).requires_grad_(), states(5, 4).requires_grad_()
    bias, chosen = states(5) if with_bias else None, FORMULAS[formula]
    on_cuda = hidden.as_subclass(OnCuda)
    total = backend("liger", on_cuda)[1](on_cuda, weight, LABELS, SOME, chosen, bias=bias)
    expected = linear_cross_entropy_dot(hidden, weight, LABELS, SOME, chosen, bias=bias)
    torch.testing.assert_close(total.as_subclass(Tensor), expected)
    torch.testing.assert_close(gradients(total, hidden, weight), gradients(expected, hidden, weight))
    assert calls == [{"rows": (6,), "reduction": "sum"}]


@pytest.mark.usefixtures("calls")
@pytest.mark.parametrize("name", ["cce", "liger"])
def test_nothing_that_counts_gives_0(name: str) -> None:
    hidden, weight = states(2, 3, 4).as_subclass(OnCuda), states(5, 4)
    dot = backend(name, hidden)[1]
    assert dot(hidden, weight, torch.full_like(LABELS, -7), torch.zeros(2, 3), FORMULAS["plain"]) == 0
    assert dot(hidden[:0], weight, LABELS[:0], torch.zeros(0, 3), FORMULAS["plain"]) == 0


def call(name: str, form: int, hidden: Tensor, **kwargs: Any) -> Callable[[], Tensor]:
    rest = (LABELS, FORMULAS["plain"]) if form == 0 else (LABELS, SOME, FORMULAS["plain"])
    return lambda: backend(name, hidden)[form](hidden, states(5, 4), *rest, **kwargs)


HERE, THERE = states(2, 3, 4), states(2, 3, 4).as_subclass(OnCuda)
REFUSED: dict[str, tuple[Callable[[], Tensor], str]] = {
    "cce values on cpu": (call("cce", 0, HERE), "cut-cross-entropy runs on CUDA; these tensors are on cpu"),
    "cce sum on cpu": (call("cce", 1, HERE), "backend cce: cut-cross-entropy runs on CUDA"),
    "liger on cpu": (call("liger", 1, HERE), "liger-kernel runs on CUDA; these tensors are on cpu"),
    "cce on meta": (call("cce", 0, HERE.to("meta")), "these tensors are on meta"),
    "cce not installed": (call("cce", 0, THERE), "cut-cross-entropy cannot be used here"),
    "liger not installed": (call("liger", 1, THERE), "liger-kernel cannot be used here"),
    "liger values": (call("liger", 0, THERE), "no value per token"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_done_is_refused(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cut_cross_entropy", "liger_kernel", "liger_kernel.transformers.functional"):
        monkeypatch.setitem(sys.modules, name, None)
    run, part = REFUSED[case]
    with pytest.raises(LossInputError, match=part) as refused:
        run()
    assert refused.value.code == "backend"
    assert "Use backend: torch" in str(refused.value)


@pytest.mark.usefixtures("calls")
def test_a_bias_is_too_much_for_cut_cross_entropy() -> None:
    with pytest.raises(LossInputError, match="takes no bias") as refused:
        call("cce", 1, THERE, bias=states(5))()
    assert refused.value.loc == ("bias",)


def test_a_library_without_the_function_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cut_cross_entropy", ModuleType("cut_cross_entropy"))
    with pytest.raises(LossInputError, match="has no attribute 'linear_cross_entropy'"):
        call("cce", 0, THERE)()

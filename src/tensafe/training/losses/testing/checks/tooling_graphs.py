"""Graphs of a loss: made by torch.compile, for many sizes, and by torch.export."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch._dynamo.testing import CompileCounterWithBackend

from tensafe.training.losses.testing.aids.agreement import require_agreement, require_same_result
from tensafe.training.losses.testing.aids.compiler import AsModule, fresh_compiler
from tensafe.training.losses.testing.catalogue import conformance_check
from tensafe.training.losses.testing.outcome import fail, skip

if TYPE_CHECKING:
    from tensafe.training.losses.testing.subject import Subject
    from tensafe.training.losses.testing.trial import Trial

_SIZES = ((3, 8), (5, 12), (6, 17), (9, 24), (13, 33), (20, 48))
"""Batch sizes and lengths, no two alike, and none like a size of another axis: equal sizes would share a symbol."""

_MOST_GRAPHS = 2
"""One for the first sizes, one for all the others."""


@conformance_check(
    "tooling",
    "torch.compile(fullgraph=True) cannot follow it. Leave out what is no tensor operation: .item(), an `if` on a "
    "tensor's value, print and logging, calls of numpy, state that a call changes.",
)
def check_compile_fullgraph(subject: Subject) -> None:
    """Compiled it is one graph, which gives the same result and gradients as eager."""
    trial = subject.trial("float64")
    expected = trial.run()
    with fresh_compiler():
        compiled = torch.compile(trial.loss, fullgraph=True, backend="aot_eager")  # pyright: ignore[reportUnknownMemberType]
        try:
            found = trial.run(compiled)
        except Exception as error:
            fail(f"torch.compile(fullgraph=True) raises {_told(error)}", trial=trial)
    require_agreement(found, expected, "under torch.compile", trial)


@conformance_check(
    "tooling",
    "It is compiled anew for sizes that a graph should serve all alike. Use sizes in tensor operations only: not as "
    "keys of a dict or a cache, in a comparison, in range() or through int().",
)
def check_dynamic_shapes(subject: Subject) -> None:
    """Two graphs serve any batch size and length."""
    trials = [subject.trial("float64", sizes={"batch": batch, "seq": seq}) for batch, seq in _SIZES]
    if _shapes(trials[0]) == _shapes(trials[1]):
        skip("no tensor has an axis of samples or tokens")
    counter = CompileCounterWithBackend("eager")
    with fresh_compiler():
        compiled = torch.compile(trials[0].loss, fullgraph=True, backend=counter)  # pyright: ignore[reportUnknownMemberType]
        for number, trial in enumerate(trials, start=1):
            try:
                found = trial.call(compiled)
            except Exception as error:
                if trial is trials[0]:
                    skip("torch.compile cannot follow it")  # which is for the check above to say
                fail(f"compiled for other sizes it raises {_told(error)}", trial=trial)
            expected = trial.call(trials[0].loss)
            require_same_result(found, expected, "compiled for several sizes", trial)
            if counter.frame_count > _MOST_GRAPHS:
                fail(f"{counter.frame_count} graphs were made for {number} batch sizes and lengths", trial=trial)


@conformance_check(
    "tooling",
    "torch.export cannot make a program of it that holds for other values. Leave out .item() and float(), an `if` on a "
    "tensor's value, and tensors kept from an earlier call; return tensors and numbers only.",
)
def check_export(subject: Subject) -> None:
    """Exported from one batch it gives the same loss and gradients on another."""
    trial = subject.trial("float64")
    with fresh_compiler():
        try:
            program = torch.export.export(AsModule(trial.loss), (dict(trial.outputs), dict(trial.batch))).module()
        except Exception as error:
            fail(f"torch.export raises {_told(error)}", trial=trial)
        another = subject.trial("float64", seed=1)
        if _shapes(another) == _shapes(trial):
            trial = another._replace(loss=trial.loss)
        found = trial.run(program)
    require_agreement(found, trial.run(), "exported", trial)


def _shapes(trial: Trial) -> dict[str, Any]:
    return {key: tensor.shape for key, tensor in trial.tensors.items()}


def _told(error: Exception) -> str:
    """Return what was raised, and why: the compiler's own text is long, its first lines say it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:3])}"

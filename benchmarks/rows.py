"""What is measured, against what, and the targets: each number is written here and nowhere else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["ROWS", "TINY", "Limits", "Row"]

Kind = Literal["work", "check", "compiled", "startup"]


class Limits(NamedTuple):
    """The most that the contenders of a row that are held to its targets may show; None where there is no target.

    Attributes:
        time: In units of the base's time.
        floor: In units of the floor's time.
        memory: Peak above the inputs, in the row's unit of memory.
        error: Largest distance from the float64 reference.
        seconds: In seconds, whatever the base takes.
        missed: Faults that may go unnoticed.
        graphs: Graphs that torch.compile may make over the lengths tried.
        fullgraph: Whether it has to run under `torch.compile(fullgraph=True)`.
    """

    time: float | None = None
    floor: float | None = None
    memory: float | None = None
    error: float | None = None
    seconds: float | None = None
    missed: int | None = None
    graphs: int | None = None
    fullgraph: bool = False


class Row(NamedTuple):
    """One row of the table.

    Attributes:
        name: What `--only` takes.
        title: What is measured.
        base: The contender whose time is 1.
        limits: The targets.
        kind: Which module measures it: `work`, `check`, `compiled` or `startup`.
        work: The piece of work (a name in `benchmarks.work.WORKS`), or the built-in loss that is compiled.
        sizes: Sizes of its tensors.
        cuda_sizes: Other sizes on CUDA, where the CPU needs smaller ones.
        dtype: Of its floating-point tensors.
        chunk_size: Of the op, where it is not left to it.
        floor: The contender that does nothing but the unavoidable.
        held: The contenders that the targets are for.
        peers: Whether other libraries are measured too.
        memory: Whether the peak memory is measured.
        once: Whether everyone has one turn only, because the base takes minutes.
        environment: Variables under which the row runs, in a process of its own.
    """

    name: str
    title: str
    base: str
    limits: Limits = Limits()
    kind: Kind = "work"
    work: str = ""
    sizes: Mapping[str, int] = {}
    cuda_sizes: Mapping[str, int] = {}
    dtype: str = "float32"
    chunk_size: int | None = None
    floor: str | None = None
    held: tuple[str, ...] = ("tensafe",)
    peers: bool = True
    memory: bool = True
    once: bool = False
    environment: Mapping[str, str] = {}


TINY = {"rows": 12, "vocab": 50, "batch": 6, "hidden": 8}
"""The most that each size is with `--sizes tiny`, which shows that everything runs, and nothing else."""

_LOGITS = {"rows": 1024, "vocab": 32_000}
_HIDDEN = {"rows": 2048, "vocab": 128_256, "hidden": 1024}
_HUGE_PAGES = {"THP_MEM_ALLOC_ENABLE": "1"}

_LOSS_ROWS = (
    Row(
        "ce-fp32",
        "Cross-entropy from logits",
        base="F.cross_entropy",
        limits=Limits(time=0.50, memory=1.05),
        work="cross_entropy",
        sizes=_LOGITS,
        floor="copy",
    ),
    Row(
        "ce-bf16",
        "Cross-entropy from logits",
        base="F.cross_entropy",
        limits=Limits(time=0.55, memory=1.1, error=1e-5),
        work="cross_entropy",
        sizes=_LOGITS,
        dtype="bfloat16",
        floor="copy",
    ),
    Row(
        "ce-fp32-huge-pages",
        "Cross-entropy from logits, huge pages",
        base="F.cross_entropy",
        limits=Limits(time=0.70),
        work="cross_entropy",
        sizes=_LOGITS,
        floor="copy",
        environment=_HUGE_PAGES,
    ),
    Row(
        "ce-bf16-huge-pages",
        "Cross-entropy from logits, huge pages",
        base="F.cross_entropy",
        limits=Limits(time=0.70, error=1e-5),
        work="cross_entropy",
        sizes=_LOGITS,
        dtype="bfloat16",
        floor="copy",
        environment=_HUGE_PAGES,
    ),
    *(
        Row(
            f"ce-small-{rows}x{vocab}",
            "Cross-entropy of a small input",
            base="F.cross_entropy, per token",
            limits=Limits(time=1.05),
            work="small_cross_entropy",
            sizes={"rows": rows, "vocab": vocab},
            memory=False,
        )
        for rows, vocab in ((8, 32), (64, 1000), (512, 1000), (16, 32_000))
    ),
    Row(
        "ce-overwrite",
        "Cross-entropy written over the logits",
        base="F.cross_entropy",
        limits=Limits(time=0.30, memory=0.1),
        work="overwriting_cross_entropy",
        sizes=_LOGITS,
        floor="copy",
    ),
    Row(
        "logps-fp32",
        "Log-probs of the labels, with gradient",
        base="log_softmax + gather",
        limits=Limits(time=0.65, memory=1.05),
        work="logps",
        sizes=_LOGITS,
        floor="copy",
    ),
    Row(
        "logps-bf16",
        "Log-probs of the labels, with gradient",
        base="log_softmax + gather",
        limits=Limits(time=0.65, memory=1.05, error=1e-5),
        work="logps",
        sizes=_LOGITS,
        dtype="bfloat16",
        floor="copy",
    ),
    Row(
        "logps-no-grad-fp32",
        "Log-probs of the labels, no gradient",
        base="log_softmax + gather",
        limits=Limits(time=0.55, memory=0.05),
        work="logps_without_gradient",
        sizes=_LOGITS,
        floor="read",
    ),
    Row(
        "logps-no-grad-bf16",
        "Log-probs of the labels, no gradient",
        base="log_softmax + gather",
        limits=Limits(time=0.55, memory=0.05, error=1e-5),
        work="logps_without_gradient",
        sizes=_LOGITS,
        dtype="bfloat16",
        floor="read",
    ),
    Row(
        "kl",
        "KL over the vocabulary",
        base="F.kl_div",
        limits=Limits(time=0.38, memory=1.1),
        work="divergence",
        sizes=_LOGITS,
        floor="copy",
    ),
    Row(
        "info-nce",
        "InfoNCE",
        base="a @ b.T + F.cross_entropy",
        limits=Limits(time=0.85, memory=0.3),
        work="info_nce",
        sizes={"batch": 4096, "hidden": 512},
        floor="three GEMMs",
    ),
    Row(
        "linear-ce-fp32",
        "Cross-entropy from hidden states",
        base="F.linear + F.cross_entropy",
        limits=Limits(time=0.80, floor=1.25, memory=150),
        work="linear_cross_entropy",
        sizes=_HIDDEN,
        floor="three GEMMs",
    ),
    Row(
        "linear-ce-fp32-64",
        "Cross-entropy from hidden states, 64 tokens a chunk",
        base="F.linear + F.cross_entropy",
        limits=Limits(time=0.95, memory=50),
        work="linear_cross_entropy",
        sizes=_HIDDEN,
        chunk_size=64,
        floor="three GEMMs",
        peers=False,
    ),
    Row(
        "linear-ce-bf16",
        "Cross-entropy from hidden states",
        base="F.linear + F.cross_entropy",
        limits=Limits(time=0.05, error=1e-3),
        work="linear_cross_entropy",
        sizes={**_HIDDEN, "rows": 32},
        cuda_sizes=_HIDDEN,
        dtype="bfloat16",
        once=True,
    ),
)

_OTHER_ROWS = (
    Row(
        "check",
        "What the check adds to a call",
        base="by hand",
        limits=Limits(time=1.2, missed=0, fullgraph=True),
        kind="check",
    ),
    *(
        Row(
            f"compile-{loss}",
            f"{loss} under torch.compile, 6 lengths",
            base="the same in eager mode",
            limits=Limits(error=1e-5, graphs=2, fullgraph=True),
            kind="compiled",
            work=loss,
        )
        for loss in ("token_ce", "linear_ce", "contrastive", "mse", "margin_ranking")
    ),
    Row(
        "compile-memory",
        "token_ce under torch.compile",
        base="compiled F.cross_entropy",
        limits=Limits(memory=1.1),
        work="compiled_cross_entropy",
        sizes=_LOGITS,
    ),
    Row(
        "start-validate",
        "tensafe validate configs/train_sft.yaml",
        base="import torch",
        limits=Limits(time=0.2),
        kind="startup",
        work="validate",
    ),
    Row(
        "start-import",
        "import tensafe",
        base="import torch",
        limits=Limits(seconds=0.040),
        kind="startup",
        work="import",
    ),
)

ROWS: tuple[Row, ...] = (*_LOSS_ROWS, *_OTHER_ROWS)

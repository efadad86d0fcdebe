"""The distillation losses once more, from the papers' formulas: Python floats, plain loops, nothing shared."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor

from reference import Rows, logsumexp, loss_and_gradients, reduced
from strategies import tensors
from tensafe.training.losses import ResolvedLoss, resolve_loss

Distribution = Sequence[float]
Formula = Callable[[Sequence[float], Sequence[float]], float]
"""Of the student's and the teacher's scores at one position."""

MODES = ("sum", "mean", "sequence_mean", "sequence_sum", "sequence_sum_norm")
HALVES = {
    "logits": torch.zeros(1, 2, dtype=torch.float64),
    "teacher_logits": torch.tensor([[0.0, math.log(3)]], dtype=torch.float64),
}
"""A student of (1/2, 1/2) and a teacher of (1/4, 3/4)."""
IGNORED = -100


def softmax(scores: Sequence[float], temperature: float = 1.0) -> list[float]:
    softer = [score / temperature for score in scores]
    norm = logsumexp(softer)
    return [math.exp(score - norm) for score in softer]


def kl(p: Distribution, q: Distribution) -> float:
    return math.fsum(x * (math.log(x) - math.log(y) if y else math.inf) for x, y in zip(p, q, strict=True) if x)


def mixed(share: float, p: Distribution, q: Distribution) -> list[float]:
    return [share * x + (1 - share) * y for x, y in zip(p, q, strict=True)]


def jsd(s: Distribution, p: Distribution, beta: float) -> float:
    if beta in {0, 1}:
        return kl(s, p) if beta else kl(p, s)
    mixture = mixed(beta, p, s)
    return beta * kl(p, mixture) + (1 - beta) * kl(s, mixture)


DIVERGENCES: Mapping[str, Callable[..., float]] = {
    "forward_kl": lambda s, p: kl(p, s),
    "reverse_kl": kl,
    "jsd": lambda s, p, beta=0.5: jsd(s, p, beta),
    "skew_kl": lambda s, p, alpha=0.1: kl(p, mixed(alpha, p, s)),
    "skew_rkl": lambda s, p, alpha=0.1: kl(s, mixed(alpha, s, p)),
    "symmetric_kl": lambda s, p, ratio=0.5: ratio * kl(p, s) + (1 - ratio) * kl(s, p),
    "tvd": lambda s, p: math.fsum(abs(x - y) for x, y in zip(s, p, strict=True)) / 2,
}


def formula_of(name: str, temperature: float = 1.0, scale_tau2: bool = False, **kwargs: float) -> Formula:
    """Return the formula of a registered loss with some kwargs."""

    def formula(student: Sequence[float], teacher: Sequence[float]) -> float:
        value = DIVERGENCES[name](softmax(student, temperature), softmax(teacher, temperature), **kwargs)
        return value * temperature**2 if scale_tau2 else value

    return formula


def topk(
    scores: Sequence[float], entries: Sequence[tuple[int, float]], tail: str = "bucket", temperature: float = 1.0
) -> float:
    """Return the divergence from (id, log-probability at temperature 1) of the given classes."""
    entries = [(index, logp) for index, logp in entries if logp != -math.inf]
    ids = [index for index, _ in entries]
    given = [math.exp(logp) for _, logp in entries]
    if not given:
        return 0.0
    whole = softmax(scores)
    student = [whole[index] for index in ids]
    rests = 1 - math.fsum(given), math.fsum(q for index, q in enumerate(whole) if index not in ids)
    if tail in {"bucket", "drop"} and rests[1]:
        given, student = [*given, max(rests[0], 0.0)], [*student, rests[1]]
    p, q = (_sharpened(each, 1 / temperature) for each in (given, student))
    if tail == "renormalise_teacher":
        soft = softmax(scores, temperature)
        q = [soft[index] for index in ids]
    kept = len(ids) if tail == "drop" else len(p)
    return kl(p[:kept], q[:kept])


def _sharpened(masses: Sequence[float], power: float) -> list[float]:
    powers = [mass**power for mass in masses]
    return [each / math.fsum(powers) for each in powers]


# Batches


class Pair(NamedTuple):
    """Logits of student and teacher, and labels that say what counts; None is all."""

    logits: Tensor
    teacher: Tensor
    labels: Tensor | None

    @property
    def outputs(self) -> dict[str, Tensor]:
        return {"logits": self.logits}

    @property
    def batch(self) -> dict[str, Tensor]:
        return {"teacher_logits": self.teacher, **({} if self.labels is None else {"labels": self.labels})}

    def counts(self, shift: bool = True) -> Tensor:
        if self.labels is None:
            return torch.ones(self.logits.shape[:-1], dtype=torch.bool)
        if not shift:
            return self.labels != IGNORED
        return torch.nn.functional.pad(self.labels, (0, 1), value=IGNORED)[:, 1:] != IGNORED


@st.composite
def labels_of(draw: st.DrawFn, lead: tuple[int, ...], vocab: int) -> Tensor:
    size = math.prod(lead)
    drawn = draw(st.lists(st.sampled_from([IGNORED, *range(vocab)]), min_size=size, max_size=size))
    return torch.tensor(drawn, dtype=torch.int64).reshape(lead)


@st.composite
def pairs(draw: st.DrawFn, *, least: int = 0, bound: float = 8.0) -> Pair:
    lead, vocab = (draw(st.integers(least, 3)), draw(st.integers(least, 3))), draw(st.integers(1, 4))
    shape = (*lead, vocab)
    student, teacher = draw(tensors(shape, bound)), draw(tensors(shape, bound))
    return Pair(student, teacher, draw(st.none() | labels_of(lead, vocab)))


@st.composite
def entries(draw: st.DrawFn, lead: Sequence[int], vocab: int) -> tuple[Tensor, Tensor]:
    """Ids and log-probabilities of the likeliest classes of some teacher, in no order; some are not there."""
    k = draw(st.integers(1, vocab))
    scores = draw(tensors((*lead, vocab), 5.0))
    found = torch.log_softmax(scores, -1).topk(k, -1)
    order = draw(st.permutations(range(k)))
    ids, logps = found.indices[..., order], found.values[..., order]
    absent = torch.tensor(
        draw(st.lists(st.sampled_from([False, False, True]), min_size=logps.numel(), max_size=logps.numel())),
        dtype=torch.bool,
    ).reshape(logps.shape)
    return torch.where(absent, -1, ids), torch.where(absent, -math.inf, logps)


temperatures = st.sampled_from([1.0, 0.5, 2.0])
common = st.fixed_dictionaries({"temperature": temperatures, "scale_tau2": st.booleans()})
"""The kwargs that every one of them has."""
reductions = st.sampled_from(MODES)


# Checks


@lru_cache(maxsize=256)
def resolve(name: str, **kwargs: Any) -> ResolvedLoss:
    if kwargs.get("reduction") == "sequence_sum_norm":
        kwargs["max_length"] = 7
    return resolve_loss(name, **kwargs)


def rows_of(values: Callable[[tuple[int, ...]], float], counts: Tensor) -> Rows:
    """Rows of (value, weight); values of what does not count are not made."""
    return [
        [(values((i, t)) if counted else 0.0, float(counted)) for t, counted in enumerate(row)]
        for i, row in enumerate(counts.tolist())
    ]


def check_reductions(name: str, pair: Pair, shift: bool, mode: str, kwargs: Mapping[str, Any]) -> None:
    """Compare every reduction, and the values themselves, with the formula."""
    formula = formula_of(name, **kwargs)
    rows = rows_of(lambda at: formula(pair.logits[at].tolist(), pair.teacher[at].tolist()), pair.counts(shift))
    check_rows(name, pair.outputs, pair.batch, rows, mode, {"shift": shift, **kwargs})


def check_rows(
    name: str,
    outputs: Mapping[str, Tensor],
    batch: Mapping[str, Tensor],
    rows: Rows,
    mode: str,
    kwargs: Mapping[str, Any],
) -> None:
    loss = resolve(name, reduction=mode, **kwargs)(outputs, batch)["loss"].item()
    expected = reduced(rows, mode, max_length=7)
    assert math.isclose(loss, expected, rel_tol=1e-9, abs_tol=1e-12), (loss, expected)
    each = resolve(name, reduction="none", **kwargs)(outputs, batch)["loss"]
    wanted = torch.tensor([[value for value, _ in row] for row in rows], dtype=torch.float64).reshape(each.shape)
    torch.testing.assert_close(each, wanted, rtol=1e-9, atol=1e-12)


def check_gradient(name: str, pair: Pair, kwargs: Mapping[str, Any]) -> None:
    """Compare the gradient with central differences of the formula."""
    formula, counts = formula_of(name, **kwargs), pair.counts()
    check_slopes(
        name, pair.outputs, pair.batch, lambda at, scores: formula(scores, pair.teacher[at].tolist()), counts, kwargs
    )
    leaves = [each.clone().requires_grad_() for each in (pair.logits, pair.teacher)]
    batch = {**pair.batch, "teacher_logits": leaves[1]}
    torch.autograd.backward(resolve(name, **kwargs)({"logits": leaves[0]}, batch)["loss"])
    assert leaves[0].grad is not None
    assert leaves[1].grad is None


def check_slopes(
    name: str,
    outputs: Mapping[str, Tensor],
    batch: Mapping[str, Tensor],
    value: Callable[[tuple[int, ...], Sequence[float]], float],
    counts: Tensor,
    kwargs: Mapping[str, Any],
) -> None:
    logits, step = outputs["logits"], 1e-5
    _, gradients = loss_and_gradients(resolve(name, reduction="sum", **kwargs), outputs, batch)
    wanted = torch.zeros_like(logits)
    for i, t in counts.nonzero().tolist():
        scores = logits[i, t].tolist()
        for v in range(len(scores)):
            up, down = ([*scores[:v], scores[v] + by, *scores[v + 1 :]] for by in (step, -step))
            wanted[i, t, v] = (value((i, t), up) - value((i, t), down)) / (2 * step)
    torch.testing.assert_close(gradients["logits"], wanted, rtol=1e-5, atol=1e-7)
    assert (gradients["logits"][~counts] == 0).all()


def check_junk(name: str, pair: Pair, junk: float) -> None:
    """What does not count may hold anything, on either side."""
    counts = pair.counts().unsqueeze(-1)
    clean, expected = loss_and_gradients(resolve(name), pair.outputs, pair.batch)
    student, teacher = (torch.where(counts, each, junk) for each in (pair.logits, pair.teacher))
    batch = {**pair.batch, "teacher_logits": teacher}
    for mode in ("mean", "none"):
        spoilt, gradients = loss_and_gradients(resolve(name, reduction=mode), {"logits": student}, batch)
        assert (torch.where(counts, 0.0, gradients["logits"]) == 0).all()
        assert gradients["logits"].isfinite().all()
    spoilt, gradients = loss_and_gradients(resolve(name), {"logits": student}, batch)
    assert torch.equal(spoilt, clean)
    assert torch.equal(gradients["logits"], expected["logits"])


def check_vocabulary_mask(name: str, **kwargs: Any) -> None:
    """Classes that both have masked are as good as absent."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 2, 3, 4, generator=generator, dtype=torch.float64)
    masked = [torch.nn.functional.pad(each, (2, 1), value=-math.inf) for each in (student, teacher)]
    for mode in ("mean", "none"):
        loss_fn = resolve(name, reduction=mode, **kwargs)
        loss, gradients = loss_and_gradients(loss_fn, {"logits": student}, {"teacher_logits": teacher})
        found, wide = loss_and_gradients(loss_fn, {"logits": masked[0]}, {"teacher_logits": masked[1]})
        torch.testing.assert_close(found, loss)
        torch.testing.assert_close(wide["logits"], torch.nn.functional.pad(gradients["logits"], (2, 1)))


def check_equality(name: str, exact: bool, **kwargs: Any) -> None:
    """Nothing is to learn from a teacher that agrees, in any dtype; a shift of all scores changes nothing."""
    scores = torch.randn(2, 3, 50, generator=torch.Generator().manual_seed(0)) * 4
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        logits = scores.to(dtype)
        loss, gradients = loss_and_gradients(
            resolve(name, reduction="none", **kwargs), {"logits": logits}, {"teacher_logits": logits}
        )
        tolerance = 0.0 if exact else 1e-6
        assert loss.abs().max() <= tolerance
        assert gradients["logits"].abs().max() <= 1e-6


def check_reported(name: str) -> None:
    """The metrics are the count of what counts; `metrics: false` leaves them out."""
    labels = torch.tensor([[5, IGNORED, 1, 2]])
    outputs = {"logits": torch.zeros(1, 4, 3), "teacher_logits": torch.ones(1, 4, 3)}
    for batch, kwargs, expected in (
        ({"labels": labels}, {}, 2),
        ({"labels": labels}, {"shift": False}, 3),
        ({"labels": labels}, {"shift": False, "ignore_index": 5}, 3),
        ({"shift_labels": labels}, {}, 3),
        ({"labels": labels * 0 + IGNORED}, {}, 0),
        ({}, {}, 4),
    ):
        metrics = resolve(name, **kwargs)(outputs, batch)["metrics"]
        assert metrics == {"num_tokens": expected}
    assert resolve(name, metrics=False)(outputs, {})["metrics"] == {}

"""Every operation, with inputs that hypothesis draws, the forms that it has, and its formula in float64."""

import importlib
import math
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from hypothesis import strategies as st
from torch import Tensor

import reference
from tensafe.training.losses.ops.cross_entropy import Formula, cross_entropy, cross_entropy_dot
from tensafe.training.losses.ops.divergence import Divergence, divergence, divergence_dot
from tensafe.training.losses.ops.info_nce import info_nce, info_nce_dot
from tensafe.training.losses.ops.linear_cross_entropy import linear_cross_entropy, linear_cross_entropy_dot
from tensafe.training.losses.ops.logps import logps, logps_and_entropy
from tensafe.training.losses.ops.soft_cross_entropy import soft_cross_entropy
from tensafe.training.losses.ops.unlikelihood import logps_and_unlikelihood

OPS = "tensafe.training.losses.ops"
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
JUNK = torch.tensor([math.nan, math.inf, -math.inf, 3.0], dtype=torch.float64)


# Which way an operation goes


class Way(NamedTuple):
    """How operations go about it, whatever the size.

    Attributes:
        name: `chunks` of rows, `plain` as small tensors in eager mode, `traced` as compilers and transforms have it.
        chunk: About how many elements a chunk has.
        by_vocabulary: How hidden states are gone over; None is what their dtype says.
    """

    name: str
    chunk: int = 16
    by_vocabulary: bool | None = None


def ways(dtype: torch.dtype) -> st.SearchStrategy[Way]:
    names = st.sampled_from(["chunks", "chunks", "plain", "traced"])
    return st.builds(Way, names, st.integers(1, 40), st.booleans() if dtype.itemsize > 2 else st.none())


@contextmanager
def going(way: Way) -> Generator[None]:
    """Let operations go that way."""
    with ExitStack() as stack:

        def put(module: str, **attributes: Any) -> None:
            stack.enter_context(patch.multiple(importlib.import_module(f"{OPS}.{module}"), **attributes))

        put("lean", LEAST_LEAN=1 if way.name == "chunks" else 2**62, CHUNK_ON_CPU=way.chunk)
        put("projection", _TOKENS=4, _LOGITS=way.chunk)
        put("vocabulary_blocks", _FEWEST=1, _LOGITS=way.chunk)
        if way.by_vocabulary is not None:
            put("linear_cross_entropy", _by_vocabulary=lambda hidden: way.by_vocabulary)
        if way.name == "traced":
            for module in ("lean", "cross_entropy", "linear_cross_entropy"):
                put(module, is_plain=lambda *tensors: True)
        yield


# Cases


class Case(NamedTuple):
    """One call of an operation.

    Attributes:
        inputs: What may want a gradient, in float64.
        values: Makes the values of the inputs, flattened: `[n]` in the end.
        dot: Makes the sum of coefficients `[n]` times values; None where there is no such form.
        formula: Makes the values of some of the rows: `(which, *inputs)`, all float64; 0 for the others.
        aligned: Which inputs have a row for each value; what they hold where it does not count does not matter.
        counts: Which values count.
        size: Bound of the numbers that are added up to a value.
        results: How many values a row has; they follow each other as `[results rows]`.
    """

    inputs: tuple[Tensor, ...]
    values: Callable[..., Tensor]
    dot: Callable[..., Tensor] | None
    formula: Callable[..., Tensor]
    aligned: Sequence[int]
    counts: Tensor
    size: float
    results: int = 1

    def __repr__(self) -> str:
        return f"Case({', '.join(str(list(tensor.shape)) for tensor in self.inputs)})"

    def leaves(self, dtype: torch.dtype) -> list[Tensor]:
        """Return copies of the inputs that want a gradient."""
        return [tensor.to(dtype, copy=True).requires_grad_() for tensor in self.inputs]

    def spoiled(self, counts: Tensor) -> "Case":
        """Return the same with NaN and infinity in every row none of whose values counts."""
        inputs, where = list(self.inputs), ~counts.view(self.results, -1).any(0)
        for index in self.aligned:
            rows = inputs[index].flatten(0, -2).clone()
            rows[where] = JUNK[torch.arange(rows[where].numel()) % 4].reshape(rows[where].shape)
            inputs[index] = rows.reshape(inputs[index].shape)
        return self._replace(inputs=tuple(inputs))


def cross_entropy_case(logits: Tensor, scored: "Scored") -> Case:
    labels, formula, class_weight = scored.labels, scored.formula, scored.class_weight

    def values(logits: Tensor) -> Tensor:
        token_weight = scored.token_weight
        return cross_entropy(logits, labels, formula, class_weight=class_weight, token_weight=token_weight).flatten()

    def dot(coefficients: Tensor, logits: Tensor) -> Tensor:
        return cross_entropy_dot(logits, labels, scored.weighted(coefficients), formula, class_weight=class_weight)

    def in_float64(which: Tensor, logits: Tensor) -> Tensor:
        return scored.reference(which, lambda which: logits.flatten(0, -2)[which])

    return Case((logits,), values, dot, in_float64, (0,), scored.counts, scored.size(largest(logits)))


def linear_case(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, scored: "Scored", chunk_size: int | None = None
) -> Case:
    labels, formula = scored.labels, scored.formula
    kwargs: dict[str, Any] = {"class_weight": scored.class_weight, "chunk_size": chunk_size}

    def values(hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        token_weight = scored.token_weight
        made = linear_cross_entropy(hidden, weight, labels, formula, bias=bias, token_weight=token_weight, **kwargs)
        return made.flatten()

    def dot(coefficients: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        coefficients = scored.weighted(coefficients)
        return linear_cross_entropy_dot(hidden, weight, labels, coefficients, formula, bias=bias, **kwargs)

    def in_float64(which: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        def logits(which: Tensor) -> Tensor:
            made = hidden.flatten(0, -2)[which] @ weight.T
            return made if bias is None else made + bias

        return scored.reference(which, logits)

    inputs = (hidden, weight) if bias is None else (hidden, weight, bias)
    size = scored.size(sum(largest(each) for each in (hidden.abs() @ weight.abs().T, *inputs)))
    added_up = 1 + weight.shape[0] ** 0.5 / 10  # what a matrix product is off by grows with its length
    return Case(inputs, values, dot, in_float64, (0,), scored.counts, size * added_up)


def logps_case(logits: Tensor, labels: Tensor, temperature: float) -> Case:
    counts = (labels != -100).flatten()

    def in_float64(which: Tensor, logits: Tensor) -> Tensor:
        which = which & counts
        log_p = torch.log_softmax(logits.flatten(0, -2)[which] / temperature, 1)
        return some(which, lambda: log_p.gather(1, labels.flatten()[which].unsqueeze(1)).squeeze(1))

    def values(logits: Tensor) -> Tensor:
        return logps(logits, labels, temperature=temperature).flatten()

    return Case((logits,), values, None, in_float64, (0,), counts, largest(logits) / temperature)


def entropy_case(logits: Tensor, labels: Tensor, temperature: float) -> Case:
    """Log-probabilities and entropies, one after the other."""
    counts = (labels != -100).flatten()

    def in_float64(which: Tensor, logits: Tensor) -> Tensor:
        scores = logits.flatten(0, -2) / temperature
        first, second = (each & counts for each in which.chunk(2))
        picked = some(first, lambda: -reference.cross_entropies(scores[first], labels.flatten()[first]))
        return torch.cat([picked, some(second, lambda: reference.entropies(scores[second]))])

    def values(logits: Tensor) -> Tensor:
        both = logps_and_entropy(logits, labels, temperature=temperature)
        return torch.cat([each.flatten() for each in both])

    size = largest(logits) / temperature
    return Case((logits,), values, None, in_float64, (0,), counts.repeat(2), size, results=2)


def unlikelihood_case(logits: Tensor, labels: Tensor, negatives: Tensor, mean: bool) -> Case:
    """Log-probabilities and the cost of negatives, one after the other."""
    counts = (labels != -100).flatten()
    flat = negatives.flatten(0, -2)
    counted = (flat != -100) & (flat != labels.flatten().unsqueeze(1))
    shares = counted / counted.sum(1, keepdim=True).double().clamp(min=1) if mean else counted.double()

    def in_float64(which: Tensor, logits: Tensor) -> Tensor:
        scores = logits.flatten(0, -2)
        first, second = (each & counts for each in which.chunk(2))
        picked = some(first, lambda: -reference.cross_entropies(scores[first], labels.flatten()[first]))
        return torch.cat([picked, some(second, lambda: (shares[second] * costs(scores[second], flat[second])).sum(1))])

    def costs(scores: Tensor, ids: Tensor) -> Tensor:
        classes = torch.arange(scores.shape[1])
        without = [scores.masked_fill(classes == each.unsqueeze(1), -math.inf) for each in ids.unbind(1)]
        return torch.stack([torch.logsumexp(scores, 1) - torch.logsumexp(each, 1) for each in without], 1)

    def values(logits: Tensor) -> Tensor:
        return torch.cat([each.flatten() for each in logps_and_unlikelihood(logits, labels, negatives, mean=mean)])

    size = largest(logits) * negatives.shape[-1]
    return Case((logits,), values, None, in_float64, (0,), counts.repeat(2), size, results=2)


def soft_case(logits: Tensor, targets: Tensor, counted: Tensor | None = None) -> Case:
    """Cross-entropies and the sums of the targets, one after the other."""
    counts = torch.ones(targets.shape[:-1], dtype=torch.bool) if counted is None else counted
    counts = counts.flatten().repeat(2)

    def in_float64(which: Tensor, logits: Tensor, targets: Tensor) -> Tensor:
        scores, q = logits.flatten(0, -2), targets.flatten(0, -2)
        first, second = (which & counts).chunk(2)
        values = some(first, lambda: -(q[first] * torch.log_softmax(scores[first], 1)).sum(1))
        return torch.cat([values, some(second, lambda: q[second].sum(1))])

    def values(logits: Tensor, targets: Tensor) -> Tensor:
        return torch.cat([each.flatten() for each in soft_cross_entropy(logits, targets, counts=counted)])

    size = largest(logits) * (1 + largest(targets.sum(-1)))
    return Case((logits, targets), values, None, in_float64, (0, 1), counts, size, results=2)


def divergence_case(student: Tensor, teacher: Tensor, formula: Divergence, counted: Tensor | None = None) -> Case:
    lead = student.shape[:-1]
    counts = torch.ones(math.prod(lead), dtype=torch.bool) if counted is None else counted.flatten()

    def values(student: Tensor, teacher: Tensor) -> Tensor:
        return divergence(student, teacher, formula, counts=counted).flatten()

    def dot(coefficients: Tensor, student: Tensor, teacher: Tensor) -> Tensor:
        kept = torch.where(counts, coefficients, 0.0).reshape(lead)
        return divergence_dot(student, teacher, kept, formula)

    def in_float64(which: Tensor, student: Tensor, teacher: Tensor) -> Tensor:
        which = which & counts
        s, p = (each.flatten(0, -2)[which] for each in (student, teacher))
        return some(which, lambda: reference.divergences(s, p, *formula))

    size = (largest(student) + largest(teacher)) / formula.temperature
    return Case((student, teacher), values, dot, in_float64, (0, 1), counts, size)


def info_nce_case(a: Tensor, b: Tensor, temperature: float, margin: float = 0.0, symmetric: bool = False) -> Case:
    kwargs: dict[str, Any] = {"temperature": temperature, "margin": margin, "symmetric": symmetric}

    def in_float64(which: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return torch.where(which, reference.info_nces(a, b, **kwargs), 0.0)

    return Case(
        (a, b),
        lambda a, b: info_nce(a, b, **kwargs),
        lambda coefficients, a, b: info_nce_dot(a, b, coefficients, **kwargs),
        in_float64,
        (),
        torch.ones(a.shape[0], dtype=torch.bool),
        (largest(a.abs() @ b.abs().T) + margin) / temperature,
    )


class Scored(NamedTuple):
    """What cross-entropies share."""

    labels: Tensor
    formula: Formula = Formula()
    class_weight: Tensor | None = None
    token_weight: Tensor | None = None

    @property
    def counts(self) -> Tensor:
        counts = (self.labels != self.formula.ignore_index).flatten()
        return counts if self.token_weight is None else counts & (self.token_weight != 0).flatten()

    def size(self, logits: float) -> float:
        scores = self.formula.scale * logits
        return scores * (1 + self.formula.z_loss * scores)

    def weighted(self, coefficients: Tensor) -> Tensor:
        weighted = coefficients if self.token_weight is None else coefficients * self.token_weight.flatten().double()
        return weighted.reshape(self.labels.shape)

    def reference(self, which: Tensor, logits: Callable[[Tensor], Tensor]) -> Tensor:
        which = which & self.counts
        options = {**self.formula._asdict(), "class_weight": self.class_weight}
        del options["ignore_index"]
        values = some(which, lambda: reference.cross_entropies(logits(which), self.labels.flatten()[which], **options))
        return values if self.token_weight is None else values * self.token_weight.flatten().double()


def some(which: Tensor, compute: Callable[[], Tensor]) -> Tensor:
    """Return what is computed for some of the rows, and 0 for the others."""
    return torch.zeros(which.shape[0], dtype=torch.float64).index_put((which.nonzero().view(-1),), compute())


def largest(tensor: Tensor) -> float:
    return tensor.abs().max().item() if tensor.numel() else 0.0


# Draws


class Draws:
    """Numbers from one seed, so that a tensor costs hypothesis a single draw."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int, spread: float = 1.0) -> Tensor:
        return spread * torch.randn(shape, generator=self._generator, dtype=torch.float64)

    def mask(self, *shape: int, share: float = 0.7) -> Tensor:
        return torch.rand(shape, generator=self._generator) < share

    def integers(self, high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, generator=self._generator)

    def labels(self, vocab: int, *lead: int, ignore_index: int = -100, share: float = 0.7) -> Tensor:
        return torch.where(self.mask(*lead, share=share), self.integers(vocab, *lead), ignore_index)

    def coefficients(self, *shape: int, share: float = 0.7) -> Tensor:
        """Return numbers of either sign, that are exact in every dtype; some are 0."""
        return torch.where(self.mask(*shape, share=share), (self.integers(33, *shape) - 16) / 8, 0.0).double()


seeds = st.integers(0, 2**32).map(Draws)
shares = st.sampled_from([0.7, 1.0, 0.0])
leads = st.lists(st.integers(0, 4), min_size=1, max_size=2).map(tuple) | st.just((3, 1, 2))
vocabularies = st.integers(2, 9) | st.just(70)
temperatures = st.sampled_from([1.0, 0.5, 3.0])
formulas = st.builds(
    Formula,
    ignore_index=st.sampled_from([-100, 0, -1]),
    label_smoothing=st.sampled_from([0.0, 0.1, 1.0]),
    z_loss=st.sampled_from([0.0, 0.1]),
    softcap=st.sampled_from([None, 2.0, 30.0]),
    scale=st.sampled_from([1.0, 0.5, 3.0]),
)
divergences = st.builds(  # no tvd: rounded to 16 bits, two probabilities may be equal, where it has no gradient
    Divergence,
    st.sampled_from(["forward_kl", "reverse_kl", "jsd", "skew_kl", "skew_rkl", "symmetric_kl"]),
    st.sampled_from([0.5, 0.1, 0.9]),
    temperatures,
)


@st.composite
def scoreds(draw: st.DrawFn, lead: Sequence[int], vocab: int) -> Scored:
    draws, formula, share = draw(seeds), draw(formulas), draw(shares)
    return Scored(
        draws.labels(vocab, *lead, ignore_index=formula.ignore_index, share=share),
        formula,
        draws.normal(vocab).clamp(min=0).float() if draw(st.booleans()) else None,
        draws.coefficients(*lead).float() if draw(st.booleans()) else None,
    )


@st.composite
def cross_entropy_cases(draw: st.DrawFn) -> Case:
    lead, vocab, draws = draw(leads), draw(vocabularies), draw(seeds)
    logits = draws.normal(*lead, vocab, spread=draw(st.sampled_from([1.0, 8.0])))
    return cross_entropy_case(logits, draw(scoreds(lead, vocab)))


@st.composite
def linear_cases(draw: st.DrawFn) -> Case:
    lead, vocab, width, draws = draw(leads), draw(vocabularies), draw(st.integers(1, 4)), draw(seeds)
    hidden, weight = draws.normal(*lead, width, spread=2.0), draws.normal(vocab, width)
    bias = draws.normal(vocab) if draw(st.booleans()) else None
    return linear_case(hidden, weight, bias, draw(scoreds(lead, vocab)), draw(st.sampled_from([None, 1, 3])))


@st.composite
def token_cases(draw: st.DrawFn, make: Callable[[Tensor, Tensor, float], Case]) -> Case:
    lead, vocab, draws = draw(leads), draw(vocabularies), draw(seeds)
    labels = draws.labels(vocab, *lead, share=draw(shares))
    return make(draws.normal(*lead, vocab, spread=4.0), labels, draw(temperatures))


@st.composite
def unlikelihood_cases(draw: st.DrawFn) -> Case:
    lead, vocab, draws, share = draw(leads), draw(vocabularies), draw(seeds), draw(shares)
    negatives = draws.labels(vocab, *lead, draw(st.integers(1, 3)))
    logits = draws.normal(*lead, vocab, spread=4.0)
    return unlikelihood_case(logits, draws.labels(vocab, *lead, share=share), negatives, draw(st.booleans()))


@st.composite
def soft_cases(draw: st.DrawFn) -> Case:
    lead, vocab, draws = draw(leads), draw(vocabularies), draw(seeds)
    logits, targets = draws.normal(*lead, vocab, spread=4.0), draws.normal(*lead, vocab).abs()
    counts = draws.mask(*lead, share=draw(shares)) if draw(st.booleans()) else None
    return soft_case(logits, torch.where(draws.mask(*lead, vocab), targets, 0.0), counts)


@st.composite
def divergence_cases(draw: st.DrawFn) -> Case:
    lead, vocab, draws = draw(leads), draw(vocabularies), draw(seeds)
    student, teacher = (draws.normal(*lead, vocab, spread=draw(st.sampled_from([1.0, 8.0]))) for _ in range(2))
    counts = draws.mask(*lead, share=draw(shares)) if draw(st.booleans()) else None
    return divergence_case(student, teacher, draw(divergences), counts)


@st.composite
def info_nce_cases(draw: st.DrawFn) -> Case:
    count, width, draws = draw(st.integers(0, 7)), draw(st.integers(1, 4)), draw(seeds)
    temperature, margin = draw(st.sampled_from([1.0, 0.2, 5.0])), draw(st.sampled_from([0.0, 0.3]))
    candidates = draws.normal(count + draw(st.sampled_from([0, 0, 1, 5])), width)
    return info_nce_case(draws.normal(count, width), candidates, temperature, margin, draw(st.booleans()))


CASES: dict[str, st.SearchStrategy[Case]] = {
    "cross_entropy": cross_entropy_cases(),
    "linear_cross_entropy": linear_cases(),
    "logps": token_cases(logps_case),
    "logps_and_entropy": token_cases(entropy_case),
    "logps_and_unlikelihood": unlikelihood_cases(),
    "soft_cross_entropy": soft_cases(),
    "divergence": divergence_cases(),
    "info_nce": info_nce_cases(),
}
"""Every operation, with all that it can do."""


def _examples() -> dict[str, Case]:
    draws = Draws(0)
    rows, vocab, width = (2, 3), 7, 4
    everything = Formula(label_smoothing=0.1, z_loss=0.1, softcap=5.0, scale=2.0)
    labels, class_weight = draws.labels(vocab, *rows), draws.normal(vocab).abs().float()
    logits, others = draws.normal(*rows, vocab, spread=2.0), draws.normal(*rows, vocab, spread=2.0)
    hidden, weight, bias = draws.normal(*rows, width), draws.normal(vocab, width), draws.normal(vocab)
    a, b = draws.normal(5, width), draws.normal(5, width)
    token_weight = draws.coefficients(*rows).float()
    simple, full = Scored(labels), Scored(labels, everything, class_weight, token_weight)
    return {
        "cross_entropy": cross_entropy_case(logits, simple),
        "cross_entropy-full": cross_entropy_case(logits, full),
        "linear_cross_entropy": linear_case(hidden, weight, None, simple),
        "linear_cross_entropy-full": linear_case(hidden, weight, bias, full),
        "logps": logps_case(logits, labels, 0.5),
        "logps_and_entropy": entropy_case(logits, labels, 0.5),
        "logps_and_unlikelihood": unlikelihood_case(logits, labels, (labels + 1).unsqueeze(-1) % vocab, mean=False),
        "soft_cross_entropy": soft_case(logits, others.softmax(-1), labels != -100),
        "forward_kl": divergence_case(logits, others, Divergence(), labels != -100),
        "reverse_kl": divergence_case(logits, others, Divergence("reverse_kl", temperature=2.0)),
        "jsd": divergence_case(logits, others, Divergence("jsd", 0.3)),
        "skew_kl": divergence_case(logits, others, Divergence("skew_kl", 0.2, 0.5), labels != -100),
        "skew_rkl": divergence_case(logits, others, Divergence("skew_rkl", 0.2)),
        "symmetric_kl": divergence_case(logits, others, Divergence("symmetric_kl", 0.3, 2.0)),
        "tvd": divergence_case(logits, others, Divergence("tvd", temperature=2.0), labels != -100),
        "info_nce": info_nce_case(a, b, 0.5, 0.1),
        "info_nce-symmetric": info_nce_case(a, b, 0.5, 0.1, symmetric=True),
        "info_nce-negatives": info_nce_case(a, torch.cat([b, draws.normal(7, width)]), 0.5, 0.1, symmetric=True),
    }


EXAMPLES = _examples()
"""Every operation once, or twice where it can do much more, for what need not be tried on many."""


# Comparison


class Expected(NamedTuple):
    """Values and gradients by the formula, for some leaves."""

    values: Tensor
    gradients: list[Tensor]


def expect(case: Case, leaves: Sequence[Tensor], upstream: Tensor) -> Expected:
    """Differentiate the formula in float64; rows to which nothing comes down are not looked at."""
    copies = [leaf.detach().double().requires_grad_() for leaf in leaves]
    values = case.formula(upstream != 0, *copies)
    torch.autograd.backward((values * upstream).sum())
    return Expected(values.detach(), [gradient_of(copy) for copy in copies])


def gradient_of(leaf: Tensor) -> Tensor:
    """Return the gradient of a leaf; none at all is one of 0."""
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad


def assert_near(actual: Tensor, expected: Tensor, size: float, rounded: int = 0) -> None:
    """Compare with float64.

    What is computed in float32 is off by a few units in the last place of the largest number in it, `size`; a 16-bit
    result has been rounded so many times on top of that, by half a unit in its last place each.
    """
    dtype = actual.dtype
    computed = 1e-13 if dtype is torch.float64 else 1e-6
    unit = torch.finfo(dtype).eps / 2 if dtype in {torch.bfloat16, torch.float16} else 0.0
    least = 6e-8 * rounded if dtype is torch.float16 else 0.0
    absolute = computed * (1 + size) + least
    torch.testing.assert_close(actual.double(), expected, rtol=computed + 1.01 * rounded * unit, atol=absolute)


def assert_gradients(leaves: Sequence[Tensor], expected: Sequence[Tensor], size: float, rounded: int) -> None:
    for leaf, wanted in zip(leaves, expected, strict=True):
        gradient = gradient_of(leaf)
        assert gradient.dtype is leaf.dtype
        assert_near(gradient, wanted, (1 + size) * (1 + largest(wanted)), rounded)

"""The losses of embeddings once more, from their formulas: Python floats, nothing shared with the package."""

import math
from collections.abc import Sequence

from torch import Tensor

Row = Sequence[float]


def rows(tensor: Tensor) -> list[list[float]]:
    made: list[list[float]] = tensor.double().reshape(-1, tensor.shape[-1]).tolist()
    return made


def dot(u: Row, v: Row) -> float:
    return math.fsum(x * y for x, y in zip(u, v, strict=True))


def cosine(u: Row, v: Row) -> float:
    lengths = math.hypot(*u), math.hypot(*v)
    return dot([x / lengths[0] for x in u], [y / lengths[1] for y in v]) if all(lengths) else 0.0


def distance(u: Row, v: Row, kind: str) -> float:
    if kind == "cosine":
        return 1 - cosine(u, v)
    if kind == "squared":
        return math.fsum((x - y) ** 2 for x, y in zip(u, v, strict=True))
    return math.hypot(*(x - y + 1e-6 for x, y in zip(u, v, strict=True)))


def info_nce(
    a: Tensor,
    b: Tensor,
    negatives: Tensor | None = None,
    *,
    scale: float = 1.0,
    margin: float = 0.0,
    symmetric: bool = False,
    similarity: str = "cosine",
) -> list[float]:
    alike = cosine if similarity == "cosine" else dot
    ours, theirs = rows(a), rows(b)
    others = [] if negatives is None else rows(negatives)
    values: list[float] = []
    for i, u in enumerate(ours):
        scores = [scale * (alike(u, v) - margin * (i == j)) for j, v in enumerate(theirs)]
        forth = _log_of_sum([*scores, *(scale * alike(u, v) for v in others)]) - scores[i]
        back = [scale * (alike(w, theirs[i]) - margin * (i == j)) for j, w in enumerate(ours)]
        values.append((forth + _log_of_sum(back) - back[i]) / 2 if symmetric else forth)
    return values


def triplet(anchor: Tensor, positive: Tensor, negative: Tensor, *, margin: float, kind: str) -> list[float]:
    triples = zip(rows(anchor), rows(positive), rows(negative), strict=True)
    return [max(0.0, distance(a, p, kind) - distance(a, n, kind) + margin) for a, p, n in triples]


def cosine_embedding(a: Tensor, b: Tensor, targets: Sequence[int], *, margin: float) -> list[float]:
    cosines = [cosine(u, v) for u, v in zip(rows(a), rows(b), strict=True)]
    return [1 - c if y == 1 else max(0.0, c - margin) for c, y in zip(cosines, targets, strict=True)]


def contrastive_pairs(a: Tensor, b: Tensor, targets: Sequence[int], *, margin: float, kind: str) -> list[float]:
    distances = [distance(u, v, kind) for u, v in zip(rows(a), rows(b), strict=True)]
    return [0.5 * (y * d**2 + (1 - y) * max(0.0, margin - d) ** 2) for d, y in zip(distances, targets, strict=True)]


def siglip(a: Tensor, b: Tensor, *, scale: float, bias: float) -> list[float]:
    values: list[float] = []
    for i, u in enumerate(rows(a)):
        logits = [scale * cosine(u, v) + bias for v in rows(b)]
        values.append(math.fsum(_softplus(-x if i == j else x) for j, x in enumerate(logits)))
    return values


def _softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def _log_of_sum(numbers: Sequence[float]) -> float:
    largest = max(numbers)
    return largest + math.log(math.fsum(math.exp(number - largest) for number in numbers))


def nt_xent(a: Tensor, b: Tensor, *, temperature: float) -> list[float]:
    views = [*rows(a), *rows(b)]
    size = len(views) // 2

    def of(index: int) -> float:
        scores = {other: cosine(views[index], view) / temperature for other, view in enumerate(views) if other != index}
        return _log_of_sum(list(scores.values())) - scores[(index + size) % (2 * size)]

    return [(of(index) + of(index + size)) / 2 for index in range(size)]


def supcon(x: Tensor, labels: list[int], *, temperature: float) -> list[tuple[float, float]]:
    """Value and weight of each row."""
    found = []
    for index, row in enumerate(rows(x)):
        scores = {j: cosine(row, other) / temperature for j, other in enumerate(rows(x)) if j != index}
        alike = [score for j, score in scores.items() if labels[j] == labels[index]]
        value = _log_of_sum(list(scores.values())) - sum(alike) / len(alike) if alike else 0.0
        found.append((value, 1.0 if alike else 0.0))
    return found


def batch_hard_triplet(x: Tensor, labels: list[int], *, margin: float, kind: str) -> list[tuple[float, float]]:
    """Value and weight of each row."""
    found = []
    for index, row in enumerate(rows(x)):
        apart = {j: distance(row, other, kind) for j, other in enumerate(rows(x)) if j != index}
        alike = [far for j, far in apart.items() if labels[j] == labels[index]]
        unlike = [far for j, far in apart.items() if labels[j] != labels[index]]
        whole = bool(alike and unlike)
        found.append((max(0.0, max(alike) - min(unlike) + margin) if whole else 0.0, float(whole)))
    return found

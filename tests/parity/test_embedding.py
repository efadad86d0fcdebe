"""The losses of embeddings against the libraries whose losses they name: values and gradients, in float64."""

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from tensafe.training.losses import resolve_loss


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def peer(name: str, record: Callable[[str, object], None]) -> Any:
    pytest.importorskip(name)
    module = importlib.import_module(name)
    record(name, module.__version__)
    return module


def assert_equal(
    name: str,
    tensors: dict[str, Tensor],
    theirs: Callable[..., Tensor],
    batch: Any = None,
    near: float = 1e-9,
    **kwargs: Any,
) -> None:
    """Compare a loss with a peer's function of the same tensors, in their order."""
    ours, copies = ([tensor.clone().requires_grad_() for tensor in tensors.values()] for _ in range(2))
    outputs = dict(zip(tensors, ours, strict=True))
    loss = resolve_loss(name, **kwargs)(outputs, batch or {})["loss"]
    expected = theirs(*copies)
    torch.testing.assert_close(loss, expected, rtol=near, atol=near)
    gradients, wanted = torch.autograd.grad(loss, ours), torch.autograd.grad(expected, copies)
    assert all(gradient.any() for gradient in wanted)
    torch.testing.assert_close(gradients, wanted, rtol=100 * near, atol=near)


PAIRS = {"embeddings_a": draw(6, 5), "embeddings_b": draw(6, 5, seed=1)}
SAME = torch.arange(6)


# sentence-transformers


class Model(torch.nn.Module):
    """A model whose embeddings are its inputs."""

    def get_embedding_dimension(self) -> int:
        return 5

    get_sentence_embedding_dimension = get_embedding_dimension

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"sentence_embedding": features["given"]}


def by_sentence_transformers(module: Any, name: str, *, labels: Tensor | None = None, **kwargs: Any) -> Any:
    loss = getattr(module.losses, name)(Model(), **kwargs)
    return lambda *columns: loss([{"given": column} for column in columns], labels)


class Peer(NamedTuple):
    """The package and its losses, which have moved between versions."""

    package: Any
    losses: Any


def _losses_of(package: Any) -> Any:
    places = ("sentence_transformers.sentence_transformer.losses", "sentence_transformers.losses")
    found = next(place for place in places if importlib.util.find_spec(place.rpartition(".")[0]) is not None)
    return importlib.import_module(found)


@pytest.fixture
def st(record_property: Callable[[str, object], None]) -> Any:
    module = peer("sentence_transformers", record_property)
    return Peer(module, _losses_of(module))


@pytest.mark.parametrize("scale", [20.0, 1.0])
@pytest.mark.parametrize(("ours", "theirs"), [("cosine", "cos_sim"), ("dot", "dot_score")])
def test_multiple_negatives_is_that_of_sentence_transformers(scale: float, ours: str, theirs: str, st: Any) -> None:
    similarity = getattr(importlib.import_module("sentence_transformers.util"), theirs)
    loss = by_sentence_transformers(st, "MultipleNegativesRankingLoss", scale=scale, similarity_fct=similarity)
    assert_equal("multiple_negatives", PAIRS, loss, scale=scale, similarity=ours)


def test_its_defaults_are_theirs(st: Any) -> None:
    assert_equal("multiple_negatives", PAIRS, by_sentence_transformers(st, "MultipleNegativesRankingLoss"))


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("symmetric", [False, True], ids=["one direction", "both"])
def test_hard_negatives_are_those_of_sentence_transformers(k: int, symmetric: bool, st: Any) -> None:
    both: dict[str, Any] = {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"}
    loss = by_sentence_transformers(st, "MultipleNegativesRankingLoss", **(both if symmetric else {}))

    def of_columns(a: Tensor, b: Tensor, negatives: Tensor) -> Any:
        return loss(a, b, *negatives.unbind(1))

    tensors = {**PAIRS, "embeddings_negative": draw(6, k, 5, seed=2)}
    assert_equal("multiple_negatives", tensors, of_columns, symmetric=symmetric)


@pytest.mark.parametrize(("distance", "metric"), [("cosine", "COSINE_DISTANCE"), ("euclidean", "EUCLIDEAN")])
@pytest.mark.parametrize("margin", [0.5, 4.0])
def test_contrastive_pairs_is_contrastive_loss(distance: str, metric: str, margin: float, st: Any) -> None:
    targets = torch.tensor([1, 0, 1, 0, 0, 1])
    metrics = st.losses.SiameseDistanceMetric
    loss = by_sentence_transformers(
        st, "ContrastiveLoss", labels=targets, margin=margin, distance_metric=getattr(metrics, metric)
    )
    assert_equal("contrastive_pairs", PAIRS, loss, {"targets": targets}, margin=margin, distance=distance)


def test_triplet_is_triplet_loss(st: Any) -> None:
    tensors = {"anchor": draw(6, 5), "positive": draw(6, 5, seed=1), "negative": draw(6, 5, seed=2)}
    # theirs adds no epsilon to the differences
    assert_equal("triplet", tensors, by_sentence_transformers(st, "TripletLoss"), margin=5.0, near=1e-5)


@pytest.mark.parametrize("weights", [None, [1.0, 0.5, 2.0]], ids=["no weights", "weights"])
def test_matryoshka_is_matryoshka_loss(weights: list[float] | None, st: Any) -> None:
    model = Model()
    inner = st.losses.MultipleNegativesRankingLoss(model)
    loss = st.losses.MatryoshkaLoss(model, inner, matryoshka_dims=[5, 3, 1], matryoshka_weights=weights)

    def of_columns(*columns: Tensor) -> Any:
        return loss([{"given": column} for column in columns], None)

    assert_equal("matryoshka", PAIRS, of_columns, loss="multiple_negatives", dims=[5, 3, 1], weights=weights)


# pytorch-metric-learning


@pytest.fixture
def pml(record_property: Callable[[str, object], None]) -> Any:
    module = peer("pytorch_metric_learning", record_property)
    for part in ("distances", "losses", "reducers"):
        importlib.import_module(f"pytorch_metric_learning.{part}")
    return module


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_multiple_negatives_is_nt_xent_between_the_sides(temperature: float, pml: Any) -> None:
    loss = pml.losses.NTXentLoss(temperature=temperature)
    assert_equal(
        "multiple_negatives",
        PAIRS,
        lambda a, b: loss(a, SAME, ref_emb=b, ref_labels=SAME.clone()),
        scale=1 / temperature,
    )


def test_contrastive_is_nt_xent_in_both_directions(pml: Any) -> None:
    loss = pml.losses.NTXentLoss()

    def both(a: Tensor, b: Tensor) -> Any:
        return (
            loss(a, SAME, ref_emb=b, ref_labels=SAME.clone()) + loss(b, SAME, ref_emb=a, ref_labels=SAME.clone())
        ) / 2

    assert_equal("contrastive", PAIRS, both)


def test_contrastive_pairs_is_half_the_square_of_contrastive_loss(pml: Any) -> None:
    """Of one pair each: theirs neither halves nor squares."""
    distance = pml.distances.LpDistance(normalize_embeddings=False)
    loss = pml.losses.ContrastiveLoss(pos_margin=0, neg_margin=6, distance=distance)
    none = torch.tensor([], dtype=torch.int64)
    for target in (1, 0):
        for index in range(6):
            here = torch.tensor([index, index])  # of a single pair theirs makes 0
            pair = (here, here, none, none) if target else (none, none, here, here)
            expected = loss(
                PAIRS["embeddings_a"], SAME, indices_tuple=pair, ref_emb=PAIRS["embeddings_b"], ref_labels=SAME.clone()
            )
            outputs = {name: tensor[here] for name, tensor in PAIRS.items()}
            ours = resolve_loss("contrastive_pairs", distance="euclidean", margin=6.0)
            value = ours(outputs, {"targets": torch.tensor([target, target])})["loss"]
            torch.testing.assert_close(value, expected.square() / 2, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("margin", [0.05, 1.0])
def test_triplet_is_triplet_margin_loss(margin: float, pml: Any) -> None:
    distance = pml.distances.LpDistance(normalize_embeddings=False)
    loss = pml.losses.TripletMarginLoss(margin=margin, distance=distance, reducer=pml.reducers.MeanReducer())
    places = torch.arange(6)

    def of_triplets(anchor: Tensor, positive: Tensor, negative: Tensor) -> Any:
        others = torch.cat([positive, negative])
        triplets = places, places, places + 6
        return loss(anchor, places, indices_tuple=triplets, ref_emb=others, ref_labels=torch.cat([places, places]))

    tensors = {"anchor": draw(6, 5), "positive": draw(6, 5, seed=1), "negative": draw(6, 5, seed=2)}
    ours = {name: tensor.clone().requires_grad_() for name, tensor in tensors.items()}
    theirs = [tensor.clone().requires_grad_() for tensor in tensors.values()]
    value, expected = resolve_loss("triplet", margin=margin)(ours, {})["loss"], of_triplets(*theirs)
    # theirs adds no epsilon to the differences
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-5)
    wanted = torch.autograd.grad(expected, theirs)
    torch.testing.assert_close(torch.autograd.grad(value, list(ours.values())), wanted, rtol=1e-4, atol=1e-5)


# the paper


def test_siglip_is_that_of_the_paper() -> None:
    """Algorithm 1, with the learnt scale and bias."""
    tensors = {**PAIRS, "logit_scale": torch.tensor(3.0).double(), "logit_bias": torch.tensor(-2.0).double()}

    def algorithm_1(a: Tensor, b: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        logits = torch.nn.functional.normalize(a) @ torch.nn.functional.normalize(b).T * scale + bias
        signs = 2 * torch.eye(6, dtype=torch.float64) - torch.ones(6, 6, dtype=torch.float64)
        return -torch.nn.functional.logsigmoid(signs * logits).sum() / 6

    assert_equal("siglip", tensors, algorithm_1)


CLASSES = torch.tensor([0, 1, 0, 1, 1, 0])


def test_nt_xent_is_nt_xent_of_both_views(pml: Any) -> None:
    loss = pml.losses.NTXentLoss(temperature=0.2)
    assert_equal("nt_xent", PAIRS, lambda a, b: loss(torch.cat([a, b]), torch.cat([SAME, SAME])), temperature=0.2)


def test_supcon_is_supcon(pml: Any) -> None:
    loss = pml.losses.SupConLoss(temperature=0.1)
    embeddings = {"embeddings": PAIRS["embeddings_a"]}
    assert_equal("supcon", embeddings, lambda x: loss(x, CLASSES), {"labels": CLASSES})


def test_batch_hard_triplet_is_that_of_sentence_transformers(st: Any) -> None:
    loss = st.losses.BatchHardTripletLoss(Model())
    embeddings = {"embeddings": PAIRS["embeddings_a"]}
    assert_equal(
        "batch_hard_triplet",
        embeddings,
        lambda x: loss.batch_hard_triplet_loss(CLASSES, x),
        {"labels": CLASSES},
        near=1e-5,
        margin=5.0,
    )

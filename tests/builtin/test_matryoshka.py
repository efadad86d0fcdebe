import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from reference import loss_and_gradients
from references.embedding import info_nce, triplet
from tensafe.training.losses import LossConfigError, LossInputError, ResolvedLoss, resolve_loss

MNRL = {"type": "multiple_negatives", "kwargs": {"scale": 3.0}}


def resolve(loss: Any = MNRL, dims: Any = (4, 2), **kwargs: Any) -> ResolvedLoss:
    return resolve_loss("matryoshka", loss=loss, dims=list(dims), **kwargs)


def pairs(seed: int = 0, count: int = 3, width: int = 4) -> dict[str, Tensor]:
    drawn = torch.randn(2, count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return {"embeddings_a": drawn[0], "embeddings_b": drawn[1]}


def cut(outputs: dict[str, Tensor], dim: int) -> dict[str, Tensor]:
    return {name: tensor[..., :dim] for name, tensor in outputs.items()}


EYE = {"embeddings_a": torch.eye(2), "embeddings_b": torch.eye(2)}
ONE = {"type": "contrastive", "kwargs": {"temperature": 1.0}}
LOG_ODDS = math.log1p(math.exp(-1))
SHORT = (LOG_ODDS + math.log(2)) / 2  # of the numbers 1 and 0: the second is a zero embedding


@pytest.mark.parametrize(
    ("kwargs", "expected"),
    [
        pytest.param({"dims": [2]}, LOG_ODDS, id="whole"),
        pytest.param({"dims": [1]}, SHORT, id="one length that is not the whole"),
        pytest.param({"dims": [2, 1]}, LOG_ODDS + SHORT, id="two"),
        pytest.param({"dims": [2, 1], "weights": [1, 0.5]}, LOG_ODDS + SHORT / 2, id="weights"),
        pytest.param({"dims": [2, 1], "weights": [0, -2]}, -2 * SHORT, id="0 and below"),
        pytest.param({"dims": [2, 1], "weights": None}, LOG_ODDS + SHORT, id="no weights"),
    ],
)
def test_a_loss_by_hand(kwargs: Any, expected: float) -> None:
    result = resolve(ONE, **kwargs)(EYE, {})
    assert result["loss"].item() == pytest.approx(expected, rel=1e-6)


@given(st.integers(0, 2**32), st.sets(st.integers(1, 5), min_size=1), st.data())
def test_it_is_the_weighted_sum_of_the_formula(seed: int, dims: set[int], data: st.DataObject) -> None:
    lengths = sorted(dims, reverse=True)
    weights = data.draw(st.lists(st.floats(-3, 3), min_size=len(dims), max_size=len(dims)))
    outputs = pairs(seed, width=5)
    values = [info_nce(*cut(outputs, dim).values(), scale=3.0) for dim in lengths]
    expected = math.fsum(weight * math.fsum(each) / 3 for weight, each in zip(weights, values, strict=True))
    loss = resolve(dims=lengths, weights=weights)(outputs, {})["loss"]
    assert loss.item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_the_gradient_is_the_sum_of_those_of_the_lengths() -> None:
    outputs = pairs()
    _, gradients = loss_and_gradients(resolve(dims=(3, 2), weights=[1.0, 0.5]), outputs)
    expected = {name: torch.zeros_like(tensor) for name, tensor in outputs.items()}
    for dim, weight in ((3, 1.0), (2, 0.5)):
        for name, gradient in loss_and_gradients(resolve_loss(MNRL), cut(outputs, dim))[1].items():
            expected[name][:, :dim] += weight * gradient
    torch.testing.assert_close(gradients, expected)
    assert not any(gradient[:, 3:].any() for gradient in gradients.values())


def test_metrics_of_each_length() -> None:
    outputs = pairs()
    metrics = resolve()(outputs, {})["metrics"]
    assert list(metrics) == ["loss_4", "positive_similarity_4", "loss_2", "positive_similarity_2"]
    for dim in (4, 2):
        alone = resolve_loss(MNRL)(cut(outputs, dim), {})
        torch.testing.assert_close(metrics[f"loss_{dim}"], alone["loss"])
        torch.testing.assert_close(metrics[f"positive_similarity_{dim}"], alone["metrics"]["positive_similarity"])
    assert resolve(metrics=False)(outputs, {})["metrics"] == {}
    assert not any(value.requires_grad for value in metrics.values() if isinstance(value, Tensor))


# What is cut


def test_every_embedding_is_cut_wherever_it_is_found() -> None:
    drawn = torch.randn(3, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).unbind()
    loss_fn = resolve({"type": "triplet", "kwargs": {"distance": "squared"}}, dims=[4, 1])
    expected = sum(sum(triplet(*(each[:, :dim] for each in drawn), margin=1.0, kind="squared")) / 3 for dim in (4, 1))
    in_outputs = {"anchor": drawn[0], "positive": drawn[1], "negative": drawn[2]}
    frozen = {"anchor": drawn[0]}, {"positive": drawn[1], "negative": drawn[2]}
    in_both = in_outputs, {"negative": drawn[2]}
    for outputs, batch in ((in_outputs, {}), ({}, in_outputs), frozen, in_both):
        assert loss_fn(outputs, batch)["loss"].item() == pytest.approx(expected)


def test_hard_negatives_are_cut_too() -> None:
    outputs = {**pairs(), "embeddings_negative": torch.ones(3, 2, 4).double()}
    expected = sum(resolve_loss(MNRL)(cut(outputs, dim), {})["loss"].item() for dim in (4, 2))
    assert resolve()(outputs, {})["loss"].item() == pytest.approx(expected)


def test_other_tensors_are_left_as_they_are() -> None:
    outputs = {**pairs(), "logit_scale": torch.tensor(2.0), "logit_bias": torch.tensor(0.0), "spare": torch.ones(3, 1)}
    expected = sum(
        resolve_loss("siglip", logit_scale=2.0, logit_bias=0.0)(cut(pairs(), dim), {})["loss"].item() for dim in (4, 2)
    )
    assert resolve("siglip")(outputs, {})["loss"].item() == pytest.approx(expected)
    judged = resolve("cosine_embedding", dims=[2])(outputs, {"targets": torch.tensor([1, -1, 1])})
    assert judged["loss"].isfinite()


def test_renamed_tensors_are_cut() -> None:
    outputs = pairs()
    renamed = {"query": outputs["embeddings_a"], "embeddings_b": outputs["embeddings_b"]}
    loss = {**MNRL, "inputs": {"embeddings_a": "outputs.query"}}
    batch = {"query": torch.ones(2)}
    torch.testing.assert_close(resolve(loss)(renamed, batch)["loss"], resolve()(outputs, {})["loss"])


@dataclass
class Made:
    """Outputs that are no mapping."""

    embeddings_a: Tensor
    embeddings_b: Tensor


def test_outputs_may_be_an_object() -> None:
    outputs = pairs()
    torch.testing.assert_close(resolve()(Made(**outputs), {})["loss"], resolve()(outputs, {})["loss"])


def test_nothing_that_was_given_is_changed() -> None:
    outputs = pairs()
    before = dict(outputs)
    resolve()(outputs, {})
    assert all(outputs[name] is tensor and tensor.shape == (3, 4) for name, tensor in before.items())


def test_the_weight_of_an_output_layer_has_the_axis_too() -> None:
    generator = torch.Generator().manual_seed(0)
    outputs = {
        "hidden_states": torch.randn(2, 3, 4, generator=generator),
        "lm_head_weight": torch.randn(5, 4, generator=generator),
    }
    batch = {"labels": torch.randint(0, 5, (2, 3), generator=generator)}
    expected = sum(resolve_loss("linear_ce")(cut(outputs, dim), batch)["loss"].item() for dim in (4, 2))
    assert resolve("linear_ce")(outputs, batch)["loss"].item() == pytest.approx(expected)
    counted = resolve("linear_ce")(outputs, batch, num_items_in_batch=8)["loss"].item()
    assert counted == pytest.approx(expected * 4 / 8)
    in_batch = resolve("linear_ce")(outputs, {**batch, "num_items_in_batch": 8})["loss"].item()
    assert in_batch == pytest.approx(counted)


# Sums


def test_around_a_sum_and_inside_one() -> None:
    outputs = pairs()
    terms = [MNRL, {"type": "siglip", "weight": 0.5}]
    around = resolve({"type": "weighted_sum", "kwargs": {"losses": terms}})(outputs, {})
    inside = resolve_loss(
        "weighted_sum",
        losses=[
            {"type": "matryoshka", "kwargs": {"loss": MNRL, "dims": [4, 2]}},
            {"type": "matryoshka", "weight": 0.5, "kwargs": {"loss": "siglip", "dims": [4, 2]}},
        ],
    )(outputs, {})
    torch.testing.assert_close(around["loss"], inside["loss"])
    assert "siglip/loss_2" in around["metrics"]
    assert "matryoshka_1/loss_2" in inside["metrics"]


def test_the_step_goes_to_the_loss_inside() -> None:
    outputs = pairs()
    schedule = {"schedule": "linear", "start": 0.0, "end": 1.0, "steps": 4}
    inner = {"type": "weighted_sum", "kwargs": {"losses": [{**MNRL, "weight": schedule}]}}
    whole = resolve()(outputs, {})["loss"]
    for call in ({"step": 1}, {"step": torch.tensor(1)}):
        torch.testing.assert_close(resolve(inner)(outputs, {}, **call)["loss"], whole / 4)
        torch.testing.assert_close(resolve(inner)(outputs, call)["loss"], whole / 4)
        outer = resolve_loss("weighted_sum", losses=[{"type": "matryoshka", "kwargs": {"loss": inner, "dims": [4, 2]}}])
        torch.testing.assert_close(outer(outputs, {}, **call)["loss"], whole / 4)
    with pytest.raises(LossInputError, match=r"^matryoshka: a schedule needs the step"):
        resolve(inner)(outputs, {})
    with pytest.raises(LossConfigError, match=r"^matryoshka: nothing in it has a schedule"):
        resolve()(outputs, {}, step=1)


# Refusals

REFUSED = [
    ("no length", {"dims": []}, ("dims",), "at least 1"),
    ("length 0", {"dims": [4, 0]}, ("dims", 1), "expected an integer >= 1, got 0"),
    ("no integer", {"dims": [4, 2.0]}, ("dims", 1), "got 2.0"),
    ("a bool", {"dims": [4, True]}, ("dims", 1), "got True"),
    ("rising", {"dims": [2, 4]}, ("dims", 1), "the lengths must decrease; 4 comes after 2"),
    ("twice", {"dims": [4, 2, 2]}, ("dims", 2), "the lengths must decrease"),
    ("too few weights", {"weights": [1.0]}, ("weights",), "a number for each of the 2 dims, got 1"),
    ("too many weights", {"weights": [1, 1, 1]}, ("weights",), "got 3"),
    ("inf", {"weights": [1, math.inf]}, ("weights", 1), "got inf"),
    ("unknown", {"loss": "contrastiv"}, ("loss",), "did you mean contrastive?"),
    (
        "kwarg",
        {"loss": {"type": "triplet", "kwargs": {"margn": 1}}},
        ("loss", "kwargs", "margn"),
        "did you mean margin",
    ),
    ("nothing to cut", {"loss": "mse"}, ("loss",), "mse takes no tensor with an axis hidden"),
    (
        "nothing to cut in a term",
        {"loss": {"type": "weighted_sum", "kwargs": {"losses": [MNRL, "mse"]}}},
        ("loss",),
        "mse takes no tensor with an axis hidden",
    ),
    (
        "unreduced",
        {"loss": {"type": "triplet", "kwargs": {"reduction": "none"}}},
        ("loss", "kwargs", "reduction"),
        "must be one number",
    ),
]


@pytest.mark.parametrize(("kwargs", "loc", "part"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_what_does_not_fit_is_refused_at_its_path(kwargs: dict[str, Any], loc: tuple[Any, ...], part: str) -> None:
    with pytest.raises(LossConfigError) as caught:
        resolve(**kwargs)
    assert caught.value.loc == loc
    assert part in str(caught.value)


def test_a_function_declares_nothing_to_cut() -> None:
    def of_ones_own(outputs: Any, batch: Any) -> Any:
        return outputs["embeddings_a"].sum()

    with pytest.raises(LossConfigError, match="takes no tensor with an axis hidden"):
        resolve(of_ones_own)


def test_embeddings_that_are_too_short_are_refused() -> None:
    with pytest.raises(LossInputError) as caught:
        resolve(dims=[8, 2])(pairs(), {})
    assert str(caught.value) == (
        "matryoshka: 'embeddings_a' cannot be cut to 8: its axis hidden has 4. Let dims start with at most 4."
    )


def test_embeddings_of_different_lengths_are_refused_though_they_could_be_cut() -> None:
    longer = torch.ones(len(pairs()["embeddings_b"]), 5)
    with pytest.raises(LossInputError, match="along hidden, 'embeddings_b' has 5, but 'embeddings_a' has 4"):
        resolve()({**pairs(), "embeddings_b": longer}, {})


@pytest.mark.parametrize(
    "bad", [[[1.0, 2.0]], torch.tensor(1.0), torch.ones(3, 4).to_sparse()], ids=["list", "number", "sparse"]
)
def test_what_cannot_be_cut_is_refused(bad: Any) -> None:
    with pytest.raises(LossInputError, match="'embeddings_b' must be a tensor with an axis hidden to be cut; got"):
        resolve()({**pairs(), "embeddings_b": bad}, {})


def test_a_tensor_that_is_missing_is_missed_by_the_loss() -> None:
    with pytest.raises(LossInputError, match=r"^multiple_negatives: 'embeddings_b'"):
        resolve()({"embeddings_a": torch.ones(3, 4)}, {})

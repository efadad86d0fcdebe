import inspect
from collections import UserDict, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType, SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from strategies import Broken, batches, broken_batches, contracts
from tensafe.training.losses import (
    Elements,
    Loss,
    LossInputError,
    LossTypeError,
    ResolvedLoss,
    TensafeError,
    resolve_loss,
)
from tensafe.training.losses.contract import Contract, TensorSpec
from tensafe.training.losses.explain import explain

LOGITS = torch.tensor([[[0.1, 0.9], [0.8, 0.2], [0.5, -1.0]]])
LABELS = torch.tensor([[1, 0, 1]])
P, Q = torch.tensor([1.0, 4.0]), torch.tensor([1.0, 2.0])


@dataclass
class Output:
    logits: Tensor
    hidden_states: Tensor | None = None


@dataclass(slots=True)
class SlottedOutput:
    logits: Tensor


class ModelOutput(dict[str, Any]):
    """Like that of Hugging Face: a dict with attributes, and tuple-like access."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


class Lazy(Mapping[str, Any]):
    def __init__(self, **items: Any) -> None:
        self.items_ = items

    def __getitem__(self, name: str) -> Any:
        return self.items_[name]

    def __iter__(self) -> Any:
        return iter(self.items_)

    def __len__(self) -> int:
        return len(self.items_)


class WithProperty:
    @property
    def logits(self) -> Tensor:
        return LOGITS


CONTAINERS: dict[str, Callable[[str, Any], Any]] = {
    "dict": lambda name, value: {name: value},
    "ModelOutput": lambda name, value: ModelOutput({name: value}),
    "UserDict": lambda name, value: UserDict({name: value}),
    "MappingProxyType": lambda name, value: MappingProxyType({name: value}),
    "a Mapping": lambda name, value: Lazy(**{name: value}),
    "namespace": lambda name, value: SimpleNamespace(**{name: value}),
    "defaultdict": lambda name, value: defaultdict(list, {name: value}),
}


# Where tensors are looked up


@pytest.mark.parametrize("batch", CONTAINERS.values(), ids=CONTAINERS)
@pytest.mark.parametrize("outputs", CONTAINERS.values(), ids=CONTAINERS)
def test_any_mapping_or_object_will_do(outputs: Any, batch: Any) -> None:
    loss_fn = resolve_loss("token_ce")
    expected = loss_fn({"logits": LOGITS}, {"labels": LABELS})["loss"]
    assert loss_fn(outputs("logits", LOGITS), batch("labels", LABELS))["loss"] == expected


@pytest.mark.parametrize(
    "outputs", [Output(LOGITS), SlottedOutput(LOGITS), WithProperty()], ids=["dataclass", "slots", "property"]
)
def test_attributes_of_any_kind_will_do(outputs: Any) -> None:
    loss_fn = resolve_loss("token_ce")
    expected = loss_fn({"logits": LOGITS}, {"labels": LABELS})["loss"]
    assert loss_fn(outputs, {"labels": LABELS})["loss"] == expected


def test_looking_up_adds_nothing_to_a_defaultdict() -> None:
    batch: defaultdict[str, Any] = defaultdict(list, targets=Q)
    resolve_loss("mse")({"predictions": P}, batch)
    assert list(batch) == ["targets"]


def test_what_no_tensor_is_called_is_not_looked_at() -> None:
    outputs = {"predictions": P, "loss": object(), 3: "junk"}
    assert resolve_loss("mse")(outputs, {"targets": Q, "ids": ["a"]})["loss"] == 2.0


def test_sides_do_not_matter() -> None:
    assert resolve_loss("mse")({}, {"predictions": P, "targets": Q})["loss"] == 2.0
    assert resolve_loss("mse")({"targets": Q}, {"predictions": P})["loss"] == 2.0


@pytest.mark.parametrize(
    ("outputs", "batch", "expected"),
    [
        pytest.param({"logits": P}, {"targets": Q}, 2.0, id="alias"),
        pytest.param({"output": P}, {"labels": Q}, 2.0, id="last alias"),
        pytest.param({"predictions": P, "logits": 9 * P}, {"targets": Q}, 2.0, id="name before alias"),
        pytest.param({"predictions": None, "logits": P}, {"targets": Q}, 2.0, id="None is absent"),
        pytest.param({"predictions": 0 * P, "logits": P}, {"targets": Q}, 2.5, id="zeros are there"),
        pytest.param({"predictions": torch.tensor(False).float()}, {"targets": torch.tensor(3.0)}, 9.0, id="falsy"),
        pytest.param({"predictions": P}, {"predictions": P, "targets": Q}, 2.0, id="same object on both sides"),
        pytest.param({"predictions": P, "targets": None}, {"targets": Q}, 2.0, id="None beside a tensor"),
    ],
)
def test_which_of_several_keys_wins(outputs: Any, batch: Any, expected: float) -> None:
    assert resolve_loss("mse")(outputs, batch)["loss"] == expected


def test_a_name_on_both_sides_is_refused_unless_the_spec_says_which() -> None:
    outputs, batch = {"predictions": P, "targets": P.clone()}, {"targets": Q}
    with pytest.raises(LossInputError, match=r"'targets' is in both outputs and batch.*inputs: {targets: batch.targ"):
        resolve_loss("mse")(outputs, batch)
    assert resolve_loss({"type": "mse", "inputs": {"targets": "batch.targets"}})(outputs, batch)["loss"] == 2.0
    assert resolve_loss({"type": "mse", "inputs": {"targets": "outputs.targets"}})(outputs, batch)["loss"] == 0.0


@pytest.mark.parametrize(
    ("inputs", "outputs", "batch"),
    [
        pytest.param({"predictions": "x"}, {"x": P}, {"targets": Q}, id="plain"),
        pytest.param({"predictions": "outputs.x", "targets": "batch.x"}, {"x": P}, {"x": Q}, id="same key, two sides"),
        pytest.param({"predictions": "x"}, {"x": P, "predictions": 9 * P}, {"targets": Q}, id="not the name itself"),
        pytest.param({"predictions": "heads.reward"}, {"heads.reward": P}, {"targets": Q}, id="a key with a dot"),
        pytest.param({"predictions": "x"}, SimpleNamespace(x=P), UserDict(targets=Q), id="objects"),
    ],
)
def test_inputs_rename_tensors(inputs: dict[str, str], outputs: Any, batch: Any) -> None:
    assert resolve_loss({"type": "mse", "inputs": inputs})(outputs, batch)["loss"] == 2.0


def test_two_tensors_may_be_one_and_the_same() -> None:
    loss_fn = resolve_loss({"type": "mse", "inputs": {"predictions": "x", "targets": "x"}})
    assert loss_fn({"x": P}, {"predictions": P, "targets": Q})["loss"] == 0.0


def test_a_rename_is_looked_up_only_where_it_says() -> None:
    loss_fn = resolve_loss({"type": "mse", "inputs": {"predictions": "outputs.x"}})
    with pytest.raises(LossInputError, match=r"'x' .* must be in outputs; outputs has y\.$") as caught:
        loss_fn({"y": P}, {"x": P, "targets": Q})
    assert caught.value.loc == ("predictions",)


# Conversions


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_integer_labels_are_widened(dtype: torch.dtype) -> None:
    loss_fn = resolve_loss("token_ce", ignore_index=0)
    labels = torch.tensor([[1, 0, 1]])
    expected = loss_fn({"logits": LOGITS}, {"labels": labels})
    assert loss_fn({"logits": LOGITS}, {"labels": labels.to(dtype)}) == expected


def test_uint8_labels_cannot_hold_minus_100() -> None:
    labels = torch.tensor([[-100, 0, 1]]).to(torch.uint8)
    with pytest.raises(LossInputError, match=r"'labels' must lie in \[0, 2\)"):
        resolve_loss("token_ce", shift=False)({"logits": LOGITS}, {"labels": labels})
    ignored = resolve_loss("token_ce", shift=False, ignore_index=156)({"logits": LOGITS}, {"labels": labels})
    assert ignored["metrics"]["num_tokens"] == 2


def test_the_lists_of_the_quickstart() -> None:
    loss = resolve_loss("token_ce")({"logits": [[0.1, 0.9], [0.8, 0.2]]}, {"labels": [1, 0]})["loss"]
    scores = torch.tensor([[0.1, 0.9], [0.8, 0.2]], dtype=torch.float64)
    expected = (scores.logsumexp(1) - torch.stack([scores[0, 1], scores[1, 0]])).mean()
    assert loss.dtype is torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize(
    ("loss", "outputs", "batch", "expected"),
    [
        pytest.param("mse", {"predictions": [1, 4]}, {"targets": (1.0, 2)}, 2.0, id="ints and tuples"),
        pytest.param("mse", {"predictions": 3}, {"targets": 1.5}, 2.25, id="numbers"),
        pytest.param(
            "mse", {"predictions": [[1.0], [4.0]]}, {"targets": torch.tensor([[1.0], [2.0]])}, 2.0, id="mixed"
        ),
        pytest.param("token_ce", {"logits": torch.zeros(0, 2)}, {"labels": []}, 0.0, id="nothing"),
        pytest.param("margin_ranking", {"chosen_scores": [3], "rejected_scores": [1]}, {}, 0.0, id="one pair"),
        pytest.param("contrastive", {"embeddings_a": [[1, 0]], "embeddings_b": [[0, 1]]}, {}, 0.0, id="one embedding"),
    ],
)
def test_lists_and_numbers_become_tensors(loss: str, outputs: Any, batch: Any, expected: float) -> None:
    assert resolve_loss(loss)(outputs, batch)["loss"] == expected


def test_lists_take_the_device_of_the_tensors() -> None:
    loss = resolve_loss("mse")({"predictions": P.to("meta")}, {"targets": [1.0, 2.0]})["loss"]
    assert loss.device.type == "meta"


def test_mixed_float_dtypes_are_promoted() -> None:
    wide, narrow = P.double() + 1e-12, Q
    for outputs, batch in (({"predictions": wide}, {"targets": narrow}), ({"predictions": narrow}, {"targets": wide})):
        loss = resolve_loss("mse")(outputs, batch)["loss"]
        assert loss.dtype is torch.float64
        assert loss == (wide - narrow.double()).square().mean()
    assert resolve_loss("mse")({"predictions": P.half()}, {"targets": Q})["loss"].dtype is torch.float32
    assert resolve_loss("mse")({"predictions": P.half()}, {"targets": Q.double()})["loss"].dtype is torch.float64


# What is refused

IDS = torch.zeros(2, 3, dtype=torch.int64)
SCORES = torch.zeros(2, 3, 4)
REFUSED = [
    # a tensor that is missing
    ("key", "mse", {"predictions": P}, {}, ["'targets' or 'labels' (float[*shape])", "batch has nothing"]),
    ("near miss", "mse", {"predictions": P}, {"target": Q}, ["batch has target", "inputs: {targets: target}"]),
    ("case", "mse", {"Predictions": P}, {"targets": Q}, ["outputs has Predictions", "inputs: {predictions: Pred"]),
    ("None", "mse", {"predictions": None}, {"targets": Q}, ["'predictions'", "outputs has predictions=None;"]),
    (
        "a method",
        "mse",
        SimpleNamespace(predictions=print),
        {"targets": Q},
        ["'predictions'", "outputs has predictions"],
    ),
    (
        "labels",
        "token_ce",
        {"logits": SCORES},
        {"x": 1},
        ["'labels' or 'shift_labels' must be given; outputs has logits"],
    ),
    ("labels near", "token_ce", {"logits": SCORES}, {"label": IDS}, ["batch has label.", "inputs: {labels: label}"]),
    ("other side", "contrastive", {"embeddings_a": SCORES[0]}, {}, ["'embeddings_b'", "outputs has embeddings_a;"]),
    # no container of named tensors
    ("tuple", "token_ce", (SCORES,), {"labels": IDS}, ["outputs must be a mapping", "got tuple", "return_dict=True"]),
    ("tensor", "token_ce", SCORES, {"labels": IDS}, ["outputs must be a mapping", "got Tensor", "{'logits': tensor}"]),
    ("None outputs", "token_ce", None, {"labels": IDS}, ["outputs must be a mapping", "got NoneType"]),
    ("list batch", "token_ce", {"logits": SCORES}, [IDS], ["batch must be a mapping", "got list"]),
    ("str batch", "mse", {"predictions": P}, "abc", ["batch must be a mapping", "got str"]),
    # not a tensor
    ("array", "mse", {"predictions": np.ones(2)}, {"targets": Q}, ["'predictions'", "got ndarray", "torch.as_tensor"]),
    ("str", "mse", {"predictions": "1.0"}, {"targets": Q}, ["'predictions'", "got str"]),
    ("ragged", "mse", {"predictions": [[1.0, 2.0], [3.0]]}, {"targets": Q}, ["'predictions'", "list", "equally long"]),
    ("words", "mse", {"predictions": ["a", "b"]}, {"targets": Q}, ["'predictions'", "list", "hold numbers"]),
    ("hole", "mse", {"predictions": [1.0, None]}, {"targets": Q}, ["'predictions'", "list", "hold numbers"]),
    ("huge id", "token_ce", {"logits": SCORES}, {"labels": [2**70]}, ["'labels' must be int[*rows]", "list"]),
    ("tensors", "mse", {"predictions": [P[0], P[1]]}, {"targets": Q}, ["list of tensors", "graph", "torch.stack"]),
    ("rows", "mse", {"predictions": [P, P]}, {"targets": Q}, ["list of tensors", "torch.stack(x)"]),
    # dtypes
    (
        "float ids",
        "token_ce",
        {"logits": SCORES},
        {"labels": IDS.float()},
        ["'labels'", "int[", "float32[2, 3]", "x.long()"],
    ),
    ("bool ids", "token_ce", {"logits": SCORES}, {"labels": IDS.bool()}, ["'labels'", "int[*rows]", "got bool[2, 3]"]),
    ("soft", "token_ce", {"logits": SCORES}, {"labels": SCORES}, ["'labels'", "int[*rows]", "float32[2, 3, 4]"]),
    ("uint16", "token_ce", {"logits": SCORES}, {"labels": IDS.to(torch.uint16)}, ["'labels'", "int[", "uint16[2, 3]"]),
    (
        "list ids",
        "token_ce",
        {"logits": SCORES[0]},
        {"labels": [1, 0.7, 0]},
        ["'labels'", "int[*rows]", "got float32[3]"],
    ),
    ("list bools", "token_ce", {"logits": SCORES[0, :2]}, {"labels": [True, False]}, ["'labels'", "got bool[2]"]),
    (
        "int scores",
        "mse",
        {"predictions": P.long()},
        {"targets": Q},
        ["'predictions'", "float[", "int64[2]", "x.float()"],
    ),
    ("bool scores", "mse", {"predictions": P > 1}, {"targets": Q}, ["'predictions' must be float", "got bool[2]"]),
    ("complex", "mse", {"predictions": P + 0j}, {"targets": Q}, ["'predictions' must be float", "got complex64[2]"]),
    ("float8", "mse", {"predictions": P.to(torch.float8_e5m2)}, {"targets": Q}, ["'predictions'", "float8_e5m2[2]"]),
    ("sparse", "mse", {"predictions": P.to_sparse()}, {"targets": Q}, ["'predictions'", "dense", "torch.sparse_coo"]),
    ("mkldnn", "mse", {"predictions": P.to_mkldnn()}, {"targets": Q}, ["'predictions'", "dense", "torch._mkldnn"]),
    # shapes
    (
        "[N 1]",
        "mse",
        {"predictions": P[:, None]},
        {"targets": Q},
        ["*shape=[2, 1] (set by", "float32[2]", "s.squeeze(-1)"],
    ),
    ("[1 N]", "mse", {"predictions": P[None]}, {"targets": Q}, ["*shape=[1, 2] (set by", "targets.unsqueeze(0)"]),
    ("0-d", "mse", {"predictions": P}, {"targets": torch.tensor(1.0)}, ["'targets'", "*shape=[2]", "got float32[]"]),
    ("number", "mse", {"predictions": P}, {"targets": 1.0}, ["'targets'", "*shape=[2]", "got float32[]"]),
    ("[1]", "mse", {"predictions": P}, {"targets": Q[:1]}, ["'targets'", "*shape=[2]", "got float32[1]"]),
    (
        "pairs",
        "margin_ranking",
        {"chosen_scores": P[:, None], "rejected_scores": Q},
        {},
        ["*pairs=[2, 1]", "squeeze(-1)"],
    ),
    ("one pair", "margin_ranking", {"chosen_scores": P, "rejected_scores": Q[:1]}, {}, ["'rejected_scores'", "[2]"]),
    ("transposed", "token_ce", {"logits": SCORES.mT}, {"labels": IDS}, ["int64[2, 3]", "logits.transpose(-1, -2)"]),
    (
        "shifted",
        "token_ce",
        {"logits": SCORES},
        {"labels": IDS[:, 1:]},
        ["int64[2, 2]", "was one of them shifted already?"],
    ),
    ("no batch axis", "token_ce", {"logits": SCORES[:1]}, {"labels": IDS[0]}, ["*rows=[1, 3]", "labels.unsqueeze(0)"]),
    (
        "no vocab",
        "token_ce",
        {"logits": torch.zeros(2, 0)},
        {"labels": IDS[0, :2]},
        ["'logits'", "vocab=0", "at least 1"],
    ),
    (
        "scalar",
        "token_ce",
        {"logits": torch.tensor(1.0)},
        {"labels": IDS},
        ["'logits' must be float[*rows vocab]", "[]"],
    ),
    (
        "hidden",
        "contrastive",
        {"embeddings_a": SCORES[0], "embeddings_b": SCORES[0, :, :3]},
        {},
        ["'embeddings_b' must be float[batch hidden] with batch=3 (set by 'embeddings_a'), hidden=4", "float32[3, 3]"],
    ),
    (
        "rank",
        "contrastive",
        {"embeddings_a": SCORES, "embeddings_b": SCORES},
        {},
        ["'embeddings_a'", "float32[2, 3, 4]"],
    ),
    # devices
    (
        "device",
        "mse",
        {"predictions": P.to("meta")},
        {"targets": Q},
        ["'targets' is on cpu, but 'predictions' is on meta"],
    ),
    ("ids' device", "token_ce", {"logits": SCORES}, {"labels": IDS.to("meta")}, ["'labels' is on meta", ".to('cpu')"]),
    # values, on the CPU
    ("above", "token_ce", {"logits": SCORES}, {"labels": IDS + 4}, ["'labels' must lie in [0, 4) (vocab=4)", "4 of 6"]),
    (
        "below",
        "token_ce",
        {"logits": SCORES},
        {"labels": IDS - 1},
        ["'labels' must lie in [0, 4)", "ignore_index=-100"],
    ),
    ("aligned", "token_ce", {"logits": SCORES}, {"shift_labels": IDS + 4}, ["'shift_labels' must lie in", "6 of 6"]),
]


@pytest.mark.parametrize(
    ("loss", "outputs", "batch", "parts"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED]
)
def test_a_refusal_names_the_tensor_what_was_expected_and_what_was_got(
    loss: str, outputs: Any, batch: Any, parts: list[str]
) -> None:
    with pytest.raises((LossInputError, LossTypeError)) as caught:
        resolve_loss(loss)(outputs, batch)
    message = str(caught.value)
    assert message.startswith(f"{loss}: ")
    assert [part for part in parts if part not in message] == [], message
    assert len(message) < 400
    assert "\n" not in message
    assert caught.value.loss == loss
    assert caught.value.code != TensafeError.code
    assert len(caught.value.loc) == (caught.value.code != "invalid-values")  # the loss itself says what its values lack


@pytest.mark.parametrize("layout", [torch.strided, torch.jagged], ids=str)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype:UserWarning")
def test_nested_tensors_are_refused_by_name(layout: torch.layout) -> None:
    nested = torch.nested.nested_tensor([torch.zeros(2, 4), torch.zeros(3, 4)], layout=layout)
    with pytest.raises(LossInputError, match=r"'logits' must be a dense tensor.*nested.*to_padded_tensor"):
        resolve_loss("token_ce")({"logits": nested}, {"labels": IDS})


def test_a_label_out_of_range_keeps_the_first_error_as_its_cause() -> None:
    with pytest.raises(LossInputError) as caught:
        resolve_loss("token_ce")({"logits": SCORES}, {"labels": IDS + 4})
    assert isinstance(caught.value.__cause__, IndexError)
    assert caught.value.code == "invalid-values"


def test_a_list_that_contains_itself_is_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(LossInputError, match="'predictions'"):
        resolve_loss("mse")({"predictions": endless}, {"targets": Q})


@pytest.mark.parametrize(
    "outputs",
    [{f"key_{index}": P for index in range(5000)}, {"line\n" * 5000: P}, SimpleNamespace(**{"x" * 5000: P})],
    ids=["many keys", "a long key", "a long attribute"],
)
def test_a_message_stays_short_whatever_the_keys(outputs: Any) -> None:
    with pytest.raises(LossInputError) as caught:
        resolve_loss("mse")(outputs, {"targets": Q})
    assert len(str(caught.value)) < 600
    assert "\n" not in str(caught.value)


def test_a_message_holds_no_values() -> None:
    secret = torch.full((3,), 123456.0)
    with pytest.raises(LossInputError) as caught:
        resolve_loss("mse")({"predictions": secret}, {"targets": torch.full((2,), 654321.0)})
    assert "123456" not in str(caught.value)
    assert "654321" not in str(caught.value)


@pytest.mark.parametrize("loss", ["token_ce", "mse"])
def test_a_rename_that_leads_nowhere_is_explained_with_the_key_it_wants(loss: str) -> None:
    tensor = "labels" if loss == "token_ce" else "targets"
    loss_fn: ResolvedLoss = resolve_loss({"type": loss, "inputs": {tensor: "batch.answers"}})
    with pytest.raises(LossInputError, match=r"batch has answer\. If 'answer' is meant") as caught:
        loss_fn({"logits": SCORES, "predictions": SCORES}, {"answer": IDS})
    assert caught.value.loc == (tensor,)


# Any contract

_KINDS = {"float": "Float", "int": "Int", "bool": "Bool", "num": "Num", "any": "Shaped"}


def _parameter(spec: TensorSpec) -> inspect.Parameter:
    return inspect.Parameter(
        spec.name,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        default=None if spec.optional else inspect.Parameter.empty,
        annotation=f"{_KINDS[spec.kind]}[Tensor, {' '.join(map(str, spec.dims))!r}]" + " | None" * spec.optional,
    )


def take(contract: Contract, outputs: Any, batch: Any, upcast: bool = True) -> list[Any]:
    """The tensors that `compute` of a loss with this contract is given."""
    taken: list[Any] = []

    class Drawn(Loss):
        __qualname__ = "drawn"
        _upcast: ClassVar[bool] = upcast

        def compute(self, *tensors: Any) -> Elements:
            taken.extend(tensors)
            return Elements(torch.zeros(()))

    parameters = [_parameter(TensorSpec("self", "any", ())), *map(_parameter, contract.tensors)]
    Drawn.compute.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # it may have one
    resolve_loss(Drawn)(outputs, batch)
    return taken


@pytest.mark.parametrize(
    ("dims", "shape", "fits"),
    [
        (("batch", 2), (3, 2), True),
        (("batch", 2), (3, 3), False),
        ((2, "batch"), (3, 2), False),
        (("_", "_"), (0, 5), True),
        (("_", "_"), (5,), False),
        (("...",), (), True),
        (("...", "vocab"), (3, 2, 4), True),
        (("...", "vocab"), (), False),
        (("...", "vocab"), (3, 0), False),
        (("*rows", 2), (3, 3), False),
        (("batch", "..."), (3, 2, 4), True),
        (("batch", "*rows", "vocab"), (3, 4), True),
        (("batch", "*rows", "vocab"), (3,), False),
        (("hidden", "hidden"), (2, 2), True),
        (("hidden", "hidden"), (2, 3), False),
        (("hidden", "*rows", "hidden"), (2, 5, 2), True),
        (("hidden", "*rows", "hidden"), (2, 5, 3), False),
        (("batch", "seq"), (0, 0), True),
        (("group",), (0,), True),
        (("hidden",), (0,), False),
        ((), (), True),
        ((), (1,), False),
    ],
)
@pytest.mark.parametrize("optional", [False, True], ids=["required", "optional"])
def test_which_shapes_a_contract_lets_through(
    dims: tuple[str | int, ...], shape: tuple[int, ...], fits: bool, optional: bool
) -> None:
    contract = Contract((TensorSpec("x", "any", dims, optional),))
    tensor = torch.zeros(shape)
    if fits:
        assert take(contract, {"x": tensor}, {})[0] is tensor
    else:
        with pytest.raises(LossInputError, match="'x'"):
            take(contract, {"x": tensor}, {})


@st.composite
def contract_and(
    draw: st.DrawFn, kind: Callable[[Contract], st.SearchStrategy[Any]]
) -> tuple[Contract, dict[str, Tensor] | Broken]:
    contract = draw(contracts())
    return contract, draw(kind(contract))


def _same(left: Tensor | None, right: Tensor | None) -> bool:
    if left is None or right is None:
        return left is right
    return left.dtype == right.dtype and torch.equal(left, right)


@given(contract_and(batches), st.booleans())
def test_what_a_contract_describes_passes_unchanged_but_for_its_width(drawn: Any, upcast: bool) -> None:
    contract, tensors = drawn
    found = take(contract, {}, tensors, upcast)
    slowly = explain("drawn", contract, {}, upcast, tensors, {})
    for spec, tensor, again in zip(contract.tensors, found, slowly, strict=True):
        given_ = tensors.get(spec.name)
        assert _same(tensor, again), spec
        if given_ is None:
            assert tensor is None
            continue
        assert torch.equal(tensor, given_.to(tensor.dtype))
        if spec.kind == "int":
            assert tensor.dtype is torch.int64
        if spec.kind == "float" and upcast:
            assert tensor.dtype in {torch.float32, torch.float64}


@given(contract_and(broken_batches))
def test_a_batch_with_one_thing_wrong_is_refused(drawn: Any) -> None:
    contract, broken = drawn
    with pytest.raises(LossInputError) as caught:
        take(contract, broken.tensors, {})
    assert caught.value.loss == "drawn"
    assert caught.value.loc[0] in {spec.name for spec in contract.tensors}
    assert repr(caught.value.loc[0]) in str(caught.value)


@pytest.mark.parametrize("slow", [False, True], ids=["as tensors", "one as a list"])
def test_only_a_float_widens_the_other_floats(slow: bool) -> None:
    contract = Contract(tuple(TensorSpec(name, kind, ("batch",)) for name, kind in (("x", "num"), ("y", "float"))))
    wide, narrow = torch.ones(2, dtype=torch.float64), torch.ones(2)
    found = take(contract, {"x": wide, "y": narrow.tolist() if slow else narrow}, {})
    assert [tensor.dtype for tensor in found] == [torch.float64, torch.float32]


@pytest.mark.parametrize("dtype", [torch.uint16, torch.float8_e5m2, torch.bool, torch.complex64], ids=str)
def test_a_number_is_of_a_dtype_to_calculate_in(dtype: torch.dtype) -> None:
    with pytest.raises(LossInputError, match=r"'x' must be num\[batch\]; got "):
        take(Contract((TensorSpec("x", "num", ("batch",)),)), {"x": torch.ones(2).to(dtype)}, {})


TWO_OPTIONAL = Contract(tuple(TensorSpec(name, "float", ("*shape",), optional=True) for name in "xy"))


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("given", [(), ("x",), ("y",), ("x", "y")], ids=str)
def test_every_tensor_may_be_optional(given: tuple[str, ...], device: str) -> None:
    tensors = {name: torch.zeros(2, device=device) for name in given}
    assert take(TWO_OPTIONAL, tensors, {}) == [tensors.get(name) for name in "xy"]


@pytest.mark.parametrize("elsewhere", ["x", "y"])
def test_optional_tensors_share_a_device(elsewhere: str) -> None:
    tensors = {name: torch.zeros(2, device="meta" if name == elsewhere else "cpu") for name in "xy"}
    with pytest.raises(LossInputError, match=r"'y' is on .*, but 'x' is on"):
        take(TWO_OPTIONAL, tensors, {})


@pytest.mark.parametrize("batch", CONTAINERS.values(), ids=CONTAINERS)
def test_a_count_is_found_in_any_batch(batch: Any) -> None:
    given = batch("num_items_in_batch", 8)
    assert resolve_loss("mse")({"predictions": P, "targets": Q}, given)["loss"] == 0.5
    with pytest.raises(LossInputError, match="num_items_in_batch must be a number"):
        resolve_loss("mse")({"predictions": P, "targets": Q}, batch("num_items_in_batch", "8"))

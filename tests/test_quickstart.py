"""The quickstart of the public TenSafe, each snippet as a user would run it."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypedDict

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor

from support import write_modules
from tensafe.training.losses import LossConfigError, register_loss, resolve_loss

pytestmark = pytest.mark.usefixtures("isolated_registry")

SEEDED = torch.Generator().manual_seed(0)
LOGITS = torch.randn(2, 5, 7, dtype=torch.float64, generator=SEEDED)
LABELS = torch.randint(0, 7, (2, 5), generator=SEEDED)
OUTPUTS, BATCH = {"logits": LOGITS}, {"labels": LABELS}


def shifted_cross_entropy(logits: Tensor, labels: Tensor, **kwargs: Any) -> Tensor:
    """The language-model loss, by torch."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), **kwargs)


def run(snippet: str, **names: Any) -> dict[str, Any]:
    """Run a snippet of the guide as a script of its own, and return its names."""
    names = {
        "__name__": "users_script",
        "model_logits": LOGITS,
        "input_labels": LABELS,
        "compute_loss": compute_loss,
        **names,
    }
    exec(compile(snippet, "<quickstart>", "exec", dont_inherit=True), names)
    return names


def compute_loss(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten())


# Using built-in losses


def test_using_a_built_in_loss(capsys: pytest.CaptureFixture[str]) -> None:
    names = run("""
from tensafe.training.losses import resolve_loss

# Resolve a built-in loss by name
loss_fn = resolve_loss("token_ce")

# Use with default parameters
outputs = {"logits": model_logits}
batch = {"labels": input_labels}
result = loss_fn(outputs, batch)

print(f"Loss: {result['loss']}")
""")
    expected = shifted_cross_entropy(LOGITS, LABELS)
    torch.testing.assert_close(names["result"]["loss"], expected)
    assert float(capsys.readouterr().out.removeprefix("Loss: ")) == pytest.approx(expected.item())


# Using custom loss functions

CUSTOM = """
from tensafe.training.losses import resolve_loss, register_loss

# Option 1: Pass a callable directly
def my_custom_loss(outputs, batch, **kwargs):
    logits = outputs["logits"]
    labels = batch["labels"]
    # Your loss computation here
    loss = compute_loss(logits, labels)
    return {"loss": loss}

loss_fn = resolve_loss(my_custom_loss)
first = loss_fn

# Option 2: Register for reuse
register_loss("my_loss", my_custom_loss)
loss_fn = resolve_loss("my_loss")
"""


def test_using_a_custom_function() -> None:
    names = run(CUSTOM)
    for loss_fn in (names["first"], names["loss_fn"], resolve_loss("my_loss", anything=1)):
        assert loss_fn(OUTPUTS, BATCH)["loss"] == compute_loss(LOGITS, LABELS)
    assert names["loss_fn"].name == "my_loss"
    run(CUSTOM)  # a notebook's cell is run again


# Using losses from external modules

MY_PACKAGE = """
import torch.nn.functional as F

def custom_loss(outputs, batch, **kwargs):
    return {"loss": F.mse_loss(outputs["logits"], batch["targets"])}

def weighted_loss(outputs, batch, weight=1.0, ignore_index=0):
    logits, labels = outputs["logits"], batch["labels"]
    loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=ignore_index)
    return {"loss": weight * loss}
"""


@pytest.mark.parametrize("separator", [":", "."])
def test_using_losses_from_external_modules(separator: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_modules(tmp_path, monkeypatch, {"my_package.losses": MY_PACKAGE})
    names = run(
        """
from tensafe.training.losses import resolve_loss

# Import from a module using dotted path
loss_fn = resolve_loss("my_package.losses:custom_loss")
first = loss_fn

# With default kwargs
loss_fn = resolve_loss(
    "my_package.losses:weighted_loss",
    weight=0.5,
    ignore_index=-100,
)
""".replace("losses:", f"losses{separator}")
    )
    targets = torch.zeros_like(LOGITS)
    assert names["first"](OUTPUTS, {"targets": targets})["loss"] == F.mse_loss(LOGITS, targets)
    labels = LABELS.clone()
    labels[0, :3] = -100
    expected = 0.5 * F.cross_entropy(LOGITS.flatten(0, 1), labels.flatten())
    torch.testing.assert_close(names["loss_fn"](OUTPUTS, {"labels": labels})["loss"], expected)
    with pytest.raises(LossConfigError, match="did you mean ignore_index"):
        resolve_loss(f"my_package.losses{separator}weighted_loss", ingore_index=-100)


# Configuration via YAML

YAML = """
loss:
  type: token_ce  # or dotted path: "my_module:custom_loss"
  kwargs:
    ignore_index: -100
    label_smoothing: 0.1
    reduction: mean
"""


def test_the_loss_section_of_a_config() -> None:
    section = yaml.safe_load(YAML)["loss"]
    expected = shifted_cross_entropy(LOGITS, LABELS, label_smoothing=0.1)
    for loss_fn in (resolve_loss(section), resolve_loss(section["type"], **section["kwargs"])):
        torch.testing.assert_close(loss_fn(OUTPUTS, BATCH)["loss"], expected)


# The table of built-in losses

SCORES = torch.tensor([0.5, 2.0, -1.0], dtype=torch.float64)
EMBEDDINGS = torch.eye(3, dtype=torch.float64)
STATES, HEAD = torch.randn(2, 5, 4, generator=SEEDED).double(), torch.randn(7, 4, generator=SEEDED).double()


@pytest.mark.parametrize(
    ("name", "kwargs", "inputs", "expected"),
    [
        (
            "token_ce",
            {"ignore_index": 3, "label_smoothing": 0.2},
            {"logits": LOGITS, "labels": LABELS},
            shifted_cross_entropy(LOGITS, LABELS, ignore_index=3, label_smoothing=0.2),
        ),
        (
            "token_ce",
            {"softcap": 2.0, "logit_scale": 0.5},
            {"logits": LOGITS, "labels": LABELS},
            shifted_cross_entropy(2 * torch.tanh(0.25 * LOGITS), LABELS),
        ),
        (
            "linear_ce",
            {"label_smoothing": 0.2},
            {"hidden_states": STATES, "lm_head_weight": HEAD, "labels": LABELS},
            shifted_cross_entropy(STATES @ HEAD.T, LABELS, label_smoothing=0.2),
        ),
        (
            "margin_ranking",
            {"margin": 2.0},
            {"chosen_scores": SCORES, "rejected_scores": SCORES.flip(0)},
            F.margin_ranking_loss(SCORES, SCORES.flip(0), torch.ones(3), margin=2.0),
        ),
        (
            "contrastive",
            {"margin": 0.5, "temperature": 0.1},
            {"embeddings_a": EMBEDDINGS, "embeddings_b": EMBEDDINGS},
            F.cross_entropy(EMBEDDINGS * 0.5 / 0.1, torch.arange(3)),
        ),
        (
            "mse",
            {"reduction": "sum"},
            {"predictions": SCORES, "targets": SCORES.flip(0)},
            F.mse_loss(SCORES, SCORES.flip(0), reduction="sum"),
        ),
    ],
)
def test_the_built_in_losses_take_their_common_arguments(
    name: str, kwargs: dict[str, Any], inputs: dict[str, Any], expected: Tensor
) -> None:
    torch.testing.assert_close(resolve_loss(name, **kwargs)(inputs, {})["loss"], expected)


# Creating a custom loss


def test_the_loss_function_protocol() -> None:
    class LossReturn(TypedDict, total=False):
        loss: float
        metrics: dict[str, float]
        auxiliary: dict[str, Any]

    def my_loss(outputs: dict[str, Any], batch: dict[str, Any], **kwargs: Any) -> LossReturn:
        """Compute loss from model outputs and batch."""
        return {"loss": 0.5, "metrics": {"seen": float(len(batch))}, "auxiliary": {"kwargs": kwargs}}

    result = resolve_loss(my_loss, scale=2)(OUTPUTS, BATCH)
    assert result["loss"] == 0.5
    assert result["metrics"] == {"seen": 1.0}
    assert result["auxiliary"] == {"kwargs": {"scale": 2}}


def test_a_stub_that_returns_nothing_is_told_so() -> None:
    names = run("""
from tensafe.training.losses import resolve_loss
def my_loss(outputs, batch, **kwargs):
    ...
loss_fn = resolve_loss(my_loss)
""")
    with pytest.raises(ValueError, match=r"my_loss: must return dict with 'loss' key.*got NoneType"):
        names["loss_fn"](OUTPUTS, BATCH)


ENTROPY = '''
from tensafe.training.losses import register_loss

@register_loss("entropy_regularized")
def entropy_regularized_loss(outputs, batch, entropy_weight=0.1, **kwargs):
    """Cross-entropy with entropy regularization."""
    logits = outputs["logits"]
    labels = batch["labels"]

    # Standard CE loss
    ce_loss = compute_cross_entropy(logits, labels)

    # Entropy term (encourages diverse predictions)
    probs = softmax(logits)
    entropy = -sum(probs * log(probs))

    # Combined loss
    total_loss = ce_loss - entropy_weight * entropy

    return {
        "loss": total_loss,
        "metrics": {
            "ce_loss": ce_loss,
            "entropy": entropy,
        },
    }
'''


def test_the_entropy_regularised_loss() -> None:
    logits = LOGITS.clone().requires_grad_()
    open_names: dict[str, Any] = {
        "compute_cross_entropy": compute_loss,
        "softmax": lambda logits: torch.softmax(logits, -1),
        "sum": lambda terms: terms.sum(-1).mean(),
        "log": torch.log,
    }
    names = run(ENTROPY, **open_names)
    assert names["entropy_regularized_loss"].__doc__ == "Cross-entropy with entropy regularization."
    entropy = -(LOGITS.softmax(-1) * LOGITS.log_softmax(-1)).sum(-1).mean()
    for weight, kwargs in ((0.1, {}), (0.5, {"entropy_weight": 0.5})):
        result = resolve_loss("entropy_regularized", **kwargs)({"logits": logits}, BATCH)
        torch.testing.assert_close(result["loss"], compute_loss(logits, LABELS) - weight * entropy)
        assert result["loss"].requires_grad
        assert set(result["metrics"]) == {"ce_loss", "entropy"}
        assert not any(metric.requires_grad for metric in result["metrics"].values() if isinstance(metric, Tensor))
    assert resolve_loss("entropy_regularized").kwargs == {"entropy_weight": 0.1}
    with pytest.warns(UserWarning, match="did you mean 'entropy_weight'"):
        resolve_loss("entropy_regularized", entropy_wieght=0.5)


FOCAL = '''
from tensafe.training.losses import register_loss

class FocalLoss:
    """Focal loss for handling class imbalance."""

    def __init__(self, gamma=2.0, alpha=0.25):
        self.gamma = gamma
        self.alpha = alpha

    def __call__(self, outputs, batch, **kwargs):
        logits = outputs["logits"]
        labels = batch["labels"]

        # Focal loss computation
        ce_loss = cross_entropy(logits, labels)
        pt = exp(-ce_loss)
        focal_loss = self.alpha * (1 - pt) ** self.gamma * ce_loss

        return {"loss": focal_loss.mean()}

# Register with default parameters
register_loss("focal_loss", FocalLoss())
'''


def test_the_class_based_loss() -> None:
    def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")

    names = run(FOCAL, cross_entropy=cross_entropy, exp=torch.exp)
    elements = cross_entropy(LOGITS, LABELS)
    expected = (0.25 * (1 - (-elements).exp()) ** 2 * elements).mean()
    torch.testing.assert_close(resolve_loss("focal_loss")(OUTPUTS, BATCH)["loss"], expected)
    loss_fn = resolve_loss(names["FocalLoss"](gamma=0.0, alpha=1.0))
    torch.testing.assert_close(loss_fn(OUTPUTS, BATCH)["loss"], elements.mean())
    assert loss_fn.name == "FocalLoss"
    with pytest.raises(TypeError, match=r"Register an instance: register_loss\('focal', FocalLoss\(\)\)"):
        register_loss("focal", names["FocalLoss"])


# Testing a custom loss


@pytest.mark.parametrize("loss", ["my_custom_loss", "token_ce", "mse"])
def test_python_lists_as_in_the_guides_test(loss: str) -> None:
    @register_loss("my_custom_loss")
    def my_custom_loss(outputs: Any, batch: Any, **kwargs: Any) -> dict[str, Any]:
        return {"loss": F.cross_entropy(torch.tensor(outputs["logits"]), torch.tensor(batch["labels"]))}

    loss_fn = resolve_loss(loss)

    outputs: dict[str, Any] = {"logits": [[0.1, 0.9], [0.8, 0.2]]}
    batch: dict[str, Any] = {"labels": [1, 0]}
    if loss == "mse":
        batch = {"labels": [[0.0, 1.0], [1.0, 0.0]]}

    result = loss_fn(outputs, batch)

    assert "loss" in result
    assert result["loss"] >= 0


# Integration with training


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(7, 4)
        self.head = torch.nn.Linear(4, 7)

    def forward(self, input_ids: Tensor) -> Any:
        return self.output({"logits": self.head(self.embedding(input_ids))})

    def forward_without_logits(self, input_ids: Tensor) -> dict[str, Tensor]:
        layer = {"lm_head_weight": self.head.weight, "lm_head_bias": self.head.bias}
        return {"hidden_states": self.embedding(input_ids), **layer}

    @staticmethod
    def output(fields: dict[str, Tensor]) -> Any:
        return fields


TRAINING = """
from tensafe.training.losses import resolve_loss

# In your training script
loss_fn = resolve_loss(config.loss.type, **config.loss.kwargs)

for batch in dataloader:
    outputs = model(batch["input_ids"])
    loss_result = loss_fn(outputs, batch)

    loss = loss_result["loss"]
    loss.backward()

    # Log additional metrics if available
    if "metrics" in loss_result:
        for name, value in loss_result["metrics"].items():
            log_metric(name, value)

    step(loss)
"""


@pytest.mark.parametrize("output", [dict, lambda fields: SimpleNamespace(**fields)], ids=["dict", "attributes"])
@pytest.mark.parametrize("loss", ["token_ce", "plain function"])
def test_training_with_a_config(loss: str, output: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    @register_loss("plain")
    def plain(outputs: Any, batch: Any, label_smoothing: float = 0.0, **kwargs: Any) -> dict[str, Any]:
        logits = outputs["logits"] if isinstance(outputs, dict) else outputs.logits
        loss = shifted_cross_entropy(logits, batch["labels"], label_smoothing=label_smoothing)
        return {"loss": loss, "metrics": {"perplexity": loss.exp()}}

    monkeypatch.setattr(Model, "output", staticmethod(output))
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    logged: list[tuple[str, float]] = []
    losses: list[float] = []

    def step(loss: Tensor) -> None:
        losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()

    run(
        TRAINING,
        config=SimpleNamespace(
            loss=SimpleNamespace(type="token_ce" if loss == "token_ce" else "plain", kwargs={"label_smoothing": 0.1})
        ),
        dataloader=[{"input_ids": LABELS, "labels": LABELS}] * 5,
        model=model,
        log_metric=lambda name, value: logged.append((name, float(value))),
        step=step,
    )
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]
    assert [name for name, _ in logged] == ["num_tokens" if loss == "token_ce" else "perplexity"] * 5
    if loss == "token_ce":
        assert logged[0][1] == 8.0


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_training_without_logits(dtype: torch.dtype) -> None:
    model = Model().to(dtype)
    tolerance: dict[str, Any] = {} if dtype is torch.float64 else {"rtol": 0.02, "atol": 1e-3}
    by_logits = resolve_loss("token_ce", label_smoothing=0.1)(model(LABELS), BATCH)["loss"]
    fused = resolve_loss("linear_ce", label_smoothing=0.1)(model.forward_without_logits(LABELS), BATCH)["loss"]
    torch.testing.assert_close(fused, by_logits, **tolerance)
    parameters = list(model.parameters())
    expected = torch.autograd.grad(by_logits, parameters)
    for gradient, reference in zip(torch.autograd.grad(fused, parameters), expected, strict=True):
        torch.testing.assert_close(gradient, reference, **tolerance)

"""One case at each door of the library: what goes in, and all that has to hold."""

import sys
from collections.abc import Mapping
from typing import Any, Final

import torch
from pydantic import ValidationError

from fuzz.watch import check_error, check_text, fingerprint, outcome, watched
from tensafe.config import TrainingConfig, check_source
from tensafe.training.losses import LossSpec, Problem, ResolvedLoss, resolve_loss
from tensafe.training.losses.errors import config_error
from tensafe.training.losses.resolve import check_spec
from tensafe.training.losses.targets import Policy

__all__ = ["POLICIES", "check_data", "construct", "read_file", "resolve", "validate"]

POLICIES: Final = (Policy(allow=()), Policy(imports=False))


def read_file(source: bytes, policy: Policy = POLICIES[0]) -> TrainingConfig | None:
    """Check the bytes of a config file: a config, or mistakes that can be shown; nothing is imported for it."""
    with watched():
        config, problems = check_source(source, "train.yaml", policy)
        assert (config is None) == bool(problems)
        for problem in problems[:100]:
            assert problem.line >= 1
            assert problem.column >= 1
            assert problem.code
            check_text(str(problem), 3)
        assert len(problems) <= 1001
    return config


def check_data(data: Any, policy: Policy = POLICIES[0]) -> None:
    """Check a spec as a config file's is checked: a list of mistakes, and nothing is imported for it."""
    before = fingerprint(data)
    with watched():
        ended = outcome(lambda: check_spec(data, policy))
    assert ended.kind != "refused"
    for problem in ended.value[:100] if ended.kind == "result" else ():
        assert isinstance(problem, Problem)
        check_error(config_error([problem], loss=None))
    assert fingerprint(data) == before


def resolve(spec: Any, kwargs: Mapping[str, Any]) -> None:
    """Resolve a spec from Python, which may import what is no gadget."""
    before = fingerprint(spec, kwargs)
    with watched(lambda name: name.partition(".")[0] not in sys.stdlib_module_names):
        ended = outcome(lambda: resolve_loss(spec, **kwargs))
    if ended.kind == "result":
        assert isinstance(ended.value, ResolvedLoss)
        assert resolve_loss(ended.value) is ended.value
    assert fingerprint(spec, kwargs) == before


def validate(data: Any) -> None:
    """Make a `LossSpec` of a spec, which imports nothing."""
    before = fingerprint(data)
    with watched():
        ended = outcome(lambda: _validated(data))
    if isinstance(ended.value, LossSpec):
        assert ended.value == LossSpec.model_validate(ended.value)
    assert fingerprint(data) == before


def construct(fields: Mapping[str, Any]) -> None:
    """Call `LossSpec` with keywords."""
    before = fingerprint(fields)
    with watched():
        outcome(lambda: LossSpec(**fields))
    assert fingerprint(fields) == before


def _validated(data: Any) -> LossSpec | None:
    try:
        return LossSpec.model_validate(data)
    except ValidationError as error:  # which is how it is part of a larger model
        check_text(str(error), 50)
        return None


def call(loss: ResolvedLoss, outputs: Any, batch: Any, overrides: Mapping[str, Any]) -> None:
    """Call a loss: a `LossReturn`, or an error that shows no value of a tensor."""
    before = fingerprint(outputs, batch, overrides, _inside(outputs), _inside(batch))
    with watched():
        ended = outcome(lambda: loss(outputs, batch, **overrides))
    if ended.kind == "result":
        _check_return(ended.value)
    if ended.kind == "refused":
        assert "31337" not in str(ended.value), str(ended.value)
    assert fingerprint(outputs, batch, overrides, _inside(outputs), _inside(batch)) == before


def _inside(held: Any) -> Any:
    """The attributes of an object, without asking it."""
    try:
        found = object.__getattribute__(held, "__dict__")
    except AttributeError:
        return None
    return found if type(found) is dict else None  # a class makes a new view of its own each time


def _check_return(result: Any) -> None:
    assert type(result) is dict
    assert set(result) <= {"loss", "metrics", "auxiliary"}
    assert isinstance(result["loss"], torch.Tensor)
    assert result["loss"].is_floating_point()
    for name, metric in result["metrics"].items():
        assert isinstance(name, str)
        assert isinstance(metric, int | float) or (metric.ndim == 0 and not metric.requires_grad)

"""What there is to say about a loss, whoever wrote it: read from its class or signature, and from its docstring."""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from tensafe._docstrings import Docstring, parse
from tensafe.training.losses.errors import LossConfigError
from tensafe.training.losses.guards import definition
from tensafe.training.losses.kwargs_schema import LossSchema, read_loss
from tensafe.training.losses.loss import Loss
from tensafe.training.losses.problems import expectation
from tensafe.training.losses.registry import lookup
from tensafe.training.losses.resolve import check_spec
from tensafe.training.losses.sample_values import is_from_model
from tensafe.training.losses.samples import sample_kwargs
from tensafe.training.losses.traits import Traits

from .examples import as_yaml

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from tensafe.training.losses.contract import TensorSpec
    from tensafe.training.losses.problems import JsonSchema

__all__ = [
    "VARIADIC",
    "Facts",
    "Kwarg",
    "Tensor",
    "example_kwargs",
    "families_in_order",
    "family_of",
    "kwarg_facts",
    "read_facts",
    "source_of",
    "summary_of",
    "tensor_facts",
]

VARIADIC = "An axis with a star stands for any number of axes."

_MEANINGS = {
    "none": "the values as they are, times their weights; 0 where nothing counts",
    "sum": "the sum of the values that count, times their weights",
    "mean": "that sum, divided by the sum of the weights",
    "sequence_mean": "the mean over sequences of the mean over each one's tokens; one in which nothing counts is "
    "none, and `num_sequences_in_batch` replaces their number where it is given",
    "sequence_sum": "the same of the sum over each one's tokens",
    "sequence_sum_norm": "that, divided by the constant `max_length`",
}
_INT64 = (-(2**63), 2**63 - 1)


class Tensor(NamedTuple):
    """A tensor that a loss takes: its declaration, what the docstring says, and whether a model makes it."""

    spec: TensorSpec
    text: str
    from_model: bool


class Kwarg(NamedTuple):
    """A kwarg of a loss.

    Attributes:
        name: What it is called.
        accepts: Its type and range, in words.
        default: Its default as YAML, or None where it is required.
        text: What it does.
        schema: Its JSON Schema.
    """

    name: str
    accepts: str
    default: str | None
    text: str
    schema: JsonSchema


class Facts(NamedTuple):
    """All there is to say about one loss.

    Attributes:
        name: Its registered name.
        family: What it is listed under.
        doc: Its docstring.
        tensors: What it takes by name; none of a function, which takes what it likes.
        kwargs: Its kwargs, in the order of the docstring.
        takes_any: Whether any other kwarg goes too.
        reductions: The reductions that it allows, and what each means.
        claims: What it claims as a function, a sentence each.
        example: A spec of it that is valid, with all defaults; None if none could be found.
    """

    name: str
    family: str
    doc: Docstring
    tensors: tuple[Tensor, ...]
    kwargs: tuple[Kwarg, ...]
    takes_any: bool
    reductions: Mapping[str, str]
    claims: tuple[str, ...]
    example: Mapping[str, Any] | None


def source_of(found: Any) -> Any:
    """Return the class or function behind what is registered: of an instance its class, of a partial its function."""
    while isinstance(found, partial):
        found = found.func
    if isinstance(found, type) or not hasattr(found, "to_config"):
        return definition(found)
    resolved = getattr(found, "fn", None) or getattr(found, "loss", None)
    return definition(found) if resolved is None else source_of(resolved)


def summary_of(found: Any) -> str:
    """Return the first sentence or so of the documentation of what is registered."""
    doc = getattr(source_of(found), "__doc__", None)
    return parse(doc).summary if isinstance(doc, str) else ""


def family_of(found: Any) -> str:
    """Return what a loss is listed under; a function belongs to no family."""
    family = getattr(source_of(found), "_family", None)
    return family if isinstance(family, str) and family else "other"


def families_in_order(families: Iterable[str]) -> list[str]:
    """Return families by name, but for what belongs to none."""
    return sorted(families, key=lambda family: (family == "other", family))


def tensor_facts(tensor: Tensor) -> list[str]:
    """Return what is known of a tensor beside its kind and shape."""
    spec = tensor.spec
    facts = [f"usually in the {'outputs' if tensor.from_model else 'batch'}"]
    facts += ["optional"] if spec.optional else []
    facts += [f"also found as {', '.join(spec.aliases)}"] if spec.aliases else []
    facts += [f"values {spec.values}"] if spec.values is not None else []
    return facts


def kwarg_facts(kwarg: Kwarg) -> str:
    """Return type, range and default of a kwarg in a few words."""
    return f"{kwarg.accepts}, {'required' if kwarg.default is None else f'default {kwarg.default}'}"


def read_facts(name: str) -> Facts:
    """Read what there is to say about a registered loss.

    Raises:
        UnknownLossError: Nothing has this name.
        LossConfigError: What has it could not be called as a loss.
    """
    found = lookup(name)
    loss = read_loss(name)
    documentation = getattr(source_of(found), "__doc__", None)
    doc = parse(documentation if isinstance(documentation, str) else None)
    entries = doc.arguments()
    kwargs = sorted(_kwargs(loss, entries), key=lambda kwarg: _position(kwarg.name, entries))
    modes = loss.properties.get("reduction", {}).get("enum", [])
    return Facts(
        name,
        family_of(found),
        doc,
        tuple(Tensor(spec, entries.get(spec.name, ""), is_from_model(spec)) for spec in loss.tensors),
        tuple(kwargs),
        loss.kwargs.get("additionalProperties", False) is not False,
        {mode: _meaning(mode, found) for mode in modes if isinstance(mode, str)},
        tuple(_claims(found)),
        _example(name, found, loss),
    )


def _meaning(mode: str, found: Any) -> str:
    divisible = mode == "mean" and getattr(source_of(found), "_divisible", True)
    return _MEANINGS.get(mode, "") + (", or by `num_items_in_batch` where it is given" if divisible else "")


def _claims(found: Any) -> list[str]:
    traits = getattr(source_of(found), "_traits", None)
    return traits.in_words() if isinstance(traits, Traits) else []


def example_kwargs(found: Any) -> dict[str, Any]:
    """Return the kwargs that a registered loss cannot be resolved without, as far as its fields give examples."""
    if not (isinstance(found, type) and issubclass(found, Loss)):
        return {}
    try:
        return sample_kwargs(found)
    except LossConfigError:
        return {}


def _example(name: str, found: Any, loss: LossSchema) -> Mapping[str, Any] | None:
    needed = example_kwargs(found)
    defaults = {kwarg: schema.get("default") for kwarg, schema in loss.properties.items() if kwarg != "metrics"}
    given = {kwarg: needed.get(kwarg, default) for kwarg, default in defaults.items()}
    kwargs = {kwarg: value for kwarg, value in given.items() if value is not None}
    spec = {"type": name, **({"kwargs": kwargs} if kwargs else {})}
    return spec if not check_spec(spec) else None


def _kwargs(loss: LossSchema, entries: Mapping[str, str]) -> Iterator[Kwarg]:
    for name, schema in loss.properties.items():
        plain = _without_int64(schema)
        described = plain.get("description", "")
        accepts = expectation(plain) or ("a loss" if "allOf" in plain or "$ref" in plain else "anything")
        default = None if name in loss.required else as_yaml(schema.get("default"))
        yield Kwarg(name, accepts, default, _effect(entries.get(name, ""), described), schema)


def _position(name: str, entries: Mapping[str, str]) -> int:
    names = list(entries)
    return names.index(name) if name in names else len(names)


def _effect(entry: str, description: str) -> str:
    """Choose between docstring and field: where the former only refers to the base class, the latter says more."""
    reference = re.match(r"See `\w+`[;.,]?\s*", entry)
    if reference is None:
        return entry or description
    rest = entry[reference.end() :]
    return f"{description} {rest[:1].upper()}{rest[1:]}".strip()


def _without_int64(schema: JsonSchema) -> JsonSchema:
    """Leave out the bounds of an integer that are only those of 64 bits."""
    kept = {key: value for key, value in schema.items() if not _is_int64_bound(key, value)}
    if "anyOf" in kept:
        kept["anyOf"] = [_without_int64(branch) for branch in kept["anyOf"]]
    return kept


def _is_int64_bound(key: str, value: Any) -> bool:
    return key in {"minimum", "maximum"} and value in _INT64

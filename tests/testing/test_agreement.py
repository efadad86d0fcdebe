"""`tensafe validate` and the JSON Schema give the same verdict."""

import copy
import math
import warnings
from collections.abc import Callable, Iterator
from functools import cache, reduce
from typing import Any, cast

from hypothesis import event, given
from hypothesis import strategies as st
from jsonschema import Draft7Validator  # type: ignore[import-untyped]

from tensafe._yaml import read_yaml
from tensafe.config import check_source
from tensafe.training.losses.registry import builtin_names
from tensafe.training.losses.resolve import check_spec
from tensafe.training.losses.schema import training_config_schema
from tensafe.training.losses.targets import Policy
from tensafe.training.losses.testing import training_configs
from tensafe.training.losses.testing.strategies import ConfigText

BUILTIN = sorted(builtin_names())
CONFIG = training_config_schema(BUILTIN)
VALIDATOR = Draft7Validator(CONFIG)

# Configs with one mistake, or none


def verdicts(config: ConfigText) -> tuple[bool, bool]:
    """Whether the command and the schema accept a file."""
    source = config.text.encode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        found, _ = check_source(source, "train.yaml", Policy(imports=False))
    document, problems = read_yaml(source)
    assert document is not None
    assert not problems
    return found is not None, VALIDATOR.is_valid(document.data)


@given(training_configs(BUILTIN), training_configs(BUILTIN, extreme=True))
def test_they_agree_on_good_configs(config: ConfigText, extreme: ConfigText) -> None:
    assert verdicts(config) == (True, True)
    assert verdicts(extreme) == (True, True)


@given(training_configs(BUILTIN, valid=False))
def test_they_agree_on_configs_with_a_mistake(config: ConfigText) -> None:
    event(str(config.kind))
    assert verdicts(config) == (False, taken_for_a_number(config))


def taken_for_a_number(config: ConfigText) -> bool:
    """Whether the mistake is one that JSON Schema has no words for.

    It takes NaN for a number, whatever the range, and an infinity for one that is larger, or smaller, than others.
    """
    if config.kind not in {"nan", "inf"}:
        return False
    data = copy.deepcopy(config.data)
    *parts, last = config.path or ()
    holder: Any = reduce(lambda held, part: held[part], parts, cast("Any", data))
    anywhere = [0.0625, 0.5, 1.5, -0.5]
    for number in anywhere if config.kind == "nan" else [math.copysign(1e308, holder[last])]:
        holder[last] = number
        if VALIDATOR.is_valid(data):
            return True
    return False


# Anything like a spec: made from the schema, with up to two changes anywhere

JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.integers(-1000, 1000).map(lambda number: number + 0.5),
    st.text(st.characters(max_codepoint=127), max_size=5),
    st.sampled_from(
        ["mse", "weighted_sum", "weighted_sum\n", "token-ce", "a:b", "a.b", "a:b\n", ".a", "a::b", "é.b:ñ"]
    ),
    st.sampled_from([[], {}, [{}], ["mse"], {"type": "mse"}, {"losses": ["mse"]}]),
).map(copy.deepcopy)  # lest a mutation changes the samples
KEYS = st.sampled_from(
    ["kwargs", "kwarg", "inputs", "type", "losses", "reduction", "max_length", "weight", "name", "labels", "zz", ""]
)


def values(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values that the schema of a kwarg accepts, and the end of an open range."""
    if "anyOf" in schema:
        return st.one_of(*(values(branch) for branch in schema["anyOf"]))
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if "const" in schema:
        return st.just(schema["const"])
    if isinstance(schema["type"], list):
        return st.one_of(*(values({**schema, "type": kind}) for kind in schema["type"]))
    return STRATEGIES[schema["type"]](schema)


def numbers(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    low, high = schema.get("minimum", schema.get("exclusiveMinimum")), schema.get("maximum")
    integers = st.integers(-9 if low is None else int(low), 9 if high is None else int(high))
    return st.floats(low, high, allow_nan=False, allow_infinity=False) | integers


STRATEGIES: dict[str, Callable[[dict[str, Any]], st.SearchStrategy[Any]]] = {
    "array": lambda schema: st.lists(values(schema["items"]), min_size=schema.get("minItems", 0), max_size=3),
    "boolean": lambda schema: st.booleans(),
    "integer": lambda schema: st.integers(schema.get("minimum", schema.get("exclusiveMinimum")), schema["maximum"]),
    "null": lambda schema: st.none(),
    "number": numbers,
    "object": lambda schema: some(
        {name: values(each) for name, each in schema["properties"].items()}, schema["required"]
    ),
    "string": lambda schema: st.text(min_size=schema.get("minLength", 0), max_size=4),
}


def some(properties: dict[str, st.SearchStrategy[Any]], required: list[str]) -> st.SearchStrategy[dict[str, Any]]:
    optional = {name: strategy for name, strategy in properties.items() if name not in required}
    return st.fixed_dictionaries({name: properties[name] for name in required}, optional=optional)


@cache
def specs(depth: int, term: str | None = None) -> st.SearchStrategy[Any]:
    """Specs after the schema; `term` is the definition of those that have further properties."""
    definitions = CONFIG["definitions"]
    own = definitions[term]["properties"] if term is not None else {}
    beside = {name: values(own[name]) for name in own.keys() - {"type", "kwargs", "inputs"}}
    objects = []
    for rule in definitions["loss-rules"]["allOf"]:
        name = rule["if"].get("properties", {}).get("type", {}).get("const")
        if name is not None and (depth or "required" not in definitions[name]):
            inputs = rule["then"]["properties"]["inputs"]["properties"]
            parts = {
                "type": st.just(name),
                "kwargs": kwargs_of(definitions[name], depth),
                "inputs": some({tensor: values(schema) for tensor, schema in inputs.items()}, []),
            }
            objects.append(some({**parts, **beside}, ["type", *rule["then"].get("required", [])]))
    paths = some({"type": st.just("a.b:c"), "kwargs": st.dictionaries(KEYS, JUNK), **beside}, ["type"])
    return st.one_of(st.sampled_from([*BUILTIN, "a.b:c"]), paths, *objects)


def is_loss(schema: dict[str, Any]) -> bool:
    """Whether a kwarg holds a spec."""
    return {"$ref": "#/definitions/loss-spec"} in [schema, *schema.get("allOf", [])]


def kwargs_of(schema: dict[str, Any], depth: int) -> st.SearchStrategy[Any]:
    properties = {}
    for name, kwarg in schema["properties"].items():
        if "$ref" in kwarg.get("items", {}):
            term = kwarg["items"]["$ref"].rpartition("/")[2]
            properties[name] = st.lists(specs(depth - 1, term), min_size=1, max_size=3)
        elif is_loss(kwarg):
            properties[name] = specs(depth - 1)
        else:
            properties[name] = values(kwarg)
    return some(properties, schema.get("required", []))


@st.composite
def mutated(draw: st.DrawFn) -> Any:
    """A spec with up to two changes anywhere in it: a key dropped, added or renamed, or a value replaced."""
    root = {"loss": copy.deepcopy(draw(specs(2)))}
    for _ in range(draw(st.integers(0, 2))):
        everywhere = list(places(root))
        holder, key = draw(st.sampled_from(everywhere[1:] or everywhere))
        change = draw(st.sampled_from(["replace", "drop", "rename", "add"]))
        inner = holder[key]
        if change == "add" and isinstance(inner, dict):
            inner[draw(KEYS)] = draw(JUNK)
        elif holder is root:
            root["loss"] = draw(JUNK)
        elif change == "rename" and isinstance(holder, dict):
            holder[draw(KEYS)] = holder.pop(key)
        elif change == "drop":
            del holder[key]
        else:
            holder[key] = draw(JUNK)
    return root["loss"]


def places(node: Any) -> Iterator[tuple[Any, Any]]:
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield node, key
        yield from places(value)


BEYOND = {
    "all-zero",
    "bounds-out-of-order",
    "dual-clip-too-low",
    "no-effect",
    "not-decreasing",
    "nothing-to-cut",
    "repeated-name",
    "unfit-part",
    "unsupported-by-backend",
    "weights-length",
}
"""Codes of what JSON Schema cannot say: values of a loss that do not go together."""


@given(mutated())
def test_they_agree_on_anything_like_a_spec(loss: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        codes = {problem.code for problem in check_spec(loss)}
    event("valid" if not codes else "invalid" if codes - BEYOND else "beyond the schema")
    if not codes or codes - BEYOND:
        assert VALIDATOR.is_valid({"loss": loss}) is (not codes), codes

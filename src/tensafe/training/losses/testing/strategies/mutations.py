"""One mistake in kwargs or in a spec that have none: finds all that could be made, and makes one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, get_args

from hypothesis import reject
from hypothesis import strategies as st

from tensafe.training.losses.guards import is_list, is_mapping
from tensafe.training.losses.registry import LOSS_REGISTRY
from tensafe.training.losses.spec import SPEC_KEYS

from .mistakes import Kind, Mistake, missing, misspellings, misspelt, of_one_value, wrong_types
from .shapes import Shape, as_branches, is_loss, is_term, read_shape, variants

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from hypothesis.strategies import DrawFn

    from tensafe.training.losses.errors import Loc
    from tensafe.training.losses.problems import JsonSchema

__all__ = ["KINDS", "Mistakes", "mutate"]


KINDS: tuple[Kind, ...] = get_args(Kind)


def mutate(draw: DrawFn, wanted: Kind, root: Any, mistakes: Sequence[Mistake]) -> Mistake:
    """Make one of the mistakes, in place: of the kind that is wanted, or of the next one that there is.

    What is wanted should be drawn before all else, so that it stays while the rest shrinks.
    """
    first = KINDS.index(wanted)
    of_kind = ([each for each in mistakes if each.kind == kind] for kind in (*KINDS[first:], *KINDS[:first]))
    choices = next((some for some in of_kind if some), None)
    if choices is None:
        reject()
    mistake: Mistake = draw(st.sampled_from(choices))
    *parts, last = mistake.at
    for part in parts:
        root = root[part]
    if mistake.new_key is not None:
        root[mistake.new_key] = root.pop(last)
    elif mistake.values is None:
        del root[last]
    else:
        root[last] = draw(mistake.values)
    return mistake


class Mistakes(NamedTuple):
    """Finds the mistakes that could be made.

    Attributes:
        definitions: What the schemas refer to.
    """

    definitions: Mapping[str, JsonSchema]

    def of_kwargs(self, shape: Shape, kwargs: Mapping[str, Any], at: Loc) -> Iterator[Mistake]:
        """Yield those in the kwargs of a loss, which stand at a place."""
        if not shape.takes_any:
            yield from misspelt(kwargs, shape.properties, at)
        yield from missing(kwargs, shape.required, at)
        for name, value in kwargs.items():
            if name in shape.properties:
                yield from Mistakes(shape.definitions).of_value(shape.properties[name], value, (*at, name))

    def of_value(self, schema: JsonSchema, value: Any, at: Loc) -> Iterator[Mistake]:
        """Yield those in a value that fits a schema."""
        branches = list(as_branches(schema, self.definitions))
        specs = [branch for branch in branches if is_loss(branch) or is_term(branch)]
        if specs:
            others = {branch.get("type", "") for branch in branches if branch not in specs}
            yield from wrong_types({"string", "object", *others}, at)
            if isinstance(value, str) or is_mapping(value):
                yield from self._of_spec(value, at, specs[0].get("properties", {}))
            return
        yield from of_one_value(branches, at)
        for branch in branches:
            if is_list(value) and "items" in branch:
                for index, item in enumerate(value):
                    yield from self.of_value(branch["items"], item, (*at, index))
            if is_mapping(value) and "properties" in branch:
                yield from self._in_object(branch, value, at)

    def _in_object(self, schema: JsonSchema, value: Mapping[str, Any], at: Loc) -> Iterator[Mistake]:
        form = next(form for form in variants(schema) if _is_of(form, value))
        required = form.get("required", ())
        if form.get("additionalProperties") is False:
            # a key that says what the others are is missed rather than found misspelt
            yield from misspelt({key: value[key] for key in value if key not in required}, schema["properties"], at)
        yield from missing(value, required, at)
        for key, item in value.items():
            yield from self.of_value(form["properties"][key], item, (*at, key))

    def _of_spec(self, spec: Any, at: Loc, beside: Mapping[str, JsonSchema]) -> Iterator[Mistake]:
        """Yield those in the spec of a loss; `beside` are the schemas of what stands beside its own keys."""
        if isinstance(spec, str):
            yield Mistake("unknown_choice", at, at, misspellings(spec, LOSS_REGISTRY))
            return
        shape = read_shape(spec["type"])
        own = {key: each for key, each in beside.items() if key != "loss"}
        keys = [*SPEC_KEYS, *own]
        yield from misspelt(spec, keys, at)
        for kwarg in shape.properties:
            if kwarg not in keys:
                yield Mistake("misplaced", (*at, kwarg), (*at, kwarg), st.just(0))
        yield from self._of_type(spec["type"], (*at, "type"))
        for key, schema in own.items():
            if key in spec:
                yield from self.of_value(schema, spec[key], (*at, key))
        yield from self._of_parts(shape, spec, at)

    def _of_type(self, name: str, at: Loc) -> Iterator[Mistake]:
        yield Mistake("missing", at, at)
        yield Mistake("unknown_choice", at, at, misspellings(name, LOSS_REGISTRY))
        yield from wrong_types({"string"}, at)

    def _of_parts(self, shape: Shape, spec: Mapping[str, Any], at: Loc) -> Iterator[Mistake]:
        if "kwargs" in spec:
            if shape.required:
                yield Mistake("missing", (*at, "kwargs", shape.required[0]), (*at, "kwargs"))
            yield from wrong_types({"object", "null"}, (*at, "kwargs"))
            yield from self.of_kwargs(shape, spec["kwargs"], (*at, "kwargs"))
        if "inputs" in spec:
            yield from wrong_types({"object", "null"}, (*at, "inputs"))
            yield from misspelt(spec["inputs"], shape.tensors, (*at, "inputs"))
            for tensor in spec["inputs"]:
                yield from of_one_value([{"type": "string", "minLength": 1}], (*at, "inputs", tensor))


def _is_of(form: JsonSchema, value: Mapping[str, Any]) -> bool:
    """Whether an object has the key that tells this form from others."""
    constants = {key: each["const"] for key, each in form["properties"].items() if "const" in each}
    return all(value.get(key) == constant for key, constant in constants.items())

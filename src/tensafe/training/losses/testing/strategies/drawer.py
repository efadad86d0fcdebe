"""Draws values of kwargs and specs of losses, as deep as they go."""

from __future__ import annotations

from functools import cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple

from hypothesis import strategies as st

from tensafe.training.losses.registry import lookup

from .consistency import consistent, fitting_names, nestable_names
from .scalars import numbers, texts
from .shapes import Shape, as_branches, is_loss, is_term, read_shape, variants

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from hypothesis.strategies import DrawFn, SearchStrategy

    from tensafe.training.losses.problems import JsonSchema

__all__ = ["Drawer", "flat"]

_MOST_ITEMS = 3
_ANYTHING = st.none() | st.booleans() | st.integers(-8, 8) | texts({})
_NONE: Mapping[str, JsonSchema] = {}
_KEYS = texts({"minLength": 1})
_PLACES = st.sampled_from(["", "outputs.", "batch."])


class Drawer(NamedTuple):
    """Makes the strategies.

    Attributes:
        depth: How deep losses may be nested from here.
        extreme: Whether numbers may be as large or small as they can.
        inputs: Whether specs rename tensors.
        among: Names of the losses that specs are of; None for all that are registered.
        definitions: What the schemas refer to.
    """

    depth: int
    extreme: bool = False
    inputs: bool = False
    among: frozenset[str] | None = None
    definitions: Mapping[str, JsonSchema] = _NONE

    def kwargs(self, shape: Shape) -> SearchStrategy[dict[str, Any]]:
        """Return kwargs of a loss that go together."""
        within = self._replace(definitions=shape.definitions)
        drawn = {name: within.kwarg(shape, name) for name in shape.properties}
        return consistent(shape, _mapping(drawn, shape.required), drawn.__getitem__)

    def kwarg(self, shape: Shape, name: str) -> SearchStrategy[Any]:
        """Return values of one kwarg."""
        schema = shape.properties[name]
        if is_loss(schema):
            return self._one_of(fitting_names(shape, name, nestable_names(self.depth, self.among)))
        return self._replace(definitions=shape.definitions).values(schema)

    def specs(self) -> SearchStrategy[Any]:
        """Return specs of losses that are not nested too deep."""
        return self._one_of(nestable_names(self.depth, self.among))

    def spec(self, name: str) -> SearchStrategy[Any]:
        """Return specs of one loss."""
        shape = read_shape(name)
        parts: dict[str, SearchStrategy[Any]] = {"type": st.just(name)}
        if shape.properties:
            parts["kwargs"] = self._replace(depth=self.depth - 1).kwargs(shape)
        if self.inputs and shape.tensors:
            keys = st.builds("{}{}".format, _PLACES, _KEYS)
            parts["inputs"] = _mapping(dict.fromkeys(shape.tensors, keys), ())
        whole = _mapping(parts, ["type", *(["kwargs"] if shape.required else [])])
        return whole if shape.required else st.just(name) | whole

    def values(self, schema: JsonSchema) -> SearchStrategy[Any]:
        """Return values that fit a schema."""
        return st.one_of(*(self._of_one_type(branch) for branch in as_branches(schema, self.definitions)))

    def _one_of(self, names: tuple[str, ...]) -> SearchStrategy[Any]:
        return st.sampled_from(names).flatmap(partial(_spec, self._replace(definitions=_NONE)))

    def _of_one_type(self, schema: JsonSchema) -> SearchStrategy[Any]:
        if is_loss(schema):
            return self.specs()
        if is_term(schema):
            return self._terms(schema)
        if "enum" in schema:
            return st.sampled_from(schema["enum"])
        if "const" in schema:
            return st.just(schema["const"])
        make = _BY_TYPE.get(schema.get("type", ""))
        return _ANYTHING if make is None else make(self, schema)

    def _terms(self, schema: JsonSchema) -> SearchStrategy[Any]:
        """Return specs of losses with further keys beside `type`."""
        own = {key: self.values(each) for key, each in schema["properties"].items() if key != "loss"}
        beside = _mapping(own, [key for key in schema["required"] if key != "loss"])
        return st.tuples(self.specs(), beside).map(lambda pair: flat(*pair))

    def _lists(self, schema: JsonSchema) -> SearchStrategy[Any]:
        if "prefixItems" in schema:
            return st.tuples(*(self.values(each) for each in schema["prefixItems"])).map(list)
        least = schema.get("minItems", 0)
        items = self._later(schema["items"]) if "items" in schema else _ANYTHING
        most = schema.get("maxItems", least + _MOST_ITEMS - 1)
        return st.lists(items, min_size=least, max_size=most, unique_by=repr if schema.get("uniqueItems") else None)

    def _objects(self, schema: JsonSchema) -> SearchStrategy[Any]:
        if "properties" in schema:
            return st.one_of(*(self._object(variant) for variant in variants(schema)))
        values: JsonSchema | bool = schema.get("additionalProperties", True)
        drawn = _ANYTHING if isinstance(values, bool) else self._later(values)
        return st.dictionaries(_KEYS, drawn, max_size=_MOST_ITEMS)

    def _later(self, schema: JsonSchema) -> SearchStrategy[Any]:
        return st.deferred(lambda: self.values(schema))

    def _object(self, schema: JsonSchema) -> SearchStrategy[Any]:
        # deferred, since a model may hold itself
        drawn = {key: self._later(each) for key, each in schema["properties"].items()}
        return _mapping(drawn, schema.get("required", ()))


_BY_TYPE: Mapping[str, Callable[[Drawer, JsonSchema], SearchStrategy[Any]]] = {
    "null": lambda drawer, schema: st.none(),
    "boolean": lambda drawer, schema: st.booleans(),
    "integer": lambda drawer, schema: numbers(schema, extreme=drawer.extreme),
    "number": lambda drawer, schema: numbers(schema, extreme=drawer.extreme),
    "string": lambda drawer, schema: texts(schema),
    "array": Drawer._lists,
    "object": Drawer._objects,
}


def _spec(drawer: Drawer, name: str) -> SearchStrategy[Any]:
    return _spec_of(name, lookup(name), drawer.depth, drawer.extreme, drawer.inputs, drawer.among)


@cache
def _spec_of(
    name: str, found: Any, depth: int, extreme: bool, inputs: bool, among: frozenset[str] | None
) -> SearchStrategy[Any]:
    """Return specs of what is registered under a name now; hypothesis looks at each strategy only once."""
    return Drawer(depth, extreme, inputs, among).spec(name)


def flat(spec: Any, beside: Mapping[str, Any]) -> Any:
    """Return a spec with further keys beside its own; a bare name stays one where there are none."""
    if not beside:
        return spec
    return {**({"type": spec} if isinstance(spec, str) else spec), **beside}


@st.composite
def _mapping(draw: DrawFn, drawn: Mapping[str, SearchStrategy[Any]], required: Collection[str]) -> dict[str, Any]:
    """Draw a mapping; each key that is not required has a draw of its own that says so, so that it shrinks away."""
    return {
        key: draw(strategy)
        for key, strategy in drawn.items()
        if key in required or (not strategy.is_empty and draw(st.booleans()))
    }

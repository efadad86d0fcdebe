"""Whether something registered again is the same definition: a module reloaded, a notebook cell run twice."""

from __future__ import annotations

from types import CodeType, MethodType
from typing import Any

from .guards import definition, is_partial

__all__ = ["is_same", "origin"]


def origin(fn: object) -> str:
    """Return where a function or class, or the class of an instance, was defined: `module.qualname`."""
    defined = definition(fn)
    return f"{defined.__module__}.{defined.__qualname__}"


def is_same(old: object, new: object) -> bool:
    """Whether `new` is `old` defined again (a reload, a notebook cell), rather than a second owner of its name."""
    if old is new:
        return True
    if is_partial(old) and is_partial(new):
        return is_same(old.func, new.func) and _equal((old.args, old.keywords), (new.args, new.keywords))
    if isinstance(old, MethodType) and isinstance(new, MethodType):
        return is_same(old.__func__, new.__func__) and is_same(old.__self__, new.__self__)
    if type(old).__qualname__ != type(new).__qualname__ or origin(old) != origin(new) or "<" in origin(new):
        return False
    if not hasattr(new, "__qualname__"):  # an instance: of a class defined again, or one that says the same
        redefined = type(old) is not type(new)
        if redefined:
            return is_same(type(old), type(new))
        return _equal(getattr(old, "__dict__", old), getattr(new, "__dict__", new))
    return new.__module__ == "__main__" or _fingerprint(old) == _fingerprint(new)


def _equal(old: Any, new: Any) -> bool:
    try:
        return bool(old == new)
    except Exception:  # whatever a stranger's __eq__ may raise (tensors do)
        return False


def _fingerprint(value: Any) -> Any:
    """Reduce code to what it does, so that the same source at another line is the same."""
    code = getattr(value, "__code__", None)
    if code is not None:
        defaults = repr((getattr(value, "__defaults__", None), getattr(value, "__kwdefaults__", None)))
        return _fingerprint(code), defaults, _fingerprint(getattr(value, "__wrapped__", None))
    if isinstance(value, CodeType):
        return value.co_code, value.co_names, value.co_varnames, tuple(_fingerprint(const) for const in value.co_consts)
    if isinstance(value, type):
        members = {name: getattr(member, "__func__", member) for name, member in vars(value).items()}
        methods = {name: _fingerprint(member) for name, member in members.items() if hasattr(member, "__code__")}
        return methods, repr(getattr(value, "model_fields", None))
    return value

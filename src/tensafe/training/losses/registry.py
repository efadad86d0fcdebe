"""Names of losses.

The registry maps a name to what was registered: a `Loss` class, a function or an instance. It knows built-ins by the
stems of the files in `builtin/` and plug-ins by the entry-point group `tensafe.losses`, so listing names imports
nothing and looking one up imports one file. Nothing is ever imported while the lock is held.
"""

from __future__ import annotations

import logging
import os
import pkgutil
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache, partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar, overload

from .errors import (
    LossConfigError,
    LossTypeError,
    Problem,
    UnknownLossError,
    config_error,
    make_error,
    near_miss,
    near_misses,
    shorten,
)
from .guards import is_class
from .redefinition import is_same, origin

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from .loss import Loss
    from .signatures import resolve_loss as resolve_loss
    from .types import Returned

__all__ = ["LOSS_REGISTRY", "get_registered_losses", "register_loss"]

_MOST_LISTED = 10
"""How many names an unknown one is answered with."""

ENTRY_POINT_GROUP = "tensafe.losses"

_BUILTIN_PACKAGE = f"{__package__}.builtin"
_logger = logging.getLogger(__name__)
_lock = threading.Lock()
_entries: dict[str, Any] = {}  # replaced, never changed in place: readers need no lock

FnT = TypeVar("FnT", bound="Callable[..., Returned | Loss]")


class LossRegistry(Mapping[str, Any]):
    """Live, read-only view of every known loss: name to what was registered.

    Names cost no import; `registry[name]` loads the loss.
    """

    def __getitem__(self, name: str) -> Any:
        return lookup(name)

    def __iter__(self) -> Iterator[str]:
        return iter(names())

    def __len__(self) -> int:
        return len(names())

    def __contains__(self, name: object) -> bool:
        return name in names()

    def get(self, name: str, /, default: Any = None) -> Any:
        """Return what is registered under a name, or the default; Mapping's own waits for a KeyError."""
        return lookup(name) if name in self else default

    def __repr__(self) -> str:
        return f"LOSS_REGISTRY({', '.join(names())})"


LOSS_REGISTRY = LossRegistry()


def get_registered_losses() -> dict[str, Any]:
    """Return a copy of the registry, name to what was registered; a plug-in that fails to load is left out."""
    losses: dict[str, Any] = {}
    for name in names():
        try:
            losses[name] = lookup(name)
        except LossConfigError as error:
            _logger.warning("loss %r is left out: %s", name, error)
    return losses


@overload
def register_loss(name: str, fn: None = None, *, overwrite: bool = False) -> Callable[[FnT], FnT]: ...


@overload
def register_loss(name: str, fn: FnT, *, overwrite: bool = False) -> FnT: ...


def register_loss(name: str, fn: Any = None, *, overwrite: bool = False) -> Any:
    """Register a loss under a name, as a decorator or a function.

    Args:
        name: Lower-case identifier to find it by in `resolve_loss(name)` and in config files.
        fn: Callable `(outputs, batch, **kwargs)`: a function, an instance, a module; or a `Loss` class without `name=`.
        overwrite: Replace what has the name already.

    Returns:
        `fn` itself, or a decorator when `fn` is not given.

    Raises:
        LossConfigError: The name is taken by another loss, or is no identifier.
        LossTypeError: `fn` is a plain class (register an instance) or cannot be called.

    Example:
        >>> @register_loss("half_mse")
        ... def half_mse(outputs, batch):
        ...     return 0.5 * (outputs["predictions"] - batch["targets"]).square().mean()
        >>> "half_mse" in LOSS_REGISTRY
        True
        >>> unregister("half_mse")
    """
    check_name(name)
    if fn is None:
        return partial(register_loss, name, overwrite=overwrite)
    _check_registrable(name, fn)
    return register(name, fn, overwrite=overwrite)


def register(name: str, fn: Any, *, overwrite: bool = False) -> Any:
    """Register without looking at what is registered; see `register_loss`."""
    global _entries
    check_name(name)
    if name in builtin_names() and getattr(fn, "__module__", None) != f"{_BUILTIN_PACKAGE}.{name}":
        _load_builtin(name)  # first, so that it cannot come back over what replaces it
    with _lock:
        old = _entries.get(name, fn)
        if not overwrite and not is_same(old, fn):
            raise make_error(
                LossConfigError,
                f"already registered by {origin(old)}; refused for {origin(fn)}.",
                code="name-taken",
                loss=name,
                hint="Choose another name, or pass overwrite=True.",
            )
        _entries = {**_entries, name: fn}
    if overwrite and old is not fn and name in builtin_names():
        _logger.warning("built-in loss %r is now %s", name, origin(fn))
    return fn


def unregister(name: str) -> None:
    """Forget a registered name; a built-in comes back when it is next imported."""
    global _entries
    with _lock:
        _entries = {known: fn for known, fn in _entries.items() if known != name}


def names() -> list[str]:
    """Return every known name, sorted: registered, built in and published by plug-ins. Imports no loss."""
    return sorted({*_entries, *builtin_names(), *(entry_point.name for entry_point in _entry_points())})


def is_registered(name: str, fn: object) -> bool:
    """Whether a name stands for this very object."""
    return name in _entries and _entries[name] is fn


def known_without_plugins() -> set[str]:
    """Return the names that cost no search through the installed packages."""
    return {*_entries, *builtin_names()}


def lookup(name: str) -> Any:
    """Return what is registered under a name, importing the built-in or plug-in that brings it.

    Raises:
        UnknownLossError: Nothing has this name; the message lists the names that exist.
        LossConfigError: The plug-in that publishes it fails to load.
    """
    if name in _entries:
        return _entries[name]
    if name in builtin_names():
        _load_builtin(name)
        return _entries[name]
    published = {entry_point.value: entry_point for entry_point in _entry_points() if entry_point.name == name}
    if not published:
        raise unknown_loss(name)
    if len(published) > 1:
        raise make_error(
            LossConfigError,
            f"published by more than one plug-in: {', '.join(sorted(published))}.",
            code="name-taken",
            loss=name,
            hint="Uninstall all but one, or write the path instead of the name.",
        )
    return _load_plugin(*published.values())


def unknown_loss(name: str) -> UnknownLossError:
    """Build the error for a name that nothing is registered under."""
    nearest = near_miss(name, names())
    cure = f"; did you mean {nearest}?" if nearest else "."
    likest = near_misses(name, builtin_names(), most=_MOST_LISTED)
    message = (
        f"Cannot resolve loss {shorten(name)}: it is not registered{cure} "
        f"Available built-in losses: {', '.join(likest)} and {len(builtin_names()) - len(likest)} more "
        "(`tensafe list` shows all). A loss of your own is 'package.module:function'."
    )
    error = config_error([Problem("unknown-loss", (), message, nearest)], loss=None, kind=UnknownLossError)
    assert isinstance(error, UnknownLossError)
    return error


def check_name(name: object) -> None:
    if not isinstance(name, str):
        raise make_error(
            LossTypeError,
            f"a loss is registered under a string, got {type(name).__name__}.",
            code="invalid-name",
            hint="Write @register_loss('name').",
        )
    if not name.isidentifier():
        raise make_error(
            LossConfigError,
            f"{shorten(name)} cannot name a loss.",
            code="invalid-name",
            hint="Use letters, digits and underscores.",
        )


def _check_registrable(name: str, fn: object) -> None:
    if is_class(fn):
        own_name = getattr(fn, "_name", None)
        if not hasattr(fn, "is_concrete"):
            problem = f"{fn.__qualname__} is a class, and a loss is a callable."
            hint = f"Register an instance: register_loss({name!r}, {fn.__name__}())."
        elif own_name is not None:
            problem = f"class {fn.__qualname__} is registered as {own_name!r} by its class line already."
            hint = "One name each."
        elif not fn.is_concrete():
            problem, hint = f"class {fn.__qualname__} has no compute().", "Define compute(self, <tensors>) -> Elements."
        else:
            return
    elif callable(fn) or hasattr(type(fn), "is_concrete"):
        return
    else:
        problem, hint = f"{type(fn).__name__} is not callable.", "A loss takes (outputs, batch, **kwargs)."
    raise make_error(LossTypeError, problem, code="not-a-loss", loss=name, hint=hint)


_builtin_cache: frozenset[str] | None = None


def builtin_names() -> frozenset[str]:
    """Return the names of the losses in `builtin/`. Imports none of them."""
    global _builtin_cache
    if _builtin_cache is None:
        modules = pkgutil.iter_modules(import_module(_BUILTIN_PACKAGE).__path__)
        _builtin_cache = frozenset(module.name for module in modules if not module.name.startswith("_"))
    return _builtin_cache


def _load_builtin(name: str) -> None:
    module = import_module(f"{_BUILTIN_PACKAGE}.{name}")
    if name not in _entries:  # imported before, then unregistered
        register(name, next(value for value in vars(module).values() if getattr(value, "_name", None) == name))


def _entry_points() -> Iterable[EntryPoint]:
    return _published(tuple((folder, _changed_at(folder or ".")) for folder in sys.path))


@lru_cache(maxsize=1)
def _published(_: tuple[tuple[str, int], ...]) -> Iterable[EntryPoint]:
    """Search the installed packages, which takes milliseconds for each unknown name, once per state of the folders."""
    from importlib.metadata import entry_points  # 50 ms that a known name never pays

    return entry_points(group=ENTRY_POINT_GROUP)


def _changed_at(folder: str) -> int:
    try:
        return os.stat(folder).st_mtime_ns
    except OSError:
        return 0


def _load_plugin(entry_point: EntryPoint) -> Any:
    name = entry_point.name
    try:
        loaded = entry_point.load()  # which may have registered it
        return _entries[name] if name in _entries else register_loss(name, loaded)
    except (Exception, SystemExit) as error:
        raise make_error(
            LossConfigError,
            f"the plug-in {shorten(entry_point.value)} that publishes it failed to load: "
            f"{type(error).__name__}: {shorten(str(error), 200)}.",
            code="broken-plugin",
            loss=name,
            hint="Every other loss still works.",
        ) from error


def __getattr__(name: str) -> Any:
    # The public TenSafe had resolve_loss here; the real one lies above this module, so it is fetched when asked for.
    if name == "resolve_loss":
        from .resolve import resolve_loss

        return resolve_loss
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

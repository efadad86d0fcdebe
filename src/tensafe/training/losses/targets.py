"""Dotted paths: from `package.module:name` to the object, through every check that it is a loss and not a gadget.

Importing a module runs it, so the module's name is checked before the import; a module can re-export anything, so the
object's own home is checked after it. Nothing of the standard library is ever a loss.
"""

from __future__ import annotations

import sys
from importlib import import_module, util
from types import MethodType, ModuleType
from typing import Any, NamedTuple

from .errors import LossConfigError, Problem, UnknownLossError, UnsafeTargetError, config_error, near_miss, shorten
from .guards import definition, is_partial

__all__ = ["TRUSTED", "Policy", "Target", "home_problem", "import_target", "parse_target", "refuse_gadget"]

# Loaders of foreign code that a dotted path could reach although no loss lives there.
_UNSAFE_HOMES = (
    "torch.hub",
    "torch.serialization",
    "torch.package",
    "torch.utils.cpp_extension",
    "torch.jit._serialization",
    "torch._ops",
)
_MOST_LAYERS = 20
_LONGEST = 255  # of a path, in characters: messages quote it


class Policy(NamedTuple):
    """What running code from a spec may do.

    A policy holds in the context (thread, task) that resolves under it; a thread started meanwhile does not inherit it.

    Attributes:
        allow: Modules (with all beneath them) and exact `module:name` targets that may be imported; None when the spec
            comes from Python code, whose author may import anyway.
        imports: Whether dotted paths are imported at all; if not, only their form is checked.
    """

    allow: tuple[str, ...] | None = None
    imports: bool = True


TRUSTED = Policy()


class Target(NamedTuple):
    """A dotted path taken apart."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}:{self.name}"


def parse_target(path: str) -> Target | None:
    """Take `pkg.mod:name` or `pkg.mod.name` apart; None for a plain word, which is never imported.

    Raises:
        LossConfigError: The path is neither.
    """
    if ":" not in path and "." not in path:
        return None
    module, _, name = path.partition(":") if ":" in path else path.rpartition(".")
    if len(path) > _LONGEST or not name.isidentifier() or not all(part.isidentifier() for part in module.split(".")):
        raise _failure(
            LossConfigError,
            "malformed-target",
            f"{shorten(path)} is no dotted path; expected package.module:name, with one identifier after the colon",
        )
    return Target(module, name)


def import_target(target: Target, policy: Policy) -> Any:
    """Import what a dotted path names.

    Raises:
        UnsafeTargetError: It may not be imported, or what was found lives where no loss does.
        UnknownLossError: There is no such module or attribute, or the module failed to import.
    """
    _check_module(target, policy)
    module = _import(target)
    if not hasattr(module, target.name):
        nearest = near_miss(target.name, [name for name in vars(module) if not name.startswith("_")])
        cure = f"; did you mean {nearest}?" if nearest else ""
        message = f"Cannot resolve loss '{target}': module {target.module} has no attribute {target.name!r}{cure}"
        suggestion = f"{target.module}:{nearest}" if nearest else None
        raise _failure(UnknownLossError, "unknown-attribute", message, suggestion)
    found = getattr(module, target.name)
    problem = home_problem(found, target, policy)
    if problem is not None:
        raise config_error([problem], loss=None, kind=UnsafeTargetError)
    return found


def home_problem(found: Any, target: Target | None, policy: Policy) -> Problem | None:
    """Say why an object may not be called as a loss, judging by where it was defined; None when it may."""
    inner = _innermost(found)
    home = _home(inner)
    what = f"{home}.{getattr(inner, '__qualname__', '?')}"
    called = f"'{target}' is really" if target else "this is"
    if _is_stdlib(home) or _within(home, _UNSAFE_HOMES):
        return Problem("unsafe-target", (), f"{called} {what}, which is no loss and is never called")
    allow = policy.allow
    if allow is None or str(target) in allow or _within(home, allow):
        return None
    message = f"{called} {what}, and module {home} is not allowed; allow {home}, or '{target}' itself"
    return Problem("target-not-allowed", (), message)


def refuse_gadget(target: Target) -> None:
    """Refuse a path into the standard library, or to a loader of foreign code, by its text alone.

    Raises:
        UnsafeTargetError: It is one.
    """
    if _is_stdlib(target.module) or _within(target.module, _UNSAFE_HOMES):
        message = f"'{target}' is not a loss: nothing in {target.module.partition('.')[0]!r} may be called from a spec"
        raise _failure(UnsafeTargetError, "unsafe-target", message)


def _check_module(target: Target, policy: Policy) -> None:
    refuse_gadget(target)
    if policy.allow is None or _within(target.module, policy.allow) or str(target) in policy.allow:
        return
    raise _failure(
        UnsafeTargetError,
        "target-not-allowed",
        f"'{target}' would import and run {target.module}, which is not allowed here; if you trust it, pass "
        f"--allow {target.module}, allow=['{target.module}'] in Python, "
        "or list it in [tool.tensafe] allow of pyproject.toml",
    )


def _import(target: Target) -> ModuleType:
    try:
        return import_module(target.module)
    except ModuleNotFoundError as error:
        missing = error.name or target.module
        if target.module == missing or target.module.startswith(f"{missing}."):
            message = f"Cannot resolve loss '{target}': Cannot import module {target.module!r}: there is no {missing!r}"
            message += f"; did you mean {nearest}?" if (nearest := _near_module(missing)) else ""
            raise _failure(UnknownLossError, "unknown-module", message) from None
        raise _raised(target, error) from error
    except (Exception, SystemExit) as error:
        raise _raised(target, error) from error


def _raised(target: Target, error: BaseException) -> LossConfigError:
    message = f"Cannot resolve loss '{target}': module {target.module} raised {type(error).__name__} when imported"
    return _failure(UnknownLossError, "broken-module", f"{message}: {shorten(str(error), 200)}")


def _near_module(missing: str) -> str | None:
    """Return a module beside the missing one whose name is close; only packages imported already are searched."""
    package, _, name = missing.rpartition(".")
    if package not in sys.modules:
        return None
    import pkgutil

    spec = util.find_spec(package)
    siblings = pkgutil.iter_modules(spec.submodule_search_locations if spec else None)
    nearest = near_miss(name, [module.name for module in siblings])
    return f"{package}.{nearest}" if nearest else None


def _innermost(found: Any) -> Any:
    """Unwrap partials, bound methods and decorated functions; an instance stands for its class."""
    for _ in range(_MOST_LAYERS):
        if is_partial(found):
            found = found.func
        elif isinstance(found, MethodType):
            found = found.__func__
        elif "__wrapped__" in getattr(found, "__dict__", {}):
            found = found.__wrapped__
        else:
            break
    return definition(found)


def _home(found: Any) -> str:
    """Return the module that an object was defined in; a built-in method's is that of the type it belongs to."""
    module = getattr(found, "__module__", None)
    return module if isinstance(module, str) else type(getattr(found, "__self__", found)).__module__


def _is_stdlib(module: str) -> bool:
    return module.partition(".")[0] in sys.stdlib_module_names


def _within(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def _failure(kind: type[LossConfigError], code: str, message: str, suggestion: str | None = None) -> LossConfigError:
    return config_error([Problem(code, (), message, suggestion)], loss=None, kind=kind)

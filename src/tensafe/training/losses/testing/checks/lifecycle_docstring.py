"""Whether a person who reads the docstring knows what to pass, and whether its examples tell the truth."""

from __future__ import annotations

import doctest
import inspect
import re
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

from tensafe._docstrings import entries, parse
from tensafe.training.losses.contract import read_contract
from tensafe.training.losses.loss import Loss
from tensafe.training.losses.registry import known_without_plugins, unregister
from tensafe.training.losses.testing.catalogue import conformance_check
from tensafe.training.losses.testing.outcome import fail

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tensafe.training.losses.testing.subject import Subject

_SECTIONS = ("Args", "Arguments", "Attributes")


@conformance_check(
    "lifecycle",
    "Write a docstring in Google style: a summary; below Args: an entry `name: effect, default and range` for each "
    "kwarg, and for each tensor its shape and dtype, or under outputs and batch the keys that are read. A field of a "
    "class says its part with Field(description=...). Examples after >>> must print what they say.",
)
def check_docstring(subject: Subject) -> None:
    """Its docstring tells every kwarg and every tensor, and the examples in it are right."""
    documented = list(_documented(subject))
    if not any(inspect.cleandoc(each.__doc__ or "") for each in documented[:1]):
        fail("it has no docstring")
    silent = _silent(subject, documented)
    if silent:
        fail(f"its docstring does not tell {', '.join(silent)}")
    for each in documented:
        _run_examples(each)


def _documented(subject: Subject) -> Iterator[Any]:
    """Yield what has docstrings of the loss: first the one that is the loss, then those it inherits or is called by."""
    if subject.loss_class is not None:
        yield from (base for base in subject.loss_class.__mro__ if issubclass(base, Loss))
        return
    loss: Any = subject.resolve()
    fn = loss.fn
    while isinstance(fn, partial):
        fn = fn.func
    if inspect.isroutine(fn):
        yield inspect.unwrap(fn)
        return
    yield from _of_class(type(fn))


def _of_class(kind: Any) -> tuple[Any, Any]:
    """Return the class of an instance and the method that a call runs; first what has a docstring."""
    called = kind.forward if hasattr(kind, "register_forward_hook") else kind.__call__
    return (kind, called) if kind.__doc__ else (called, kind)


def _silent(subject: Subject, documented: list[Any]) -> list[str]:
    """Return the kwargs and tensors of which nothing is told."""
    sections = [parse(each.__doc__).sections for each in documented]
    told = {
        name for each in sections for title in _SECTIONS for name, text in entries(each.get(title, "")).items() if text
    }
    if subject.loss_class is None:
        text = " ".join(each.__doc__ or "" for each in documented)
        keys = [key for key in _read_keys(subject) if not re.search(rf"\b{re.escape(key)}\b", text)]
        return [name for name in subject.resolve().kwargs if name not in told] + keys
    silent = [name for name, field in subject.loss_class.model_fields.items() if not field.description]
    if subject.loss_class.is_combinator():
        return silent
    return silent + [spec.name for spec in read_contract(subject.loss_class).tensors if spec.name not in told]


def _read_keys(subject: Subject) -> list[str]:
    """Return the keys that a callable reads from outputs and batch."""
    trial = subject.trial()
    outputs, batch = _Recording(trial.outputs), _Recording(trial.batch)
    trial.loss(outputs, batch)
    return list(dict.fromkeys([*outputs.read, *batch.read]))


class _Recording(dict[str, Any]):
    """A dict that knows which of its keys were read."""

    def __init__(self, side: Any) -> None:
        super().__init__(side)
        self.read: list[str] = []

    def __getitem__(self, key: str) -> Any:
        value = super().__getitem__(key)
        self.read.append(key)
        return value

    def get(self, key: str, default: Any = None) -> Any:
        if key not in self:
            return default
        return self[key]


def _run_examples(documented: Any) -> None:
    """Run the doctests of one docstring; a name that they register goes away again."""
    module = sys.modules.get(documented.__module__)
    name = documented.__qualname__
    test = doctest.DocTestParser().get_doctest(documented.__doc__ or "", dict(vars(module or sys)), name, None, None)
    known = known_without_plugins()
    try:
        doctest.DebugRunner(verbose=False, optionflags=doctest.ELLIPSIS).run(test)
    except doctest.DocTestFailure as failure:
        example = failure.example
        fail(f"the example {example.source.strip()!r} prints {failure.got!r}, where the docstring has {example.want!r}")
    except doctest.UnexpectedException as failure:
        kind, error = failure.exc_info[:2]
        fail(f"the example {failure.example.source.strip()!r} raises {getattr(kind, '__name__', kind)}: {error}")
    finally:
        for added in known_without_plugins() - known:
            unregister(added)

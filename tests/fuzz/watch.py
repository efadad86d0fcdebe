"""What every case of the fuzz tests has to keep to: how it may end, how long it may take, and what it may touch."""

import importlib.machinery
import random
import re
import signal
import sys
import time
import traceback
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import torch

from tensafe.training.losses import TensafeError, registry, targets

__all__ = ["CAP", "Case", "HostileError", "Outcome", "ShownError", "check_text", "fingerprint", "watched"]

CAP: Final = 2.0
"""Seconds of processor time that a case may take."""

MOST_LINES: Final = 12
LONGEST_LINE: Final = 1500
_CODE: Final = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")

# What tensafe and its dependencies may import while it works; plug-ins are looked for in the metadata only.
_KNOWN: Final = frozenset(
    {
        *sys.stdlib_module_names,
        *(
            "tensafe",
            "torch",
            "torchgen",
            "numpy",
            "pydantic",
            "pydantic_core",
            "yaml",
            "_yaml",
            "jaxtyping",
            "beartype",
        ),
        *("typing_extensions", "annotated_types", "typing_inspection", "functorch", "sympy", "mpmath", "wadler_lindig"),
    }
)


class HostileError(Exception):
    """What a hostile object raises from its own methods; it must come out as it is, or not at all."""


class ShownError(BaseException):
    """A hostile object was asked for its text: messages must never do so."""


class TooSlowError(BaseException):
    """A case takes longer than the cap."""


class Outcome(NamedTuple):
    """How a case ended: with a result, with an error of ours, or with one that the caller's own object raised."""

    kind: Literal["result", "refused", "passed on"]
    value: Any


class _Finder:
    """Stands first among the import hooks, finds nothing, and remembers what was looked for."""

    def __init__(self) -> None:
        self.sought: list[str] = []

    def find_spec(self, name: str, path: Sequence[str] | None, target: types.ModuleType | None = None) -> None:
        self.sought.append(name)


@contextmanager
def _imports(allowed: Callable[[str], bool]) -> Iterator[None]:
    """Fail if a module is looked for that may not be, or if a path of a spec is imported that may not be."""
    finder = _Finder()
    asked: list[str] = []

    def import_module(name: str, package: str | None = None) -> types.ModuleType:
        asked.append(name)
        return importlib.import_module(name, package)

    original, targets.import_module = targets.import_module, import_module  # type: ignore[attr-defined]
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        targets.import_module = original  # type: ignore[attr-defined]
    foreign = [name for name in asked if not allowed(name)]
    assert not foreign, f"a path was imported: {foreign}"
    strange = [name for name in finder.sought if not _is_known(name, allowed)]
    assert not strange, f"imported: {strange}"


def _is_known(name: str, allowed: Callable[[str], bool]) -> bool:
    root = name.partition(".")[0]
    return root in _KNOWN or allowed(name)


@contextmanager
def _capped() -> Iterator[None]:
    def stop(_: int, frame: types.FrameType | None) -> None:
        raise TooSlowError("".join(traceback.format_stack(frame, limit=-12)))

    previous = signal.signal(signal.SIGVTALRM, stop)
    start = time.process_time()
    signal.setitimer(signal.ITIMER_VIRTUAL, CAP)
    try:
        yield
    except TooSlowError as error:  # raised between any two instructions: its own traceback may have no line
        raise AssertionError(f"more than {CAP} s of processor time, at\n{error}") from None
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, previous)
    assert time.process_time() - start <= CAP, "a call that no signal interrupts took too long"


def _global_state() -> tuple[Any, ...]:
    numbers = np.random.get_state()
    return (
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        torch.get_rng_state().numpy().tobytes(),
        hash(random.getstate()),
        (numbers[1].tobytes(), *numbers[2:]),  # type: ignore[index]
        tuple(warnings.filters),
        warnings.showwarning,
        sys.getrecursionlimit(),
        tuple(sys.path),
        {name: fn for name, fn in registry._entries.items() if name not in registry.builtin_names()},
    )


@contextmanager
def watched(allowed: Callable[[str], bool] = lambda name: False) -> Iterator[None]:
    """Fail where a case breaks a rule that has nothing to do with how it ends.

    Args:
        allowed: Which modules a path in a spec may have imported.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = _global_state()
        with _imports(allowed), _capped():
            yield
        after = _global_state()
        changed = [index for index, (old, new) in enumerate(zip(before, after, strict=True)) if old != new]
        assert not changed, f"global state changed: {changed}"


def outcome(act: Callable[[], Any]) -> Outcome:
    """Do something that may end in a result, an error of ours, or one of a hostile object's own; in no other way."""
    try:
        return Outcome("result", act())
    except TensafeError as error:
        check_error(error)
        return Outcome("refused", error)
    except HostileError as error:
        return Outcome("passed on", error)


def check_error(error: TensafeError) -> None:
    """Fail if an error has no code, or a text that is no message."""
    assert error.code != "error"
    assert _CODE.fullmatch(error.code), error.code
    assert isinstance(error.loc, tuple)
    assert all(isinstance(part, str | int) for part in error.loc), error.loc
    assert error.hint is None or isinstance(error.hint, str)
    check_text(str(error), MOST_LINES)


def check_text(text: str, most_lines: int) -> None:
    """Fail if a text cannot be shown: too long, empty, or with characters that a terminal would obey."""
    lines = text.split("\n")
    assert text.strip()
    assert len(lines) <= most_lines, text[:2000]
    assert max(map(len, lines)) <= LONGEST_LINE, text[:2000]
    unprintable = [char for char in text if not (char.isprintable() or char == "\n")]
    assert not unprintable, (unprintable, text[:500])


class Case:
    """A drawn value whose text is safe to show: hypothesis asks for one, and many of these have none."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __repr__(self) -> str:
        return _shown(self.value, 6)


def _shown(value: Any, depth: int) -> str:
    kind = type(value)
    if kind in {str, bytes, float, bool, type(None), complex} or (kind is int and value.bit_length() < 512):
        return repr(value[:60] if kind in {str, bytes} else value)
    if depth and kind is dict:
        return "{" + ", ".join(f"{_shown(key, 1)}: {_shown(item, depth - 1)}" for key, item in value.items()) + "}"
    if depth and kind in {list, tuple}:
        return f"{kind.__name__}({', '.join(_shown(item, depth - 1) for item in value)})"
    if isinstance(value, torch.Tensor):
        shape = "nested" if value.is_nested else list(value.shape)
        return f"Tensor({value.dtype}, {value.layout}, {value.device}, {shape})"
    return kind.__name__


def fingerprint(*values: Any) -> list[Any]:
    """Give what tells whether plain containers, or tensors in them, were changed; other items by identity."""
    seen: set[int] = set()
    found: list[Any] = []
    todo = list(values)
    while todo:
        value = todo.pop()
        found.append(id(value))
        if id(value) in seen:
            continue
        seen.add(id(value))
        if type(value) is dict:
            found += map(id, value)
            todo += value.values()
        elif type(value) in {list, tuple}:
            found.append(len(value))
            todo += value
        elif type(value) is torch.Tensor:
            found += _of_tensor(value)
    return found


def _of_tensor(value: torch.Tensor) -> list[Any]:
    data = b""
    if value.layout is torch.strided and not (value.is_nested or value.is_meta or value.is_quantized) and value.numel():
        data = value.detach().resolve_conj().resolve_neg().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    return [value._version, value.requires_grad, value.dtype, data]

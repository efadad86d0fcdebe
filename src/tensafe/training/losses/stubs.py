"""What a static checker knows of `resolve_loss`: an overload for each built-in loss, from the fields of its class.

`python -m tensafe.training.losses.stubs --write` writes them into `signatures.py`; without `--write` it prints them.
"""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel

from .adapter import ResolvedLoss
from .registry import builtin_names, lookup

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

__all__ = ["FILE", "render"]

FILE = Path(__file__).with_name("signatures.py")
"""The generated module."""

_FRAME = Path(__file__).with_name("signatures.in")
"""What does not depend on the losses: how a checker is brought to refuse a call that fits no overload."""

_WIDTH = 120


class _Typed(NamedTuple):
    """A built-in loss, as its class declares it."""

    name: str
    summary: str
    fields: dict[str, FieldInfo]

    @property
    def class_name(self) -> str:
        """Name of the class that stands for the kwargs."""
        return "_" + "".join(part.capitalize() for part in self.name.split("_"))

    def overload(self) -> str:
        """Return the overload of `resolve_loss` for the name."""
        parameters = f'    spec: Literal["{self.name}"],\n    /,\n    *,\n{self._parameters(4)}'
        return f"@overload\ndef resolve_loss(\n{parameters}) -> ResolvedLoss:\n{self._doc()}\n\n\n"

    def signature(self) -> str:
        """Return the class whose calls take the kwargs."""
        parameters = f"        self,\n        *,\n{self._parameters(8)}"
        return f"class {self.class_name}:\n    def __call__(\n{parameters}    ) -> None: ...\n\n\n"

    def choice(self) -> str:
        """Return the overload that leads from the name to that class."""
        return f'@overload\ndef _signature_of(name: Literal["{self.name}"], /) -> {self.class_name}: ...\n'

    def _parameters(self, indent: int) -> str:
        return "".join(
            f"{' ' * indent}{name}: {_annotation(field.annotation)}{'' if field.is_required() else ' = ...'},\n"
            for name, field in self.fields.items()
        )

    def _doc(self) -> str:
        kwargs = [_filled(f"{name}: {field.description}") for name, field in self.fields.items()]
        lines = [self.summary, "", "Args:", _filled("spec: Name of the loss."), *kwargs]
        text = textwrap.indent("\n".join(lines), " " * 4).lstrip()
        return f'    {"r" if chr(92) in text else ""}"""{text}\n    """'


def render() -> str:
    """Return the text of the generated module."""
    losses = [_read(name) for name in sorted(builtin_names())]
    models = {model for loss in losses for field in loss.fields.values() for model in _models(field.annotation)}
    parts = {
        "models": "".join(sorted(f"from {model.__module__} import {model.__name__}\n" for model in models)),
        "literals": "".join(f'        Literal["{loss.name}"],\n' for loss in losses),
        "signatures": "".join(loss.signature() for loss in losses),
        "choices": "".join(loss.choice() for loss in losses),
        "overloads": "".join(loss.overload() for loss in losses),
    }
    text = _FRAME.read_text(encoding="utf-8")
    for name, part in parts.items():
        text = text.replace(f"# <{name}>\n", part)
    return text


def main(arguments: list[str]) -> int:
    """Print the module, or write it; return the exit code."""
    if arguments not in ([], ["--write"]):
        sys.stderr.write("usage: python -m tensafe.training.losses.stubs [--write]\n")
        return 2
    if arguments:
        FILE.write_text(render(), encoding="utf-8")
    else:
        sys.stdout.write(render())
    return 0


def _read(name: str) -> _Typed:
    loss = lookup(name)
    return _Typed(name, (loss.__doc__ or name).strip().partition("\n")[0], loss.model_fields)


def _filled(text: str) -> str:
    return textwrap.fill(text, _WIDTH - 4, initial_indent=" " * 4, subsequent_indent=" " * 8, break_on_hyphens=False)


def _annotation(annotation: Any) -> str:
    """Return what a checker is told of a field: what may be given, not what the field then holds."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _annotation(args[0])
    if origin in {Union, UnionType}:
        return " | ".join(_annotation(each) for each in args)
    if origin is Literal:
        return f"Literal[{', '.join(_quoted(each) for each in args)}]"
    if origin is tuple:
        return f"Sequence[{_annotation(args[0])}]"
    if annotation is ResolvedLoss:
        return "Spec"
    if _is_model(annotation):  # a term; a list of names and mappings is one of Collection[str] to mypy
        return f"Spec | Collection[str] | {annotation.__name__}"
    return "None" if annotation is type(None) else str(annotation.__name__)


def _quoted(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)


def _models(annotation: Any) -> set[type[BaseModel]]:
    if _is_model(annotation):
        return {annotation}
    return {model for each in get_args(annotation) for model in _models(each)}


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

from __future__ import annotations

import importlib
import pkgutil
import sys
from typing import TYPE_CHECKING

import jaxtyping
import pytest

import tensafe.training.losses as losses_package
from tensafe.training.losses import ops

if TYPE_CHECKING:
    from types import ModuleType


def _load_under_the_hook() -> dict[str, ModuleType]:
    """Import the operations a second time, with every annotation enforced at each call; what others see stays plain."""
    package = ops.__name__
    names = [module.name for module in pkgutil.iter_modules(ops.__path__)]
    for name in names:
        importlib.import_module(f"{package}.{name}")
    plain = {name: module for name, module in sys.modules.items() if f"{name}.".startswith(f"{package}.")}
    attributes = dict(vars(ops))
    try:
        for name in plain:
            del sys.modules[name]
        with jaxtyping.install_import_hook(package, "beartype.beartype"):
            return {name: importlib.import_module(f"{package}.{name}") for name in names}
    finally:
        sys.modules.update(plain)
        losses_package.ops = ops
        vars(ops).update(attributes)


@pytest.fixture(scope="session")
def checked() -> dict[str, ModuleType]:
    """The modules of `ops` by name, whose annotations are enforced."""
    return _load_under_the_hook()


@pytest.fixture
def losses_use_checked(checked: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, module in checked.items():
        monkeypatch.setitem(sys.modules, f"{ops.__name__}.{name}", module)


@pytest.fixture(scope="session")
def checked_cases(checked: dict[str, ModuleType]) -> ModuleType:
    """`ops.cases` once more, made of operations whose annotations are enforced."""
    with pytest.MonkeyPatch.context() as patch:
        for name, module in checked.items():
            patch.setitem(sys.modules, f"{ops.__name__}.{name}", module)
        patch.delitem(sys.modules, "ops.cases", raising=False)
        return importlib.import_module("ops.cases")

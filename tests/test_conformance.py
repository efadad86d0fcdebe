"""Every loss that there is does what every loss should, and has what every loss has: nothing here is listed by hand."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from references.conformance import INFOS
from tensafe.training.losses import LOSS_REGISTRY, get_registered_losses
from tensafe.training.losses.builtin import __path__ as builtin_path
from tensafe.training.losses.testing import assert_loss_conforms, loss_checks_generator, select_checks

ROOT = Path(__file__).parent.parent
QUICK = ("core", "numerics")
NAMES = sorted(path.stem for path in Path(builtin_path[0]).glob("*.py") if not path.stem.startswith("_"))


SLOW = {"check_compile_fullgraph", "check_dynamic_shapes", "check_export"}
"""What compiles a loss: done for one loss of each kind, and for all by HYPOTHESIS_PROFILE=deep. What most often breaks
a graph, a look at a value, is found in all of them by check_no_host_sync."""

FIRST_OF_ITS_KIND = set({LOSS_REGISTRY[name].__base__.__module__: name for name in reversed(NAMES)}.values())


@pytest.mark.parametrize("group", QUICK)
@pytest.mark.parametrize("name", NAMES)
def test_it_conforms(name: str, group: str) -> None:
    assert_loss_conforms(name, info=INFOS.get(name), groups=[group], on_skip=None)


def cases() -> Iterator[Any]:
    for name in NAMES:
        pairs = loss_checks_generator(name, info=INFOS.get(name))
        for each, (_, check) in zip(select_checks(), pairs, strict=True):
            slow = (
                each.name in SLOW and name not in FIRST_OF_ITS_KIND and os.environ.get("HYPOTHESIS_PROFILE") != "deep"
            )
            if each.group not in QUICK and not slow:
                yield pytest.param(name, check, id=f"{name}-{each.name}")


@pytest.mark.parametrize(("loss", "check"), list(cases()))
def test_it_stands_what_takes_longer(loss: str, check: Callable[[str], None]) -> None:
    check(loss)


def test_all_are_registered() -> None:
    assert set(NAMES) <= set(get_registered_losses())


@pytest.mark.parametrize("name", NAMES)
def test_it_has_a_family_a_schema_a_page_and_a_figure(name: str) -> None:
    assert LOSS_REGISTRY[name]._family != "other"
    assert (ROOT / "schemas" / "losses" / f"{name}.json").exists()
    assert (ROOT / "docs" / "losses" / f"{name}.md").exists()
    assert (ROOT / "docs" / "losses" / f"{name}.png").exists()

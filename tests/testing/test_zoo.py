"""The checks, checked: each notices some mistake that people make, and none finds fault with what is right."""

import os
from importlib import import_module
from pathlib import Path

import pytest

from tensafe.training.losses.testing import GROUPS, all_checks, assert_loss_conforms
from zoo.healthy import CarefulCE, careful_ce
from zoo.mutant import Mutant

ZOO = Path(__file__).parents[1] / "zoo"
MODULES = [import_module(f"zoo.{path.stem}") for path in sorted(ZOO.glob("*.py")) if path.stem != "conftest"]
MUTANTS: list[Mutant] = [mutant for module in MODULES for mutant in getattr(module, "MUTANTS", [])]
EVERYWHERE = {"core", "numerics"} if os.environ.get("HYPOTHESIS_PROFILE") == "deep" else {"core"}
GROUP_OF = {check.name: check.group for check in all_checks()}


def groups_for(mutant: Mutant) -> list[str]:
    """Those in which a check is to notice, and others in which none is to."""
    return [
        group for group in GROUPS if group in EVERYWHERE or any(GROUP_OF[check] == group for check in mutant.killed_by)
    ]


def test_each_has_a_name_of_its_own() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_dies_of_what_it_does_wrong_and_of_nothing_else(mutant: Mutant) -> None:
    results = assert_loss_conforms(mutant.loss, info=mutant.info, groups=groups_for(mutant), on_fail=None, on_skip=None)
    killers = {result["check_name"]: result["exception"] for result in results if result["status"] == "failed"}
    assert killers.keys() == mutant.killed_by, killers


@pytest.mark.parametrize("check", [check.name for check in all_checks()])
def test_a_check_kills_a_mutant(check: str) -> None:
    assert [mutant.name for mutant in MUTANTS if check in mutant.killed_by]


@pytest.mark.parametrize("loss", [careful_ce, CarefulCE()], ids=["careful_ce", "CarefulCE"])
def test_a_healthy_loss_lives(loss: object) -> None:
    assert_loss_conforms(loss, on_skip=None)  # type: ignore[arg-type]

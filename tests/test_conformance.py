"""Every loss that there is does what every loss should, and has what every loss has: nothing here is listed by hand."""

from collections.abc import Callable
from pathlib import Path

import pytest

from references.conformance import INFOS
from tensafe.training.losses import LOSS_REGISTRY, get_registered_losses
from tensafe.training.losses.builtin import __path__ as builtin_path
from tensafe.training.losses.testing import parametrize_with_loss_checks

ROOT = Path(__file__).parent.parent
NAMES = sorted(path.stem for path in Path(builtin_path[0]).glob("*.py") if not path.stem.startswith("_"))


@parametrize_with_loss_checks(NAMES, info=INFOS.get)
def test_it_conforms(loss: str, check: Callable[[str], None]) -> None:
    check(loss)


def test_all_are_registered() -> None:
    assert set(NAMES) <= set(get_registered_losses())


@pytest.mark.parametrize("name", NAMES)
def test_it_has_a_family_a_schema_a_page_and_a_figure(name: str) -> None:
    assert LOSS_REGISTRY[name]._family != "other"
    assert (ROOT / "schemas" / "losses" / f"{name}.json").exists()
    assert (ROOT / "docs" / "losses" / f"{name}.md").exists()
    assert (ROOT / "docs" / "losses" / f"{name}.png").exists()

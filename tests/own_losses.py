"""Losses as a user writes them, in a module of their own: what `tensafe schema --import` is given in tests."""

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tensafe.cli import app
from tensafe.training.losses import registry

SOURCE = '''\
"""Losses of a user."""

from typing import Annotated, Any, Literal

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from tensafe.training.losses import ElementLoss, Elements, Loss, NestedLoss, register_loss


class Gap(ElementLoss, name="own_gap"):
    """Distance of what lies further away than a margin."""

    margin: float = Field(gt=0, description="What is nearer than this is near enough.", examples=[0.5])
    side: Literal["above", "below", "both"] = Field(default="both", description="Which side counts.")

    def compute(self, predictions: Float[Tensor, "*shape"], targets: Float[Tensor, "*shape"]) -> Elements:
        """Return the distances."""
        return Elements((predictions - targets).abs() - self.margin)


@register_loss("own_tempered")
def tempered(
    outputs: Any,
    batch: Any,
    temperature: Annotated[float, Field(gt=0, le=10, description="What scores are divided by.")] = 1.0,
    limit: int | None = None,
    mode: Literal["hard", "soft"] = "soft",
) -> float:
    """Scores at a temperature."""
    return temperature


class Doubled(Loss, name="own_doubled"):
    """Another loss, doubled."""

    of: NestedLoss = Field(description="What is doubled.", examples=["mse"])
    times: int = Field(default=2, ge=1, description="How often.")

    def __call__(self, outputs: Any, batch: Any) -> Any:
        """Return the other loss's result, more than once."""
        return {"loss": self.times * self.of(outputs, batch)["loss"]}
'''


def write_project(folder: Path) -> None:
    """Write the module, and the schemas that the command makes of it in that folder."""
    (folder / "my_package").mkdir()
    (folder / "my_package" / "losses.py").write_text(SOURCE, encoding="utf-8")
    run_command(folder, "schema", "--import", "my_package.losses", "--write", "schemas")


def run_command(folder: Path, *arguments: str) -> str:
    """Run `tensafe` in a folder, as its script does: without the folder on the path; return what it prints."""
    code = "import sys; sys.path = [p for p in sys.path if p]; from tensafe.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def run_here(folder: Path, *arguments: str) -> str:
    """Do the same in this process, which forgets the losses at the end: a fresh one takes seconds to import torch."""
    ours = [name for name in sys.modules if name.partition(".")[0] == "my_package"]
    assert not ours, ours
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", [path for path in sys.path if path])
        patch.setattr(registry, "_entries", {})
        try:
            done = CliRunner().invoke(app, arguments)
        finally:
            for name in ("my_package.losses", "my_package"):
                sys.modules.pop(name, None)
    assert done.exit_code == 0, done.output
    return done.stdout

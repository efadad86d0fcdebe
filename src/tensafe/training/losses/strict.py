"""The model that everything made of plain data in a spec derives from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, field_validator

from .errors import config_error
from .problems import implausible

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["StrictModel"]


class StrictModel(BaseModel):
    """A frozen model that takes data for what it is: no unknown keys, no conversions, numbers finite and of 64 bits.

    An int is fine where a float is due; a bool, a string or a tensor is not.
    """

    # `frozen` stands here, not in the class line: there, mypy without the plugin would reject users' subclasses
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())

    @field_validator("*", mode="wrap")
    @classmethod
    def _plain_data(cls, value: Any, validate: Callable[[Any], Any]) -> Any:
        validated = validate(value)
        if problems := implausible(value, validated):
            raise config_error(problems, loss=None)
        return validated

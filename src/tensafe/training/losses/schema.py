"""JSON Schema of the losses and of a training config, for editors and CI: generated from what is registered.

The shape was chosen in front of yaml-language-server: where JSON Schema has two ways to say a thing, this one gives one
message on the right line, and completes.

- Names are an `anyOf` of `const`, not an `enum`: each one carries its own documentation.
- What a loss takes hangs on `if` its type is this `then` ..., never on `anyOf`: of an `anyOf` that fails, a client shows
  the branch that it likes best, which is often another loss.
- A dotted path is anything with a dot or colon at first; only then must it be well formed, which gives one message.
- Properties have no titles, since clients put them in place of the name.

A schema cannot say everything that `check_spec` does: `5.0` is an integer to JSON Schema, but not to a loss; that no two
terms of a sum share a name; that an integer where a number is due fits 64 bits too. There the validator is right.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from .adapter import ResolvedLoss
from .contract import read_contract
from .loss import Loss
from .nested import NESTED_SCHEMA
from .problems import JsonSchema
from .protocol import COUNTS, Signature, read_signature
from .registry import get_registered_losses, lookup

__all__ = ["loss_schema", "schema_files", "training_config_schema"]

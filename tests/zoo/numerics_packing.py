"""Losses that take rows of several sequences, and take each row for one all the same."""

from torch import Tensor

from tensafe.training.losses import Elements
from tensafe.training.losses.builtin.gspo import GSPO
from tensafe.training.losses.builtin.token_ce import TokenCE
from tensafe.training.losses.families.policy import Surrogate, Tokens
from tensafe.training.losses.families.tokens import Targets
from zoo.mutant import Mutant


class AcrossTheBoundary(TokenCE):
    """The last token of a sequence predicts the first of the next one."""

    def _aligned(
        self, scored: Tensor, labels: Tensor | None, shift_labels: Tensor | None, segment_ids: Tensor | None
    ) -> Tensor:
        return super()._aligned(scored, labels, shift_labels, None)


class RowsForSequences(TokenCE):
    """Labels are shifted within each sequence, and the reduction does not hear of sequences."""

    def _of_logits(self, logits: Tensor, targets: Targets, *, overwrite_logits: bool = False) -> Elements:
        return super()._of_logits(logits, targets._replace(segment_ids=None), overwrite_logits=overwrite_logits)


class OneRatioPerRow(GSPO):
    """The ratio of a sequence is that of its whole row."""

    def _surrogate(self, tokens: Tokens) -> Surrogate:
        return super()._surrogate(tokens._replace(segment_ids=None))


_PACKING = frozenset({"check_packed_rows"})

MUTANTS = [
    Mutant("a label of the next sequence", AcrossTheBoundary(), _PACKING),
    Mutant("rows for sequences", RowsForSequences(), _PACKING),
    Mutant("one ratio per row", OneRatioPerRow(), _PACKING),
]

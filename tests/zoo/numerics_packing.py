"""Losses that take rows of several sequences, and take each row for one all the same."""

from jaxtyping import Float, Int, Num
from torch import Tensor

from tensafe.training.losses import Elements
from tensafe.training.losses.builtin.gspo import GSPO
from tensafe.training.losses.builtin.token_ce import TokenCE
from tensafe.training.losses.families.policy import Surrogate, Tokens
from zoo.mutant import Mutant


class AcrossTheBoundary(TokenCE):
    """The last token of a sequence predicts the first of the next one."""

    def compute(
        self,
        logits: Float[Tensor, "*rows vocab"],
        labels: Int[Tensor, "*rows"] | None = None,
        shift_labels: Int[Tensor, "*rows"] | None = None,
        token_weights: Num[Tensor, "*rows"] | None = None,
        sample_weights: Num[Tensor, " batch"] | None = None,
        segment_ids: Int[Tensor, "*rows"] | None = None,
    ) -> Elements:
        """Say which sequence each label belongs to, after all labels were shifted."""
        elements = super().compute(logits, labels, shift_labels, token_weights, sample_weights)
        return elements._replace(segment_ids=segment_ids)


class OneRatioPerRow(GSPO):
    """The ratio of a sequence is that of its whole row."""

    def _surrogate(self, tokens: Tokens) -> Surrogate:
        return super()._surrogate(tokens._replace(segment_ids=None))


class RowsForSequences(TokenCE):
    """Labels are shifted within each sequence, and the reduction does not hear of sequences."""

    def compute(
        self,
        logits: Float[Tensor, "*rows vocab"],
        labels: Int[Tensor, "*rows"] | None = None,
        shift_labels: Int[Tensor, "*rows"] | None = None,
        token_weights: Num[Tensor, "*rows"] | None = None,
        sample_weights: Num[Tensor, " batch"] | None = None,
        segment_ids: Int[Tensor, "*rows"] | None = None,
    ) -> Elements:
        """Say nothing of sequences."""
        elements = super().compute(logits, labels, shift_labels, token_weights, sample_weights, segment_ids)
        return elements._replace(segment_ids=None)


_PACKING = frozenset({"check_packed_rows"})

MUTANTS = [
    Mutant("a label of the next sequence", AcrossTheBoundary(), _PACKING),
    Mutant("one ratio per row", OneRatioPerRow(), _PACKING),
    Mutant("rows for sequences", RowsForSequences(), _PACKING),
]

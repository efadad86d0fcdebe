"""Cross-entropy of classes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field, field_validator, model_validator

from tensafe._lazy import torch
from tensafe.training.losses.errors import LossInputError, Problem, config_error, make_error
from tensafe.training.losses.families.ids import wrong_ids
from tensafe.training.losses.guards import is_list
from tensafe.training.losses.loss import ElementLoss
from tensafe.training.losses.traits import Traits
from tensafe.training.losses.types import Elements

if TYPE_CHECKING:
    from typing import Self

    from jaxtyping import Float, Int
    from torch import Tensor

_ClassWeights = Annotated[tuple[Annotated[float, Field(ge=0)], ...], Field(min_length=1)]


class CrossEntropy(ElementLoss, name="cross_entropy"):
    r"""Cross-entropy of class logits against one label per sample: the loss of a classifier. Nothing is shifted.

    .. math:: \ell_i = (1 - \epsilon)\, w_{y_i} (-\log p_i[y_i]) + \frac{\epsilon}{C} \sum_c w_c\, (-\log p_i[c]),
        \quad p_i = \mathrm{softmax}(x_i)

    Args:
        logits: Scores :math:`x`, float `[batch classes]`. 16-bit floats are computed in float32.
        labels: Class :math:`y` of each sample, integers `[batch]`, in [0, classes) or `ignore_index`.
        class_weights: :math:`w` >= 0, one per class, not all 0; None is 1 for each. `mean` divides by the sum of the
            weights of the labels, so a common factor makes no difference there. A sample whose label has weight 0 does
            not count.
        label_smoothing: :math:`\epsilon` in [0, 1], torch's definition: 0 is plain cross-entropy, 1 is uniform targets.
        ignore_index: Label of a sample that does not count.
        reduction: See `ElementLoss`; `none` gives one value per sample, 0 where it does not count.
        metrics: Whether the result carries `num_items`, the number of samples that count (0-d int64).

    Returns:
        The loss in nats, 0-d float32 (float64 for float64 logits). A batch in which nothing counts gives 0.0, attached
        to the graph; the gradient of a sample that does not count is exactly zero, even where its logits are NaN.

    Raises:
        LossInputError: A tensor is missing or does not fit; there are more or fewer classes than `class_weights`; on
            CPU, a label is outside [0, classes) and is not `ignore_index`. On CUDA such a label trips torch's
            device-side assertion.
        LossConfigError: A kwarg is unknown or out of range.

    Note:
        Equal to torch.nn.functional.cross_entropy, but for a batch in which nothing counts, where torch gives NaN, and
        for labels of weight 0 with label smoothing, whose uniform part torch adds to the sum. Tokens, `[batch seq
        vocab]`, are the matter of `token_ce`, which shifts them.

    Example:
        >>> import torch
        >>> from tensafe.training.losses import resolve_loss
        >>> outputs, batch = {"logits": torch.tensor([[0.0, 0.0], [0.0, 9.0]])}, {"labels": torch.tensor([0, -100])}
        >>> round(resolve_loss("cross_entropy")(outputs, batch)["loss"].item(), 4)  # ln 2, and one is ignored
        0.6931

    References:
        Label smoothing: Szegedy et al., Rethinking the Inception Architecture for Computer Vision, 2015,
        arXiv:1512.00567, section 7.
    """

    _family: ClassVar[str] = "classification"
    _upcast: ClassVar[bool] = False
    _traits: ClassVar[Traits] = Traits(sample_independent=True, non_negative=True, shift_invariant=("logits",))

    class_weights: _ClassWeights | None = Field(
        default=None, description="Weight of each class, in the order of their ids; 1 for each by default."
    )
    label_smoothing: float = Field(
        default=0.0, ge=0, le=1, description="Weight of the uniform distribution in the target, torch's definition."
    )
    ignore_index: int = Field(default=-100, description="Label of a sample that does not count.")

    @field_validator("class_weights", mode="before")
    @classmethod
    def _list_of_weights(cls, value: object) -> object:
        # not `strict=False`: that would take a set, whose order means nothing, or a tensor
        return tuple(value) if is_list(value) else value

    @model_validator(mode="after")
    def _some_class_counts(self) -> Self:
        if self.class_weights is not None and not any(self.class_weights):
            message = "at least one class must have a weight above 0"
            raise config_error([Problem("all-zero", ("class_weights",), message)], loss=None)
        return self

    def compute(self, logits: Float[Tensor, "batch classes"], labels: Int[Tensor, " batch"]) -> Elements:
        """Return the cross-entropy of each sample; see the class."""
        from tensafe.training.losses.ops.cross_entropy import Formula, cross_entropy, cross_entropy_dot

        formula = Formula(self.ignore_index, self.label_smoothing)
        counts = labels != self.ignore_index
        weights = counts.to(torch.float64) if logits.dtype is torch.float64 else counts
        by_class = self._by_class(logits)
        share: Tensor | None = None
        if by_class is not None:
            # what a sample counts for is taken out of its value here, and multiplied in again by the reduction
            weights = torch.where(counts, by_class.index_select(0, torch.where(counts, labels, 0)), 0.0)
            counts = weights != 0
            share = torch.where(counts, 1 / torch.where(counts, weights, 1.0), 0.0)

        def values() -> Tensor:
            return cross_entropy(logits, labels, formula, class_weight=by_class, token_weight=share)

        def dot(c: Tensor) -> Tensor:
            return cross_entropy_dot(logits, labels, c if share is None else c * share, formula, class_weight=by_class)

        return Elements(values, weights, {"num_items": counts.sum()} if self.metrics else None, dot)

    def explain(self, logits: Float[Tensor, "batch classes"], labels: Int[Tensor, " batch"]) -> str | None:
        """Say which labels are out of range."""
        return wrong_ids("labels", labels, logits.shape[-1], ignore_index=self.ignore_index, axis="classes")

    def _by_class(self, logits: Tensor) -> Tensor | None:
        if self.class_weights is None:
            return None
        classes, given = logits.shape[-1], len(self.class_weights)
        if given != classes:
            message = f"'logits' must have one class per class weight, {given}; got classes={classes}."
            raise make_error(LossInputError, message, code="shape-mismatch", loc=("logits",))
        dtype = torch.promote_types(logits.dtype, torch.float32)
        # not straight to the device: that would wait for it
        return torch.tensor(self.class_weights, dtype=dtype).to(logits.device, non_blocking=True)

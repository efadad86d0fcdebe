"""Token-level cross-entropy from hidden states, without logits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from tensafe.training.losses.errors import LossInputError, Problem, config_error, make_error
from tensafe.training.losses.families.tokens import TokenCrossEntropy
from tensafe.training.losses.traits import Traits

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Self

    from jaxtyping import Float, Int, Num
    from torch import Tensor

    from tensafe.training.losses.types import Elements


_ABILITIES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "liger": {"reduction": ("sum", "mean"), "chunk_size": ("None",), "class_weights": ("None",)},
    "cce": {"label_smoothing": ("0.0",), "z_loss": ("0.0",), "chunk_size": ("None",), "class_weights": ("None",)},
}
"""The values of kwargs that a backend of another library can do, where it cannot do all."""


class LinearCE(TokenCrossEntropy, name="linear_ce"):
    r"""Cross-entropy of `token_ce`, from hidden states and the weight of the output layer: the logits are never held.

    .. math:: \ell_t = (1 - \epsilon)\,w_{y_t}(-\log p_t[y_t]) + \frac{\epsilon}{V} \sum_v -w_v \log p_t[v]
        + \zeta \Big(\log \sum_v e^{z_{tv}}\Big)^2, \quad p_t = \mathrm{softmax}(z_t), \quad
        z_t = c \tanh(s x_t / c), \quad x_t = W h_t + b

    Args:
        hidden_states: Last hidden states :math:`h`, float `[batch seq hidden]`, or `[N hidden]`.
        lm_head_weight: Weight :math:`W` of the output layer, float `[vocab hidden]`. It gets a gradient: pass the
            parameter itself.
        lm_head_bias: Bias :math:`b` of the output layer, float `[vocab]`; none by default.
        labels: Target ids :math:`y`, integers `[batch seq]`, or `[N]`, in [0, vocab) or `ignore_index`. With
            `[batch seq hidden]` states, position t is scored against label t + 1.
        shift_labels: Labels that are aligned with the hidden states already; used instead of `labels`, never shifted.
        token_weights: What the loss of each label is multiplied by, as in `token_ce`.
        sample_weights: What all labels of a sequence are multiplied by, `[batch]`.
        segment_ids: Which sequence of a packed row each position belongs to, integers shaped like the labels: equal
            numbers are one sequence. Nothing is predicted across two, and reductions by sequence take each for one.
            `shift_labels` are used as they are.
        ignore_index: Label of a position that does not count.
        label_smoothing: :math:`\epsilon` in [0, 1]: 0 is plain cross-entropy, 1 is uniform targets.
        smoothing_formula: What :math:`\epsilon` is spread over, as in `token_ce`.
        class_weights: :math:`w`, a number >= 0 for each of the V classes; None is 1 for all. `mean` and `sequence_mean`
            divide by the weights of the labels, as torch does.
        z_loss: :math:`\zeta` >= 0, e.g. 1e-4; 0 leaves the term out.
        softcap: :math:`c` > 0, the bound that scores approach; None is no bound, :math:`z = s x`.
        logit_scale: :math:`s` > 0; 1 leaves the logits as they are.
        shift: Whether `labels` are shifted; false says that they are aligned with the hidden states already.
        chunk_size: Tokens whose logits are held at once; None chooses by the vocabulary, 256 up to 131,072 classes.
            Fewer take less memory and more time.
        backend: `torch` is tensafe's own, for any device. `liger` and `cce` call liger-kernel and cut-cross-entropy,
            for tensors on CUDA. `auto` is `torch`.
        reduction: See `TokenLoss`; `none` gives one value per label, 0 where it does not count.
        max_length: See `TokenLoss`.
        metrics: Whether the result carries `num_tokens`, the number of labels that count (0-d int64).

    Returns:
        The loss in nats, 0-d float32 (float64 for float64 tensors). A batch in which nothing counts gives 0.0, attached
        to the graph. A position that does not count adds nothing to any gradient, even where its hidden states are NaN.

    Raises:
        LossInputError: A tensor is missing or does not fit, or `class_weights` is not as long as the vocabulary; on
            CPU, a label is outside [0, vocab) and is not `ignore_index`; the backend's library is not installed, or
            the tensors are not on CUDA; `liger` is given token or sample weights.
        LossConfigError: A kwarg is unknown or out of range, or the backend cannot do what is asked.

    Note:
        Three matrix products, as with logits; four for `reduction: none`, and for 16-bit tensors on a CPU, where they
        are computed in float32 (a 16-bit product is slow there) and no gradient is summed up in 16 bits.

        A DTensor of a weight that is sharded on its vocabulary (along one dimension of the mesh) is not gathered: four
        products, and of the hidden states' gradient the sum over the ranks. Hidden states and labels are plain and the
        same on all these ranks, or DTensors. A weight that FSDP has sharded is another thing: pass the gathered one.

    Example:
        >>> import torch
        >>> from tensafe.training.losses import resolve_loss
        >>> outputs = {"hidden_states": torch.zeros(1, 2, 3), "lm_head_weight": torch.zeros(4, 3)}
        >>> loss_fn = resolve_loss("linear_ce", shift=False)
        >>> round(loss_fn(outputs, {"labels": torch.tensor([[3, -100]])})["loss"].item(), 4)  # ln 4
        1.3863

    References:
        Wijmans et al., Cut Your Losses in Large-Vocabulary Language Models, 2024, arXiv:2411.09009, for the idea. Equal
        in value and gradient to `token_ce` of the logits.
    """

    _traits: ClassVar[Traits] = Traits(sample_independent=True, non_negative=True, shift_invariant=("lm_head_bias",))

    chunk_size: int | None = Field(
        default=None, ge=1, description="Tokens whose logits are held at once; by default chosen by the vocabulary."
    )
    backend: Literal["auto", "torch", "liger", "cce"] = Field(
        default="auto", description="Whose implementation: tensafe's own, liger-kernel's or cut-cross-entropy's."
    )

    @model_validator(mode="after")
    def _backend_can(self) -> Self:
        able = _ABILITIES.get(self.backend, {})
        problems = [
            Problem(
                "unsupported-by-backend", (name,), f"backend {self.backend} has only {' or '.join(map(str, values))}"
            )
            for name, values in able.items()
            if str(getattr(self, name)) not in values
        ]
        if problems:
            raise config_error(problems, loss=None)
        return self

    def compute(
        self,
        hidden_states: Float[Tensor, "*rows hidden"],
        lm_head_weight: Float[Tensor, "vocab hidden"],
        lm_head_bias: Float[Tensor, " vocab"] | None = None,
        labels: Int[Tensor, "*rows"] | None = None,
        shift_labels: Int[Tensor, "*rows"] | None = None,
        token_weights: Num[Tensor, "*rows"] | None = None,
        sample_weights: Num[Tensor, " batch"] | None = None,
        segment_ids: Int[Tensor, "*rows"] | None = None,
    ) -> Elements:
        """Return the cross-entropy of each label; see the class."""
        from tensafe.training.losses.ops.backends import backend

        if self.backend == "liger" and (token_weights is not None or sample_weights is not None):
            raise _no_weights("token_weights" if token_weights is not None else "sample_weights")
        targets = self._targets(hidden_states, labels, shift_labels, token_weights, sample_weights, segment_ids)
        vocab = lm_head_weight.shape[0]
        formula, class_weight = self._formula(vocab), self._class_weight(hidden_states, vocab)
        values, dot = backend(self.backend, hidden_states)
        tensors = hidden_states, lm_head_weight, targets.labels
        options: dict[str, Any] = {"bias": lm_head_bias, "chunk_size": self.chunk_size}
        if class_weight is not None:  # the other libraries' functions do not have it
            options["class_weight"] = class_weight
        return self._elements(
            targets,
            class_weight,
            lambda: values(*tensors, formula, **options),
            lambda c: dot(*tensors, c, formula, **options),
        )

    def explain(
        self,
        hidden_states: Float[Tensor, "*rows hidden"],
        lm_head_weight: Float[Tensor, "vocab hidden"],
        lm_head_bias: Float[Tensor, " vocab"] | None = None,
        labels: Int[Tensor, "*rows"] | None = None,
        shift_labels: Int[Tensor, "*rows"] | None = None,
        token_weights: Num[Tensor, "*rows"] | None = None,
        sample_weights: Num[Tensor, " batch"] | None = None,
        segment_ids: Int[Tensor, "*rows"] | None = None,
    ) -> str | None:
        """Say which labels are out of range."""
        return self._wrong_labels(hidden_states, labels, shift_labels, segment_ids, lm_head_weight.shape[0])


def _no_weights(name: str) -> LossInputError:
    message = f"backend liger: liger-kernel counts every token alike, so it cannot honour {name!r}."
    return make_error(LossInputError, message, code="backend", loc=(name,), hint="Use backend: torch.")

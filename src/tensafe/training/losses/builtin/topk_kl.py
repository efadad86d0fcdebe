"""Forward KL from the few likeliest tokens of a teacher."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from tensafe.training.losses.families.distillation import Distillation
from tensafe.training.losses.families.ids import wrong_ids
from tensafe.training.losses.traits import Traits

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

    from tensafe.training.losses.types import Elements


class TopKKL(Distillation, name="topk_kl"):
    r"""Forward KL from a teacher of whom only the likeliest tokens are known, as inference servers give them.

    .. math:: \ell_t = \sum_j P_t[j] \log \frac{P_t[j]}{S_t[j]}

    Over what :math:`j` goes, and what :math:`P` and :math:`S` are, `tail` says. With :math:`p_k` the given
    probabilities, :math:`p_0 = 1 - \sum_k p_k` the rest, :math:`q = \mathrm{softmax}(s)` at the same tokens, and
    :math:`q_0` its rest:

    - `bucket`: :math:`P_j \propto p_j^{1/\tau}`, :math:`S_j \propto q_j^{1/\tau}` over the given tokens and the rest.
    - `drop`: the same, but the sum leaves the rest out.
    - `renormalise_teacher`: :math:`P_k \propto p_k^{1/\tau}` over the given tokens alone; :math:`S` is
      :math:`\mathrm{softmax}(s / \tau)` over the whole vocabulary.
    - `renormalise_both`: :math:`P_k \propto p_k^{1/\tau}`, :math:`S_k \propto q_k^{1/\tau}` over the given tokens
      alone.

    Args:
        logits: The student's scores :math:`s`, float `[batch seq vocab]`, or `[N vocab]`. 16-bit floats are computed in
            float32.
        teacher_ids: Ids of the given tokens, integers `[batch seq k]`, or `[N k]`, in [0, vocab), each once per
            position, in any order.
        teacher_logps: Their log-probabilities, float, same shape, in nats, <= 0, at temperature 1 whatever
            `temperature` is. No gradient. -inf marks an entry that is not there (padding), whatever its id; a position
            that has no entry has loss 0.
        labels: Integers `[batch seq]`, or `[N]`, that say what counts: not `ignore_index`. With `[batch seq vocab]`
            logits, position t counts when label t + 1 does; the teacher's entries are aligned with the logits and never
            shifted. None: every position counts.
        shift_labels: Labels that are aligned with the logits already; used instead of `labels` and never shifted.
        segment_ids: Which sequence of a packed row each position belongs to, integers shaped like the labels: equal
            numbers are one sequence. Nothing is predicted across two, and reductions by sequence take each for one.
            `shift_labels` are used as they are.
        tail: What becomes of the tokens that are not given; see above. `bucket` loses least: the student learns how
            much mass to leave for them. With `drop` more mass on the given ones than the teacher has there is better
            still, and the loss may be negative. `renormalise_teacher` wants all mass on the given ones, so that it is
            not 0 for a student equal to the teacher. `renormalise_both` does not care how much mass they have.
        temperature: :math:`\tau` > 0. Above 1 both distributions are softer.
        scale_tau2: Whether the values are multiplied by :math:`\tau^2`, which keeps the size of the gradient when the
            temperature changes.
        ignore_index: Label of a position that does not count.
        shift: Whether `labels` are shifted; false says that they are aligned with the logits already.
        reduction: See `TokenLoss`; `none` gives one value per position, 0 where it does not count.
        max_length: See `TokenLoss`.
        metrics: Whether the result carries `num_tokens`, the number of positions that count (0-d int64).

    Returns:
        The loss in nats, 0-d float32 (float64 for float64 logits), >= 0 except for `drop`. A given token that only the
        student has masked (-inf) makes it infinite. Where the student has masked all but given tokens, the teacher's
        rest is taken for rounding. A batch in which nothing counts gives 0.0, attached to the graph; the gradient of a
        position that does not count is exactly zero, even where its logits are NaN.

    Raises:
        LossInputError: A tensor is missing or does not fit; on CPU, an id of an entry that counts is outside
            [0, vocab).
        LossConfigError: A kwarg is unknown or out of range.

    Note:
        `bucket` and `renormalise_both` are TRL's `IWOPDTrainer.generalized_jsd_loss` of `top_k` and `beta=0`, with
        `add_tail` on and off; at a temperature other than 1 TRL's bucket has the rest of softened distributions, for
        which the whole teacher is needed. `renormalise_teacher` is axolotl's sum for log-probabilities that were
        renormalised; it divides by the number of entries, not of positions. `drop` at temperature 1 is verl's
        `forward_kl_topk` but for its clamps.

    Example:
        >>> import torch
        >>> from tensafe.training.losses import resolve_loss
        >>> outputs = {"logits": torch.zeros(1, 4)}
        >>> batch = {"teacher_ids": torch.tensor([[2]]), "teacher_logps": torch.tensor([[0.5]]).log()}
        >>> tails = ("bucket", "drop", "renormalise_teacher", "renormalise_both")  # P = 1/2, S = 1/4, rest 1/2 and 3/4
        >>> [round(resolve_loss("topk_kl", tail=tail)(outputs, batch)["loss"].item(), 4) for tail in tails]
        [0.1438, 0.3466, 1.3863, 0.0]

    References:
        Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural Network, 2015, arXiv:1503.02531, section 2, for
        the divergence of which this is a part.
    """

    _traits: ClassVar[Traits] = Traits(sample_independent=True, non_negative=True, shift_invariant=("logits",))

    tail: Literal["bucket", "drop", "renormalise_teacher", "renormalise_both"] = Field(
        default="bucket",
        description="What becomes of the tokens the teacher does not give: one bucket more, dropped, or renormalised "
        "away for the teacher or for both.",
    )

    def compute(
        self,
        logits: Float[Tensor, "*rows vocab"],
        teacher_ids: Int[Tensor, "*rows k"],
        teacher_logps: Float[Tensor, "*rows k"],
        labels: Int[Tensor, "*rows"] | None = None,
        shift_labels: Int[Tensor, "*rows"] | None = None,
        segment_ids: Int[Tensor, "*rows"] | None = None,
    ) -> Elements:
        """Return the divergence at each position; see the class."""
        from tensafe.training.losses.ops.topk_divergence import TopK, topk_divergence, topk_divergence_dot

        counts, scale = self._counts(logits, labels, shift_labels, segment_ids), self._scale
        given, formula = (logits, teacher_ids, teacher_logps.detach()), TopK(self.tail, self.temperature)
        return self._elements(
            logits,
            counts,
            segment_ids,
            lambda: scale * topk_divergence(*given, formula, counts=counts),
            lambda c: topk_divergence_dot(*given, scale * c, formula),
        )

    def explain(
        self,
        logits: Float[Tensor, "*rows vocab"],
        teacher_ids: Int[Tensor, "*rows k"],
        teacher_logps: Float[Tensor, "*rows k"],
        labels: Int[Tensor, "*rows"] | None = None,
        shift_labels: Int[Tensor, "*rows"] | None = None,
        segment_ids: Int[Tensor, "*rows"] | None = None,
    ) -> str | None:
        """Say which ids are out of range."""
        given = (teacher_logps != -float("inf")) & self._counts(logits, labels, shift_labels, segment_ids).unsqueeze(-1)
        return wrong_ids("teacher_ids", teacher_ids, logits.shape[-1], counts=given)

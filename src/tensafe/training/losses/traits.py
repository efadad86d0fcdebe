"""What a loss claims about itself as a function, beyond its kwargs and tensors."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Traits"]


class Traits(NamedTuple):
    """Mathematical properties that a loss claims; `tensafe.training.losses.testing` holds it to each of them.

    A class says them as `_traits: ClassVar[Traits] = Traits(non_negative=True)`. They speak of the loss with its
    default kwargs, and of values that its tensors may have: log-probabilities <= 0, probabilities that add up to 1.

    Attributes:
        sample_independent: Whether the values of a sample, and so what it adds to any gradient, depend on nothing of
            another sample. The sum over a batch is then the sum over its samples, whatever micro-batches they come in,
            and what a sample adds can be clipped (DP-SGD). Of a `mean` only the numerator is spoken of: its denominator
            counts the whole batch, unless `num_items_in_batch` is given. False says that samples are coupled, as
            in-batch negatives couple them; None claims nothing.
        non_negative: Whether no value is below 0.
        zero_where_equal: Two tensors that give a loss of 0, and a zero gradient, where they are equal.
        symmetric_in: Pairs of tensors that may be swapped.
        shift_invariant: Tensors to whose last axis any number may be added, another one in each row.
        permutation_invariant: Whether the order of the samples in a batch makes no difference.
        surrogate: Whether the gradient, by definition, is not that of the value: part of the value is held fixed.
        twice_differentiable: Whether the gradient can be differentiated again.
        sampled_with: Optional tensors that a sample must have to tell anything: without `old_logps`, say, every
            probability ratio is 1.
        passes_gradient_to: Tensors that get a gradient, if they require one, though the model that learns did not
            compute them, such as a teacher's that learns too. Without this claim such tensors get none.
    """

    sample_independent: bool | None = None
    non_negative: bool = False
    zero_where_equal: tuple[str, str] | None = None
    symmetric_in: tuple[tuple[str, str], ...] = ()
    shift_invariant: tuple[str, ...] = ()
    permutation_invariant: bool = True
    surrogate: bool = False
    twice_differentiable: bool = True
    sampled_with: tuple[str, ...] = ()
    passes_gradient_to: tuple[str, ...] = ()

    def in_words(self) -> list[str]:
        """Return what is claimed, a sentence each; names are in backticks."""
        told = {
            _INDEPENDENT: self.sample_independent is True,
            _COUPLED: self.sample_independent is False,
            "It is never negative.": self.non_negative,
            "The order of the samples matters.": not self.permutation_invariant,
            "By definition its gradient is not that of its value.": self.surrogate,
            "Its gradient cannot be differentiated again.": not self.twice_differentiable,
        }
        said = [sentence for sentence, is_so in told.items() if is_so]
        if self.zero_where_equal is not None:
            said.append(f"It is 0 where {_names(self.zero_where_equal)} are equal, and so is its gradient.")
        said += [f"{_names(pair)} may be swapped." for pair in self.symmetric_in]
        if self.shift_invariant:
            said.append(f"A number added to a row of {_names(self.shift_invariant, 'or')} changes nothing.")
        if self.passes_gradient_to:
            said.append(f"{_names(self.passes_gradient_to)} may require a gradient, and get it.")
        return said


_INDEPENDENT = "No sample of a batch depends on another: the gradient of each can be clipped, as DP-SGD does."
_COUPLED = "The samples of a batch depend on each other: the loss is not the sum over its micro-batches."


def _names(names: tuple[str, ...], last: str = "and") -> str:
    return f" {last} ".join(f"`{name}`" for name in names)

"""The same loss however a batch is cut, over accumulation steps and ranks; see docs/scaling.md.

`count_items` counts what a loss divides by over all of them, and `gradient_scale` undoes the mean that ranks take.
`gather_rows` gives a loss that compares samples those of all ranks. `shifted_labels` aligns labels with the logits
before a sequence is cut, and `segment_ids_from` says which sequences a packed row holds.
"""

from .counting import count_items
from .ranks import gradient_scale, sum_over_ranks
from .rows import gather_rows
from .sequences import segment_ids_from, shifted_labels, shifted_weights

__all__ = [
    "count_items",
    "gather_rows",
    "gradient_scale",
    "segment_ids_from",
    "shifted_labels",
    "shifted_weights",
    "sum_over_ranks",
]

from collections.abc import Iterator

import pytest
import torch

from tensafe.integrations.windows import CountedWindows
from tensafe.training.losses import resolve_loss

Batch = dict[str, torch.Tensor]


def batches() -> list[Batch]:
    return [{"labels": torch.tensor([[7] * labels + [-100] * (6 - labels)])} for labels in (6, 1, 3, 2, 5)]


def test_each_batch_has_the_count_of_its_window() -> None:
    windows = CountedWindows(batches(), resolve_loss("token_ce"), size=2)
    assert [int(each.counts["num_items_in_batch"]) for each in windows] == [5, 5, 3, 3, 4]
    assert [each.batch["labels"].tolist() for each in windows] == [each["labels"].tolist() for each in batches()]
    assert len(windows) == 5


def test_a_loader_is_read_a_window_ahead_and_no_further() -> None:
    read: list[int] = []

    def loader() -> Iterator[Batch]:
        for number, batch in enumerate(batches()):
            read.append(number)
            yield batch

    windows = iter(CountedWindows(loader(), resolve_loss("token_ce"), size=2))
    next(windows)
    assert read == [0, 1]


def test_the_parts_of_a_window_add_up_to_its_loss() -> None:
    generator = torch.Generator().manual_seed(0)
    made = [{**each, "logits": torch.randn(1, 6, 9, generator=generator).double()} for each in batches()[:3]]
    loss_fn = resolve_loss("token_ce")
    parts = [loss_fn({}, batch, **counts)["loss"] for batch, counts, _ in CountedWindows(made, loss_fn, size=3)]
    whole = loss_fn({}, {name: torch.cat([each[name] for each in made]) for name in made[0]})["loss"]
    torch.testing.assert_close(sum(parts), whole, rtol=1e-14, atol=0)


def test_a_loader_without_a_length_has_none() -> None:
    with pytest.raises(TypeError, match="generator"):
        len(CountedWindows((batch for batch in batches()), resolve_loss("token_ce"), size=2))

"""What a step takes: counted, measured, and predicted from shapes."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from support import run_child
from tensafe._memory import COUNTED, ON_CUDA, RESIDENT, MemoryMeter, count_peak, measure_peak

if TYPE_CHECKING:
    from collections.abc import Callable

KIB = 256  # float32 elements
HERE = torch.zeros(KIB)


def two_at_once() -> None:
    first = torch.ones(KIB)
    second = first + 1
    del first, second


def one_after_the_other() -> None:
    torch.ones(KIB)
    torch.ones(2 * KIB)


def views() -> None:
    whole = torch.ones(4, KIB // 4)
    whole.t()[1:].unsqueeze(0)


def in_place() -> None:
    torch.ones(KIB).mul_(2).add_(1)


def what_was_there_before() -> None:
    HERE.view(2, -1).t()
    HERE.zero_()


def kept_for_the_backward_pass() -> None:
    leaf = torch.ones(KIB, requires_grad=True)
    torch.autograd.backward((leaf.exp() * 2).sum())  # at last leaf, exp, which is kept, and the gradients of both


@pytest.mark.parametrize(
    ("run", "kib"),
    [
        (two_at_once, 2),
        (one_after_the_other, 2),
        (views, 1),
        (in_place, 1),
        (what_was_there_before, 0),
        (kept_for_the_backward_pass, 4),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_the_meter_counts_storages_while_they_live(run: Callable[[], None], kib: int) -> None:
    with MemoryMeter() as meter:
        run()
    assert meter.peak == pytest.approx(1024 * kib, abs=16)  # and a few scalars
    assert meter.live <= 16


def test_what_is_too_little_to_show_is_not_measured_but_counted() -> None:
    kept, peak = measure_peak(lambda: torch.ones(4 * KIB), torch.device("cpu"))
    assert peak is None
    kept, peak = count_peak(lambda: torch.ones(4 * KIB))
    assert kept.sum() == 4 * KIB
    assert peak == (4096, COUNTED)


RESIDENT_SETS = """
import json, torch
from tensafe._memory import freeing_at_once, measure_peak
MIB = 2**18
def one(): return torch.ones(100 * MIB)
def freed(): torch.ones(60 * MIB); return one()
def both(): first = torch.ones(60 * MIB); return first + torch.ones(60 * MIB)
def outside_of_torch(): return bytearray(100 << 20).upper()
def show(run): print(json.dumps((run.__name__, *measure_peak(run, torch.device("cpu"))[1])))
for run in (one, freed, both, outside_of_torch): show(run)
def pieces():
    kept = []
    for size in range(8, 16): kept.append(torch.ones(size * MIB)); torch.ones(size * MIB // 2)
    return kept[::2]
def of_any_size(): pieces(); return pieces()
with freeing_at_once(): of_any_size(); show(of_any_size)
def after_many_small_ones(): return one()
small = [torch.ones(20_000) for _ in range(3_000)]
del small[:-1]  # the allocator keeps what lies below the last
show(after_many_small_ones)
"""


def can_reset_the_resident_peak() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return "VmHWM" in Path("/proc/self/status").read_text()


@pytest.mark.skipif(not can_reset_the_resident_peak(), reason="the system does not reset the peak of a resident set")
def test_the_resident_set_shows_what_was_taken() -> None:
    found = [json.loads(line) for line in run_child(RESIDENT_SETS).splitlines()]
    assert [source for _, _, source in found] == [RESIDENT] * 6
    expected = {"one": 100.0, "freed": 100.0, "both": 180.0, "outside_of_torch": 200.0}
    expected |= {"of_any_size": sum(range(8, 16)) + 7.5, "after_many_small_ones": 100}
    assert {name: size / 2**20 for name, size, _ in found} == pytest.approx(expected, rel=0.05)


CHECKS = """
import json, sys, torch
from typer.testing import CliRunner
from tensafe.cli import app
torch.set_num_threads(1)
for config, arguments in json.loads(sys.argv[1]):
    result = CliRunner().invoke(app, ["check", "-", *arguments.split()], input=config)
    print(json.dumps(result.output))
"""
CASES = {
    "token_ce": ("loss: token_ce", "--batch 1 --seq 256"),
    "token_ce-bfloat16": ("loss: token_ce", "--batch 1 --seq 512 --dtype bfloat16"),
    "token_ce-none": ("loss: {type: token_ce, kwargs: {reduction: none, label_smoothing: 0.1}}", "--batch 1 --seq 256"),
    "token_ce-overwriting": ("loss: {type: token_ce, kwargs: {overwrite_logits: true}}", "--batch 1 --seq 256"),
    "linear_ce": ("loss: linear_ce", "--batch 1 --seq 512 --hidden 64"),
    "linear_ce-bfloat16": ("loss: linear_ce", "--batch 1 --seq 512 --hidden 64 --dtype bfloat16"),
    "mse": ("loss: mse", "--batch 9000000"),
}
if torch.cuda.is_available():
    CASES |= {f"{case}-cuda": (config, f"{rest} --device cuda") for case, (config, rest) in CASES.items()}


@cache
def checks() -> dict[str, str]:
    """Run the cases in one child, which pays for importing torch once."""
    lines = run_child(CHECKS, arguments=(json.dumps(list(CASES.values())),)).splitlines()
    return dict(zip(CASES, map(json.loads, lines), strict=True))


def peak_in(output: str, kind: str) -> float:
    row = re.search(rf"peak memory, {kind} +│ ([\d.]+) ([KM])iB above the tensors", output)
    assert row, output
    return float(row[1]) * {"K": 1, "M": 1024}[row[2]]


@pytest.mark.parametrize("case", CASES)
def test_what_is_predicted_is_what_is_measured(case: str) -> None:
    output = checks()[case]
    assert (ON_CUDA in output) is case.endswith("cuda")
    assert peak_in(output, "predicted") == pytest.approx(peak_in(output, "measured"), rel=0.15)


NEEDS = """
import json, torch
from tensafe._memory import count_peak, freeing_at_once, measure_peak
from tensafe.cli.step import compare
from tensafe.training.losses import resolve_loss
from tensafe.training.losses.samples import SampleSettings

torch.set_num_threads(1)
vocab, width = 32_000, 32
batch = {"labels": torch.randint(vocab, (2, 256))}
token_ce, linear_ce = resolve_loss("token_ce"), resolve_loss("linear_ce")

def needs(dtype):
    hidden, weight = torch.randn(2, 256, width), torch.randn(vocab, width)
    hidden, weight = (one.to(getattr(torch, dtype)).requires_grad_() for one in (hidden, weight))

    def whole():
        outputs = {"logits": hidden @ weight.T}
        token_ce(outputs, batch)["loss"].backward()

    def lean():
        linear_ce({"hidden_states": hidden, "lm_head_weight": weight}, batch)["loss"].backward()

    found = compare(token_ce, SampleSettings({"batch": 2, "seq": 256, "vocab": vocab, "hidden": width}, dtype))
    measured = []
    for run in (whole, lean):
        with freeing_at_once():
            for measure in (count_peak, lambda run: measure_peak(run, hidden.device)):  # the first one warms up
                hidden.grad = weight.grad = None
                peak = measure(run)[1] or peak
        measured.append(peak.size)
    return measured, [found.need, found.leaner_need]

print(json.dumps({dtype: needs(dtype) for dtype in ("float32", "bfloat16")}))
"""


@cache
def needs() -> dict[str, tuple[list[int], list[int]]]:
    """Compare for all dtypes in one child."""
    found: dict[str, tuple[list[int], list[int]]] = json.loads(run_child(NEEDS))
    return found


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_comparison_tells_what_either_way_takes_from_hidden_states_to_their_gradients(dtype: str) -> None:
    measured, predicted = needs()[dtype]
    assert predicted == pytest.approx(measured, rel=0.15)

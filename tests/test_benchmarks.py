"""The benchmarks' own machinery, on tensors too small to say anything about speed."""

from __future__ import annotations

import json
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.rows import Row

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _from_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))


def one_row(**limits: float) -> Row:
    from benchmarks.rows import ROWS, Limits

    row = next(row for row in ROWS if row.name == "ce-fp32")
    return row._replace(limits=Limits(**limits), held=("tensafe",))  # type: ignore[arg-type]  # some are int


def run(tmp_path: Path, row: Row, *options: str) -> tuple[int, dict[str, Any]]:
    from benchmarks.__main__ import main

    path = tmp_path / "report.json"
    always = ("--sizes", "tiny", "--quick", "--no-peers", "--no-memory", "--json", str(path))
    status = main([*always, *options], [row])
    return status, json.loads(path.read_text("utf-8"))


def test_a_report_says_where_how_and_what(tmp_path: Path) -> None:
    status, report = run(tmp_path, one_row())
    assert status == 0
    assert {"cpu", "cores", "torch", "threads", "date"} <= set(report["machine"])
    assert report["options"] == {"quick": True, "threads": 1, "device": "cpu", "sizes": "tiny"}
    (result,) = report["rows"]
    assert (result["row"], result["detail"]) == ("ce-fp32", "rows 12, vocab 50; float32")
    by_name = {figures["contender"]: figures for figures in result["contenders"]}
    assert set(by_name) == {"tensafe", "tensafe, per token", "F.cross_entropy", "copy"}
    for name, figures in by_name.items():
        lower, median, upper = figures["seconds"]
        assert 0 < lower <= median <= upper
        assert (figures["error"] is None) == (name == "copy")
    assert by_name["F.cross_entropy"]["time"] == [1.0, 1.0, 1.0]
    assert by_name["tensafe"]["error"] < 1e-5


@pytest.mark.parametrize(
    ("limits", "missed"),
    [
        pytest.param({"time": 1e9, "error": 1e-3}, [], id="met"),
        pytest.param({"time": 1e-9}, ["time"], id="time"),
        pytest.param({"floor": 1e-9, "error": -1.0}, ["time over the floor", "error"], id="floor and error"),
        pytest.param({"memory": 0.0}, [], id="not measured"),
    ],
)
def test_check_fails_where_a_target_is_missed_and_names_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], limits: dict[str, float], missed: list[str]
) -> None:
    status, report = run(tmp_path, one_row(**limits), "--check")
    assert status == (1 if missed else 0)
    assert len(report["misses"]) == len(missed)
    printed = " ".join(capsys.readouterr().out.split())
    for what, miss in zip(missed, report["misses"], strict=True):
        assert miss.startswith(f"ce-fp32: tensafe: {what} ")
        assert f"missed: {miss}" in printed


def test_without_check_a_missed_target_is_no_failure(tmp_path: Path) -> None:
    status, report = run(tmp_path, one_row(time=1e-9))
    assert status == 0
    assert len(report["misses"]) == 1


def test_a_contender_that_fails_or_is_missing_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import work
    from benchmarks.peers import attribute

    def fail() -> torch.Tensor:
        raise ValueError("no good")

    def broken(setting: work.Setting) -> work.Work:
        whole = real(setting)
        contenders = {**whole.contenders, "tensafe": lambda: fail, "a peer": lambda: attribute("no_such_library:loss")}
        whole.contenders = contenders
        return whole

    real = work.WORKS["cross_entropy"]
    monkeypatch.setitem(work.WORKS, "cross_entropy", broken)
    status, report = run(tmp_path, one_row(time=1e9), "--check")
    assert status == 1
    assert report["misses"] == ["ce-fp32: tensafe: failed: ValueError: no good"]
    assert "no_such_library" in report["rows"][0]["left_out"]["a peer"]
    assert {figures["contender"] for figures in report["rows"][0]["contenders"] if figures["seconds"]} == {
        "F.cross_entropy",
        "tensafe, per token",
        "copy",
    }


def test_markdown_replaces_what_stands_between_the_markers(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A\n<!-- benchmarks: start -->\nold\n<!-- benchmarks: end -->\nZ\n", "utf-8")
    row = one_row(time=1e-9)
    run(tmp_path, row, "--markdown", str(page))
    first = page.read_text("utf-8")
    assert first.startswith("# A\n<!-- benchmarks: start -->\n")
    assert first.endswith("\n<!-- benchmarks: end -->\nZ\n")
    assert "old" not in first
    assert "| **tensafe** |" in first
    assert "<= 1e-09x: missed" in first
    run(tmp_path, row, "--load", str(tmp_path / "report.json"), "--markdown", str(page))
    assert page.read_text("utf-8") == first


def test_a_picture_needs_matplotlib(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "report.png"
    if find_spec("matplotlib") is None:
        with pytest.raises(SystemExit):
            run(tmp_path, one_row(), "--png", str(picture))
        assert "matplotlib" in capsys.readouterr().err
    else:
        run(tmp_path, one_row(), "--png", str(picture))
        assert picture.read_bytes().startswith(b"\x89PNG")


def test_markdown_needs_both_markers(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A\n<!-- benchmarks: start -->\n", "utf-8")
    with pytest.raises(ValueError, match="benchmarks: end"):
        run(tmp_path, one_row(), "--markdown", str(page))
    assert page.read_text("utf-8") == "# A\n<!-- benchmarks: start -->\n"


def test_the_page_has_the_markers() -> None:
    text = (ROOT / "docs" / "benchmarks.md").read_text("utf-8")
    assert 0 < text.index("<!-- benchmarks: start -->") < text.index("<!-- benchmarks: end -->")


def test_every_row_names_contenders_that_there_are() -> None:
    from benchmarks.checks import OURS
    from benchmarks.rows import ROWS, TINY
    from benchmarks.work import WORKS, Setting

    names = Counter(row.name for row in ROWS)
    assert max(names.values()) == 1
    for row in ROWS:
        if row.kind == "work":
            sizes = {name: min(size, TINY[name]) for name, size in row.sizes.items()}
            contenders = set(WORKS[row.work](Setting(sizes, row.dtype)).contenders)
            assert {row.base, *row.held, *filter(None, [row.floor])} <= contenders, row.name
        elif row.kind == "check":
            assert {row.base, *row.held} <= set(OURS)


@pytest.mark.parametrize("only", ["ce-fp64", "nothing"])
def test_an_unknown_row_is_refused(only: str, capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks.__main__ import main

    with pytest.raises(SystemExit) as stopped:
        main(["--only", "kl", only])
    assert stopped.value.code == 2
    assert f"no such row: {only};" in capsys.readouterr().err


def test_contenders_take_turns_and_one_that_fails_has_no_more() -> None:
    from benchmarks.timing import Rounds, interleave

    calls: list[str] = []

    def step(name: str, fails_at: int) -> Callable[[], torch.Tensor]:
        def call() -> torch.Tensor:
            calls.append(name)
            if calls.count(name) == fails_at:
                raise RuntimeError("enough")
            return torch.tensor(float(calls.count(name)))

        return call

    samples = interleave(
        {"a": step("a", 99), "b": step("b", 2), "c": step("c", 99)},
        lambda: None,
        Rounds(least=3, enough=3, shortest=0.0),
        device="cpu",
        tick=lambda name: None,
        warm_up=False,
    )
    assert "".join(calls) == "bcacabac"
    assert samples["b"].failed == "RuntimeError: enough"
    assert len(samples["a"].seconds) == len(samples["c"].seconds) == 3
    assert samples["c"].value == torch.tensor(3.0)


def test_the_peak_is_that_of_one_call_in_a_process_of_its_own() -> None:
    from benchmarks.memory import measure_peak
    from benchmarks.work import Setting

    rows, vocab = 256, 20_000
    peak = measure_peak("cross_entropy", "F.cross_entropy", Setting({"rows": rows, "vocab": vocab}), threads=1)
    if sys.platform == "linux":
        assert peak is not None
        assert peak / (4 * rows * vocab) == pytest.approx(3.0, rel=0.05)  # log-softmax, what nll_loss fills, gradient
    else:
        assert peak is None


def test_a_contender_that_fails_in_its_process_says_why() -> None:
    from benchmarks.memory import measure_peak
    from benchmarks.work import Setting

    with pytest.raises(RuntimeError, match="KeyError: 'nobody'"):
        measure_peak("cross_entropy", "nobody", Setting({"rows": 4, "vocab": 5}), threads=1)


@pytest.mark.parametrize(
    ("name", "missed"),
    [
        pytest.param("tensafe", 0, id="tensafe"),
        pytest.param("by hand", 0, id="by hand"),
        pytest.param("by hand, the six faults only", 0, id="the six faults only"),
        pytest.param("jaxtyping, isinstance", 0, id="jaxtyping"),
        pytest.param("jaxtyping + beartype", 1, id="beartype: the return is a mapping"),
        pytest.param("pydantic TypeAdapter", 0, id="pydantic"),
    ],
)
def test_each_check_finds_what_the_page_says(name: str, missed: int) -> None:
    from benchmarks import check_cost
    from benchmarks.checks import OURS, PEERS

    assert check_cost._missed({**OURS, **PEERS}[name]) == missed

"""How the checks are run and reported: by hand, under pytest, with failures that are expected."""

from typing import Any
from unittest import SkipTest

import pytest
import torch

from tensafe.training.losses import LossTypeError, UnknownLossError
from tensafe.training.losses.testing import (
    GROUPS,
    CheckResult,
    ConformanceError,
    all_checks,
    assert_loss_conforms,
    loss_checks_generator,
    verdict,
)
from tensafe.training.losses.testing.catalogue import find_check
from tensafe.training.losses.testing.runner import run_check
from zoo.healthy import CarefulCE, careful_ce

pytest_plugins = ["pytester"]


def detached(outputs: Any, batch: Any) -> Any:
    """A mean squared error whose gradient is lost."""
    error = outputs["predictions"].detach() - batch["targets"]
    return {"loss": error.square().mean() + 0 * outputs["predictions"].sum()}


def status_of(results: list[CheckResult], check: str) -> str:
    return next(result["status"] for result in results if result["check_name"] == check)


def test_every_check_has_a_group_a_summary_and_advice() -> None:
    for check in all_checks():
        assert check.group in GROUPS
        assert check.name.startswith("check_")
        assert check.summary.endswith(".")
        assert len(check.advice) > 20


def test_a_failure_says_what_to_do_and_shows_the_call() -> None:
    with pytest.raises(ConformanceError) as caught:
        assert_loss_conforms(detached, groups=["numerics"], on_skip=None)
    assert status_of(caught.value.results, "check_gradcheck") == "failed"
    failed = next(result for result in caught.value.results if result["check_name"] == "check_gradcheck")
    assert failed["exception"] is not None
    assert failed["exception"].__traceback__ is not None
    for part in ("check_gradcheck", ".detach()", "torch.tensor(", "'predictions'", "tensafe-conformance"):
        assert part in str(caught.value)


def test_the_call_that_is_shown_can_be_run() -> None:
    result = run_check(find_check("gradcheck"), "mse", None)
    assert result["input"] is None  # it passed
    failed = run_check(find_check("gradcheck"), detached)
    assert failed["input"] is not None
    code = failed["input"].replace(f"resolve_loss({detached.__module__ + ':detached'!r})", "resolve_loss(detached)")
    names: dict[str, Any] = {"detached": detached}
    exec(code, names)
    assert isinstance(names["result"]["loss"], torch.Tensor)


def test_all_failures_are_reported_at_once() -> None:
    results = assert_loss_conforms(detached, groups=["core", "numerics"], on_fail=None, on_skip=None)
    assert {result["check_name"] for result in results} == {
        check.name for check in all_checks() if check.group in {"core", "numerics"}
    }


def test_results_come_one_by_one() -> None:
    seen: list[CheckResult] = []
    results = assert_loss_conforms("mse", groups="numerics", on_skip=None, callback=seen.append)
    assert seen == results


def test_warnings_in_place_of_errors() -> None:
    with pytest.warns(UserWarning, match="check_") as caught:
        assert_loss_conforms(detached, groups=["numerics"], on_fail="warn", on_skip="warn")
    told = [str(warning.message).partition(":")[0] for warning in caught]
    assert {"check_gradcheck", "check_matches_reference"} <= set(told)  # one that failed, one that was skipped


@pytest.mark.parametrize("name", ["check_gradcheck", "gradcheck"])
def test_an_expected_failure_is_run_and_is_no_failure(name: str) -> None:
    results = assert_loss_conforms(
        detached, groups=["numerics"], expected_failed_checks={name: "by design"}, on_fail=None, on_skip=None
    )
    assert status_of(results, "check_gradcheck") == "xfail"
    found = next(result for result in results if result["check_name"] == "check_gradcheck")
    assert found["expected_to_fail_reason"] == "by design"


def test_a_failure_that_does_not_come_is_one() -> None:
    with pytest.raises(ConformanceError, match="passed, though it was expected to fail: old news"):
        assert_loss_conforms("mse", groups=["numerics"], expected_failed_checks={"gradcheck": "old news"}, on_skip=None)


def test_misspelt_names_are_refused() -> None:
    with pytest.raises(LossTypeError, match="Did you mean numerics"):
        assert_loss_conforms("mse", groups=["numeric"])
    with pytest.raises(LossTypeError, match="Did you mean check_gradcheck"):
        assert_loss_conforms("mse", expected_failed_checks={"check_gradchek": "no"})
    with pytest.raises(UnknownLossError, match="token_ce"):
        assert_loss_conforms("token_cee")


def test_a_loss_that_cannot_be_sampled_does_not_conform() -> None:
    def strange(outputs: Any, batch: Any) -> Any:
        return outputs["a_tensor_nobody_knows"].sum()

    results = assert_loss_conforms(strange, groups=["numerics"], on_fail=None, on_skip=None)
    assert "pass LossInfo(sample_inputs=...)" in str(results[0]["exception"])
    assert "conforms" not in verdict(results)


def test_the_verdict_counts_and_names_the_reasons() -> None:
    def result(status: Any, group: str, why: str | None = None) -> CheckResult:
        return {
            "check_name": "check_x",
            "group": group,
            "status": status,
            "exception": None if why is None else Exception(why),
            "expected_to_fail": False,
            "expected_to_fail_reason": None,
            "advice": None,
            "input": None,
            "seconds": 0.0,
        }

    core, numerics, tooling = (result("passed", group) for group in ("core", "numerics", "tooling"))
    skipped = result("skipped", "tooling", "no CUDA")
    line = verdict([core, numerics, skipped, skipped])
    assert line == "tensafe-conformance: 2 passed, 2 skipped (no CUDA), 0 failed; conforms"
    assert verdict([core, numerics, tooling]).endswith("conforms, compilable")
    assert verdict([core, numerics, result("failed", "tooling", "no")]).endswith("1 failed; conforms")
    assert verdict([core, result("failed", "numerics", "no")]).endswith("does not conform")
    assert verdict([core]).endswith("only core checked")
    assert verdict([core, numerics, result("xfail", "numerics", "no")]).endswith("does not conform")


def test_the_generator_gives_each_check_for_a_loss() -> None:
    failing: set[str] = set()
    for loss, check in loss_checks_generator(detached, groups=["numerics"]):
        try:
            check(loss)
        except SkipTest:
            continue
        except AssertionError as error:
            failing.add(str(error).partition(" ")[0])
    assert "Jacobian" in failing


USERS_TESTS = """
from tensafe.training.losses.testing import parametrize_with_loss_checks

def detached(outputs, batch):
    error = outputs["predictions"].detach() - batch["targets"]
    return {"loss": error.square().mean() + 0 * outputs["predictions"].sum()}

@parametrize_with_loss_checks(["mse", detached], groups=["numerics"], expected_failed_checks=lambda loss: EXPECTED)
def test_conforms(loss, check):
    check(loss)

def test_by_the_fixture(loss_conformance):
    loss_conformance("mse", groups=["numerics"])
"""


def test_under_pytest(pytester: pytest.Pytester) -> None:
    expected = {"gradcheck": "its gradient is lost", "check_gradgradcheck": "not so"}
    pytester.makepyfile(f"EXPECTED = {{}}\n{USERS_TESTS}")
    counts = pytester.runpytest_inprocess("-q", "-p", "no:cacheprovider", "-k", "gradcheck or fixture").parseoutcomes()
    assert counts["failed"] >= 1  # check_gradcheck of `detached`
    assert counts["passed"] >= 3
    pytester.makepyfile(f"EXPECTED = {expected}\n" + USERS_TESTS.replace('"mse", ', ""))
    counts = pytester.runpytest_inprocess("-q", "-p", "no:cacheprovider", "-k", "gradcheck").parseoutcomes()
    assert counts["xfailed"] == 1
    assert counts["failed"] >= 1  # it passed, though it was expected to fail


@pytest.mark.parametrize("loss", [careful_ce, CarefulCE()], ids=["careful_ce", "CarefulCE"])
def test_healthy_losses_conform(loss: Any) -> None:
    assert_loss_conforms(loss, groups=["core", "numerics", "lifecycle"], on_skip=None)

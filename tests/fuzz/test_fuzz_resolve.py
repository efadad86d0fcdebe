"""The second door: whatever is handed over as a spec, it is resolved or refused."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuzz.doors import POLICIES, check_data, construct, resolve, validate
from fuzz.specs import KWARGS, SPECS
from fuzz.watch import Case
from tensafe.training.losses.targets import Policy

pytestmark = pytest.mark.usefixtures("isolated_registry")

fuzzed = settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@fuzzed
@given(spec=SPECS, policy=st.sampled_from(POLICIES))
def test_any_data_is_a_spec_or_has_its_mistakes_listed(spec: Case, policy: Policy) -> None:
    check_data(spec.value, policy)


@fuzzed
@given(spec=SPECS, kwargs=KWARGS)
def test_anything_is_resolved_or_is_refused(spec: Case, kwargs: Case) -> None:
    resolve(spec.value, kwargs.value)


@fuzzed
@given(data=SPECS)
def test_any_data_is_validated_or_is_refused(data: Case) -> None:
    validate(data.value)


@fuzzed
@given(fields=KWARGS)
def test_any_keywords_make_a_loss_spec_or_are_refused(fields: Case) -> None:
    construct(fields.value)

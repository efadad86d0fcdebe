"""The third door: whatever a resolved loss is called with, it returns a `LossReturn` or says what is wrong."""

from hypothesis import HealthCheck, given, settings

from fuzz.calls import CALLS
from fuzz.doors import call
from fuzz.watch import Case


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(case=CALLS)
def test_anything_is_computed_or_is_refused(case: Case) -> None:
    """What an object itself raises, from a property or `__getitem__`, comes out as it is: it is not ours to hide."""
    call(*case.value)

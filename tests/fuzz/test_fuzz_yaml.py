"""The first door: whatever bytes a config file holds, they are read or refused."""

from hypothesis import given
from hypothesis import strategies as st

from fuzz.doors import POLICIES, read_file
from fuzz.yaml_files import FILES
from tensafe.training.losses.targets import Policy


@given(source=FILES, policy=st.sampled_from(POLICIES))
def test_any_bytes_are_a_config_or_are_refused(source: bytes, policy: Policy) -> None:
    read_file(source, policy)

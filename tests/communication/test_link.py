"""What a link takes, and a link from what was taken."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phalanx.communication import Link


@given(st.floats(1e3, 1e11), st.floats(0, 10), st.integers(1, 500), st.integers(10**6, 10**9))
def test_a_link_is_found_again_from_what_it_takes(rate, latency_s, num_hops, num_bytes):
    link = Link(rate, latency_s)
    small_s, large_s = link.seconds(0, num_hops), link.seconds(num_bytes, num_hops)
    found = Link.measured(num_bytes, num_hops, small_s=small_s, large_s=large_s)
    assert found.latency_s == pytest.approx(latency_s)
    assert found.rate == pytest.approx(rate, rel=1e-3)  # of a difference of long times


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rate": 0.0}, "rate must be finite and above 0, got 0.0"),
        ({"rate": math.nan}, "rate must be finite"),
        ({"latency_s": -1.0}, "latency_s must be finite and at least 0, got -1.0"),
    ],
)
def test_what_is_out_of_range_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Link(**arguments)


def test_bytes_that_take_no_time_are_refused():
    with pytest.raises(ValueError, match=r"large_s must be above small_s, got 1.0 and 1.0"):
        Link.measured(1e6, 2, small_s=1.0, large_s=1.0)

"""Bandwidths and time spans with their units."""

import pytest

from phalanx.communication import bits_per_second, seconds


def test_bandwidths_are_read(subtests):
    for text, rate in [("10mbit", 1e7), ("2.5Gbit", 2.5e9), ("64 kbit", 64e3), ("9bit", 9.0)]:
        with subtests.test(f"{text}, {rate}"):
            assert bits_per_second(text) == rate


def test_what_is_no_bandwidth_is_refused(subtests):
    for text in ["", "fast", "10", "0mbit", "-1mbit", "1.2.3mbit", "1mbyte", "."]:
        with (
            subtests.test(text),
            pytest.raises(ValueError, match="link must be a bandwidth such as 100mbit"),
        ):
            bits_per_second(text)


def test_what_is_no_latency_is_refused(subtests):
    for text in ["", "1", "1m", "ms", "-1ms", "1..2s"]:
        with (
            subtests.test(text),
            pytest.raises(ValueError, match="latency must be a time span such as 1ms"),
        ):
            seconds(text)


def test_the_argument_is_named():
    with pytest.raises(ValueError, match="bandwidth must be a bandwidth such as 100mbit"):
        bits_per_second("fast", "bandwidth")
    with pytest.raises(ValueError, match="jitter must be a time span such as 1ms"):
        seconds("soon", "jitter")

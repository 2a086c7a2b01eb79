"""When packets arrive: the arithmetic of the relay between TUN devices."""

import itertools

import pytest

from phalanx.communication import tun_relay

PACKET = 1_000  # bytes, which take 1 ms
RATE = 8e6


def test_a_packet_alone_takes_its_length_and_the_latency():
    links = tun_relay.Links(RATE, delay_s=0.02)
    assert links.due(5.0, 0, 1, PACKET) == pytest.approx(5.021)
    assert tun_relay.Links(float("inf")).due(5.0, 0, 1, PACKET) == 5.0


def test_packets_share_the_sender_s_link_and_the_receiver_s():
    links = tun_relay.Links(RATE)
    assert [links.due(0.0, 0, 1, PACKET) for _ in range(3)] == pytest.approx([1e-3, 2e-3, 3e-3])
    assert links.due(0.0, 0, 2, PACKET) == pytest.approx(4e-3)  # the sender is still at it
    assert links.due(0.0, 3, 1, PACKET) == pytest.approx(4e-3)  # so is the receiver
    assert links.due(0.0, 1, 0, PACKET) == pytest.approx(1e-3)  # the other way is free


def test_packets_are_later_by_the_jitter_and_do_not_overtake():
    links = tun_relay.Links(float("inf"), delay_s=0.01, jitter_s=0.005)
    apart = [links.due(float(now), 0, 1, PACKET) - now for now in range(200)]
    assert 0.01 <= min(apart) < 0.011
    assert 0.014 < max(apart) <= 0.015
    close = [links.due(1e3 + now / 1e4, 0, 1, PACKET) for now in range(200)]
    assert all(one <= other for one, other in itertools.pairwise(close))


def test_as_many_are_lost_as_asked_for_the_same_each_time():
    lost = [
        [links.due(0.0, 0, 1, PACKET) is None for _ in range(10_000)]
        for links in (tun_relay.Links(float("inf"), loss=0.1) for _ in range(2))
    ]
    assert lost[0] == lost[1]
    assert 0.09 < sum(lost[0]) / len(lost[0]) < 0.11


def test_what_would_wait_for_too_long_is_dropped():
    """0.4 s, at 1 ms a packet."""
    links = tun_relay.Links(RATE)
    kept = [links.due(0.0, 0, 1, PACKET) is not None for _ in range(1000)]
    assert kept == sorted(kept, reverse=True)
    assert 399 <= sum(kept) <= 401
    assert links.due(0.5, 0, 1, PACKET) == pytest.approx(0.501)

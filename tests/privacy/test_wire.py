"""The wire format of the messages, and bytes that are none of them."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from phalanx.privacy import MalformedMessageError, SecureSetup
from phalanx.privacy.secure_aggregation import messages as wire
from phalanx.privacy.secure_aggregation import transport
from phalanx.privacy.secure_aggregation.messages import (
    DealRequest,
    DistanceShares,
    MaskedShares,
    ModelServerDeal,
    OpenRequest,
    OpenRound,
    Participants,
    Receipt,
    SeedShare,
    SumRequest,
    SumShare,
    VectorShare,
    WeightedShare,
    WorkerServerDeal,
)
from phalanx.privacy.secure_aggregation.protocol import expand

SETUP = SecureSetup(num_workers=5, dim=7)
PRESENT = 3
SEED = bytes(range(32))


def words(*shape):
    return expand(SEED, "test", *shape)


MESSAGES = [
    SeedShare(4, 2, SEED),
    VectorShare(4, 2, words(7)),
    ModelServerDeal(0, SEED),
    WorkerServerDeal(1, SEED, words(5, 5), words(5, 64), words(7)),
    DealRequest(3),
    Receipt(3),
    Participants(2, (0, 3, 4), (1,)),
    MaskedShares(2, words(3, 7)),
    DistanceShares(2, words(3), words(2, 64)),
    WeightedShare(2, words(5), words(7), 24, 1),
    SumRequest(2),
    SumShare(2, words(7)),
    OpenRequest(3),
    OpenRound(3, 4),
]


def same(one, other):
    return type(one) is type(other) and all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        for a, b in zip(one, other, strict=True)
    )


def test_every_kind_of_message_is_here():
    assert {type(message) for message in MESSAGES} == set(wire._KINDS)


def test_what_was_sent_arrives(subtests):
    for message in MESSAGES:
        with subtests.test(type(message).__name__):
            data = wire.pack(message, SETUP)
            assert len(data) == wire.num_bytes(type(message), SETUP, PRESENT)
            assert same(wire.unpack(data, SETUP, PRESENT), message)
            for chunk in (8, 100, 10**6):
                chunks = (data[i : i + chunk] for i in range(0, len(data), chunk))
                assert same(transport.gather(chunks, SETUP, PRESENT), message), chunk


def test_other_lengths_are_refused(subtests):
    for message, change in itertools.product(MESSAGES, (-8, -1, 1, 8, 1000)):
        with subtests.test(type(message).__name__, change=change):
            data = wire.pack(message, SETUP)
            data = data[:change] if change < 0 else data + bytes(change)
            with pytest.raises(MalformedMessageError):
                wire.unpack(data, SETUP, PRESENT)
            with pytest.raises(MalformedMessageError):
                transport.gather(iter([data]), SETUP, PRESENT)


@given(st.binary(max_size=200))
def test_noise_is_refused(data):
    with pytest.raises(MalformedMessageError):
        wire.unpack(data, SETUP, PRESENT)


@given(st.sampled_from(MESSAGES), st.data())
def test_forged_bytes_are_refused_or_are_another_message(message, draw):
    """Numbers that cannot be are refused; shares may be anything."""
    data = bytearray(wire.pack(message, SETUP))
    for _ in range(draw.draw(st.integers(1, 4))):
        data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    try:
        found = wire.unpack(data, SETUP, PRESENT)
    except MalformedMessageError:
        return
    assert wire.pack(found, SETUP) == data


def test_nobody_sends_for_ever():
    taken = 0

    def flood():
        nonlocal taken
        yield wire.pack(MESSAGES[1], SETUP)
        while True:
            taken += 1
            yield bytes(1000)

    with pytest.raises(MalformedMessageError):
        transport.gather(flood(), SETUP, PRESENT)
    assert taken == 1


def test_impossible_numbers_are_refused(subtests):
    for message in (
        SeedShare(4, 5, SEED),
        WeightedShare(2, words(5), words(7), 25, 1),
        WeightedShare(2, words(5), words(7), 0, 0),
        WeightedShare(2, words(5), words(7), 0, 6),
        Receipt(2**63 - 1),
    ):
        with (
            subtests.test(repr(message)),
            pytest.raises(MalformedMessageError, match="must be from"),
        ):
            wire.unpack(wire.pack(message, SETUP), SETUP, PRESENT)

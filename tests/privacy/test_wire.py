"""Messages as bytes, and bytes that are none."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from phalanx.privacy import MalformedMessageError, SecureSetup
from phalanx.privacy.secure_aggregation import transport, wire
from phalanx.privacy.secure_aggregation.entropy import expand
from phalanx.privacy.secure_aggregation.messages import (
    DealRequest,
    DistanceShares,
    MaskedShares,
    ModelServerDeal,
    Receipt,
    Roll,
    SeedShare,
    SumRequest,
    SumShare,
    VectorShare,
    WeightedShare,
    WorkerServerDeal,
)

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
    Roll(2, (0, 3, 4), (1,)),
    MaskedShares(2, words(3, 7)),
    DistanceShares(2, words(3), words(2, 64)),
    WeightedShare(2, words(5), words(7), 24, 1),
    SumRequest(2),
    SumShare(2, words(7)),
]
every_message = pytest.mark.parametrize("message", MESSAGES, ids=lambda one: type(one).__name__)


def same(one, other):
    return type(one) is type(other) and all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        for a, b in zip(one, other, strict=True)
    )


def test_every_kind_of_message_is_here():
    assert {type(message) for message in MESSAGES} == set(wire._KINDS)


@every_message
@pytest.mark.parametrize("chunk", [1, 8, 100, 10**6])
def test_what_was_sent_arrives(message, chunk):
    data = wire.pack(message, SETUP)
    assert len(data) == wire.num_bytes(type(message), SETUP, PRESENT)
    assert same(wire.unpack(data, SETUP, PRESENT), message)
    if chunk >= wire.HEADER_BYTES:
        chunks = (data[i : i + chunk] for i in range(0, len(data), chunk))
        assert same(transport.gather(chunks, SETUP, PRESENT), message)


@every_message
@pytest.mark.parametrize("change", [-8, -1, 1, 8, 1000])
def test_other_lengths_are_refused(message, change):
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


@pytest.mark.parametrize(
    "message",
    [
        SeedShare(4, 5, SEED),
        WeightedShare(2, words(5), words(7), 25, 1),
        WeightedShare(2, words(5), words(7), 0, 0),
        WeightedShare(2, words(5), words(7), 0, 6),
        Receipt(2**63 - 1),
    ],
    ids=repr,
)
def test_impossible_numbers_are_refused(message):
    with pytest.raises(MalformedMessageError, match="must be from"):
        wire.unpack(wire.pack(message, SETUP), SETUP, PRESENT)

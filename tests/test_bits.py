"""Packed numbers, indices and Elias codes."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from phalanx import bits
from phalanx.compression.elias import decode_gamma, decode_omega, encode_gamma, encode_omega
from phalanx.errors import WireError

WORDS = {
    1: "0",
    2: "100",
    3: "110",
    4: "101000",
    7: "101110",
    8: "1110000",
    15: "1111110",
    16: "10100100000",
}


def slowly_packed(values, width):
    """Bit by bit, the lowest first."""
    stream = "".join(format(value, f"0{width}b")[::-1] for value in values)
    return [int(stream[at : at + 8][::-1], 2) for at in range(0, len(stream), 8)]


@given(width=st.integers(1, 8), data=st.data())
def test_packed_numbers(width, data):
    values = data.draw(st.lists(st.integers(0, 2**width - 1), max_size=40))
    packed = bits.pack(torch.tensor(values, dtype=torch.uint8), width)
    assert packed.tolist() == slowly_packed(values, width)
    assert len(packed) == bits.packed_length(len(values), width)
    assert bits.unpack(packed, width, len(values)).tolist() == values
    if values:
        bits.check_packed(packed, width, len(values))


@given(values=st.lists(st.integers(0, 2), max_size=40))
def test_ternary_digits(values):
    packed = bits.pack_trits(torch.tensor(values, dtype=torch.uint8))
    assert len(packed) == bits.packed_trits(len(values))
    assert bits.unpack_trits(packed, len(values)).tolist() == values
    if values:
        bits.check_trits(packed, len(values))


@given(dim=st.integers(1, 5000), data=st.data())
def test_indices(dim, data):
    indices = torch.tensor(
        sorted(data.draw(st.sets(st.integers(0, dim - 1), max_size=60))), dtype=torch.int64
    )
    packed = bits.pack_indices(indices, dim)
    assert len(packed) == bits.indices_length(dim, len(indices))
    assert len(packed) <= -(-dim // 8)
    assert torch.equal(bits.unpack_indices(packed, dim, len(indices)), indices)


@pytest.mark.parametrize(("share", "most"), [(0.001, 12.1), (0.01, 8.7), (0.1, 5.4), (0.5, 2.01)])
def test_bits_an_index(share, most):
    """Near the bound of information, which is 11.4, 8.1, 4.7 and 2."""
    dim = 1_000_000
    count = int(share * dim)
    assert 8 * bits.indices_length(dim, count) / count <= most


GAMMA_WORDS = {1: "1", 2: "010", 3: "011", 4: "00100", 8: "0001000"}
CODES = {"omega": (encode_omega, decode_omega), "gamma": (encode_gamma, decode_gamma)}
codes = pytest.mark.parametrize("code", CODES.values(), ids=CODES)


@pytest.mark.parametrize(
    ("encode", "words"), [(encode_omega, WORDS), (encode_gamma, GAMMA_WORDS)], ids=CODES
)
def test_published_code_words(encode, words):
    for number, word in words.items():
        assert "".join(map(str, encode(np.array([number])))) == word


@codes
def test_many_numbers(code):
    encode, decode = code
    exponents = np.random.default_rng(0).uniform(0, 31, 100_000)
    numbers = np.minimum(2**exponents, 2**31 - 1).astype(np.int64)
    assert np.array_equal(decode(encode(numbers), len(numbers)), numbers)


@codes
def test_numbers_that_are_too_large_are_refused(code):
    encode, decode = code
    with pytest.raises(WireError, match="whole Elias codes"):
        decode(encode(np.array([3, 2**31])), 2)


@codes
@given(stream=st.lists(st.integers(0, 1), max_size=80), count=st.integers(0, 20))
def test_any_bits_decode_or_are_refused(code, stream, count):
    encode, decode = code
    stream = np.array(stream, dtype=np.uint8)
    try:
        numbers = decode(stream, count)
    except WireError:
        return
    again = encode(numbers)
    assert np.array_equal(again, stream[: len(again)])
    assert not stream[len(again) :].any()

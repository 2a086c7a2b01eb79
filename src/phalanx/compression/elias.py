"""Elias omega and gamma codes of positive whole numbers."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Int64, UInt8, UInt64

from phalanx.errors import require

Numbers = Int64[np.ndarray, " count"]
Bits = UInt8[np.ndarray, " bits"]
Words = UInt64[np.ndarray, " bits"]

_BLOCK = 1 << 18  # places that are read at once


def encode_omega(numbers: Numbers) -> Bits:
    """Elias omega, the recursive code: a number's digits, before them their count less one, so on.

    Source: Elias, "Universal Codeword Sets and Representations of the Integers", IEEE Transactions
    on Information Theory, 1975.

    >>> encode_omega(np.array([1, 8])).tolist()
    [0, 1, 1, 1, 0, 0, 0, 0]
    """
    words, lengths = np.zeros_like(numbers), np.ones_like(numbers)
    rest = numbers.copy()
    while (more := rest > 1).any():
        digits = _digits(rest)
        words = np.where(more, words + (rest << lengths), words)
        lengths = np.where(more, lengths + digits, lengths)
        rest = np.where(more, digits - 1, rest)
    return _write(words, lengths)


def encode_gamma(numbers: Numbers) -> Bits:
    """Elias gamma: a number's digits, before them as many zeros less one.

    >>> encode_gamma(np.array([1, 4])).tolist()
    [1, 0, 0, 1, 0, 0]
    """
    return _write(numbers, 2 * _digits(numbers) - 1)


def decode_omega(bits: Bits, count: int) -> Numbers:
    """The numbers that `encode_omega` was given.

    Raises:
        WireError: if the bits are not `count` codes of numbers below 2**31, but for zeros that
            fill up the last byte.
    """
    return _decode(bits, count, _omega_at)


def decode_gamma(bits: Bits, count: int) -> Numbers:
    """The numbers that `encode_gamma` was given; see `decode_omega`."""
    return _decode(bits, count, _gamma_at)


Parsed = tuple[Numbers, Numbers]
"""The number whose code starts at each place, and the code's length; 0 where none starts."""


def _decode(bits: Bits, count: int, parse: Callable[[Words], Parsed]) -> Numbers:
    """Reads a code at every place, whether one starts there or not; then goes from one to the next.

    All places are read at once, which is much faster than one code after the other.
    """
    end, place = len(bits), 0
    require(count <= end, "have whole Elias codes")
    found: list[Numbers] = []
    missing = count
    while missing:
        start = place
        numbers, lengths = parse(_words(bits[start : start + _BLOCK + 64])[:_BLOCK])
        steps, starts = lengths.tolist(), []
        stop = start + len(steps)
        while missing and place < stop:
            step = steps[place - start]
            require(0 < step <= end - place, "have whole Elias codes")
            starts.append(place - start)
            place += step
            missing -= 1
        require(not missing or place < end, "have whole Elias codes")
        found.append(numbers[starts])
    rest = bits[place:]
    require(len(rest) < 8 and not rest.any(), "end with its last Elias code")
    return np.concatenate(found) if found else np.zeros(0, dtype=np.int64)


def _words(bits: Bits) -> Words:
    """From every place on, the 64 bits that follow as a word; zeros after the last."""
    raw = np.concatenate([np.packbits(bits), np.zeros(9, dtype=np.uint8)]).astype(np.uint64)
    length = len(raw) - 8
    words = np.zeros(length, dtype=np.uint64)
    for place in range(8):
        words |= raw[place : place + length] << np.uint64(56 - 8 * place)
    shifts = np.arange(8, dtype=np.uint64)
    following = raw[8:, None] >> (np.uint64(8) - shifts)
    found: Words = ((words[:, None] << shifts) | following).reshape(-1)[: len(bits)]
    return found


def _omega_at(words: Words) -> Parsed:
    numbers = np.ones(len(words), dtype=np.int64)
    lengths = np.zeros(len(words), dtype=np.int64)
    going = np.arange(len(words))
    rest = words
    while len(going):
        more = rest >> np.uint64(63) == 1
        lengths[going[~more]] += 1
        going, rest = going[more], rest[more]
        taken = numbers[going] + 1
        fits = taken <= 31  # longer ones are of numbers that are too large
        lengths[going[~fits]] = -(2**40)
        going, rest, taken = going[fits], rest[fits], taken[fits].astype(np.uint64)
        numbers[going] = rest >> (np.uint64(64) - taken)
        lengths[going] += taken.astype(np.int64)
        rest = rest << taken
    return numbers, lengths


def _gamma_at(words: Words) -> Parsed:
    high = words >> np.uint64(32)
    zeros = 32 - _digits(high.astype(np.int64))
    fits = zeros <= 30
    few = np.where(fits, zeros, 0).astype(np.uint64)
    numbers = (words << few) >> (np.uint64(63) - few)
    return numbers.astype(np.int64), np.where(fits, 2 * zeros + 1, 0)


def _digits(numbers: Numbers) -> Numbers:
    """Binary digits of each; exact, since a float64 holds numbers of 53 digits."""
    digits: Numbers = np.frexp(numbers.astype(np.float64))[1].astype(np.int64)
    return digits


def _write(words: Numbers, lengths: Numbers) -> Bits:
    """The words, highest bit first, one after the other."""
    starts = np.cumsum(lengths) - lengths
    within = np.arange(int(lengths.sum())) - np.repeat(starts, lengths)
    shifts = np.repeat(lengths, lengths) - 1 - within
    bits: Bits = ((np.repeat(words, lengths) >> shifts) & 1).astype(np.uint8)
    return bits

"""Elias's omega code: whole numbers from 1 on, short where they are small."""

import numpy as np
from jaxtyping import Int64, UInt8

from phalanx.compression.message import require

Numbers = Int64[np.ndarray, " count"]
Bits = UInt8[np.ndarray, " bits"]


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


def decode_omega(bits: Bits, count: int) -> Numbers:
    """The numbers that `encode_omega` was given.

    Raises:
        WireError: if the bits are not `count` codes of numbers below 2**31, but for zeros that
            fill up the last byte.
    """
    found, position = [], 0
    stream, end = bits.tolist(), len(bits)
    for _ in range(count):
        number = 1
        while position < end and stream[position]:
            stop = position + number + 1
            require(number < 31 and stop <= end, "have whole Elias codes")
            number = int("".join(map(str, stream[position:stop])), 2)
            position = stop
        require(position < end, "have whole Elias codes")
        position += 1
        found.append(number)
    rest = bits[position:]
    require(len(rest) < 8 and not rest.any(), "end with its last Elias code")
    return np.array(found, dtype=np.int64)


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

"""Small whole numbers packed into bytes: b bits each, or five ternary digits a byte.

Everything here works on the device of its tensors. Bits fill a byte from its lowest on.
"""

import math

import numpy as np
import torch
from jaxtyping import Float, Int64, Shaped, UInt8
from torch import Tensor

from phalanx.errors import require

_POWERS = (1, 3, 9, 27, 81)
_WORDS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by their bytes
_BLOCK = 1 << 18  # values at a time: they stay in the cache


def packed_length(count: int, bits: int) -> int:
    """Bytes that `count` values of `bits` bits take."""
    return -(-count * bits // 8)


def pack(values: UInt8[Tensor, " count"], bits: int) -> UInt8[Tensor, " bytes"]:
    """Packs values below `2**bits`, 1 to 8 bits each; the last byte is filled up with zeros.

    Neighbours are pushed together, pairs, then pairs of pairs, in all words at a time.

    >>> pack(torch.tensor([1, 2, 3, 0], dtype=torch.uint8), 2).tolist()
    [57]
    """
    count = values.numel()
    if bits == 8 or not count:
        return values.clone()
    if bits == 1 and values.device.type == "cpu":
        return torch.from_numpy(np.packbits(values.numpy(), bitorder="little"))
    if count > _BLOCK and values.device.type == "cpu":
        return torch.cat([pack(block, bits) for block in values.split(_BLOCK)])
    group = _group(bits)
    missing = -count % group
    padded = torch.nn.functional.pad(values, (0, missing)) if missing else values.contiguous()
    words = padded.view(_WORDS[group])
    field, filled = 8, bits
    while field < 8 * group:
        low = _mask(2 * field, filled, group)
        high = words >> (field - filled)
        high &= low << filled
        words = (words & low).bitwise_or_(high)
        field, filled = 2 * field, 2 * filled
    if filled == 8:
        return words.to(torch.uint8)
    found = words.view(torch.uint8).view(-1, group)[:, : filled // 8].reshape(-1)
    return found[: packed_length(count, bits)].contiguous()


def unpack(packed: UInt8[Tensor, " bytes"], bits: int, count: int) -> UInt8[Tensor, " count"]:
    """The values that `pack` was given.

    >>> unpack(torch.tensor([57], dtype=torch.uint8), 2, 4).tolist()
    [1, 2, 3, 0]
    """
    if bits == 8 or not count:
        return packed.clone()
    if bits == 1 and packed.device.type == "cpu":
        return torch.from_numpy(np.unpackbits(packed.numpy(), count=count, bitorder="little"))
    if count > _BLOCK and packed.device.type == "cpu":
        pieces = packed.split(_BLOCK // 8 * bits)
        lengths = [min(_BLOCK, count - start) for start in range(0, count, _BLOCK)]
        pairs = zip(pieces, lengths, strict=True)
        return torch.cat([unpack(piece, bits, length) for piece, length in pairs])
    group = _group(bits)
    field, filled = 8 * group, bits * group
    number = -(-count // group)
    missing = number * filled // 8 - packed.numel()
    whole = torch.nn.functional.pad(packed, (0, missing)) if missing else packed
    if filled == 8:
        words = whole.to(_WORDS[group])
    else:
        wide = whole.new_zeros(number, group)
        wide[:, : filled // 8] = whole.view(number, -1)
        words = wide.view(-1).view(_WORDS[group])
    while field > 8:
        field, filled = field // 2, filled // 2
        low = _mask(2 * field, filled, group)
        high = words << (field - filled)
        high &= low << field
        words = (words & low).bitwise_or_(high)
    return words.view(torch.uint8)[:count]


def _group(bits: int) -> int:
    """The fewest values, two or more, that take whole bytes."""
    return 8 // math.gcd(8, bits)


def _mask(field: int, filled: int, group: int) -> int:
    """The `filled` low bits of every field of a word of `group` bytes."""
    return sum((2**filled - 1) << start for start in range(0, 8 * group, field))


def check_packed(packed: UInt8[Tensor, " bytes"], bits: int, count: int) -> None:
    """Raises a `WireError` if bits after the last value are set: `pack` leaves them zero."""
    used = count * bits % 8
    if used:
        require(int(packed[-1]) >> used == 0, "end in zero bits")


def pack_signs(x: Float[Tensor, "..."]) -> UInt8[Tensor, " bytes"]:
    """A bit for every value of a contiguous tensor: set where it is negative; zero is positive."""
    flat = x.view(-1)
    if x.device.type != "cpu" or x.dtype == torch.bfloat16 or x.numel() <= _BLOCK:
        return pack((flat < 0).view(torch.uint8), 1)
    found = np.empty(packed_length(x.numel(), 1), dtype=np.uint8)
    for start in range(0, x.numel(), _BLOCK):
        bits = np.packbits(flat[start : start + _BLOCK].numpy() < 0, bitorder="little")
        found[start // 8 : start // 8 + len(bits)] = bits
    return torch.from_numpy(found)


def unpack_signs(
    packed: UInt8[Tensor, " bytes"], count: int, magnitude: Float[Tensor, " 1"]
) -> Float[Tensor, " count"]:
    """The magnitude, or less it, for every value that `pack_signs` was given; in its dtype."""
    signs = unpack(torch.arange(256, dtype=torch.uint8, device=packed.device), 1, 2048)
    rows = torch.where(signs.bool(), -magnitude, magnitude).view(256, 8)
    return _looked_up(rows, packed)[:count]


def _looked_up(
    rows: Shaped[Tensor, "entries width"], index: UInt8[Tensor, " bytes"]
) -> Shaped[Tensor, " values"]:
    """The rows of a table that the bytes say, one after the other."""
    if index.device.type != "cpu" or rows.dtype == torch.bfloat16:
        return rows.index_select(0, index.int()).view(-1)
    # As `index_select`, but in large pages, which come several times faster.
    return torch.from_numpy(np.take(rows.numpy(), index.numpy(), axis=0)).view(-1)


def empty(count: int, like: Shaped[Tensor, "..."]) -> Shaped[Tensor, " count"]:
    """Room for so many values, on the device and in the dtype of another tensor."""
    if like.device.type != "cpu" or like.dtype == torch.bfloat16:
        return like.new_empty(count)
    # Its pages are large where the system has such, and come several times faster than torch's.
    return torch.from_numpy(np.empty(count, dtype=like.numpy().dtype))


def packed_trits(count: int) -> int:
    """Bytes that `count` ternary digits take."""
    return -(-count // 5)


def pack_trits(values: UInt8[Tensor, " count"]) -> UInt8[Tensor, " bytes"]:
    """Packs digits 0, 1 and 2, five a byte (3^5 = 243), the first of them the lowest.

    >>> pack_trits(torch.tensor([2, 1, 0, 0, 1, 2], dtype=torch.uint8)).tolist()
    [86, 2]
    """
    fives = torch.nn.functional.pad(values, (0, -values.numel() % 5)).view(-1, 5)
    found = fives[:, 0].clone()
    for place in range(1, 5):
        found += fives[:, place] * _POWERS[place]
    return found


def unpack_trits(packed: UInt8[Tensor, " bytes"], count: int) -> UInt8[Tensor, " count"]:
    """The digits that `pack_trits` was given."""
    table = torch.tensor(
        [[byte // power % 3 for power in _POWERS] for byte in range(243)],
        dtype=torch.uint8,
        device=packed.device,
    )
    return _looked_up(table, packed)[:count]


def check_trits(packed: UInt8[Tensor, " bytes"], count: int) -> None:
    """Raises a `WireError` if a byte is above 242, or digits after the last value are not 0."""
    require(not bool((packed > 242).any()), "have ternary bytes of at most 242")
    if count % 5:
        require(int(packed[-1]) < 3 ** (count % 5), "end in ternary zeros")


def low_bits(dim: int, count: int) -> int:
    """Bits of an index that are sent as they are; the rest goes into a unary code."""
    return max(0, (dim // count).bit_length() - 1) if count else 0


def indices_length(dim: int, count: int) -> int:
    """Bytes that `pack_indices` returns: the fewer of a bitmap's and of an Elias-Fano code's."""
    if not count:
        return 0
    low = low_bits(dim, count)
    split = packed_length(count * low, 1) + packed_length(count + ((dim - 1) >> low), 1)
    return min(packed_length(dim, 1), split)


def pack_indices(indices: Int64[Tensor, " count"], dim: int) -> UInt8[Tensor, " bytes"]:
    """Packs increasing indices below `dim`; how many bytes that takes depends on the count alone.

    A bitmap, or the Elias-Fano code where that is shorter: the low bits of every index as they are,
    and the high bits in unary. About `2 + log2(dim / count)` bits an index: 8.6 at 1 %, within half
    a bit of Golomb and Rice, whose length depends on the values.
    Source: Elias, "Efficient Storage and Retrieval by Content and Address of Static Files", Journal
    of the ACM, 1974; Fano, "On the Number of Bits Required to Implement an Associative Memory",
    1971.
    """
    count, low = indices.numel(), low_bits(dim, indices.numel())
    device = indices.device
    if not count:
        return torch.empty(0, dtype=torch.uint8, device=device)
    if indices_length(dim, count) == packed_length(dim, 1):
        return pack(
            torch.zeros(dim, dtype=torch.uint8, device=device).index_fill_(0, indices, 1), 1
        )
    unary = torch.zeros(count + ((dim - 1) >> low), dtype=torch.uint8, device=device)
    unary[(indices >> low) + torch.arange(count, device=device)] = 1
    return torch.cat([_pack_lows(indices & (2**low - 1), low), pack(unary, 1)])


def unpack_indices(
    packed: UInt8[Tensor, " bytes"], dim: int, count: int
) -> Int64[Tensor, " count"]:
    """The indices that `pack_indices` was given.

    Raises:
        WireError: if these bytes are not those of `count` increasing indices below `dim`.
    """
    low = low_bits(dim, count)
    require(packed.numel() == indices_length(dim, count), "have as many index bytes as indices")
    if not count:
        return torch.empty(0, dtype=torch.int64, device=packed.device)
    if packed.numel() == packed_length(dim, 1):
        check_packed(packed, 1, dim)
        found = unpack(packed, 1, dim).nonzero().flatten()
        require(found.numel() == count, f"have {count} bits set")
        return found
    border, highs = packed_length(count * low, 1), count + ((dim - 1) >> low)
    check_packed(packed[:border], 1, count * low)
    check_packed(packed[border:], 1, highs)
    ones = unpack(packed[border:], 1, highs).nonzero().flatten()
    require(ones.numel() == count, f"have {count} bits set")
    highest = (ones - torch.arange(count, device=packed.device)) << low
    found = highest + _unpack_lows(packed[:border], low, count)
    require(bool((found.diff() > 0).all()) and int(found[-1]) < dim, "have increasing indices")
    return found


def _pack_lows(values: Int64[Tensor, " count"], width: int) -> UInt8[Tensor, " bytes"]:
    """Packs numbers of any width."""
    if 1 <= width <= 8:
        return pack(values.to(torch.uint8), width)
    places = torch.arange(width, device=values.device)
    return pack(((values[:, None] >> places) & 1).to(torch.uint8).view(-1), 1)


def _unpack_lows(
    packed: UInt8[Tensor, " bytes"], width: int, count: int
) -> Int64[Tensor, " count"]:
    """The numbers that `_pack_lows` was given."""
    if 1 <= width <= 8:
        return unpack(packed, width, count).long()
    places = torch.arange(width, device=packed.device)
    return (unpack(packed, 1, count * width).view(count, width).long() << places).sum(1)

"""Small whole numbers packed into bytes: b bits each, or five ternary digits a byte.

Everything here works on the device of its tensors. Bits fill a byte from its lowest on.
"""

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from phalanx.compression.message import require

_POWERS = (1, 3, 9, 27, 81)


def packed_length(count: int, bits: int) -> int:
    """Bytes that `count` values of `bits` bits take."""
    return -(-count * bits // 8)


def pack(values: UInt8[Tensor, " count"], bits: int) -> UInt8[Tensor, " bytes"]:
    """Packs values below `2**bits`, 1 to 8 bits each; the last byte is filled up with zeros.

    >>> pack(torch.tensor([1, 2, 3, 0], dtype=torch.uint8), 2).tolist()
    [57]
    """
    count = values.numel()
    if bits == 8 or not count:
        return values.clone()
    if bits == 1 and values.device.type == "cpu":
        return torch.from_numpy(np.packbits(values.numpy(), bitorder="little"))
    eights = torch.nn.functional.pad(values, (0, -count % 8)).view(-1, 8)
    # Eight values are a whole number of bytes, whatever the width: the low ones of one word.
    word = torch.uint8 if bits == 1 else torch.int32 if bits <= 4 else torch.int64
    words = torch.zeros(len(eights), dtype=word, device=values.device)
    for place in range(8):
        words |= eights[:, place].to(word) << (bits * place)
    found = words.view(torch.uint8).view(len(eights), -1)[:, :bits].reshape(-1)
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
    whole = -(-count // 8) * bits
    groups = torch.nn.functional.pad(packed, (0, whole - packed.numel())).view(-1, bits)
    wide = 1 if bits == 1 else 4 if bits <= 4 else 8
    word = {1: torch.uint8, 4: torch.int32, 8: torch.int64}[wide]
    words = torch.nn.functional.pad(groups, (0, wide - bits)).contiguous().view(-1).view(word)
    mask = 2**bits - 1
    eights = torch.stack([(words >> (bits * place)) & mask for place in range(8)], dim=1)
    return eights.to(torch.uint8).view(-1)[:count]


def check_packed(packed: UInt8[Tensor, " bytes"], bits: int, count: int) -> None:
    """Raises a `WireError` if bits after the last value are set: `pack` leaves them zero."""
    used = count * bits % 8
    if used:
        require(int(packed[-1]) >> used == 0, "end in zero bits")


def pack_signs(x: Float[Tensor, "..."]) -> UInt8[Tensor, " bytes"]:
    """A bit for every value of a contiguous tensor: set where it is negative; zero is positive."""
    return pack((x.view(-1) < 0).view(torch.uint8), 1)


def unpack_signs(
    packed: UInt8[Tensor, " bytes"], count: int, dtype: torch.dtype
) -> Float[Tensor, " count"]:
    """One or minus one for every value that `pack_signs` was given."""
    return unpack(packed, 1, count).to(dtype).mul_(-2).add_(1)


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
    return table[packed.int()].view(-1)[:count]


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
    places = torch.arange(low, device=device)
    lows = ((indices[:, None] >> places) & 1).to(torch.uint8).view(-1)
    return torch.cat([pack(lows, 1), pack(unary, 1)])


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
    places = torch.arange(low, device=packed.device)
    lows = unpack(packed[:border], 1, count * low).view(count, low).long()
    found = ((ones - torch.arange(count, device=packed.device)) << low) + (lows << places).sum(1)
    require(bool((found.diff() > 0).all()) and int(found[-1]) < dim, "have increasing indices")
    return found

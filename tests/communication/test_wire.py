"""Tensors as bytes, and what a peer may not send."""

import pytest
import torch

from phalanx.communication.wire import (
    from_buffer,
    from_bytes,
    integers_from_bytes,
    integers_to_bytes,
    require_finite_values,
    to_bytes,
)
from phalanx.errors import WireError


def test_tensors_come_back_to_the_bit(subtests):
    source = torch.Generator().manual_seed(0)
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int8):
        for shape in ((), (0,), (5,), (3, 4), (2, 0, 3)):
            with subtests.test(f"{dtype}, {shape}"):
                x = (100 * torch.randn(shape, generator=source)).to(dtype)
                odd = torch.arange(3, dtype=torch.uint8)  # what follows starts at an odd address
                data = to_bytes([odd, x, x.T if x.ndim == 2 else x])
                assert data.dtype == torch.uint8
                assert len(data) == 3 + 2 * x.nbytes
                layout = [(torch.uint8, 3), (dtype, x.numel()), (dtype, x.numel())]
                head, one, other = from_bytes(data, layout)
                assert head.equal(odd)
                assert one.view(shape).equal(x)
                assert other.equal((x.T if x.ndim == 2 else x).reshape(-1))


def test_as_many_bytes_as_the_layout_takes_and_no_others(subtests):
    layout = [(torch.float32, 2), (torch.int64, 1)]
    assert from_bytes(torch.zeros(0, dtype=torch.uint8), []) == ()
    assert to_bytes([]).numel() == 0
    for length in (0, 15, 17):
        with subtests.test(f"{length} bytes"):
            data = torch.zeros(length, dtype=torch.uint8)
            with pytest.raises(WireError, match=f"message must have 16 bytes, got {length}"):
                from_bytes(data, layout)


def test_values_that_are_not_finite_are_refused():
    require_finite_values([torch.ones(2), torch.ones(2, dtype=torch.int64), torch.ones(0)])
    for poison in (torch.nan, torch.inf):
        with pytest.raises(WireError, match="message must hold finite values"):
            require_finite_values([torch.ones(2), torch.tensor([1.0, poison])])


def test_whole_numbers_are_little_endian():
    assert integers_to_bytes([1, 2**32 - 1], "<u4").tolist() == [1, 0, 0, 0, 255, 255, 255, 255]
    for kind, values in (("<u4", [0, 2**32 - 1]), ("<i8", [-1, 2**40]), ("<i8", [])):
        assert integers_from_bytes(integers_to_bytes(values, kind), kind) == values
    assert from_buffer(b"").numel() == 0
    assert from_buffer(b"\x07\x08").tolist() == [7, 8]

"""Hours of forged bytes for every compressor, by hand.

    pip install atheris
    PYTHONPATH=src:tests python benchmarks/fuzz_wire.py FAMILY [-max_total_time=120]

FAMILY is the name of a compressor's class, or `all`. Whatever the bytes, `from_bytes` raises a
`WireError` or returns a message of exactly these bytes, which decodes to finite values.
"""

import sys

import atheris

with atheris.instrument_imports(include=["phalanx"]):
    import torch

    from compression.cases import CASES
    from phalanx.compression import Compressor
    from phalanx.errors import WireError

SHAPES = [(7, 13), (5,), (), (0, 3), (9, 3, 2)]
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


def family(name: str) -> list[Compressor]:
    """The cases of a class, those within error feedback left out: they share its wire format."""
    return [one for one in CASES if name in ("all", type(one).__name__)]


def honest(compressor: Compressor, shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> bytes:
    source = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=source).to(dtype)
    return compressor.encode(x, source).to_bytes()


def forge(data: bytes, compressors: list[Compressor]) -> None:
    """The first bytes choose what is attacked, and whether an honest message is changed."""
    feed = atheris.FuzzedDataProvider(data)
    compressor = compressors[feed.ConsumeIntInRange(0, len(compressors) - 1)]
    shape = SHAPES[feed.ConsumeIntInRange(0, len(SHAPES) - 1)]
    dtype = DTYPES[feed.ConsumeIntInRange(0, len(DTYPES) - 1)]
    wire = bytearray()
    if feed.ConsumeBool():
        wire += honest(compressor, shape, dtype, feed.ConsumeIntInRange(0, 7))
        for _ in range(feed.ConsumeIntInRange(0, 6)):
            if wire:
                wire[feed.ConsumeIntInRange(0, len(wire) - 1)] = feed.ConsumeIntInRange(0, 255)
    wire += feed.ConsumeBytes(feed.remaining_bytes())
    try:
        message = compressor.from_bytes(bytes(wire), shape, dtype)
    except WireError:
        return
    assert message.to_bytes() == bytes(wire), compressor
    decoded = compressor.decode(message)
    assert (decoded.shape, decoded.dtype) == (torch.Size(shape), dtype), compressor
    assert bool(decoded.isfinite().all()), compressor


def main() -> None:
    torch.set_num_threads(1)
    compressors = family(sys.argv.pop(1) if len(sys.argv) > 1 else "all")
    if not compressors:
        raise SystemExit("FAMILY must be the class of a case, or all")
    atheris.Setup(sys.argv, lambda data: forge(data, compressors))
    atheris.Fuzz()


if __name__ == "__main__":
    main()

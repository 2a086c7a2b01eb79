"""Forged bytes for every wire format: each is refused, or is a message of exactly these bytes.

    python benchmarks/fuzz_wire.py [--messages 1000000] [--formats TopK QSGD ...] [--quick]
    pip install atheris; python benchmarks/fuzz_wire.py --atheris [--formats ...] [-runs=1000000]

Honest messages are changed at random (seed 0): bits flipped, words set to extremes, ends cut off,
parts deleted, repeated, swapped with those of another message; some bytes are noise from the start.
Whatever the bytes, the reader raises its typed error, or returns a message which as bytes is what
came, and, of a compressor, decodes to finite values. `--formats` runs some, and puts their rows
into the file that is there; `--atheris` lets that library choose the changes by what code they
reach.
"""

import argparse
import functools
import json
import random
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from compression.cases import CASES
from measurement import FOLDER, cell, write_measurement
from phalanx.coded_computation import pack_rows, unpack_rows
from phalanx.communication import wire
from phalanx.compression import Compressor, SampleQuantization, frame
from phalanx.errors import WireError
from phalanx.gossip import broadcast
from phalanx.pipeline import rows
from phalanx.privacy import MalformedMessageError, SecureSetup
from phalanx.privacy.secure_aggregation import messages, transport
from phalanx.privacy.secure_aggregation.protocol import NUM_SUMS, expand
from side_by_side import environment

CLAIM = "Forged bytes for every wire format"
COLUMNS = {
    "format": "format",
    "messages": "messages",
    "refused": "refused with a typed error",
    "accepted": "accepted, as the bytes say",
    "silent_wrong": "accepted otherwise",
    "untyped": "untyped errors or warnings",
}
REMARK = (
    "Typed errors are `WireError`, `MalformedMessageError` of secure aggregation, and `ValueError` "
    "of rows between Ray workers. What is accepted may be anything that a peer could have meant."
)
SHAPES = [(7, 13), (5,), (), (0, 3), (9, 3, 2)]
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
SETUP, PRESENT = SecureSetup(num_workers=5, dim=7), 3


class Chance(Protocol):
    """Where choices come from: a seed, or a library that watches what they lead to."""

    def below(self, bound: int) -> int:
        """A number from 0 to one below the bound."""

    def noise(self, count: int) -> bytes:
        """At most so many bytes."""


class Case(NamedTuple):
    """One kind of message between two peers.

    Attributes:
        honest: the bytes of some messages.
        read: what a reader makes of bytes, as bytes again.
        refusal: the error by which it refuses them.
    """

    honest: list[bytes]
    read: Callable[[bytes], bytes]
    refusal: type[Exception]


class WrongMessageError(Exception):
    """A message that was accepted and is not what the bytes say."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--messages", type=int, default=1_000_000, help="of all formats together")
    parser.add_argument("--formats", nargs="+", choices=list(FORMATS), default=list(FORMATS))
    parser.add_argument("--quick", action="store_true", help="few messages; nothing is written")
    parser.add_argument("--atheris", action="store_true", help="guided by coverage, for ever")
    options, others = parser.parse_known_args()
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    if options.atheris:
        guided(options.formats, others)
    share = 20 if options.quick else -(-options.messages // len(FORMATS))
    found = []
    for name in options.formats:
        row = {"format": name, "messages": share} | fuzz(name, share)
        print(" ".join(cell(row[key]).ljust(12) for key in COLUMNS), flush=True)
        found.append(row)
    if not options.quick:
        known = {row["format"]: row for row in [*earlier(), *found]}
        ordered = [known[name] for name in FORMATS if name in known]
        total = {key: sum(row[key] for row in ordered) for key in list(COLUMNS)[1:]}
        facts = environment("phalanx", "torch", "numpy") | {"threads": 1}
        write_measurement(
            "fuzz_wire", CLAIM, facts, [*ordered, {"format": "all", **total}], COLUMNS, REMARK
        )
    raise SystemExit(any(row["silent_wrong"] or row["untyped"] for row in found))


def earlier() -> list[dict[str, Any]]:
    """The rows of formats that other runs have written."""
    path = FOLDER / "fuzz_wire.json"
    return json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []


def fuzz(name: str, count: int) -> dict[str, int]:
    """Counts of what became of so many forged messages of one format."""
    chance = Seeded(name)
    counts = Counter(refused=0, accepted=0, silent_wrong=0, untyped=0)
    for number in range(count):
        outcome, detail = judged(name, chance)
        counts[outcome] += 1
        if detail is not None:
            print(f"{name} {number}: {outcome}: {detail}", flush=True)
    return dict(counts)


def judged(name: str, chance: Chance) -> tuple[str, str | None]:
    cases = FORMATS[name]
    case = cases[chance.below(len(cases))]()
    data = forged(chance, case.honest)
    try:
        if case.read(data) != data:
            return "silent_wrong", f"{data!r} is read as other bytes"
    except case.refusal:
        return "refused", None
    except WrongMessageError as error:
        return "silent_wrong", str(error)
    except (Exception, Warning) as error:
        return "untyped", f"{error!r} over {data!r}"
    return "accepted", None


def forged(chance: Chance, honest: list[bytes]) -> bytes:
    """Honest bytes after zero to four changes; or noise."""
    if chance.below(16) == 0:
        return chance.noise(chance.below(200))
    data = bytearray(honest[chance.below(len(honest))])
    for _ in range(chance.below(5)):
        here = chance.below(len(data) + 1)
        there = min(len(data), here + (1, 2, 4, 8, 8, 24)[chance.below(6)])
        how = chance.below(8)
        if how == 0:
            del data[here:]
        elif how == 1:
            del data[here:there]
        elif how == 2:
            data[there:there] = data[here:there]
        elif how == 3:
            data[here:there] = chance.noise(there - here)
        elif how == 4:
            data[here:there] = bytes([(0, 1, 127, 128, 255)[chance.below(5)]]) * (there - here)
        elif how == 5:
            data[here:there] = honest[chance.below(len(honest))][here:there]
        elif here < len(data):
            data[here] ^= 1 << chance.below(8)
    return bytes(data)


class Seeded:
    """Choices that follow from a name."""

    def __init__(self, name: str) -> None:
        self._random = random.Random(f"0 {name}")

    def below(self, bound: int) -> int:
        """A number from 0 to one below the bound."""
        return self._random.randrange(bound)

    def noise(self, count: int) -> bytes:
        """So many bytes."""
        return self._random.randbytes(count)


def guided(names: list[str], arguments: list[str]) -> None:
    """Atheris's own loop, which ends the process."""
    import atheris

    class Guided:
        def __init__(self, data: bytes) -> None:
            self._feed = atheris.FuzzedDataProvider(data)

        def below(self, bound: int) -> int:
            return self._feed.ConsumeIntInRange(0, bound - 1)

        def noise(self, count: int) -> bytes:
            return self._feed.ConsumeBytes(count)

    def one(data: bytes) -> None:
        chance = Guided(data)
        _, detail = judged(names[chance.below(len(names))], chance)
        assert detail is None, detail

    atheris.instrument_all()
    atheris.Setup([sys.argv[0], *arguments], one)
    atheris.Fuzz()


def compressed(compressor: Compressor, shape: tuple[int, ...], dtype: torch.dtype) -> Case:
    """Messages about one tensor."""

    def honest(seed: int) -> bytes:
        source = torch.Generator().manual_seed(seed)
        x = torch.randn(shape, generator=source).to(dtype)
        return compressor.encode(x, source).to_bytes()

    def read(data: bytes) -> bytes:
        message = compressor.from_bytes(data, shape, dtype)
        decoded = compressor.decode(message)
        if (decoded.shape, decoded.dtype) != (torch.Size(shape), dtype):
            raise WrongMessageError(f"{compressor} decodes to {decoded.dtype} {decoded.shape}")
        if not decoded.isfinite().all():
            raise WrongMessageError(f"{compressor} decodes to NaN or infinity")
        return message.to_bytes()

    return Case([honest(seed) for seed in range(3)], read, WireError)


def framed(compressor: Compressor, dtype: torch.dtype) -> Case:
    """Messages about several tensors in one frame, as workers and gossip nodes send them."""
    shapes = [(7, 13), (5,)]

    def honest(seed: int) -> bytes:
        source = torch.Generator().manual_seed(seed)
        tensors = [torch.randn(shape, generator=source).to(dtype) for shape in shapes]
        packed = [compressor.encode(x, source) for x in tensors]
        return tensor_bytes(frame(packed, compressor.fixed_size))

    def read(data: bytes) -> bytes:
        found = compressor.unframe(wire.from_buffer(data), [(shape, dtype) for shape in shapes])
        if not all(compressor.decode(one).isfinite().all() for one in found):
            raise WrongMessageError(f"{compressor} decodes to NaN or infinity")
        return tensor_bytes(frame(found, compressor.fixed_size))

    return Case([honest(seed) for seed in range(3)], read, WireError)


def secure(kind: type[Any]) -> Case:
    """Messages of secure aggregation, whole and in chunks."""

    def words(seed: int, name: str) -> torch.Tensor:
        shape = {
            "rows": (PRESENT, SETUP.dim),
            "products": (SETUP.num_workers, SETUP.num_workers),
            "sums": (SETUP.num_workers, NUM_SUMS),
            "pairs": (PRESENT * (PRESENT - 1) // 2,),
            "differences": (PRESENT - 1, NUM_SUMS),
            "offsets": (SETUP.num_workers,),
        }.get(name, (SETUP.dim,))
        return expand(bytes([seed]), name, *shape)

    def honest(seed: int) -> bytes:
        known = {"round": seed, "worker": seed, "seed": bytes(range(32)), "marked": (1,)}
        known |= {"workers": (0, 2, 4), "shift": 24, "divisor": 3, "next": 4}
        fields = [known[one] if one in known else words(seed, one) for one in kind._fields]
        return messages.pack(kind(*fields), SETUP)

    def read(data: bytes) -> bytes:
        found = messages.pack(messages.unpack(data, SETUP, PRESENT), SETUP)
        chunks = (data[start : start + 50] for start in range(0, len(data), 50))
        if messages.pack(transport.gather(chunks, SETUP, PRESENT), SETUP) != found:
            raise WrongMessageError("chunks are read as another message")
        return found

    return Case([honest(seed) for seed in range(3)], read, MalformedMessageError)


def plain_tensors() -> Case:
    """Tensors between gossip nodes."""
    like = [torch.empty(3, 2), torch.empty(4, dtype=torch.bfloat16)]

    def honest(seed: int) -> bytes:
        source = torch.Generator().manual_seed(seed)
        tensors = [torch.randn(x.shape, generator=source).to(x.dtype) for x in like]
        return tensor_bytes(wire.to_bytes(tensors))

    def read(data: bytes) -> bytes:
        found = broadcast.read(wire.from_buffer(data), like)
        if not all(x.isfinite().all() for x in found):
            raise WrongMessageError("a tensor has NaN or infinity")
        return tensor_bytes(wire.to_bytes(found))

    return Case([honest(seed) for seed in range(3)], read, WireError)


def pipeline_rows(compressor: Compressor) -> Case:
    """Rows of a micro-batch between pipeline stages."""
    full = torch.tensor([True, False, False, True])
    shape, dtype = (3, 4), torch.float32

    def honest(seed: int) -> bytes:
        source = torch.Generator().manual_seed(seed)
        values = torch.randn(4, *shape, generator=source)
        whole, others = rows.pick(values, full), rows.pick(values, ~full)
        packed = rows.Rows(rows.FULL.encode(whole), compressor.encode(others, source))
        return tensor_bytes(packed.to_tensor())

    def read(data: bytes) -> bytes:
        found = rows.cut(wire.from_buffer(data), full, shape, dtype, compressor, dtype)
        decoded = [rows.FULL.decode(found.full), compressor.decode(found.coarse)]
        if not all(x.isfinite().all() for x in decoded):
            raise WrongMessageError("rows have NaN or infinity")
        return tensor_bytes(found.to_tensor())

    return Case([honest(seed) for seed in range(3)], read, WireError)


def ray_rows() -> Case:
    """Rows of samples between Ray workers: any bytes of the right length are rows."""
    like = [torch.empty(1, 3, dtype=torch.int16), torch.empty(1, dtype=torch.float64)]

    def read(data: bytes) -> bytes:
        content = wire.from_buffer(data).reshape(1, -1)
        return tensor_bytes(pack_rows(unpack_rows(content, like)))

    return Case([bytes(14), bytes(range(14))], read, ValueError)


def tensor_bytes(data: torch.Tensor) -> bytes:
    return data.numpy().tobytes()


def formats() -> dict[str, list[Callable[[], Case]]]:
    """Cases of every format, made when they are first asked for."""

    def lazy(make: Callable[..., Case], *arguments: Any) -> Callable[[], Case]:
        return functools.cache(lambda: make(*arguments))

    found: dict[str, list[Callable[[], Case]]] = {}
    for one in CASES:
        mine = found.setdefault(type(one).__name__, [])
        mine += [lazy(compressed, one, shape, dtype) for shape in SHAPES for dtype in DTYPES]
        mine += [lazy(framed, one, dtype) for dtype in DTYPES]
    found |= {kind.__name__: [lazy(secure, kind)] for kind in messages._KINDS}
    found["tensors of gossip"] = [lazy(plain_tensors)]
    found["rows of a pipeline"] = [
        lazy(pipeline_rows, SampleQuantization(2, *how))
        for how in (("stochastic", "token"), ("stochastic",))
    ]
    found["rows between Ray workers"] = [lazy(ray_rows)]
    return found


FORMATS = formats()

if __name__ == "__main__":
    main()

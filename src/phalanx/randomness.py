"""Randomness that every replica derives from the run's seed, and nobody has to send."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derive_seed(*names: int | str) -> int:
    """Folds a path of names, such as `(seed, "batch", epoch)`, into one 63-bit seed.

    The same names give the same seed on every machine and in every process; names that differ
    anywhere give unrelated seeds.

    >>> derive_seed(3, "batch", 0) == derive_seed(3, "batch", 0) != derive_seed(3, "batch", 1)
    True
    """
    path = "/".join(f"{type(name).__name__}:{name}" for name in names)
    return int.from_bytes(hashlib.blake2b(path.encode(), digest_size=8).digest(), "big") >> 1


def generator(*names: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A fresh `torch.Generator` seeded by `derive_seed(*names)`."""
    return torch.Generator(device=device).manual_seed(derive_seed(*names))


@contextmanager
def seeded(*names: int | str) -> Iterator[None]:
    """Lends torch's global generators the seed `derive_seed(*names)` for a while.

    For layers and initialisers, which draw from the global generators and take no other. Outside
    of the block the generators go on as if nothing had happened.
    """
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    with torch.random.fork_rng(devices):
        torch.manual_seed(derive_seed(*names))
        yield

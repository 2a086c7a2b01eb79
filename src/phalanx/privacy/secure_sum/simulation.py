"""Secure sum of all parties in one process: for simulations, comparisons and tests."""

from collections.abc import Collection, Mapping
from dataclasses import replace

from jaxtyping import Int
from torch import Tensor

from phalanx.privacy.secure_aggregation.protocol import Entropy, system_entropy
from phalanx.privacy.secure_sum.client import Kept, SumClient
from phalanx.privacy.secure_sum.server import OpenedSum, run_secure_sum
from phalanx.privacy.secure_sum.setup import Message, SumSetup


def secure_sum(
    words: Int[Tensor, "clients width"],
    setup: SumSetup,
    dropped: Mapping[str, Collection[int]] | None = None,
    entropy: Entropy = system_entropy,
) -> OpenedSum:
    """The sum of vectors modulo 2^bits, by the protocol: nothing is hidden within one process.

    Args:
        words: the clients' vectors, of `setup.dtype`.
        setup: the public parameters.
        dropped: who drops out before which phase: advertise, share, mask or unmask.
        entropy: the source of secrets.

    Raises:
        ValueError: if the words are not of the setup's shape and type.
        SecureSumError: if fewer clients than the threshold last to the end.

    >>> import torch
    >>> from phalanx.privacy import SumSetup, secure_sum
    >>> words = torch.tensor([[1, 2], [3, 4], [5, 6]], dtype=torch.int32)
    >>> secure_sum(words, SumSetup(num_clients=3, width=2, threshold=2), {"mask": [1]}).total
    tensor([6, 8], dtype=torch.int32)
    """
    if words.shape != (setup.num_clients, setup.width) or words.dtype != setup.dtype:
        raise ValueError(
            f"words must be of {setup.dtype} and shape {(setup.num_clients, setup.width)}, got "
            f"{words.dtype} and {tuple(words.shape)}"
        )
    kept: list[Kept] = [{"words": row} for row in words]
    gone: set[int] = set()

    def ask(attempt: int, phase: str, requests: Mapping[int, Message]) -> dict[int, Message]:
        gone.update((dropped or {}).get(phase, ()))
        replies = {}
        for place, request in requests.items():
            if place not in gone:
                client = SumClient(replace(setup, attempt=attempt), place, entropy)
                replies[place], kept[place] = client.answer(phase, request, kept[place])
        return replies

    return run_secure_sum(setup, ask)

"""Agreement of the ranks of a process group on their configuration, and on the number of the step.

Ranks that do different things would wait for each other for ever, take each other's bytes for what
they are not, or go on with different weights. Nothing is pickled.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from phalanx.communication.point_to_point import Peers
from phalanx.communication.wire import from_buffer, integers_from_bytes, integers_to_bytes
from phalanx.errors import DisagreementError

_MOST_BYTES = 1 << 16  # of what a rank may say about itself
_SHOWN = 300  # characters of a value that are sent and shown
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")  # of a function, say: another one in every process


def require_agreement(
    peers: Peers, facts: Mapping[str, Any], device: torch.device | str = "cpu"
) -> None:
    """Compares what the ranks are told to do; a collective, called once before the first step.

    Versions of torch and of this package are compared as well.

    Args:
        peers: the ranks.
        facts: what has to be the same, by name; values are compared as `repr` shows them.
        device: where the group's tensors lie.

    Raises:
        DisagreementError: on all ranks, naming those that differ, and in what.
        RankLostError: if a rank is gone, or silent for longer than the group's timeout.

    Cost: 16 bytes from every rank to every other one.
    """
    versions = {"torch": torch.__version__, "phalanx": version("phalanx")}
    told = {name: _told(value) for name, value in {**facts, **versions}.items()}
    text = json.dumps(told).encode()
    digest = hashlib.blake2b(text, digest_size=16).digest()
    digests = [bytes(row.tolist()) for row in peers.gather(from_buffer(digest).to(device)).cpu()]
    if len(set(digests)) == 1:
        return
    usual = Counter(digests).most_common(1)[0][0]  # of several, that of the lowest rank
    odd = [rank for rank, one in enumerate(digests) if one != usual]
    said = _texts(peers, text, device)
    raise DisagreementError(
        f"ranks must agree, which {odd} do not: {'; '.join(_differences(said))}", ranks=odd
    )


class StepCheck:
    """The ranks' numbers of the step under way; `finish` compares them.

    So that waiting costs nothing, there may be work in between, the same on all ranks.
    """

    def __init__(
        self,
        peers: Peers,
        step: int,
        device: torch.device | str = "cpu",
        among: list[int] | None = None,
    ) -> None:
        """Sends this rank's number on its way.

        Args:
            peers: the ranks.
            step: of this rank.
            device: where the group's tensors lie.
            among: the ranks to compare with, whose `among` has this rank; all of them by default.
        """
        own = integers_to_bytes([step], "<i8").to(device)
        nothing = own[:0]
        ranks = set(range(peers.size) if among is None else among) | {peers.rank}
        self._told = [
            torch.zeros_like(own) if rank in ranks else nothing for rank in range(peers.size)
        ]
        sent = [own if rank in ranks else nothing for rank in range(peers.size)]
        self._step, self._under_way = step, peers.swap(sent, self._told)

    def finish(self) -> None:
        """Waits for the numbers of the others.

        Raises:
            DisagreementError: naming the ranks that are at another step.
            RankLostError: if a rank is gone, or silent for longer than the group's timeout.
        """
        self._under_way.wait()
        steps = {
            rank: integers_from_bytes(row, "<i8")[0]
            for rank, row in enumerate(self._told)
            if len(row)
        }
        if odd := {rank: step for rank, step in steps.items() if step != self._step}:
            raise DisagreementError(
                f"ranks must be at the same step, {self._step} here, got "
                f"{', '.join(f'{step} on rank {rank}' for rank, step in odd.items())}: load "
                "checkpoints of one step on all ranks",
                ranks=list(odd),
            )


def _told(value: object) -> str:
    """What a rank says about a value: all of it, or its beginning and a hash."""
    text = _ADDRESS.sub("", repr(value))
    if len(text) <= _SHOWN:
        return text
    return f"{text[:_SHOWN]}... ({hashlib.blake2b(text.encode(), digest_size=16).hexdigest()})"


def _texts(peers: Peers, own: bytes, device: torch.device | str) -> list[dict[str, str]]:
    """What all ranks say about themselves."""
    lengths = peers.gather(integers_to_bytes([len(own)], "<i8").to(device))
    sizes = [integers_from_bytes(row, "<i8")[0] for row in lengths]
    sizes = [size if 0 <= size <= _MOST_BYTES else 0 for size in sizes]
    padded = torch.zeros(max(sizes), dtype=torch.uint8)
    padded[: len(own)] = from_buffer(own)
    rows = peers.gather(padded.to(device)).cpu()
    return [_parsed(row[:size]) for row, size in zip(rows, sizes, strict=True)]


def _parsed(row: Tensor) -> dict[str, str]:
    try:
        found = json.loads(bytes(row.tolist()))
    except ValueError:  # no text at all
        found = None
    return {str(k): str(v) for k, v in found.items()} if isinstance(found, dict) else {}


def _differences(said: list[dict[str, str]]) -> list[str]:
    """Every fact that is not the same on all ranks, and what it is where."""
    found = []
    for name in sorted(set().union(*said)):
        values: dict[str, list[int]] = {}
        for rank, facts in enumerate(said):
            values.setdefault(facts.get(name, "nothing"), []).append(rank)
        if len(values) > 1:
            shown = (f"{value} on {ranks}" for value, ranks in values.items())
            found.append(f"{name} is {', '.join(shown)}")
    return found or ["they do not say in what"]

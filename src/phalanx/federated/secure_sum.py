"""Secure sums in federated rounds: the server learns the mean of updates, and no update."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from phalanx.checks import require_at_least, require_finite_above
from phalanx.errors import WireError
from phalanx.privacy import (
    Budget,
    DistributedNoise,
    SumClient,
    SumRange,
    SumSetup,
    discrete_gaussian,
    run_secure_sum,
)
from phalanx.privacy.secure_sum.client import PHASES
from phalanx.privacy.secure_sum.distributed_noise import PIECES
from phalanx.privacy.secure_sum.setup import require_threshold
from phalanx.training import AggregationProtocol, PrivacyLedger
from phalanx.training.aggregation_protocol import Ask, Gathered, Message, Told

_LOSS_LIMIT = 64.0
_LEAST_EPSILON = 1e-9  # of a budget: epsilon is zero at some delta if noise is large
_FINEST_SHARE = 16  # units in the standard deviation of a share of noise, at least


@dataclass(frozen=True)
class SecureSum(AggregationProtocol):
    """Secure sum by pairwise masks: clients' weighted updates are added up under masks that cancel.

    Trusted: the server to follow the protocol (it is honest but curious), and to tell every client
    the others' true keys. Untrusted, then: its curiosity, together with that of fewer clients than
    `threshold`. A server that asks for both secrets of a client is refused; one that hands out keys
    of its own is not noticed. Clients are trusted with what they send: a sum hides a poisoned
    update as well as an honest one.

    A client multiplies its update by its number of samples, and adds up with it, under the same
    masks: that number, its loss in the same way, and how many of its numbers were cut down to
    `limit`. So the server learns the weighted mean, the samples of all together, the mean loss, and
    who took part. Fixed-point words are sized so that no sum wraps around.

    Guarantee: the exact sum modulo 2^`bits` of those whose masked vector arrived, whoever drops
    out, as long as `threshold` clients last to the end; else a `SecureSumError`, and nothing is
    opened. A run has the same weights to the bit whoever computes it, without noise.
    Cost: as many bytes up as float32 and `191 n` more; `n d` words of key stream for each of n
    clients; for the server as much, and for each drop-out once more. Four exchanges a round.
    Source: Bonawitz, Ivanov, Kreuter, Marcedone, McMahan, Patel, Ramage, Segal and Seth, "Practical
    Secure Aggregation for Privacy-Preserving Machine Learning", CCS 2017.

    >>> from phalanx.federated import SecureSum
    >>> SecureSum().needed(num_workers=10)
    7
    """

    threshold: int | None = None
    """Clients of a round that must last to the end, above half of them (t); by default more than
    two thirds."""

    limit: float = 8.0
    """Largest magnitude of a number of an update; what is beyond is cut down to it, and counted
    (`saturated` in the metrics)."""

    max_samples: int | None = None
    """Largest number of samples of a client, known to all; by default that of the largest client,
    where all are at hand. Not needed where clients count alike."""

    bits: Literal[32, 64] = 32
    """Bits of a word: 64 for finer numbers, and twice the bytes."""

    noise: DistributedNoise | None = None
    """Noise in shares, which makes the sum differentially private; then clients count alike, are
    clipped to its norm and not to `limit`, and tell neither losses nor numbers that were cut."""

    def __post_init__(self) -> None:
        require_at_least(2, threshold=self.threshold)
        require_finite_above(0, limit=self.limit)
        require_at_least(1, max_samples=self.max_samples)
        if self.bits not in (32, 64):
            raise ValueError(f"bits must be 32 or 64, got {self.bits}")

    @property
    def last_phase(self) -> str:
        """Unmask."""
        return PHASES[-1]

    @property
    def counts_alike(self) -> bool:
        """With noise."""
        return self.noise is not None

    def ledger(
        self, rounds: int, sums_per_round: int, *, resume: bool = False
    ) -> PrivacyLedger | None:
        """With noise: its budget is what the rounds cost; see `AggregationProtocol.ledger`."""
        if self.noise is None:
            return None
        # Two sums with noise z tell as much as one with z / sqrt(2).
        multiplier, delta = self.noise.noise_multiplier / sums_per_round**0.5, self.noise.delta
        planned = self.noise.accountant()
        planned.compose(multiplier, steps=rounds)
        budget = Budget(max(planned.epsilon(delta), _LEAST_EPSILON), delta)
        return PrivacyLedger(self.noise.accountant(), budget, multiplier, 1.0, resume=resume)

    def needed(self, num_workers: int) -> int:
        """The threshold, default or not."""
        return SumSetup(num_workers, threshold=self.threshold).needed

    def fitted(
        self, num_workers: int, width: int, sizes: Sequence[int], *, weighted: bool
    ) -> "SecureSum":
        """With `max_samples` filled in; see `AggregationProtocol.fitted`."""
        if num_workers < 2:
            raise ValueError(f"aggregation needs at least 2 clients in a round, got {num_workers}")
        require_threshold(self.threshold, num_workers)
        most = max(sizes, default=0) if weighted else 1
        known = self.max_samples or most
        if known < max(most, 1):
            told = f"the {most} samples of the largest client" if most else "any client's samples"
            raise ValueError(f"max_samples must be at least {told}, got {self.max_samples}")
        found = replace(self, max_samples=known if weighted else 1)
        found._ranges(num_workers, width)
        return found

    def answer(self, told: Told, kept: Message) -> tuple[Message, Message]:
        """A client's part in one phase; see `AggregationProtocol.answer`."""
        if not kept:
            kept = {"words": self._words(told)}
        width = len(kept["words"])
        setup = self._setup(told.step, told.num_workers, width, told.attempt, told.preparing)
        return SumClient(setup, told.place).answer(told.phase, told.request, kept)

    def gather(
        self, ask: Ask, *, step: int, preparing: bool, num_workers: int, width: int
    ) -> Gathered:
        """The server's part in a round; see `AggregationProtocol.gather`."""
        extra = 0 if self.noise is not None else 3
        setup = self._setup(step, num_workers, width + extra, 0, preparing)
        opened = run_secure_sum(setup, ask)
        counted = torch.zeros(num_workers, dtype=torch.bool)
        counted[list(opened.clients)] = opened.total is not None
        missing = {**opened.lost, **opened.marked}
        if opened.total is None:  # the round is void: somebody who is marked saw to that
            missing |= dict.fromkeys(opened.clients, "void")
            nothing = torch.zeros(width, dtype=torch.float64)
            return Gathered(nothing, counted, torch.nan, missing, sorted(opened.marked), 0)
        numbers, losses, _ = self._ranges(num_workers, width)
        mean = numbers.decode(opened.total[:width])
        marked = sorted(opened.marked)
        if self.noise is not None:
            return Gathered(mean / len(opened.clients), counted, torch.nan, missing, marked, 0)
        loss, weight, cut = opened.total[width:]
        total = max(int(weight), 1)  # clients that say 0, or less, spoil the mean, not the run
        told = losses.decode(loss).item() / total
        return Gathered(mean / total, counted, told, missing, marked, max(0, int(cut)))

    def _setup(
        self, step: int, num_workers: int, width: int, attempt: int, preparing: bool
    ) -> SumSetup:
        label = f"{'preparation' if preparing else 'round'} {step}"
        return SumSetup(num_workers, width, self.threshold, self.bits, label, attempt)

    def _ranges(self, num_workers: int, width: int) -> tuple[SumRange, SumRange, SumRange]:
        """Of the numbers of an update, of the loss, and of counts.

        Raises:
            ValueError: if too few bits are left.
        """
        weight = self.max_samples or 1
        limit = self.limit * weight
        if self.noise is not None:
            share = self.noise.share_std(self.needed(num_workers))
            limit = self.noise.clip_norm + (PIECES + 1) * share
        found = SumRange(num_workers, limit, self.bits)
        if self.noise is not None:
            lost = found.unit * width**0.5 / 2
            if share < _FINEST_SHARE * found.unit or lost > self.noise.clip_norm / 10:
                raise ValueError(
                    f"bits must be 64 for this noise on {width} numbers of {num_workers} clients, "
                    f"got {self.bits}: words are too coarse"
                )
        counts = SumRange(num_workers, 1.0, self.bits)
        if self.noise is None and weight > counts.largest:
            raise ValueError(
                f"max_samples must be at most {counts.largest} for {num_workers} clients and "
                f"bits={self.bits}, got {weight}"
            )
        return found, SumRange(num_workers, _LOSS_LIMIT * weight, self.bits), counts

    def _words(self, told: Told) -> Tensor:
        """The vector of a client.

        Raises:
            WireError: if it has too many samples, or its message is not finite.
        """
        message = told.message.detach().cpu().double()
        if not message.isfinite().all():
            raise WireError("not finite")
        numbers, losses, counts = self._ranges(told.num_workers, len(message))
        if self.noise is not None:
            return self._noisy(message, numbers, told.num_workers)
        weight = 1 if told.num_samples is None else told.num_samples
        if weight > (self.max_samples or 1):
            raise WireError(f"max_samples is {self.max_samples}, below its {weight} samples")
        cut = int((message.abs() > self.limit).sum())
        words, _ = numbers.encode(message.clamp(-self.limit, self.limit) * weight)
        loss = torch.tensor([told.loss * weight], dtype=torch.float64)
        own, _ = losses.encode(loss.nan_to_num(0.0, 0.0, 0.0))
        others = torch.tensor([weight, min(cut, counts.largest)], dtype=words.dtype)
        return torch.cat([words, own, others])

    def _noisy(self, message: Tensor, numbers: SumRange, num_workers: int) -> Tensor:
        """The clipped update with a share of the noise.

        Rounding moves every number by half a unit at most: it is clipped to as much less.
        """
        assert self.noise is not None
        norm = self.noise.clip_norm - numbers.unit * len(message) ** 0.5 / 2
        message = message * min(1.0, norm / max(message.norm().item(), 1e-300)) * (1 - 1e-12)
        words, _ = numbers.encode(message)
        share = self.noise.share_std(self.needed(num_workers)) / numbers.unit
        return words + discrete_gaussian(share, len(message)).to(words.dtype)

"""Planner of codes and waiting policies against stragglers, on the virtual clock."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from phalanx.coding import CyclicRepetition, ErasureHead, FractionalRepetition, LinearCode
from phalanx.errors import DecodeError
from phalanx.planning.plan import Plan
from phalanx.randomness import generator
from phalanx.stragglers.delays import DelayModel, ShiftedExponential
from phalanx.stragglers.virtual_clock import virtual_clock
from phalanx.stragglers.waiting import FirstOf, UntilDecodable, WaitFor, WaitingPolicy


class CodeOutlook(NamedTuple):
    """What to expect of a code and a number of messages to wait for.

    Attributes:
        code: its name; "none" where every worker computes a partition of its own.
        redundancy: partitions per worker, on average.
        wait_for: messages after which a round is over; None to wait until the code is exact. A
            code that is exact earlier ends the round then.
        round_s: mean seconds per round.
        slow_round_s: seconds that one round in twenty takes at least.
        error: root mean square of `Decoded.error`: what the gradient is off by, relative to the
            root mean square norm of the partitions' gradients, at most.
        bias: the part of the error that is the same in all rounds, since the same workers are late:
            no number of rounds averages it out.
        rounds: times as many rounds as exact gradients need.
        time_s: seconds until as much is learnt as in one round of exact gradients.
        reaches: whether the bias lies within the target error.
    """

    code: str
    redundancy: float
    wait_for: int | None
    round_s: float
    slow_round_s: float
    error: float
    bias: float
    rounds: float
    time_s: float
    reaches: bool


@dataclass(frozen=True)
class CodePlanner:
    """Compares codes against stragglers by the expected time to a target error.

    The model, which is simple on purpose:

    - A worker answers after its delay, and `seconds_per_partition` for each partition that it
      computes. Late work is dropped. Decoding, and sending, take no time of their own: what they
      take belongs into the delays.
    - A decoded gradient counts partition i `u_i` times, where 1 would be exact. The mean of `u_i`
      over the rounds, less 1, is a bias: it sets a floor, and a code whose bias exceeds
      `target_error` does not reach the target.
    - The rest of the error, `e^2`, is noise. If partitions' gradients deviate from their mean
      independently, `k` exact ones have a variance of `V / k`, and these have `(1 + e^2) V / k`. So
      the rounds needed are taken to be `1 + noise e^2` times those of exact gradients.

    Candidates are no code, `FractionalRepetition`, `CyclicRepetition` and `ErasureHead`, up to
    `max_redundancy` copies. Codes that hide their groups are none: they are against adversaries,
    and lose to repetition where stragglers are random.

    Cost: `num_rounds` rounds of algebra on the assignment for each candidate; seconds in all.
    """

    delays: DelayModel = ShiftedExponential()  # noqa: RUF009 - frozen
    """How long workers take, their computation not included."""

    num_workers: int = 50
    """Workers, and partitions (n in the papers)."""

    seconds_per_partition: float = 0.0
    """Seconds of computation per partition."""

    max_redundancy: int = 5
    """Largest number of partitions per worker."""

    target_error: float = 0.05
    """Largest bias of the gradient that is accepted, as a share of the root mean square norm of the
    partitions' gradients."""

    noise: float = 1.0
    """How much of the rounds needed is due to noise: 0 if it does not matter, 1 if twice the
    variance takes twice the rounds, more if partitions differ by more than chance."""

    num_rounds: int = 300
    """Rounds that are played on the virtual clock; of a trace, the first so many."""

    seed: int = 0
    """Of the delays that are drawn."""

    def __post_init__(self) -> None:
        for name in ("num_workers", "max_redundancy", "num_rounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.max_redundancy > self.num_workers:
            raise ValueError(
                f"max_redundancy must be at most num_workers = {self.num_workers}, got "
                f"{self.max_redundancy}"
            )
        for name in ("seconds_per_partition", "target_error", "noise"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be finite and at least 0, got {getattr(self, name)}")

    def plan(self) -> Plan[CodeOutlook]:
        """The candidates whose rounds end: those that reach the target first, by their time.

        Raises:
            ValueError: if every candidate has a round that waits for ever, for workers that never
                answer.

        >>> from phalanx.stragglers import Bimodal
        >>> from phalanx.planning import CodePlanner
        >>> rarely = Bimodal(1.0, 10.0, slow_share=0.1)
        >>> best = CodePlanner(rarely, num_workers=12, num_rounds=30).plan().best
        >>> best.round_s < 2 and best.reaches
        True
        """
        drawn = self.delays.draw(self.num_rounds, self.num_workers, generator(self.seed, "plan"))
        found = [self._outlook(candidate, drawn) for candidate in self._candidates()]
        ended = [one for one in found if one is not None]
        if not ended:
            raise ValueError("delays must let some round end, got workers that never answer")
        return Plan(sorted(ended, key=lambda one: (not one.reaches, one.time_s, one.redundancy)))

    def _candidates(self) -> Iterator["_Candidate"]:
        n = self.num_workers
        counts = sorted({round(n * share / 10) for share in range(3, 10)} - {0, n})
        yield _Candidate("none", FractionalRepetition(n, 0))
        for number in counts:
            yield _Candidate("none", ErasureHead(n, copies=1), number)
        for copies in range(2, self.max_redundancy + 1):
            yield _Candidate("FractionalRepetition", FractionalRepetition(n, copies - 1))
            yield _Candidate("CyclicRepetition", CyclicRepetition(n, copies - 1))
            for number in counts:
                yield _Candidate("ErasureHead", ErasureHead(n, copies=copies), number)

    def _outlook(self, candidate: "_Candidate", delays: Tensor) -> CodeOutlook | None:
        """None if a round waits for ever, for workers that never answer."""
        load = candidate.code.assignment.sum(dim=1)
        answers = delays + self.seconds_per_partition * load
        if candidate.policy.ends_at(answers).isinf().any():
            return None
        rounds = virtual_clock(answers, candidate.policy)
        error, bias = self._errors(candidate.code, rounds.arrived)
        length_s = rounds.duration_s.mean().item()
        needed = 1 + self.noise * max(error**2 - bias**2, 0.0)
        return CodeOutlook(
            candidate.name,
            candidate.code.redundancy,
            candidate.wait_for,
            length_s,
            rounds.duration_s.quantile(0.95).item(),
            error,
            bias,
            needed,
            length_s * needed,
            bias <= self.target_error,
        )

    def _errors(self, code: LinearCode, arrived: Tensor) -> tuple[float, float]:
        """The root mean square error, and its part that does not change from round to round."""
        off = torch.stack([_share(code, row) - 1 for row in arrived])
        square, number = off.square().mean(), len(off)
        if number == 1:
            return square.sqrt().item(), 0.0
        # Of the mean's square, what the mean of so few rounds has by chance is taken off.
        chance = off.var(dim=0).mean() / number
        bias = (off.mean(dim=0).square().mean() - chance).clamp(min=0)
        return _rounded(square), _rounded(bias)


class _Candidate(NamedTuple):
    name: str
    code: LinearCode
    wait_for: int | None = None

    @property
    def policy(self) -> WaitingPolicy:
        """Waits for so many workers, or until the code is exact, if that is earlier."""
        exact = self.code
        if isinstance(exact, ErasureHead):
            exact = replace(exact, max_error=0.0)
        until_exact = UntilDecodable(exact.can_decode)
        return (
            until_exact if self.wait_for is None else FirstOf([WaitFor(self.wait_for), until_exact])
        )


def _share(code: LinearCode, arrived: Tensor) -> Tensor:
    """How often each partition counts in what is decoded; 0 if nothing can be."""
    try:
        return code.coefficients(arrived) @ code.weights
    except DecodeError:
        return torch.zeros(code.num_partitions, dtype=torch.float64)


def _rounded(square: Tensor) -> float:
    """The root, or 0 where it is but the rounding of the algebra."""
    root = square.sqrt().item()
    return root if root > 1e-8 else 0.0

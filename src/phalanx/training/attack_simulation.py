"""How a drill is staged: what bad workers do instead of their duty, on every engine the same."""

from collections.abc import Iterable
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from phalanx.attacks import AdversaryKnowledge, Attack, Rule, column_mean
from phalanx.randomness import generator
from phalanx.training.engines.base import Inbox
from phalanx.training.job import Job
from phalanx.training.worker_state import Memory
from phalanx.transforms.compressed import States


@dataclass(frozen=True)
class Role:
    """What one bad worker does in one round.

    Attributes:
        attack: its attack.
        num_byzantine: how many workers are bad in this round.
        seed: the run's seed.
        step: the round.
        worker: its id.
    """

    attack: Attack
    num_byzantine: int
    seed: int
    step: int
    worker: int

    def forge(
        self, own: Float[Tensor, " width"], honest: Float[Tensor, "honest width"] | None = None
    ) -> Tensor:
        """What the worker sends, the same bits in any process."""
        return self.carry_out(self.attack, own, honest)

    def carry_out(
        self,
        plan: Attack,
        own: Float[Tensor, " width"],
        honest: Float[Tensor, "honest width"] | None,
    ) -> Tensor:
        """What the worker sends if its attack came down to a plan."""
        source = generator(self.seed, "attack", self.step, self.worker)
        return plan.forge(own, honest, self.num_byzantine, source)


def roles(job: Job, step: int) -> dict[int, Role]:
    """The bad workers of a round, by rank."""
    conduct = job.conduct(step)
    return {
        worker: Role(attack, len(conduct), job.seed, step, worker)
        for worker, attack in conduct.items()
    }


class Drill:
    """One round of a drill: who is to compute what, and what is sent instead of it.

    Attributes:
        cast: all bad workers of the round, by rank.
    """

    def __init__(
        self,
        job: Job,
        step: int,
        parameters: Float[Tensor, " dim"],
        memory: Memory,
        aggregate: Rule | None,
    ) -> None:
        """Assigns the roles.

        Args:
            job: the run's.
            step: the round.
            parameters: the round's.
            memory: what earlier rounds left.
            aggregate: the server's rule as it stands in this round; None if it has none.
        """
        self.cast = roles(job, step)
        self._job, self._step, self._parameters = job, step, parameters
        self._aggregate = aggregate or column_mean
        self._past, self._plans = memory.past, memory.plans
        self._codec = job.codec

    def task(self, worker: int) -> tuple[int, Float[Tensor, " dim"]]:
        """The round that a worker computes, and its parameters: an earlier one if it is behind."""
        behind = 0
        if worker in self.cast:
            behind = min(self.cast[worker].attack.rounds_behind, len(self._past))
        if behind == 0:
            return self._step, self._parameters
        return self._step - behind, self._past[-behind].to(self._parameters.device)

    def deviates(self, worker: int) -> bool:
        """Whether a bad worker computes anything else than it would if it were honest."""
        return self.cast[worker].attack.relabels or self.task(worker)[0] != self._step

    def stage(
        self,
        inbox: Inbox,
        members: Iterable[int],
        own: Float[Tensor, "workers width"] | None = None,
    ) -> dict[int, float]:
        """Replaces the honest messages of bad workers by what they send.

        Args:
            inbox: the round's messages, honest ones of `members` among them.
            members: the bad workers that are staged here, and not where they run.
            own: honest messages as they are before compression, where that has been: what those
                forge from that read no others.

        Returns:
            Seconds by which each of these messages is held back.
        """
        ranks = {worker: rank for rank, worker in enumerate(self.cast) if inbox.arrived[worker]}
        ranks = {worker: ranks[worker] for worker in members if worker in ranks}
        plans, honest = {worker: self.cast[worker].attack for worker in ranks}, None
        if any(attack.omniscient for attack in plans.values()):
            view = self._view(inbox)
            honest = view.honest
            assert self._job.attack is not None
            planned, self._plans = self._job.attack.plans(view, ranks.values(), self._plans)
            plans = {worker: planned[rank] for worker, rank in ranks.items()}
        for worker, plan in plans.items():
            if not plan.sends:
                inbox.refuse(worker, "silent")
            else:
                blind = own is not None and not self.cast[worker].attack.omniscient
                before = (own if own is not None and blind else inbox.messages)[worker].clone()
                seen = honest if plan.omniscient else None
                forged = self.cast[worker].carry_out(plan, before, seen)
                if self._codec is not None:
                    forged = self._codec.forge(forged, self._step, worker)
                inbox.put(worker, forged, inbox.losses[worker].item())
        return {worker: plan.delay_s for worker, plan in plans.items()}

    def remember(
        self,
        momenta: Float[Tensor, "workers width"] | None = None,
        waiting: tuple[float, ...] = (),
        compression: tuple[States, ...] = (),
    ) -> Memory:
        """What the next round is to know.

        Args:
            momenta: of all workers, if they have any.
            waiting: what the waiting policy remembers, if there is one and it does.
            compression: what the workers' compressors remember, if it is known here.
        """
        attack = self._job.attack
        kept = attack.rounds_behind if attack is not None else 0
        past = (*self._past, self._parameters)[-kept:] if kept else ()
        return Memory(past, self._plans, momenta, waiting, compression)

    def _view(self, inbox: Inbox) -> AdversaryKnowledge:
        workers = [
            worker
            for worker in inbox.arrived.nonzero().flatten().tolist()
            if worker not in self.cast
        ]
        source = generator(self._job.seed, "plan", self._step)
        honest = inbox.messages[workers]
        return AdversaryKnowledge(honest, tuple(workers), len(self.cast), self._aggregate, source)

"""Attack simulation: what Byzantine workers send, on every engine the same."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from jaxtyping import Float, Num
from torch import Tensor

from phalanx.attacks import AdversaryKnowledge, Attack, Rule, column_mean
from phalanx.coding import Code
from phalanx.computations import Broadcast
from phalanx.randomness import generator
from phalanx.training.inbox import Inbox
from phalanx.training.job import Job

State = tuple[Tensor, ...]


@dataclass(frozen=True)
class Role:
    """Role of one Byzantine worker in one round: its attack and its randomness.

    Attributes:
        attack: its attack.
        num_byzantine: how many workers are Byzantine in this round.
        seed: the run's seed.
        step: the round.
        worker: its id.
        code: what it would encode by.
    """

    attack: Attack
    num_byzantine: int
    seed: int
    step: int
    worker: int
    code: Code

    def forge(
        self,
        own: Num[Tensor, " width"],
        honest: Float[Tensor, "honest width"] | None = None,
        plan: Attack | None = None,
    ) -> Tensor:
        """What the worker sends, the same bits in any process; as planned, if there is a plan."""
        source = generator(self.seed, "attack", self.step, self.worker)
        plan = plan or self.attack
        return self.code.forged(plan.forge(_floating(own), honest, self.num_byzantine, source))


def roles(job: Job, step: int) -> dict[int, Role]:
    """The Byzantine workers of a round, by id."""
    conduct = job.conduct(step)
    return {
        worker: Role(attack, len(conduct), job.seed, step, worker, job.round.code)
        for worker, attack in conduct.items()
    }


@dataclass(frozen=True)
class AttackMemory:
    """State of a simulated attack between rounds; checkpointed with the run."""

    past: tuple[Broadcast, ...] = ()
    """The last rounds' broadcasts, oldest first: as many as the slowest worker is behind."""

    plans: Mapping[int, State] = field(default_factory=dict)
    """What the plans of attacks remember, by rank (see `Attack.plans`)."""

    def following(self, job: Job, broadcast: Broadcast) -> "AttackMemory":
        """What is remembered after a round with this broadcast."""
        attack = job.round.attack
        kept = attack.rounds_behind if attack is not None else 0
        return AttackMemory((*self.past, broadcast)[-kept:] if kept else (), self.plans)


def stage_attacks(
    job: Job,
    byzantine_roles: Mapping[int, Role],
    inbox: Inbox,
    plans: Mapping[int, State],
    rule: Rule | None,
) -> Mapping[int, State]:
    """Replaces what Byzantine workers sent who read the honest messages first.

    All others forge where they compute; these are staged by the server, which has the messages.

    Args:
        job: the run's.
        byzantine_roles: all Byzantine workers of the round, by id.
        inbox: the round's messages; honest ones of workers whose attack reads others.
        plans: what the plans of earlier rounds remembered.
        rule: the server's decoder as it stands in this round; None if it is not known.

    Returns:
        What the plans remember.
    """
    ranks = {worker: rank for rank, worker in enumerate(byzantine_roles) if inbox.arrived[worker]}
    readers = [worker for worker in ranks if byzantine_roles[worker].attack.omniscient]
    arrived = inbox.arrived.nonzero().flatten().tolist()
    honest = [worker for worker in arrived if worker not in byzantine_roles]
    if not readers or not honest:
        return plans
    step = byzantine_roles[readers[0]].step
    source = generator(job.seed, "plan", step)
    known = AdversaryKnowledge(
        _floating(inbox.messages[honest]),
        tuple(honest),
        len(byzantine_roles),
        rule or column_mean,
        source,
        job.round.code.at(step).encoding,
    )
    assert job.round.attack is not None
    planned, plans = job.round.attack.plans(known, [ranks[one] for one in readers], plans)
    for worker in readers:
        plan = planned[ranks[worker]]
        if not plan.sends:
            inbox.refuse(worker, "silent")
            continue
        seen = known.honest if plan.omniscient else None
        forged = byzantine_roles[worker].forge(inbox.messages[worker].clone(), seen, plan)
        inbox.put(worker, job.chain.forge(forged, step, worker), inbox.losses[worker].item())
    return plans


def _floating(messages: Num[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Messages as attacks compute with them; whole numbers up to 2^53 stay what they are."""
    return messages if messages.is_floating_point() else messages.double()


def behind(
    role: Role | None, step: int, broadcast: Broadcast, past: Sequence[Broadcast]
) -> tuple[int, Broadcast]:
    """The round that a worker computes, and its broadcast: an earlier one if it is behind."""
    rounds = 0 if role is None else min(role.attack.rounds_behind, len(past))
    return (step, broadcast) if rounds == 0 else (step - rounds, past[-rounds])

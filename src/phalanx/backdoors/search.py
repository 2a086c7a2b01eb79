"""Search for the worst attacker: what an adversary who knows the defence would choose."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from phalanx.backdoors.drill import Attacker, Defence, Federation, backdoor_run
from phalanx.backdoors.harm import harm_run
from phalanx.checks import require_above, require_at_least
from phalanx.experiments import Cell, Records, grid


@dataclass(frozen=True)
class AttackBudget:
    """Budget of an attacker: how often, with how many clients, and what it may tune.

    The attacker knows model, data distribution, rule and seeds of the defence, and tries out
    radii, model replacement and longer training offline, as it could.
    """

    every: int = 2
    """Rounds from one attack to the next."""
    attackers: int = 1
    """Malicious clients of an attacked round."""
    radii: Sequence[float] = (0.5, 1.0, 2.0, 4.0)
    """Radii of the ball that are tried, in units of the norm of an honest update."""
    epochs: Sequence[int] = (10,)
    """Passes over the poisoned data that are tried."""
    replacement: bool = True
    """Whether messages that are scaled up are tried, too."""

    def __post_init__(self) -> None:
        require_at_least(1, every=self.every, attackers=self.attackers)
        for name in ("radii", "epochs"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
            if not getattr(self, name):
                raise ValueError(f"{name} must name at least 1, got none")
        require_above(0, **{f"radii[{place}]": one for place, one in enumerate(self.radii)})

    def candidates(self) -> dict[str, Attacker]:
        """The attackers that are tried, by what they are called."""
        scaled = (False, True) if self.replacement else (False,)
        found = [
            Attacker(radius, boosted, self.every, self.attackers, epochs=epochs)
            for epochs in self.epochs
            for radius in (None, *self.radii)
            for boosted in scaled
        ]
        return {str(one): one for one in found}


def search_cells(
    federation: Federation,
    defences: Mapping[str, Defence],
    budget: AttackBudget,
    seed: int,
) -> list[Cell]:
    """Every attacker within the budget against every defence, and no attack, with one seed."""
    attackers: dict[str, Attacker | None] = {NO_ATTACK: None, **budget.candidates()}
    return drill_cells("search", federation, defences, attackers, [seed])


def confirming_cells(
    found: Records,
    federation: Federation,
    defences: Mapping[str, Defence],
    budget: AttackBudget,
    seeds: Sequence[int],
) -> list[Cell]:
    """The worst attacker of a search against each defence, and no attack, with other seeds.

    A maximum over many runs is too high: only runs that had no part in the choice are figures.
    """
    cells = []
    for name, defence in defences.items():
        worst = worst_attacker(found, name)
        attackers = {NO_ATTACK: None, worst: budget.candidates()[worst]}
        cells += drill_cells("confirmation", federation, {name: defence}, attackers, seeds)
    return cells


def drill_cells(
    part: str,
    federation: Federation,
    defences: Mapping[str, Defence],
    attackers: Mapping[str, Attacker | None],
    seeds: Sequence[int],
) -> list[Cell]:
    """A drill for every defence, attacker and seed, as a part of a larger experiment."""
    staged = {name: {"attacker": one} for name, one in attackers.items()}
    axes: dict[str, Any] = {
        "part": {part: {}},
        "defence": dict(defences),
        "attacker": staged,
        "seed": list(seeds),
    }
    return grid(backdoor_run, axes, {"federation": federation})


def harm_cells(
    federation: Federation, defences: Mapping[str, Defence], seeds: Sequence[int]
) -> list[Cell]:
    """Whom every defence wrongs where all are honest and some hold all the edge cases.

    Probes of the rule before the first round (`harm_run`), and drills without an attack that say
    whether the model learns what honest clients hold.
    """
    shared = replace(federation, honest_share=1.0)
    probes: dict[str, Any] = {"part": {"harm": {}}, "defence": dict(defences), "seed": list(seeds)}
    cells = grid(harm_run, probes, {"federation": shared})
    return cells + drill_cells("learned", shared, defences, {NO_ATTACK: None}, seeds)


def worst_attacker(found: Records, defence: str) -> str:
    """Who got most of the backdoor through a defence in a search; the first of equals."""
    tried = found.where(part="search", defence=defence)
    ran = [one for one in tried if one["attacker"] != NO_ATTACK and one["backdoor"] is not None]
    if not ran:
        raise ValueError(f"defence must have finished a drill of the search, got none of {defence}")
    return str(max(ran, key=lambda one: one["backdoor"])["attacker"])


NO_ATTACK = "no attack"
"""What the drill without an attacker is called."""

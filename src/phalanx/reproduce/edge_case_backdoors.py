"""Attack of the Tails: edge-case backdoors against the defences of federated learning."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, ClassVar

from phalanx.aggregation import CoordinateMedian, NormClipping
from phalanx.backdoors import (
    AttackBudget,
    Attacker,
    Defence,
    Federation,
    LowDensity,
    NpzEdgeCases,
    confirming_cells,
    default_defences,
    drill_cells,
    harm_cells,
    search_cells,
    worst_attacker,
)
from phalanx.backdoors.search import NO_ATTACK
from phalanx.data import Digits, NpzFile
from phalanx.experiments import Cell, Records, pivot
from phalanx.reproduce.attack_matrix import (
    ATTACKS,
    BLACK_BOX,
    INSERTED,
    PGD,
    REPLACED,
    SELECT,
    SLOW,
    STOPPED,
    AttackMatrix,
)
from phalanx.reproduce.base import Findings, Measure, Recipe, Scope, report, sized, to_points
from phalanx.reproduce.distilled_federations import StridedNetwork

_OURS = "clipped median"
_AIRCRAFT = "aircraft"
_SHARES = (0.0, 0.25, 0.5, 1.0)


@dataclass(frozen=True)
class EdgeCaseBackdoors(Recipe):
    """Attackers against defences, the best-tuned among them; rarity; and whom defences wrong.

    MNIST under handwritten sevens of an archive, to be read as ones, and CIFAR-10 under aircraft of
    an airline, to be read as trucks; scikit-learn's digits and their own tail at size quick. The
    worst attacker against each defence is chosen with one seed, and measured with the others.

    Source: Wang, Sreenivasan, Rajput, Vishwakarma, Agarwal, Sohn, Lee and Papailiopoulos, "Attack
    of the Tails: Yes, You Really Can Backdoor Federated Learning", NeurIPS 2020.
    """

    name: ClassVar[str] = "edge-case-backdoors"
    num_clients: int = sized(30, 100, 200)
    """Clients, of whom ten take part in a round."""
    rounds: int = sized(6, 21, 101)
    """Rounds of a drill."""
    seeds: Sequence[int] = sized((0, 1), (0, 1, 2), (0, 1, 2, 3, 4))
    """The first is for the search, the others for the figures."""
    radii: Sequence[float] = sized((1.0,), (0.5, 1.0, 2.0), (0.25, 0.5, 1.0, 2.0, 4.0))
    """Radii that the tuned attacker tries, in norms of an honest update."""

    @property
    def defences(self) -> dict[str, Defence]:
        """Those of the paper, and one of ours."""
        return {**default_defences(), _OURS: Defence(NormClipping() >> CoordinateMedian())}

    @property
    def budget(self) -> AttackBudget:
        """Of the tuned attacker: in every second round, after ten passes over its data."""
        return AttackBudget(every=2, radii=self.radii, epochs=(10,))

    def federation(self, scope: Scope) -> Federation:
        """Data, clients and local training."""
        shared: dict[str, Any] = {
            "num_clients": self.num_clients,
            "rounds": self.rounds,
            "model": StridedNetwork,
        }
        if scope.size == "quick":
            edge = LowDensity(true_label=7, target=1, tail=0.2)
            tiny: dict[str, Any] = {"pretraining": 150, "num_clean": 40, "lr": 0.01}
            return Federation(Digits(), edge=edge, **shared, **tiny)
        data = NpzFile(scope.file("mnist.npz"), train_samples=12000, test_samples=2000)
        rare = NpzEdgeCases(scope.file("edge_case_ardis7.npz"), true_label=7, target=1)
        return Federation(data, edge=rare, **shared)

    def aircraft(self, scope: Scope) -> Federation:
        """CIFAR-10 and 100 aircraft of one airline, beside 400 clean samples."""
        data = NpzFile(scope.file("cifar10_12k.npz"))
        rare = scope.file("edge_case_southwest.npz")
        return replace(
            self.federation(scope),
            data=data,
            edge=NpzEdgeCases(rare, true_label=0, target=9, num_train=100),
            num_clean=400,
            pretraining=1500,
        )

    def cells(self, scope: Scope) -> list[Cell]:
        """All that does not depend on what is found: the matrix, the search, rarity and harm."""
        here, defences, fresh = self.federation(scope), self.defences, list(self.seeds[1:])
        attackers = {
            NO_ATTACK: None,
            BLACK_BOX: Attacker(),
            PGD: Attacker(4.0),
            REPLACED: Attacker(1.2, replacement=True),
        }
        cells = drill_cells("matrix", here, defences, attackers, fresh)
        if scope.size != "quick":
            published = {**default_defences(radius=2.0), _OURS: defences[_OURS]}
            kept = {name: published[name] for name in ("none", *SLOW, *SELECT, _OURS)}
            cells += drill_cells(_AIRCRAFT, self.aircraft(scope), kept, attackers, fresh)
        cells += search_cells(here, defences, self.budget, self.seeds[0])
        often: dict[str, Attacker | None] = {BLACK_BOX: Attacker(every=2)}
        for share in _SHARES:
            held, none = replace(here, honest_share=share), {"none": Defence()}
            cells += drill_cells(f"{100 * share:.0f} %", held, none, often, fresh)
        return cells + harm_cells(here, defences, fresh)

    def measure(self, scope: Scope, run: Measure) -> Records:
        """The search decides which attackers are run with the other seeds."""
        found = run(self.cells(scope))
        here, fresh = self.federation(scope), list(self.seeds[1:])
        worst = confirming_cells(found, here, self.defences, self.budget, fresh)
        return Records([*found, *run(worst)])

    def findings(self, found: Records, scope: Scope) -> Findings:
        """Attacker against defence in points, and what the abstract says of them."""
        here = AttackMatrix(found, "matrix")
        matrix, quiet = here.backdoor, here.quiet
        worst, tuned = {}, dict[str, float]()
        for name in self.defences:
            worst[name] = worst_attacker(found, name)
            ended = found.where(part="confirmation", defence=name, attacker=worst[name])
            tuned[name] = ended.reduce("backdoor", to_points)
        over = {name: tuned[name] - quiet[name] for name in self.defences}
        rarity = [
            found.where(part=f"{100 * one:.0f} %").reduce("backdoor", to_points) for one in _SHARES
        ]
        learned = pivot(found.where(part="learned"), "defence", None, {"edge": "edge"}, to_points)
        edge = dict(zip(learned.rows, learned.column("edge"), strict=True))
        harm = {
            name: [self._harm(found, name, who) for who in ("rare", "usual")]
            for name in self.defences
        }
        holds: dict[str, Sequence[bool] | None] = {
            **here.holds(),
            "tuned": [over[one] >= INSERTED for one in (*SLOW, *SELECT)],
            "rarity": [after <= before for before, after in pairwise(rarity)],
            "fairness": [
                *((harm[one][0] or 0.0) > (harm[one][1] or 0.0) for one in SELECT),
                *(edge[one] < edge["none"] for one in SELECT),
            ],
            "ours": None,
        }
        rows = [
            (name, quiet[name], tuned[name], edge[name], *harm[name], worst[name])
            for name in self.defences
        ]
        values: dict[str, Any] = {
            **here.values(),
            "tuned": {one: tuned[one] for one in (*SLOW, *SELECT)},
            "fallen": [one for one in self.defences if over[one] >= INSERTED] or ["none"],
            "stood": [one for one in self.defences if over[one] <= STOPPED] or ["none"],
            "rarity": rarity,
            "edge": {one: edge[one] for one in ("none", *SELECT)},
            "harm": {one: harm[one] for one in SELECT},
            "ours": [_OURS, tuned[_OURS], quiet[_OURS]],
            "kept": [here.main[_OURS, NO_ATTACK], here.main["none", NO_ATTACK]],
            "best": min(over, key=lambda name: over[name]),
            "seeds": len(self.seeds) - 1,
        }
        curves = {
            one: self._curve(found, one, worst[one]) for one in ("none", *SLOW, *SELECT, _OURS)
        }
        tables: dict[str, Any] = {"matrix": matrix, "main": here.main, "tuned": rows}
        tables["search"] = pivot(
            found.where(part="search"), "attacker", "defence", "backdoor", to_points
        )
        if _AIRCRAFT in found.labels("part"):
            planes = AttackMatrix(found, _AIRCRAFT)
            holds |= {f"aircraft {name}": held for name, held in planes.holds().items()}
            values["aircraft"] = planes.values()
            values["aircraft"] |= {"ours": [planes.backdoor[_OURS, one] for one in ATTACKS]}
            holds["aircraft ours"] = None
            tables |= {"aircraft": planes.backdoor, "aircraft main": planes.main}
        notes = ("notes", "quick" if scope.size == "quick" else "default")
        return report(self.told, holds, values, tables, {"rounds": curves}, "answer", notes)

    def _harm(self, found: Records, defence: str, who: str) -> float | None:
        share = found.where(part="harm", defence=defence).mean(lambda one: one[f"{who}_left_out"])
        return None if share is None else round(100 * share, 1)

    def _curve(self, found: Records, defence: str, worst: str) -> tuple[range, list[float]]:
        shares = found.where(part="confirmation", defence=defence, attacker=worst).mean("backdoors")
        return range(1, len(shares) + 1), [100 * one for one in shares]

"""Attacker against defence in the recipe on edge-case backdoors: figures, and claims about them."""

from typing import Any

from phalanx.backdoors.search import NO_ATTACK
from phalanx.experiments import Records, pivot
from phalanx.reproduce.base import to_points

ATTACKS = BLACK_BOX, PGD, REPLACED = "black box", "PGD", "PGD + replacement"
STOPPED, INSERTED = 10.0, 30.0  # points above no attack: a defence held; a backdoor is in
SLOW, SELECT = ("clipping", "weak DP", "RFA"), ("Krum", "Multi-Krum")


class AttackMatrix:
    """Attacker against defence in points, and what the abstract says of both."""

    def __init__(self, found: Records, part: str) -> None:
        rows = found.where(part=part)
        self.backdoor = pivot(rows, "defence", "attacker", "backdoor", to_points)
        self.main = pivot(rows, "defence", "attacker", "main", to_points)
        self.quiet = {one: self.backdoor[one, NO_ATTACK] for one in self.backdoor.rows}

    def rise(self, defence: str, attacker: str = BLACK_BOX) -> float:
        """Points above no attack."""
        return float(self.backdoor[defence, attacker] - self.quiet[defence])

    def holds(self) -> dict[str, list[bool]]:
        """Of the claims about attackers that are not tuned."""
        main, none = self.main, self.rise("none")
        return {
            "insert": [
                none >= INSERTED,
                abs(main["none", BLACK_BOX] - main["none", NO_ATTACK]) <= 1,
            ],
            "replacement": [self.rise("none", REPLACED) > none],
            "slow": [STOPPED < self.rise(one) < none for one in SLOW],
            "select": [self.rise(one) <= STOPPED for one in SELECT],
        }

    def values(self) -> dict[str, Any]:
        """The figures behind them."""
        points = {one: self.backdoor[one, BLACK_BOX] for one in self.backdoor.rows}
        return {
            "black_box": points,
            "quiet": self.quiet["none"],
            "calm": self.quiet,
            "main": [self.main["none", one] for one in (NO_ATTACK, BLACK_BOX)],
            "replaced": self.backdoor["none", REPLACED],
            "slow": {one: points[one] for one in SLOW},
            "select": {one: points[one] for one in SELECT},
        }

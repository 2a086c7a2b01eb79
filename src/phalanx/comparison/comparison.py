"""The outcomes of a grid, over seeds: means and spreads, worst cases, and what they come to."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from phalanx.comparison.grid import NO_ATTACK, Grid, Place
from phalanx.comparison.outcome import Outcome, Status
from phalanx.reporting import Detection
from phalanx.reporting.detection import total
from phalanx.reporting.format import listed, percent

MEAN = "Mean"
Measure = Callable[[Outcome], float | None]


@dataclass(frozen=True)
class Figure:
    """A figure over seeds."""

    mean: float | None
    """Mean over the seeds; None if it was not measured with every one of them."""
    spread: float | None
    """Standard deviation over the seeds (n - 1); None for less than two."""
    status: Status = "finished"
    """The worst status among the seeds."""


@dataclass(frozen=True)
class Comparison:
    """The outcome of every cell of a grid."""

    grid: Grid
    """What was compared."""
    outcomes: Mapping[Place, Outcome]
    """What came of it, in the order of the grid."""

    def of(self, panel: str, method: str, attack: str) -> list[Outcome]:
        """The outcomes of one cell of a table: one a seed."""
        return [self.outcomes[Place(panel, method, attack, seed)] for seed in self.grid.seeds]

    def figure(self, panel: str, method: str, attack: str, measure: Measure) -> Figure:
        """Mean and spread of a measure over the seeds."""
        outcomes = self.of(panel, method, attack)
        values = [value for value in map(measure, outcomes) if value is not None]
        status = max((one.status for one in outcomes), key=_ORDER.index)
        if len(values) < len(outcomes):
            return Figure(None, None, status)
        return Figure(mean(values), stdev(values) if len(values) > 1 else None, status)

    def accuracy(self, panel: str, method: str, attack: str) -> Figure:
        """Final test accuracy."""
        return self.figure(panel, method, attack, _accuracy)

    def worst(self, panel: str, method: str) -> tuple[str, Figure] | None:
        """The attack under which a method is least accurate, and that accuracy.

        None if any attack was not measured: the worst case is then not known.
        """
        found = [(attack, self.accuracy(panel, method, attack)) for attack in self.grid.columns]
        if any(figure.mean is None for _, figure in found):
            return None
        return min(found, key=lambda one: one[1].mean or 0.0)

    def best(self, panel: str, attack: str | None) -> list[str]:
        """The methods that are most accurate, to a tenth of a percent; None: in the worst case."""
        found = {}
        for method in self.grid.methods:
            worst = self.worst(panel, method)
            figure = self.accuracy(panel, method, attack) if attack else worst and worst[1]
            if figure is not None and figure.mean is not None:
                found[method] = _tenths(figure.mean)
        return [method for method, value in found.items() if value == max(found.values())]

    def detection(self, panel: str, method: str) -> Detection:
        """Who was named over all attacks and seeds."""
        return total(
            outcome.detection
            for attack in self.grid.columns
            for outcome in self.of(panel, method, attack)
        )

    def seconds(self, panel: str, method: str, measure: Measure) -> float | None:
        """Mean over attacks and seeds of the seconds a round, where it ran."""
        values = [
            value
            for attack in self.grid.columns
            for outcome in self.of(panel, method, attack)
            if (value := measure(outcome)) is not None
        ]
        return mean(values) if values else None

    def troubles(self) -> list[tuple[Sequence[Place], Outcome]]:
        """The cells that did not run to their end, those alike together."""
        grouped: dict[tuple[str, ...], tuple[list[Place], Outcome]] = {}
        for place, outcome in self.outcomes.items():
            if outcome.status != "finished":
                key = (place.method, place.split, outcome.status, _gist(outcome))
                grouped.setdefault(key, ([], outcome))[0].append(place)
        return list(grouped.values())

    @property
    def answers(self) -> list[str]:
        """A sentence a split: who had the best worst case, and where the plain mean was as good."""
        return [self._answer(panel) for panel in self.grid.panels]

    def _answer(self, panel: str) -> str:
        winners = self.best(panel, None)
        if not winners:
            return f"On {panel} no method was measured under every attack."
        attack, figure = self.worst(panel, winners[0]) or (NO_ATTACK, Figure(None, None))
        share = percent(figure.mean)
        reached = {_tenths(self.accuracy(panel, winners[0], one).mean) for one in self.grid.columns}
        when = "without an attack" if attack == NO_ATTACK else f"under {attack}"
        when = "the same under every attack" if len(reached) == 1 else when
        if MEAN in winners:
            others = [method for method in winners if method != MEAN]
            also = f", and so had {listed(others)}" if others else ""
            return (
                f"On {panel} the plain mean itself had the best worst case, {share} {when}{also}: "
                "no method was needed here."
            )
        sentence = f"On {panel} {listed(winners)} had the best worst case, {share}"
        sentence += f" ({when})" if len(winners) == 1 else ""
        return f"{sentence}; {self._mean_against(panel, winners[0])}."

    def _mean_against(self, panel: str, winner: str) -> str:
        """Where the plain mean did as well as the winner, or better."""
        as_well: list[str] = []
        better: list[str] = []
        for attack in self.grid.columns:
            plain = _tenths(self.accuracy(panel, MEAN, attack).mean)
            robust = _tenths(self.accuracy(panel, winner, attack).mean)
            if plain >= robust:
                (as_well if plain == robust else better).append(attack)
        where = [
            f"{how} under {listed(attacks)}".replace(f"under {NO_ATTACK}", f"with {NO_ATTACK}")
            for how, attacks in (("as well", as_well), ("better", better))
            if attacks
        ]
        return "the plain mean did " + (
            listed(where) if where else "worse everywhere, without an attack too"
        )


_ORDER: tuple[Status, ...] = ("finished", "stopped", "failed", "not applicable")


def _accuracy(outcome: Outcome) -> float | None:
    return outcome.test_accuracy


def _tenths(share: float | None) -> float:
    """A share in tenths of a percent, as tables show it."""
    return -math.inf if share is None else float(round(1000 * share))


def _gist(outcome: Outcome) -> str:
    """What cells have in common that are told of together."""
    return "" if outcome.status == "stopped" else outcome.reason or ""

"""Plans: the outlooks of all candidates, the best first."""

import csv
from pathlib import Path
from typing import Any, TypeVar

Outlook = TypeVar("Outlook", bound=tuple[Any, ...])


class Plan(tuple[Outlook, ...]):
    """What a planner answers: a named tuple of figures for every candidate, the best one first.

    >>> from phalanx.planning import CodePlanner
    >>> plan = CodePlanner(num_workers=4, max_redundancy=2, num_rounds=10).plan()
    >>> plan.best == plan[0], len(plan) > 3
    (True, True)
    """

    @property
    def best(self) -> Outlook:
        """The outlook of the candidate to take."""
        return self[0]

    def write(self, path: Path) -> None:
        """Writes the plan as a CSV file: one line per candidate, columns as in its outlook."""
        header: Any = self[0]
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([header._fields, *self])

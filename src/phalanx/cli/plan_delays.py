"""`phalanx plan --delays`: a table of codes against stragglers, and the advice."""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from phalanx.planning import CodeOutlook

HEADERS = ("code", "copies", "wait for", "s/round", "error", "bias", "rounds", "time")
_SHOWN = 12


def table(outlooks: Sequence[CodeOutlook]) -> Table:
    """One line a candidate."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column(HEADERS[0], style="bold", no_wrap=True)
    for header in HEADERS[1:]:
        table.add_column(header, justify="right", no_wrap=True)
    for one in outlooks:
        table.add_row(*cells(one))
    return table


def cells(one: CodeOutlook) -> tuple[str, ...]:
    """What the table says of a candidate, under `HEADERS`."""
    return (
        one.code,
        f"{one.redundancy:.3g}",
        _wait_for(one),
        f"{one.round_s:.3g}",
        f"{one.error:.2g}",
        f"{one.bias:.2g}" + ("" if one.reaches else " !"),
        f"x {one.rounds:.3g}",
        f"{one.time_s:.3g} s",
    )


def shown(outlooks: Sequence[CodeOutlook]) -> list[CodeOutlook]:
    """The best of each code and redundancy, and waiting for all without a code."""
    best: dict[tuple[str, float], CodeOutlook] = {}
    for one in outlooks:
        best.setdefault((one.code, one.redundancy), one)
    first = list(best.values())[:_SHOWN]
    return first + [one for one in outlooks if _waits_for_all(one) and one not in first]


def _waits_for_all(one: CodeOutlook) -> bool:
    return one.code == "none" and one.wait_for is None


def _wait_for(one: CodeOutlook) -> str:
    if one.wait_for is not None:
        return str(one.wait_for)
    return "all" if one.code == "none" else "exact"


def answer(outlooks: Sequence[CodeOutlook], target_error: float) -> str:
    """The recommendation in a sentence."""
    best = outlooks[0]
    if not best.reaches:
        return f"Nothing stays within a bias of {target_error:g}: the same workers are always late."
    code = "no code" if best.code == "none" else f"{best.code}, {best.redundancy:.3g} copies"
    wait = {"all": "for all workers", "exact": "until it is exact"}.get(
        _wait_for(best), f"for {best.wait_for} workers"
    )
    answer = f"Take {code}, and wait {wait}"
    plain = next((one for one in outlooks if _waits_for_all(one)), None)
    if plain is None:
        return f"{answer}; without a code, waiting for all takes for ever."
    return f"{answer}: {plain.time_s / best.time_s:.2g} times as fast as waiting for all."

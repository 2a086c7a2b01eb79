"""`phalanx plan`: which code against stragglers, and how long to wait."""

from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table

from phalanx.cli.console import console
from phalanx.cli.train import default_out
from phalanx.training import (
    DelayModel,
    Outlook,
    Planner,
    RecordedTrace,
    ShiftedExponential,
    write_plan,
)

_SHOWN = 12


def plan(
    delays: DelayModel | Path = ShiftedExponential(),  # noqa: B008 - frozen
    num_workers: int = 50,
    seconds_per_partition: float = 0.0,
    max_redundancy: int = 5,
    target_error: float = 0.05,
    noise: float = 1.0,
    num_rounds: int = 300,
    seed: int = 0,
    out: Path | None = None,
) -> None:
    """Recommends a code, its redundancy and how many workers to wait for, given their delays.

    Example: phalanx plan --delays trace.csv --num_workers 50 --seconds_per_partition 0.2

    Args:
        delays: How long workers take: a CSV file with one line a round and one column a worker, or
            a model by name.
        num_workers: Workers, and partitions.
        seconds_per_partition: Seconds that a worker computes on one partition, on top of its delay.
        max_redundancy: Most partitions that a worker is to compute.
        target_error: Largest bias of the gradient that is accepted, relative to the partitions'.
        noise: Share of the rounds that are due to noise: 0 for none, 1 if twice the variance takes
            twice the rounds; more if partitions differ by more than chance.
        num_rounds: Rounds that are played on the virtual clock.
        seed: Of the delays that are drawn.
        out: Folder for plan.csv and plan.svg; a new one under runs/ if not given.
    """
    # Imported where it is used: matplotlib would make every command wait, `--help` too.
    from phalanx.reporting import write_frontier

    if isinstance(delays, Path) and not delays.is_file():
        raise ValueError(f"delays must be a file or the name of a model, got {delays}")
    model = delays if isinstance(delays, DelayModel) else RecordedTrace(delays)
    planner = Planner(
        model,
        num_workers,
        seconds_per_partition,
        max_redundancy,
        target_error,
        noise,
        num_rounds,
        seed,
    )
    with console.status("playing rounds"):
        outlooks = planner.plan()
    folder = out or default_out().with_name("plan-" + default_out().name)
    folder.mkdir(parents=True, exist_ok=True)
    write_plan(outlooks, folder / "plan.csv")
    write_frontier(outlooks, folder / "plan.svg")
    console.print(_table(_shown(outlooks)))
    console.print(_answer(outlooks, target_error))
    console.print(f"All {len(outlooks)} candidates: {folder / 'plan.csv'}", soft_wrap=True)


def _table(outlooks: Sequence[Outlook]) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("code", style="bold", no_wrap=True)
    for header in ("copies", "wait for", "s/round", "error", "bias", "rounds", "time"):
        table.add_column(header, justify="right", no_wrap=True)
    for one in outlooks:
        table.add_row(
            one.code,
            f"{one.redundancy:.3g}",
            _wait_for(one),
            f"{one.round_s:.3g}",
            f"{one.error:.2g}",
            f"{one.bias:.2g}" + ("" if one.reaches else " !"),
            f"x {one.rounds:.3g}",
            f"{one.time_s:.3g} s",
        )
    return table


def _shown(outlooks: Sequence[Outlook]) -> list[Outlook]:
    """The best of each code and redundancy, and waiting for all without a code."""
    best: dict[tuple[str, float], Outlook] = {}
    for one in outlooks:
        best.setdefault((one.code, one.redundancy), one)
    first = list(best.values())[:_SHOWN]
    return first + [one for one in outlooks if _waits_for_all(one) and one not in first]


def _waits_for_all(one: Outlook) -> bool:
    return one.code == "none" and one.wait_for is None


def _wait_for(one: Outlook) -> str:
    if one.wait_for is not None:
        return str(one.wait_for)
    return "all" if one.code == "none" else "exact"


def _answer(outlooks: Sequence[Outlook], target_error: float) -> str:
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

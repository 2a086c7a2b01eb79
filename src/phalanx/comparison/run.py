"""The comparison itself: what is missing is measured, in parallel, and written down at once."""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from phalanx.aggregation import Aggregator
from phalanx.attacks import Attack, Schedule
from phalanx.coding import Code
from phalanx.comparison.cell import Cell, MakeModel, Setting
from phalanx.comparison.cell_folder import CellFolder
from phalanx.comparison.comparison import Comparison
from phalanx.comparison.export import write_comparison
from phalanx.comparison.grid import Grid, Place, default_attacks, default_codes, default_rules
from phalanx.comparison.outcome import Outcome
from phalanx.comparison.pool import measure_here, measure_in_processes
from phalanx.comparison.progress import Progress, Watch
from phalanx.data import DataSource, Digits, Partitioner, Splits
from phalanx.models import MLP
from phalanx.training.environment import environment
from phalanx.training.run import MakeOptimizer, default_optimizer
from phalanx.transforms import WorkerMomentum


def compare(
    rules: Sequence[Aggregator] | None = None,
    codes: Sequence[Code] | None = None,
    attacks: Sequence[Attack | None] | None = None,
    splits: Sequence[Partitioner | None] = (None,),
    seeds: Sequence[int] = (0, 1),
    *,
    worker_momenta: Sequence[WorkerMomentum | None] = (None,),
    num_workers: int = 15,
    num_byzantine: int = 3,
    byzantine: Schedule | None = None,
    data: DataSource = Digits(),  # noqa: B008 - frozen
    model: MakeModel = MLP,
    optimizer: MakeOptimizer = default_optimizer,
    steps: int = 100,
    batch_size: int | None = None,
    evaluate_every: int = 20,
    jobs: int | None = None,
    out: Path | str | None = None,
    config: str | None = None,
    watch: Watch | None = None,
) -> Comparison:
    """Runs every method under every attack, on every split, with every seed.

    Each cell is `phalanx.train` with the same arguments, on one thread; its weights are what that
    call would give alone. The plain mean and "no attack" are always among the cells. With `out`
    every cell is written when it is done, and cells that lie there already are not run again:
    the same call goes on with a comparison that was stopped or killed, and a larger grid runs what
    is new. Cells that failed are tried again.

    Args:
        rules: robust rules, pipelines among them; a choice of four if neither rules nor codes are
            given.
        codes: gradient codes; repetition if neither rules nor codes are given.
        attacks: what bad workers do; a choice of four if not given.
        splits: who holds which samples; None in it stands for workers that all draw from the whole
            data set. Codes do not apply to any other.
        seeds: a run each, of which mean and spread are shown.
        worker_momenta: what workers average before they send; None in it stands for gradients.
        num_workers: of every run.
        num_byzantine: how many workers are bad. Rules and codes whose own numbers are at the
            default are told it.
        byzantine: who is bad when; `num_byzantine` workers drawn afresh every round if not given.
        data: what to train and test on; each process loads it once.
        model: called with the shape of an input and the number of classes. It is sent to processes,
            so it must be a class or a function of a module, or a `functools.partial` of one.
        optimizer: makes the optimizer from the parameters; as `model`.
        steps: rounds of every run.
        batch_size: samples a round over all workers; 16 a worker if not given.
        evaluate_every: rounds between evaluations.
        jobs: processes; as many as there are processors for this one if not given. With 1 the cells
            run in this process. With more, a script must call this under
            `if __name__ == "__main__":`.
        out: a folder for the cells, `comparison.csv`, `comparison.md` and `comparison.html`;
            nothing is written if None.
        config: text that is kept in the folder as `config.yaml`: how to repeat the comparison.
        watch: is told how far the comparison is.

    Returns:
        The outcomes, and tables of them.

    Raises:
        ValueError: if arguments do not fit, before anything runs or is written.
        KeyboardInterrupt: after Ctrl-C; finished cells stay in `out`.
        ChildProcessError: if processes cannot be started.
    """
    chosen = rules is None and codes is None
    grid = Grid(
        rules=default_rules() if chosen else rules or (),
        codes=default_codes() if chosen else codes or (),
        attacks=default_attacks() if attacks is None else attacks,
        splits=splits,
        worker_momenta=worker_momenta,
        seeds=seeds,
        setting=Setting(
            num_workers=num_workers,
            num_byzantine=num_byzantine,
            byzantine=byzantine,
            data=data,
            model=model,
            optimizer=optimizer,
            steps=steps,
            batch_size=batch_size,
            evaluate_every=evaluate_every,
        ),
    )
    return compare_grid(grid, jobs=jobs, out=out, config=config, watch=watch)


def compare_grid(
    grid: Grid,
    *,
    jobs: int | None = None,
    out: Path | str | None = None,
    config: str | None = None,
    watch: Watch | None = None,
) -> Comparison:
    """Runs the cells of a grid; arguments and errors are those of `compare`."""
    jobs = _processors() if jobs is None else jobs
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {jobs}")
    folder = CellFolder(Path(out)) if out is not None else None
    outcomes = _known(grid, folder.load() if folder is not None else {})
    missing = {place: cell for place, cell in grid.cells.items() if place not in outcomes}
    if missing:
        splits = grid.setting.data.load()  # what cannot be read or built is an error now
        _check(grid, splits)
        if folder is not None:
            folder.open(config)
        _measure(missing, splits, jobs, outcomes, folder, watch or _nobody)
    comparison = Comparison(grid, {place: outcomes[place] for place in grid.cells})
    if out is not None:
        write_comparison(comparison, Path(out))
    return comparison


def _known(grid: Grid, done: dict[str, Outcome]) -> dict[Place, Outcome]:
    """The outcomes that take no work."""
    known = {}
    for place, cell in grid.cells.items():
        if (why := cell.why_not()) is not None:
            known[place] = Outcome("not applicable", why)
        elif cell.identity in done:
            known[place] = done[cell.identity]
    return known


def _measure(
    missing: dict[Place, Cell],
    splits: Splits,
    jobs: int,
    outcomes: dict[Place, Outcome],
    folder: CellFolder | None,
    watch: Watch,
) -> None:
    """Adds what is missing to the outcomes."""
    places = {cell.identity: place for place, cell in missing.items()}
    found, total, running = len(outcomes), len(outcomes) + len(missing), list[Place]()
    facts = environment(seed=0)
    del facts["seed"]

    def tell() -> None:
        watch(Progress(len(outcomes), found, total, tuple(running)))

    def started(cell: Cell) -> None:
        place = places[cell.identity]
        running[:] = [one for one in running if one != place] + [place]
        tell()

    tell()
    try:
        for cell, outcome in _measured(missing.values(), splits, jobs, started):
            place = places[cell.identity]
            running.remove(place)
            outcomes[place] = outcome
            if folder is not None:
                folder.put(place, cell, outcome, facts)
            tell()
    except KeyboardInterrupt:
        kept = ", which are kept" if folder is not None else ""
        raise KeyboardInterrupt(f"{len(outcomes)} of {total} cells are done{kept}") from None


def _measured(
    cells: Iterable[Cell], splits: Splits, jobs: int, started: Any
) -> Iterator[tuple[Cell, Outcome]]:
    cells = list(cells)
    if jobs == 1:
        return measure_here(cells, splits, started)
    return measure_in_processes(cells, cells[0].setting.data, jobs, started)


def _check(grid: Grid, splits: Splits) -> None:
    """Raises ValueError if no cell could run: the model, the optimizer or the data do not fit."""
    first = next(iter(grid.cells.values()))
    grid.setting.optimizer(first.build(splits).parameters())
    size = len(splits.train)  # type: ignore[arg-type]
    if size < grid.setting.samples:
        raise ValueError(
            f"data must fill one batch of {grid.setting.samples} samples, got {size} to train on"
        )


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _nobody(progress: Progress) -> None:
    """Is told, and tells nobody."""

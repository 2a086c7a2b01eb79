"""Measurement of an experiment: missing cells run in parallel, and are kept at once."""

import json
import os
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from phalanx.errors import NotFiniteError, TooManyByzantineError
from phalanx.experiments.grid import Cell
from phalanx.experiments.labels import slug
from phalanx.experiments.pool import run_here, run_in_processes
from phalanx.experiments.records import Record, Records, plain
from phalanx.files import clear_halves, owned, require_folder, whole
from phalanx.identity import digest
from phalanx.training.environment import environment


@dataclass(frozen=True)
class Progress:
    """Progress of an experiment."""

    done: int
    """Cells that need no more work."""
    found: int
    """Those of them that were done before."""
    total: int
    """All cells."""
    running: Sequence[Cell]
    """What is measured now, the longest first."""


Watch = Callable[[Progress], None]
"""Called whenever a cell begins or ends."""


def measure(
    cells: Iterable[Cell],
    out: Path | str | None = None,
    *,
    jobs: int | None = None,
    watch: Watch | None = None,
    config: str | None = None,
) -> Records:
    """Runs every cell, each on one thread, and gives the records in the order of the cells.

    With `out` every record is written when it is done, whole or not at all, and cells of which
    there is a record already are not run again: the same call goes on with an experiment that was
    stopped or killed, and one with more cells runs what is new. Cells that failed are tried again;
    cells whose configurations are equal are run once.

    Args:
        cells: see `grid`.
        out: a folder, which holds the records under `cells`; nothing is written if None.
        jobs: processes; as many as there are processors for this one if not given. With 1 the
            cells run in this process, as do in the end those that run alone. With more, a script
            must call this under
            `if __name__ == "__main__":`.
        watch: called with the progress.
        config: text that is kept in `out` as `config.yaml`: how to repeat the experiment.

    Raises:
        ValueError: if a cell cannot be named or `out` is a file, before anything is run or written.
        FolderInUseError: if another process measures into `out`.
        StorageError: if the disk is full; the records that were written are whole.
        KeyboardInterrupt: after Ctrl-C; finished cells stay in `out`.
        ChildProcessError: if processes cannot be started.
    """
    jobs = _processors() if jobs is None else jobs
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {jobs}")
    cells = list(cells)
    total = len({cell.identity for cell in cells})  # what cannot be named is refused now
    folder = None if out is None else Path(out)
    if folder is not None:
        require_folder(folder)
    known = {} if folder is None else load_records(folder)
    known |= {
        cell.identity: Record({}, "not applicable", cell.skipped) for cell in cells if cell.skipped
    }
    missing = {cell.identity: cell for cell in cells if cell.identity not in known}
    if missing:
        with owned(folder / "cells") if folder is not None else nullcontext():
            if folder is not None:
                clear_halves(folder / "cells")
                if config is not None:
                    with whole(folder / "config.yaml") as beside:
                        beside.write_text(config, encoding="utf-8")
            _run(missing, known, total, folder, jobs, watch or (lambda _: None))
    return Records(replace(known[cell.identity], labels=cell.labels) for cell in cells)


def load_records(folder: Path) -> dict[str, Record]:
    """The records in a folder by identity; failed ones are left out, so that they run again.

    So are files that are damaged, or none of ours.
    """
    found = {}
    for file in sorted((folder / "cells").glob("*.json")):
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            record, identity = Record(**content["record"]), str(content["identity"])
            intact = content["checksum"] == digest(content["record"])
        except (ValueError, KeyError, TypeError):
            continue
        if intact and record.status in ("finished", "stopped"):
            found[identity] = record
    return found


def run_cell(cell: Cell) -> Record:
    """Runs a cell with one thread: nothing but its arguments has a part in its values.

    An error is a record, too. So is a run that cannot go on as its arguments are: one that raises
    `TooManyByzantineError` or `NotFiniteError` is stopped.

    Raises:
        KeyboardInterrupt: after Ctrl-C or SIGTERM.
    """
    threads, began = torch.get_num_threads(), time.perf_counter()
    torch.set_num_threads(1)
    found: dict[str, Any] = {"status": "finished"}
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                values = {name: plain(value) for name, value in cell.run(**cell.arguments).items()}
                if (reason := values.pop("stopped", None)) is not None:
                    found = {"status": "stopped", "reason": reason}
                found["values"] = values
                json.dumps(values)  # what cannot be kept is an error of the run
            except (TooManyByzantineError, NotFiniteError) as error:
                found = {"status": "stopped", "reason": str(error)}
            except Exception as error:  # a cell that fails is a result, and the others go on
                trace = "".join(traceback.format_exception(error)).rstrip()
                found = {"status": "failed", "reason": _reason(error), "traceback": trace}
    finally:
        torch.set_num_threads(threads)
    told = list(dict.fromkeys(str(one.message) for one in caught))
    return Record(cell.labels, **found, seconds=time.perf_counter() - began, warnings=told)


def _run(
    missing: dict[str, Cell],
    known: dict[str, Record],
    total: int,
    folder: Path | None,
    jobs: int,
    watch: Watch,
) -> None:
    """Adds what is missing to what is known."""
    found, running = total - len(missing), list[Cell]()
    facts = environment(seed=0)
    del facts["seed"]

    def tell() -> None:
        watch(Progress(total - len(waiting), found, total, tuple(running)))

    def started(cell: Cell) -> None:
        running[:] = [one for one in running if one is not cell] + [cell]
        tell()

    waiting = dict(missing)
    tell()
    try:
        together, alone = ([c for c in missing.values() if c.alone == one] for one in (False, True))
        records = (
            run_here(together, run_cell, started)
            if jobs == 1
            else run_in_processes(together, run_cell, jobs, started)
        )
        for cell, record in chain(records, run_here(alone, run_cell, started)):
            running.remove(cell)
            del waiting[cell.identity]
            known[cell.identity] = record
            if folder is not None:
                _write(folder, cell, record, facts)
            tell()
    except KeyboardInterrupt:
        kept = ", which are kept" if folder is not None else ""
        done = total - len(waiting)
        raise KeyboardInterrupt(f"{done} of {total} cells are done{kept}") from None


def _write(folder: Path, cell: Cell, record: Record, facts: dict[str, Any]) -> None:
    """Writes a record's file, whole: `cells/<labels>-<hash>.json`."""
    content = {
        "identity": cell.identity,
        "record": (kept := asdict(record)),
        "checksum": digest(kept),
        "config": cell.config,
        "environment": facts,
    }
    names = (
        slug(one if isinstance(one, str) else f"{axis}{one}") for axis, one in cell.labels.items()
    )
    name = "_".join(names)[:120] + f"-{cell.identity}.json"
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
    with whole(folder / "cells" / name) as beside:
        beside.write_text(text + "\n", encoding="utf-8")


def _reason(error: Exception) -> str:
    """The error in a line, and where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({frames[-1].name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}{where}"


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1

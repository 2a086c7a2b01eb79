"""`phalanx demo`: six runs under a simulated attack, on data that needs no download."""

from pathlib import Path
from typing import Any, NamedTuple

import torch

import phalanx
from phalanx.aggregation import GeometricMedian, Krum, Mean
from phalanx.attacks import Mixed, RandomWorkers
from phalanx.cli.console import console
from phalanx.cli.train import default_out
from phalanx.coding import DracoCyclic, DracoRepetition
from phalanx.data import Digits, Splits
from phalanx.errors import TooManyByzantineError
from phalanx.models import MLP
from phalanx.randomness import seeded

_WORKERS, _BYZANTINE = 15, 3


class _Case(NamedTuple):
    folder: str
    title: str
    method: dict[str, Any]
    attacked: bool = True


_CASES = (
    _Case("reference", "mean, no attack", {"rule": Mean()}, attacked=False),
    _Case("mean", "mean", {"rule": Mean()}),
    _Case("geometric-median", "geometric median", {"rule": GeometricMedian(_BYZANTINE)}),
    _Case("krum", "Krum", {"rule": Krum(_BYZANTINE)}),
    _Case("repetition", "DRACO repetition", {"code": DracoRepetition(_WORKERS, _BYZANTINE)}),
    _Case("cyclic", "DRACO cyclic", {"code": DracoCyclic(_WORKERS, _BYZANTINE)}),
)
_UNATTACKED = _Case(
    "repetition-no-attack",
    "DRACO repetition, no attack",
    {"code": DracoRepetition(_WORKERS, _BYZANTINE)},
    attacked=False,
)


def demo(steps: int = 200, seed: int = 0, out: Path | None = None) -> None:
    """Trains on scikit-learn's digits with 3 Byzantine workers among 15, six ways, and compares.

    In every round three workers, drawn afresh, send a reversed gradient, a constant, and "a little
    is enough". All ways see the same samples in the same partitions.

    Example: phalanx demo --steps 100 --out runs/demo

    Args:
        steps: Rounds of each run.
        seed: Of everything random.
        out: Folder for the runs and the report; a new one under runs/ if not given.
    """
    # Imported where it is used: matplotlib would make every command wait, `--help` too.
    from phalanx.reporting import (
        SAME_WEIGHTS,
        answer,
        compare_runs,
        load_run,
        terminal_table,
        write_report,
    )

    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    folder = out or default_out().with_name("demo-" + default_out().name)
    torch.set_num_threads(1)  # the model is so small that a second thread only gets in the way
    splits = Digits().load()
    for case in (*_CASES, _UNATTACKED):
        _run(case, splits, folder / case.folder, steps, seed)
    records = [load_run(folder / case.folder) for case in _CASES]
    rows = compare_runs(records, records[0])
    write_report(
        records, folder / "report.html", records[0], title="Training with Byzantine workers"
    )
    console.show(terminal_table(rows))
    console.print(answer(records, rows), markup=False)
    same = _same_bits(folder / "repetition", folder / _UNATTACKED.folder)
    console.print(
        "DRACO repetition ends with "
        + ("the same bits" if same else "other bits than")
        + (" with the attack as without." if same else " without the attack.")
    )
    console.print(f"Report: {folder / 'report.html'}", soft_wrap=True)
    exact = [row for row in rows[4:] if (row.relative_difference or 0.0) <= SAME_WEIGHTS]
    if len(exact) < 2 or not same:
        raise RuntimeError("DRACO missed the reference's weights: this is a bug, please report it")


def _run(
    case: _Case,
    splits: Splits,
    folder: Path,
    steps: int,
    seed: int,
) -> None:
    with seeded(seed, "weights"):
        model = MLP(splits.input_shape, splits.num_classes)
    try:
        phalanx.train(
            model,
            splits.train,
            num_workers=_WORKERS,
            attack=Mixed() if case.attacked else None,
            byzantine=RandomWorkers(_BYZANTINE) if case.attacked else None,
            steps=steps,
            seed=seed,
            test=splits.test,
            out=folder,
            title=case.title,
            **case.method,
        )
    except TooManyByzantineError as error:  # the mean, once the weights are no numbers any more
        console.print(f"{case.title} stopped: {error}", markup=False)


def _same_bits(one: Path, other: Path) -> bool:
    return (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()

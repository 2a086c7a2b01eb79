"""Experiments: grids of runs, in parallel and resumable; records and pivot tables."""

from phalanx.experiments.compare import (
    compare,
    comparison_cells,
    default_attacks,
    default_codes,
    default_rules,
)
from phalanx.experiments.comparison import Comparison, Figure, Panel
from phalanx.experiments.grid import Cell, Run, grid
from phalanx.experiments.labels import labels
from phalanx.experiments.measure import Progress, Watch, measure
from phalanx.experiments.plots import heat_map, line_plot
from phalanx.experiments.records import Pivot, Record, Records, mean, pivot, spread
from phalanx.experiments.runs import (
    MakeModel,
    build,
    compressed_run,
    load,
    message_bytes,
    train_run,
)
from phalanx.experiments.tuning import tuned

__all__ = [
    "Cell",
    "Comparison",
    "Figure",
    "MakeModel",
    "Panel",
    "Pivot",
    "Progress",
    "Record",
    "Records",
    "Run",
    "Watch",
    "build",
    "compare",
    "comparison_cells",
    "compressed_run",
    "default_attacks",
    "default_codes",
    "default_rules",
    "grid",
    "heat_map",
    "labels",
    "line_plot",
    "load",
    "mean",
    "measure",
    "message_bytes",
    "pivot",
    "spread",
    "train_run",
    "tuned",
]

"""Methods under attacks, on splits, over seeds: a grid of runs, in parallel, that can go on."""

from phalanx.comparison.cell import Cell, Setting
from phalanx.comparison.comparison import Comparison, Figure
from phalanx.comparison.export import terminal_tables, write_comparison
from phalanx.comparison.grid import Grid, Place, default_attacks, default_codes, default_rules
from phalanx.comparison.outcome import Outcome
from phalanx.comparison.progress import Progress
from phalanx.comparison.run import compare, compare_grid

__all__ = [
    "Cell",
    "Comparison",
    "Figure",
    "Grid",
    "Outcome",
    "Place",
    "Progress",
    "Setting",
    "compare",
    "compare_grid",
    "default_attacks",
    "default_codes",
    "default_rules",
    "terminal_tables",
    "write_comparison",
]

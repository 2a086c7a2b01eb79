import sys
from pathlib import Path

import pytest

from phalanx.aggregation import Krum
from phalanx.attacks import ReverseGradient
from phalanx.coding import DracoRepetition
from phalanx.comparison import Grid, Setting, compare_grid
from phalanx.data import ShardPartitioner

sys.path.insert(0, str(Path(__file__).parent))  # worker processes import the troublemakers by name

SETTING = Setting(num_workers=7, num_byzantine=1, steps=4, evaluate_every=2)
GRID = Grid(
    rules=[Krum()],
    codes=[DracoRepetition()],
    attacks=[ReverseGradient(scale=30.0)],
    splits=[None, ShardPartitioner()],
    setting=SETTING,
)


@pytest.fixture(scope="session")
def grid():
    return GRID


@pytest.fixture(scope="session")
def done(tmp_path_factory):
    """The grid, compared once: (comparison, folder)."""
    folder = tmp_path_factory.mktemp("done")
    return compare_grid(GRID, jobs=1, out=folder), folder

"""Real processes that die, and a parent that is killed."""

from dataclasses import replace

import pytest
from troublemakers import Deadly

from phalanx.comparison import compare_grid

pytestmark = pytest.mark.slow


def test_a_cell_whose_process_is_killed_is_tried_again(grid, tmp_path):
    small = replace(grid, codes=[], attacks=[], splits=[None], seeds=[0])
    rules = [Deadly(), Deadly(str(tmp_path / "once"))]
    found = compare_grid(replace(small, rules=rules), jobs=2, out=tmp_path / "out")
    mean, always, once = found.outcomes.values()
    assert (always.status, always.rounds) == ("failed", 0)
    assert "its process ended 2 times (signal SIGKILL)" in always.reason
    assert once.status == "finished"
    assert once.test_loss == mean.test_loss
    kept = {path.name.partition("_")[0] for path in (tmp_path / "out" / "cells").iterdir()}
    assert len(kept) == 3


def test_processes_that_cannot_start_are_an_error_and_not_many_failures(
    grid, tmp_path, monkeypatch
):
    lost = replace(grid.setting, data=grid.setting.data)
    monkeypatch.setattr("phalanx.comparison.pool._serve", _gone)
    with pytest.raises(ChildProcessError, match="ended before it began"):
        compare_grid(replace(grid, setting=lost), jobs=2, out=tmp_path)


def _gone(pipe, data):
    """A process that ends at once."""

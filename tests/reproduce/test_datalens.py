"""The recipe on digits: all methods, the published settings, and words for both outcomes."""

import pytest

from phalanx.reproduce import DataLensRecipe, reproduce

TINY = DataLensRecipe(
    num_teachers=60, num_hidden=4, steps=3, gan_steps=2, samples=200, pairs=40, seeds=1
)


@pytest.mark.slow
def test_the_recipe_runs_whole(tmp_path):
    pytest.importorskip("dp_accounting", reason="needs phalanx[private]")
    done = reproduce(TINY, tmp_path, size="quick", jobs=1)
    accuracy, steps = done.findings.tables
    assert [row[0] for row in accuracy.rows] == ["digits, epsilon 1", "digits, epsilon 10"]
    assert [row[3] for row in steps.rows] == [43, 43, 40, 54, 73, 25]
    verdicts = [claim.same for claim in done.findings.claims]
    assert verdicts[1:] == ["yes", "yes", "yes"]
    assert "class moments" in done.findings.answer or "class means" in done.findings.answer

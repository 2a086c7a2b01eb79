"""The recipe on small networks: all ways and methods, and words for both outcomes."""

import pytest

from phalanx.reproduce import FedMARecipe, reproduce

TINY = FedMARecipe(
    samples=300,
    hidden=12,
    seeds=2,
    deep_samples=120,
    pixels=8,
    deep_width=1,
    deep_clients=2,
    deep_seeds=1,
    rounds=2,
    epochs=1,
)


@pytest.mark.slow
def test_the_recipe_runs_whole(tmp_path):
    done = reproduce(TINY, tmp_path, size="quick", jobs=1)
    shot, deep = done.findings.tables
    assert [row[0] for row in shot.rows][-1] == "width"
    assert shot.rows[-1][1] >= 12
    assert [row[0] for row in deep.rows] == [
        *("FedMA", "FedAvg", "FedAvg, longer", "FedProx", "ensemble"),
    ]
    assert len(done.findings.claims) == 5
    assert "matched averaging" in done.findings.answer

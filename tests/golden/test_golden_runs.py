"""Whole runs are what they were: verdicts and byte counts to the number, losses to a tolerance."""

import json
from pathlib import Path

import pytest

from golden.runs import ON_RAY, RUNS, run

_FILE = Path(__file__).with_name("runs.json")
_EXACT = ("byzantine", "suspects", "outliers", "missing", "message_bytes", "excluded")
_CLOSE = ("loss", "test_accuracy", "test_loss", "virtual_seconds", "gradient_diversity")


def summary(name):
    """What of a run is the same on any machine, but for rounding."""
    rounds, weights = run(name)
    return {
        "exact": [{key: one.get(key) for key in _EXACT} for one in rounds],
        "close": [{key: one[key] for key in _CLOSE if one.get(key) is not None} for one in rounds],
        "weights": weights[:: max(1, len(weights) // 8)].tolist(),
    }


def check(name):
    ours, pinned = summary(name), json.loads(_FILE.read_text(encoding="utf-8"))[name]
    assert ours["exact"] == pinned["exact"]
    assert ours["weights"] == pytest.approx(pinned["weights"], rel=1e-3, abs=1e-4)
    for one, other in zip(ours["close"], pinned["close"], strict=True):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-4)


@pytest.fixture(scope="session", autouse=True)
def _written(request):
    """`pytest --write-golden` pins what the runs give now; the commit says why they changed."""
    if request.config.getoption("--write-golden"):
        found = {name: summary(name) for name in RUNS | ON_RAY}
        _FILE.write_text(json.dumps(found, indent=None, separators=(",", ":")) + "\n")


@pytest.mark.parametrize("name", RUNS)
def test_runs_are_as_they_were(name):
    check(name)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_runs_on_ray_are_as_they_were(cluster, subtests):
    for name in ON_RAY:
        with subtests.test(name):
            check(name)

"""A few rounds of the search for framing; the script runs many."""

import importlib.util
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.mark.filterwarnings("ignore:.* on average")
def test_no_honest_worker_is_named_and_no_error_exceeds_the_stated_one(monkeypatch, subtests):
    monkeypatch.syspath_prepend(FOLDER)
    found = importlib.util.spec_from_file_location("fuzz_verdicts", FOLDER / "fuzz_verdicts.py")
    module = importlib.util.module_from_spec(found)
    monkeypatch.setitem(sys.modules, "fuzz_verdicts", module)
    found.loader.exec_module(module)
    for kind in module.KINDS:
        with subtests.test(kind=kind):
            total = module.fuzz(kind, first=3 * 10**6, rounds=60)
            assert total["rounds"] == 60
            assert total["honest_named"] == total["beyond_error"] == 0
            assert total["named"] > 10
            assert "DETOX" in kind or not total["refused"]

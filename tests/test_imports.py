"""The package imports with its core dependencies alone; extras are imported where they are used."""

import subprocess
import sys
from pathlib import Path

import pytest

EXTRAS = (
    "beartype",
    "byzfl",
    "datasets",
    "flwr",
    "furo",
    "grpc",
    "hypothesis",
    "myst_parser",
    "pytest",
    "ray",
    "shtab",
    "sphinx",
    "torchvision",
    "transformers",
)

BLOCKED = f"""
import sys

class Without:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {EXTRAS!r}:
            return None
        return self.finder.find_spec(name, path, target)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
sys.path.insert(0, {str(Path(__file__).parent)!r})
import import_everything
import_everything.main()
"""


@pytest.mark.slow
def test_every_module_imports_without_the_extras():
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "modules imported" in done.stdout

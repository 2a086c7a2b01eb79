"""The package imports with its core dependencies alone; extras are imported where they are used."""

import subprocess
import sys
from pathlib import Path

EXTRAS = (
    "beartype",
    "byzfl",
    "datasets",
    "furo",
    "grpc",
    "hypothesis",
    "myst_parser",
    "pytest",
    "ray",
    "sphinx",
    "torchvision",
)

BLOCKED = f"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {EXTRAS!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
sys.path.insert(0, {str(Path(__file__).parent)!r})
import import_everything
import_everything.main()
"""


def test_every_module_imports_without_the_extras():
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "modules imported" in done.stdout

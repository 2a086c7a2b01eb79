"""Runs the golden runs in two commits on this machine, and says which differ in a single bit.

    python benchmarks/compare_commits.py HEAD~1 [HEAD] [--ray]

A change of the house leaves all of them alike. Each commit runs its own `tests/golden/runs.py`, so
that names may change; a run that only one of them knows is told apart.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

_ROOT = Path(__file__).parents[1]


def digests(commit: str, options: list[str]) -> dict[str, str]:
    """A digest of all bits of every golden run of a commit."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        git = ["git", "-C", str(_ROOT), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(tree), commit], check=True)
        try:
            found = subprocess.run(
                [sys.executable, "tests/golden/runs.py", *options],
                cwd=tree,
                env=os.environ | {"PYTHONPATH": str(tree / "src"), "OMP_NUM_THREADS": "1"},
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)
    known: dict[str, str] = json.loads(found.stdout)
    return known


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before")
    parser.add_argument("after", nargs="?", default="HEAD")
    parser.add_argument("--ray", action="store_true", help="the runs on Ray, too")
    options = parser.parse_args()
    flags = ["--ray"] if options.ray else []
    before, after = (digests(commit, flags) for commit in (options.before, options.after))
    for name in before | after:
        same = before.get(name) == after.get(name)
        print(f"{'same' if same else 'DIFFERS':8} {name}")
    sys.exit(before != after)


if __name__ == "__main__":
    main()

"""Times several ways of doing one thing in turn, in one run, and states ratios of medians.

On a shared machine a time by itself says little. Both sides of a ratio see the same minute of the
same machine here: every round runs each contestant once, and the ratio is taken within the round.
"""

import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import torch


class Timing(NamedTuple):
    """Seconds a call, and the ratio to the baseline: medians and quartiles over the rounds."""

    median_s: float
    quartiles_s: tuple[float, float]
    ratio: float
    ratio_quartiles: tuple[float, float]
    rounds: int


def side_by_side(
    contestants: Mapping[str, Callable[[], object]],
    baseline: str,
    rounds: int = 11,
    warm_up: int = 2,
) -> dict[str, Timing]:
    """Runs every contestant once a round, and compares each with the baseline of its round."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(warm_up + rounds):
        for name, call in contestants.items():
            start = time.perf_counter()
            call()
            taken = time.perf_counter() - start
            if turn >= warm_up:
                seconds[name].append(taken)
    timings = {}
    for name, own in seconds.items():
        ratios = [one / other for one, other in zip(own, seconds[baseline], strict=True)]
        timings[name] = Timing(
            statistics.median(own),
            _quartiles(own),
            statistics.median(ratios),
            _quartiles(ratios),
            rounds,
        )
    return timings


def environment(*packages: str) -> dict[str, Any]:
    """What the figures depend on: versions, machine, threads and commit."""
    return {
        "versions": {"python": platform.python_version()}
        | {package: _version(package) for package in packages},
        "machine": {"processor": _processor(), "system": platform.platform()},
        "default_threads": torch.get_num_threads(),
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain", "--untracked-files=no")),
    }


def _quartiles(values: list[float]) -> tuple[float, float]:
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def _git(*arguments: str) -> str:
    here = Path(__file__).parent
    return subprocess.run(
        ["git", *arguments], cwd=here, capture_output=True, text=True, check=False
    ).stdout.strip()

"""Software and hardware environment, recorded so that a run can be repeated."""

import platform
import subprocess
from datetime import UTC, datetime
from importlib import import_module
from os import cpu_count
from typing import Any

import numpy as np
import torch


def environment(seed: int) -> dict[str, Any]:
    """Versions, machine, commit and seed: what one must know to repeat a run."""
    return {
        "phalanx": import_module("phalanx").__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "num_cpus": cpu_count(),
        "num_threads": torch.get_num_threads(),
        "commit": _commit(),
        "seed": seed,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _commit() -> str | None:
    """The commit of the folder that one works in, if it is a git checkout."""
    try:
        asked = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return asked.stdout.strip() or None

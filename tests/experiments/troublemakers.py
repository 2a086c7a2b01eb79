"""Rules and runs that fail, by import path, so that processes find them."""

import os
import signal
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch

from phalanx.aggregation import Mean
from phalanx.errors import TooManyByzantineError


@dataclass(frozen=True)
class Broken(Mean):
    """Fails in its second round or so."""

    def judge(self, rows):
        raise ArithmeticError("seven is not eight")


@dataclass(frozen=True)
class Deadly(Mean):
    """Kills its process, as the operating system does when memory runs out."""

    once: str = ""
    """A file that is made before the first kill: then it spares the process. Never, if empty."""

    def judge(self, rows):
        if self.once and Path(self.once).exists():
            return super().judge(rows)
        if self.once:
            Path(self.once).touch()
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("still alive")


def measured(rule, seed=0, attack=None, folder=""):
    """A run of no work: its calls leave a mark in the folder; text for `rule` is trouble."""
    if folder:
        Path(folder, f"{rule}-{seed}-{os.getpid()}-{time.monotonic_ns()}").touch()
    if rule == "broken":
        raise ArithmeticError("seven is not eight")
    if rule == "deadly" or (rule == "deadly once" and len(list(Path(folder).glob(f"{rule}*"))) < 2):
        os.kill(os.getpid(), signal.SIGKILL)
    if rule == "no figures":
        return {"model": object()}
    if rule == "slow":
        time.sleep(60)
    if rule == "unusable":
        raise TooManyByzantineError("5 are not finite", workers=[1], bound=0)
    warnings.warn(f"{torch.get_num_threads()} thread", stacklevel=1)
    stopped = {"stopped": "half way"} if rule == "half" else {}
    figures = {"accuracy": 0.5 + seed, "loss": float("inf"), "curve": (1.0, float("nan"))}
    return figures | {"attack": attack} | stopped


def where(number: int) -> dict[str, float]:
    """The process that runs this, and when it does."""
    return {"process": os.getpid(), "at": time.monotonic()}

"""Rules that fail, by import path, so that processes find them."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path

from phalanx.aggregation import Mean


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

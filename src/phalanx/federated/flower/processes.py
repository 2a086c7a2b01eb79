"""Processes of a federation on this machine: started, and ended with all that they start."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path


def program(name: str) -> str:
    """The path of one of Flower's programs, beside this Python."""
    return str(Path(sys.executable).with_name(name))


class ProcessFamily:
    """Processes that share a folder, and are found by it, whatever they start.

    Flower starts some of its processes in sessions of their own, which no process group holds. So
    the family is everybody whose environment names the folder.

    Args:
        folder: of the federation; `FLWR_HOME` is in it, and logs.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        (self.folder / "home").mkdir(parents=True, exist_ok=True, mode=0o700)
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        modules = [os.getcwd(), os.environ.get("PYTHONPATH", "")]
        self.environment: Mapping[str, str] = {
            **os.environ,
            "FLWR_HOME": str(self.folder / "home"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "PATH": path,
            "PYTHONPATH": os.pathsep.join(filter(None, modules)),
        }

    def start(self, name: str, command: Sequence[str]) -> subprocess.Popen[bytes]:
        """Starts a process whose output goes to `NAME.log`."""
        with open(self.folder / f"{name}.log", "ab") as log:
            return subprocess.Popen(
                command,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def run(self, command: Sequence[str], timeout_s: float) -> str:
        """Runs a process to its end; what it says.

        Raises:
            RuntimeError: if it fails.
        """
        done = subprocess.run(
            command,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if done.returncode:
            told = (done.stderr.strip() or done.stdout.strip())[-2000:]
            raise RuntimeError(f"{Path(command[0]).name} {command[1]} failed: {told}")
        return done.stdout

    def members(self) -> list[int]:
        """Ids of all processes of the family; where there is no /proc, none are found."""
        mark = f"FLWR_HOME={self.folder / 'home'}".encode()
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                told = (entry / "environ").read_bytes().split(b"\0")
            except OSError:  # gone, or somebody else's
                continue
            if mark in told and int(entry.name) != os.getpid():
                found.append(int(entry.name))
        return found

    def end(self, children: Sequence[subprocess.Popen[bytes]], patience_s: float = 10.0) -> None:
        """Ends all: asked first, then killed."""
        self._signal(children, signal.SIGTERM)
        until = time.monotonic() + patience_s
        while time.monotonic() < until and self._left(children):
            time.sleep(0.2)
        while self._left(children):
            self._signal(children, signal.SIGKILL)
            time.sleep(0.1)

    def _left(self, children: Sequence[subprocess.Popen[bytes]]) -> bool:
        return any(one.poll() is None for one in children) or bool(self.members())

    def _signal(self, children: Sequence[subprocess.Popen[bytes]], number: int) -> None:
        for process in {*self.members(), *(one.pid for one in children if one.poll() is None)}:
            try:
                os.kill(process, number)
            except ProcessLookupError:
                continue

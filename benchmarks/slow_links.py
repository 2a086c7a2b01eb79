"""Slow links on one machine: a network namespace for each rank, with its own bytes a second.

    with Cluster(4, rate="100mbit") as cluster:
        cluster.run([sys.executable, "script.py"])

Ranks are joined by a bridge; a token bucket limits what each of them sends, and another what it
receives. This needs Linux, root, and `ip` and `tc` of iproute2. Latency has to be that of the
machine: the kernel's `netem` is not asked for, since many kernels come without it.
"""

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import NamedTuple

_BURST = "64kb"  # sent at full speed after a pause; less costs more than it mends at 1 Gbit/s
_QUEUE = "400ms"  # what waits longer is dropped


class UnsupportedError(RuntimeError):
    """This machine cannot make network namespaces; the message says why."""


class Bytes(NamedTuple):
    """What the interface of a rank has counted, headers included.

    Attributes:
        received: bytes.
        sent: bytes.
    """

    received: int
    sent: int


def why_unsupported() -> str | None:
    """What is missing for a `Cluster`; None if nothing is."""
    if not sys.platform.startswith("linux"):
        return "network namespaces are Linux's"
    if os.geteuid() != 0:
        return "network namespaces need root"
    if missing := [name for name in ("ip", "tc") if shutil.which(name) is None]:
        return f"{' and '.join(missing)} of iproute2 cannot be found"
    return None


class Cluster:
    """Network namespaces, one a rank; a context manager that removes them whatever happens.

    Names are fresh for each cluster, so that several may stand at once, and a name that the kernel
    is still letting go of is never asked for again. SIGTERM is turned into `SystemExit` while the
    cluster stands, so that it is removed then, too; only SIGKILL leaves it behind.
    """

    def __init__(self, num_ranks: int, rate: str | None = "100mbit") -> None:
        """Makes nothing yet.

        Args:
            num_ranks: namespaces.
            rate: of each rank's link, each way, as `tc` writes it; None for no limit.

        Raises:
            ValueError: if there are not 1 to 250 ranks.
        """
        if not 1 <= num_ranks <= 250:
            raise ValueError(f"num_ranks must be from 1 to 250, got {num_ranks}")
        self.num_ranks, self.rate = num_ranks, rate
        self._tag = f"px{secrets.token_hex(3)}"  # names of interfaces have 15 characters at most

    def __enter__(self) -> "Cluster":
        """Makes the namespaces.

        Raises:
            UnsupportedError: if this machine cannot, or may not.
        """
        if reason := why_unsupported():
            raise UnsupportedError(reason)
        self._handler = signal.signal(signal.SIGTERM, _leave)
        try:
            self._make()
        except BaseException as error:
            self.close()
            if isinstance(error, subprocess.CalledProcessError):
                text = error.stderr.strip() or str(error)
                raise UnsupportedError(f"{' '.join(error.cmd)}: {text}") from error
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Removes what there is; a second time there is nothing."""
        with _undisturbed():
            for rank in range(self.num_ranks):
                _try("ip", "netns", "del", self.namespace(rank))
                _try("ip", "link", "del", self._port(rank))  # lingers for a moment by itself
            _try("ip", "link", "del", self._tag)
        if signal.getsignal(signal.SIGTERM) is _leave:
            signal.signal(signal.SIGTERM, self._handler)

    def namespace(self, rank: int) -> str:
        """The namespace of a rank; its interface is `eth0`."""
        return f"{self._tag}n{rank}"

    def command(self, rank: int, command: Sequence[str]) -> list[str]:
        """The command that runs another one as a rank does: in its namespace, gloo on `eth0`.

        RANK and WORLD_SIZE are set. Processes find each other by a `file://` store.
        """
        variables = {"GLOO_SOCKET_IFNAME": "eth0", "RANK": rank, "WORLD_SIZE": self.num_ranks}
        settings = [f"{name}={value}" for name, value in variables.items()]
        return ["ip", "netns", "exec", self.namespace(rank), "env", *settings, *command]

    def run(self, command: Sequence[str], timeout_s: float = 240.0) -> list[str]:
        """Runs a command on every rank; what each printed.

        Raises:
            RuntimeError: if one of them fails, with what it said; the others are killed then.
            TimeoutError: if they take too long; all are killed.
        """
        with tempfile.TemporaryDirectory() as folder:
            logs = [Path(folder, f"{rank}.txt") for rank in range(self.num_ranks)]
            codes = self._finished(command, logs, timeout_s)
            printed = [log.read_text() for log in logs]
        for rank, code in enumerate(codes):
            if code not in (0, None):
                raise RuntimeError(f"rank {rank} failed: {printed[rank]}")
        return printed

    def counters(self, rank: int) -> Bytes:
        """What the interface of a rank has counted so far."""
        command = ["ip", "netns", "exec", self.namespace(rank), "cat", "/proc/net/dev"]
        return interface_bytes(_run(*command), "eth0")

    def _finished(
        self, command: Sequence[str], logs: Sequence[Path], timeout_s: float
    ) -> list[int | None]:
        """Exit codes of all ranks; when one fails, the others are killed, and have none."""
        end = time.monotonic() + timeout_s
        processes: list[subprocess.Popen[bytes]] = []
        try:
            for rank, log in enumerate(logs):
                with log.open("w") as file:
                    started = subprocess.Popen(
                        self.command(rank, command),
                        stdout=file,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,  # so that all of it can be killed
                    )
                processes.append(started)
            while None in (codes := [process.poll() for process in processes]):
                if any(codes):
                    break
                if time.monotonic() > end:
                    raise TimeoutError(f"ranks must end within {timeout_s:g} s")
                time.sleep(0.05)
        finally:
            for process in processes:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
        return codes

    def _port(self, rank: int) -> str:
        """The end of a rank's cable that is plugged into the bridge."""
        return f"{self._tag}p{rank}"

    def _make(self) -> None:
        _run("ip", "link", "add", self._tag, "type", "bridge")
        _run("ip", "link", "set", self._tag, "up")
        for rank in range(self.num_ranks):
            name, port = self.namespace(rank), self._port(rank)
            _run("ip", "netns", "add", name)
            cable = ("type", "veth", "peer", "name", "eth0", "netns", name)
            _run("ip", "link", "add", port, *cable)
            _run("ip", "link", "set", port, "master", self._tag, "up")
            address = f"10.77.0.{rank + 1}/24"
            _run("ip", "-n", name, "addr", "add", address, "dev", "eth0")
            for device in ("lo", "eth0"):
                _run("ip", "-n", name, "link", "set", device, "up")
            if self.rate is not None:
                bucket = ("root", "tbf", "rate", self.rate, "burst", _BURST, "latency", _QUEUE)
                _run("tc", "-n", name, "qdisc", "add", "dev", "eth0", *bucket)
                _run("tc", "qdisc", "add", "dev", port, *bucket)


def interface_bytes(table: str, device: str) -> Bytes:
    """The counters of a device in the text of `/proc/net/dev`.

    Raises:
        ValueError: if it is not in there.
    """
    for line in table.splitlines():
        name, _, counts = line.partition(":")
        if name.strip() == device:
            fields = counts.split()
            return Bytes(int(fields[0]), int(fields[8]))
    raise ValueError(f"device must be one of this machine, got {device}")


def own_bytes(device: str = "eth0") -> Bytes:
    """What an interface of this process's namespace has counted so far."""
    return interface_bytes(Path("/proc/net/dev").read_text(), device)


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout


def _try(*command: str) -> None:
    subprocess.run(command, capture_output=True, check=False)


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Lets a second Ctrl-C wait until all is removed."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)

"""Emulation of slow links on one machine: a network namespace per rank, with its own bandwidth.

Ranks are joined by a bridge; a token bucket limits what each of them sends, and another what it
receives. Links with latency, jitter or loss are TUN devices, joined by a relay in user space
(`tun_relay.py`): the kernel's `netem` is not asked for, since many kernels come without it.
"""

import math
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Literal, NamedTuple

from phalanx.communication import tun_relay
from phalanx.communication.units import bits_per_second, seconds
from phalanx.errors import EmulationError

Backend = Literal["none", "tbf", "tun"]

# What a bucket lets pass at full speed after a pause, in seconds of its rate: at 1 Gbit/s more than
# the 64 kB that the kernel hands over at once, since cutting these would halve the speed there.
_BURST_S = 6e-4
_SMALLEST_BURST = 2 * 1514  # bytes: of less than a frame nothing would pass
_NETWORK, _PORT = "10.77.0", 29500  # of all ranks; of rank 0, in its own namespace
_QUEUE = "400ms"  # what waits longer is dropped
# The same on all machines. Where BBR was the usual one, messages of some 100 kB took half as long
# again.
_CONGESTION_CONTROL = "echo reno > /proc/sys/net/ipv4/tcp_congestion_control"


class InterfaceBytes(NamedTuple):
    """Bytes that a network interface has counted, headers included.

    Attributes:
        received: bytes.
        sent: bytes.
    """

    received: int
    sent: int


def why_unsupported() -> str | None:
    """What is missing for `EmulatedLinks`; None if nothing is."""
    if not sys.platform.startswith("linux"):
        return "network namespaces are Linux's"
    if os.geteuid() != 0:
        return "network namespaces need root"
    if missing := [name for name in ("ip", "tc") if shutil.which(name) is None]:
        return f"{' and '.join(missing)} of iproute2 cannot be found"
    return None


class EmulatedLinks:
    """Links of a stated bandwidth, latency, jitter and loss between ranks on this machine.

    A context manager: each rank has a network namespace with an interface `eth0`, and commands run
    there. All is removed at the end, whatever happens: a process of its own does so, and ends what
    still runs in the namespaces, when this one closes the pipe between the two, as the kernel does
    for one that was killed. Names are fresh for each, so that several may stand at once.

        with EmulatedLinks(4, "100mbit", latency="20ms") as links:
            printed = links.run([sys.executable, "script.py"])

    Needs Linux, root, and `ip` and `tc` of iproute2; of a container, the capabilities `NET_ADMIN`
    and `SYS_ADMIN`. Cost: a few hundred milliseconds to make two of them; with latency, one process
    that carries about 1 Gbit/s in all.

    >>> links = EmulatedLinks(2, "100mbit", latency="20ms")
    >>> links.backend, links.bandwidth, links.latency_s
    ('tun', 100000000.0, 0.02)
    """

    def __init__(
        self,
        num_ranks: int,
        bandwidth: str | None = "100mbit",
        *,
        latency: str = "0s",
        jitter: str = "0s",
        loss: float = 0.0,
        backend: Backend | None = None,
    ) -> None:
        """Makes nothing yet.

        Args:
            num_ranks: namespaces.
            bandwidth: of each rank's link, each way, such as 100mbit; None for no limit.
            latency: from one rank to another, one way, such as 20ms.
            jitter: the latency is longer by as much as this, drawn for each packet.
            loss: probability of a packet to be lost.
            backend: "tbf" for token buckets, "tun" for the relay, "none" for cables without any
                limit; None for the first that can do what is asked for.

        Raises:
            ValueError: if there are not 1 to 250 ranks, or a link is out of range, or cannot be had
                with that backend.
        """
        if not 1 <= num_ranks <= 250:
            raise ValueError(f"num_ranks must be from 1 to 250, got {num_ranks}")
        if not 0 <= loss < 1:
            raise ValueError(f"loss must be at least 0 and below 1, got {loss}")
        self.num_ranks, self.loss = num_ranks, loss
        self.bandwidth = None if bandwidth is None else bits_per_second(bandwidth, "bandwidth")
        self.latency_s, self.jitter_s = seconds(latency), seconds(jitter, "jitter")
        relayed = self.latency_s > 0 or self.jitter_s > 0 or loss > 0
        limited: Backend = "tbf" if bandwidth is not None else "none"
        self.backend = backend or ("tun" if relayed else limited)
        if relayed and self.backend != "tun":
            raise ValueError(
                f"backend must be tun where there is latency, jitter or loss, got {backend}"
            )
        self._tag = f"px{secrets.token_hex(3)}"  # names of interfaces have 15 characters at most
        self._helpers: list[subprocess.Popen[str]] = []  # each ends when its input does

    def __enter__(self) -> "EmulatedLinks":
        """Makes the namespaces.

        Raises:
            EmulationError: if this machine cannot, or may not.
        """
        if reason := why_unsupported():
            raise EmulationError(reason)
        try:
            self._make()
        except BaseException as error:
            self.close()
            if isinstance(error, subprocess.CalledProcessError):
                text = error.stderr.strip() or str(error)
                raise EmulationError(f"{' '.join(error.cmd)}: {text}") from error
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Removes what there is; a second time there is nothing."""
        while self._helpers:
            self._helpers.pop().communicate()

    def namespace(self, rank: int) -> str:
        """The namespace of a rank; its interface is `eth0`."""
        return f"{self._tag}n{rank}"

    def command(self, rank: int, command: Sequence[str]) -> list[str]:
        """The command that runs another one as a rank does: in its namespace, gloo on `eth0`.

        RANK, WORLD_SIZE, LOCAL_RANK and the address of rank 0 are set, for `init_process_group`
        without arguments; torchrun takes its options from the variables that begin with PET.
        """
        first = {"MASTER_ADDR": f"{_NETWORK}.1", "MASTER_PORT": _PORT}
        node = {"NNODES": self.num_ranks, "NODE_RANK": rank, "NPROC_PER_NODE": 1, **first}
        variables = {
            "GLOO_SOCKET_IFNAME": "eth0",
            "NCCL_SOCKET_IFNAME": "eth0",
            "RANK": rank,
            "WORLD_SIZE": self.num_ranks,
            "LOCAL_RANK": 0,
            **first,
            **{f"PET_{name}": value for name, value in node.items()},
        }
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

    def stream(self, command: Sequence[str], timeout_s: float = math.inf) -> list[int | None]:
        """Runs a command on every rank, which print where this process does; their exit codes.

        When one fails, the others are killed, and have none (None).

        Raises:
            TimeoutError: if they take too long; all are killed.
        """
        return self._finished(command, [None] * self.num_ranks, timeout_s)

    def counters(self, rank: int) -> InterfaceBytes:
        """What the interface of a rank has counted so far."""
        command = ["ip", "netns", "exec", self.namespace(rank), "cat", "/proc/net/dev"]
        return interface_bytes(_run(*command), "eth0")

    def _finished(
        self, command: Sequence[str], logs: Sequence[Path | None], timeout_s: float
    ) -> list[int | None]:
        """Exit codes of all ranks; when one fails, the others are killed, and have none."""
        end = time.monotonic() + timeout_s
        processes: list[subprocess.Popen[bytes]] = []
        try:
            for rank, log in enumerate(logs):
                with nullcontext() if log is None else log.open("w") as file:
                    started = subprocess.Popen(
                        self.command(rank, command),
                        stdin=subprocess.DEVNULL,
                        stdout=file,
                        stderr=None if file is None else subprocess.STDOUT,
                        start_new_session=True,  # so that all of it can be killed
                    )
                processes.append(started)
            while None in (codes := [process.poll() for process in processes]):
                if any(codes):
                    break
                if any(helper.poll() is not None for helper in self._helpers):
                    raise RuntimeError("the relay between the ranks has failed")
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
        """The end of a rank's cable that is plugged into the bridge, or its TUN device at first."""
        return f"{self._tag}p{rank}"

    def _make(self) -> None:
        self._help("sh", "-c", self._removal())
        if self.backend == "tun":
            self._start_relay()
        else:
            _run("ip", "link", "add", self._tag, "type", "bridge")
            _run("ip", "link", "set", self._tag, "up")
        for rank in range(self.num_ranks):
            name = self.namespace(rank)
            _run("ip", "netns", "add", name)
            _run("ip", "netns", "exec", name, "sh", "-c", _CONGESTION_CONTROL)
            if self.backend == "tun":
                moved = ("netns", name, "name", "eth0", "mtu", str(tun_relay.MTU))
                _run("ip", "link", "set", self._port(rank), *moved)
            else:
                self._lay_cable(rank)
            address = f"{_NETWORK}.{rank + 1}/24"
            _run("ip", "-n", name, "addr", "add", address, "dev", "eth0")
            for device in ("lo", "eth0"):
                _run("ip", "-n", name, "link", "set", device, "up")

    def _lay_cable(self, rank: int) -> None:
        """From the namespace of a rank to the bridge, with a token bucket at each end."""
        name, port = self.namespace(rank), self._port(rank)
        cable = ("type", "veth", "peer", "name", "eth0", "netns", name)
        _run("ip", "link", "add", port, *cable)
        _run("ip", "link", "set", port, "master", self._tag, "up")
        if self.backend == "tbf" and self.bandwidth is not None:
            burst = max(round(self.bandwidth / 8 * _BURST_S), _SMALLEST_BURST)
            limit = ("rate", f"{self.bandwidth:.0f}bit", "burst", f"{burst}b", "latency", _QUEUE)
            _run("tc", "-n", name, "qdisc", "add", "dev", "eth0", "root", "tbf", *limit)
            _run("tc", "qdisc", "add", "dev", port, "root", "tbf", *limit)

    def _start_relay(self) -> None:
        """Has it make the TUN devices.

        Raises:
            EmulationError: if it cannot.
        """
        options = {
            "rate": math.inf if self.bandwidth is None else self.bandwidth,
            "delay_s": self.latency_s,
            "jitter_s": self.jitter_s,
            "loss": self.loss,
        }
        relay = self._help(
            sys.executable,
            "-I",  # a script of the standard library alone: the package takes seconds to import
            tun_relay.__file__,
            *(f"--{name}={value}" for name, value in options.items()),
            "--devices",
            *map(self._port, range(self.num_ranks)),
        )
        assert relay.stdout is not None
        if relay.stdout.readline() != "ready\n":
            raise EmulationError(relay.communicate()[1].strip())

    def _help(self, *command: str) -> "subprocess.Popen[str]":
        """Starts a process that has to end by itself when its input does, and no earlier."""
        pipe = subprocess.PIPE
        helper = subprocess.Popen(
            command,
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            text=True,
            start_new_session=True,  # a Ctrl-C is not for it
        )
        self._helpers.append(helper)
        return helper

    def _removal(self) -> str:
        """A script that waits for its input to end, and then removes all."""
        lines = ["cat"]
        for rank in range(self.num_ranks):
            name = self.namespace(rank)
            lines += [f"ip netns pids {name} | xargs -r kill -9", f"ip netns del {name}"]
            lines += [f"ip link del {self._port(rank)}"]  # lingers for a moment by itself
        return "\n".join([*lines, f"ip link del {self._tag}"])


def interface_bytes(table: str, device: str) -> InterfaceBytes:
    """The counters of a device in the text of `/proc/net/dev`.

    Raises:
        ValueError: if it is not in there.
    """
    for line in table.splitlines():
        name, _, counts = line.partition(":")
        if name.strip() == device:
            fields = counts.split()
            return InterfaceBytes(int(fields[0]), int(fields[8]))
    raise ValueError(f"device must be one of this machine, got {device}")


def own_bytes(device: str = "eth0") -> InterfaceBytes:
    """What an interface of this process's namespace has counted so far."""
    return interface_bytes(Path("/proc/net/dev").read_text(), device)


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout

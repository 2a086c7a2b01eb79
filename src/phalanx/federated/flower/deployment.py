"""Deployment of a federation on this machine: a SuperLink and nodes, with TLS and known keys."""

import importlib
import json
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from phalanx.checks import require_at_least, require_finite_above
from phalanx.federated.flower.certificates import (
    AUTHORITY,
    SERVER,
    SERVER_KEY,
    write_certificates,
)
from phalanx.federated.flower.processes import ProcessFamily, program
from phalanx.federated.flower.records import import_flower

_LINK = "phalanx"  # what the SuperLink is called in Flower's configuration
_BACK_OFF_S = (5.0, 10.0, 20.0, 40.0)
_COMMAND_S = 60.0
_LOOK_S = 2.0

_PROJECT = """\
[project]
name = "phalanx-federation"
version = "1.0.0"
description = "A federation of Phalanx"
license = {{ file = "LICENSE" }}
dependencies = ["flwr>=1.42.0,<2"]

[tool.flwr.app]
publisher = "phalanx"
fab-format-version = 1
flwr-version-target = "{version}"

[tool.flwr.app.components]
serverapp = "phalanx_federation.apps:server_app"
clientapp = "phalanx_federation.apps:client_app"

[tool.flwr.app.config]
"""


class Deployment:
    """Deployment of one federation on loopback: processes, certificates and keys in one folder.

    A context manager; leaving it ends every process. Nodes that end are started again, after a
    growing pause: a SuperLink takes a lost node for connected for about a minute, and refuses it.

    Args:
        module: what holds `server_app` and `client_app`, as `as_flower` gives them.
        num_clients: nodes to start.
        folder: for keys, certificates, logs and Flower's state; it is private to the user.
    """

    def __init__(self, module: str, num_clients: int, folder: Path) -> None:
        require_at_least(1, num_clients=num_clients)
        self.module, self.num_clients, self.folder = module, num_clients, folder.resolve()
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._family = ProcessFamily(self.folder)
        self._children: list[subprocess.Popen[bytes]] = []
        self.nodes: dict[int, subprocess.Popen[bytes]] = {}
        self._failures: dict[int, int] = {}
        self._due: dict[int, float] = {}
        self._run = ""
        self._address = f"127.0.0.1:{free_port()}"

    def __enter__(self) -> "Deployment":
        with ExitStack() as stack:
            stack.callback(self.close)
            write_certificates(self.folder, self.num_clients)
            self._write_project()
            self._start_link()
            for node in range(self.num_clients):
                self._flwr("supernode", "register", str(self.folder / f"node-{node}.pub"), _LINK)
                self._start_node(node)
            stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends all processes."""
        self._family.end(self._children)

    def run(self, timeout_s: float) -> str:
        """Runs the federation to its end, nodes being started again; how it ended, as Flower says.

        Raises:
            TimeoutError: if it takes longer.
        """
        until = time.monotonic() + timeout_s
        self.submit()
        while time.monotonic() < until:
            self.mend()
            if (status := self.status()).startswith("finished"):
                return status
            time.sleep(_LOOK_S)
        raise TimeoutError(f"the federation must end within {timeout_s} s; see {self.folder}/*.log")

    def submit(self) -> None:
        """Hands the apps to the SuperLink, which starts the server's."""
        self._run = str(self._told("run", str(self.folder / "app"), _LINK)["run-id"])

    def status(self) -> str:
        """How the run stands: "running", "finished:completed", "finished:failed"."""
        return str(self._told("list", _LINK, "--run-id", self._run)["runs"][0]["status"])

    def log(self) -> str:
        """What the server's app said."""
        return (self.folder / "link.log").read_text(errors="replace")

    def mend(self) -> None:
        """Starts nodes again that have ended, once it is time."""
        for node, process in list(self.nodes.items()):
            if process.poll() is None:
                continue
            if node not in self._due:
                tries = self._failures.get(node, 0)
                pause_s = _BACK_OFF_S[min(tries, len(_BACK_OFF_S) - 1)]
                self._failures[node], self._due[node] = tries + 1, time.monotonic() + pause_s
            elif time.monotonic() > self._due[node]:
                del self._due[node]
                self._start_node(node)

    def _start_link(self) -> None:
        host, port = self._address.split(":")
        command = [program("flower-superlink"), "--host", host, "--port", port, *self._tls()]
        command += ["--enable-supernode-auth", "--disable-runtime-dependency-installation"]
        command += ["--database", str(self.folder / "state.db")]
        self._children.append(link := self._family.start("link", command))
        until = time.monotonic() + _COMMAND_S
        while time.monotonic() < until and link.poll() is None:
            try:
                socket.create_connection((host, int(port)), timeout=1.0).close()
                return
            except OSError:
                time.sleep(0.2)
        raise RuntimeError(f"the SuperLink does not start:\n{self.log()[-2000:]}")

    def _start_node(self, node: int) -> None:
        command = [program("flower-supernode"), "--superlink", self._address, *self._tls()]
        command += ["--root-certificates", str(self.folder / AUTHORITY)]
        command += ["--auth-supernode-private-key", str(self.folder / f"node-{node}")]
        command += ["--host", "127.0.0.1", "--port", str(free_port())]
        told = f"partition-id={node} num-partitions={self.num_clients}"
        command += ["--node-config", told]
        self.nodes[node] = self._family.start(f"node-{node}", command)
        self._children.append(self.nodes[node])

    def _tls(self) -> list[str]:
        names = {
            "--ssl-certfile": SERVER,
            "--ssl-keyfile": SERVER_KEY,
            "--ssl-ca-certfile": AUTHORITY,
        }
        return [part for flag, name in names.items() for part in (flag, str(self.folder / name))]

    def _flwr(self, *arguments: str) -> str:
        return self._family.run([program("flwr"), *arguments], _COMMAND_S)

    def _told(self, *arguments: str) -> Any:
        """What Flower's program answers, which says in its answer whether it failed."""
        told = self._flwr(*arguments, "--format", "json")
        answer = json.loads(told)
        if not answer.get("success"):
            raise RuntimeError(f"flwr {arguments[0]} failed: {told.strip()[-2000:]}")
        return answer

    def _write_project(self) -> None:
        version = import_flower("flwr").__version__
        package = self.folder / "app" / "phalanx_federation"
        package.mkdir(parents=True, exist_ok=True)
        (package / "__init__.py").write_text("")
        told = f"import {self.module} as module\n\n"  # assigned: Flower looks without running it
        told += "client_app = module.client_app\nserver_app = module.server_app\n"
        (package / "apps.py").write_text(told)
        (package.parent / "pyproject.toml").write_text(_PROJECT.format(version=version))
        (package.parent / "LICENSE").write_text("As the module that it runs.\n")
        link = f'address = "{self._address}"\nroot-certificates = "{self.folder / AUTHORITY}"\n'
        told = f'[superlink]\ndefault = "{_LINK}"\n\n[superlink.{_LINK}]\n{link}'
        (self.folder / "home" / "config.toml").write_text(told)


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        number: int = taken.getsockname()[1]
    return number


def deploy(module: str, num_clients: int, folder: Path, timeout_s: float) -> str:
    """Runs a federation on this machine to its end; how it ended, as Flower says.

    Raises:
        ValueError: if the module does not hold the apps.
        TimeoutError: if the run takes longer.
    """
    require_at_least(1, num_clients=num_clients)
    require_finite_above(0, timeout_s=timeout_s)
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f"module must be importable, got {module}: {error}") from error
    if absent := [name for name in ("server_app", "client_app") if not hasattr(found, name)]:
        raise ValueError(f"module must hold server_app and client_app, {module} lacks {absent}")
    with Deployment(module, num_clients, folder) as running:
        print(f"SuperLink and {num_clients} nodes run; logs are in {folder}", file=sys.stderr)
        return running.run(timeout_s)

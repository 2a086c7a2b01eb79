"""Rounds of secure aggregation with a process for each party: dealer, worker server, clients."""

import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from phalanx.aggregation import MultiKrum
from phalanx.privacy import ModelServer, Peer, SecureSetup, fresh_keys

_CLIENT = """
import json, os, sys, torch
from phalanx.privacy import Peer, SecureClient, SecureSetup, Uploader
from phalanx.privacy.secure_aggregation.messages import Receipt
from phalanx.privacy.secure_aggregation.transport import Connection

task = json.load(sys.stdin)
torch.set_num_threads(1)
setup, peers = SecureSetup(*task["setup"]), [Peer(*peer) for peer in task["peers"]]
client = SecureClient(setup, task["worker"], *task["noise"])
message = torch.load(task["message"], weights_only=True)
if task["dies"]:  # when one of the servers has its share
    share = client.share(message, 0).for_worker_server
    Connection(setup, peers[1]).ask(share, Receipt, 30.0)
    os._exit(9)
Uploader(client, *peers).send(message, 0, 120.0)
"""
_WAIT_S, _START_S = 60.0, 120.0


def secure_round(
    rows: Tensor, num_byzantine: int, lost: Sequence[int], noise_std: float, clip_norm: float | None
) -> tuple[Tensor, float]:
    """The aggregate by Multi-Krum, and how long the round took once all clients were up.

    The dealer and the worker server are `phalanx serve`, the model server is this process, and
    every client a process of its own; those that are lost die when one server has their share.
    """
    setup = SecureSetup(*rows.shape)
    keys = fresh_keys(setup)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        sizes = [f"--setup.num_workers={len(rows)}", f"--setup.dim={rows.shape[1]}"]

        def served(role: str, secrets: Any, *options: str) -> str:
            file = folder / f"{role}.json"
            file.write_text(json.dumps(secrets))
            process = _started(stack, "-m", "phalanx", "serve", role, str(file), *sizes, *options)
            assert process.stdout is not None
            told = re.search(r"listening on (\S+)", process.stdout.readline())
            assert told is not None
            return told[1]

        dealer = served("dealer", {"accepts": keys["dealer"]})
        secrets = {"accepts": keys["worker server"], "dealer": keys["dealer"]["worker server"]}
        rule = ["--rule=MultiKrum", f"--rule.num_byzantine={num_byzantine}", f"--dealer={dealer}"]
        worker_server = served("worker-server", secrets, *rule)
        leading = ModelServer(
            setup,
            keys["model server"],
            Peer(worker_server, keys["worker server"]["model server"]),
            Peer(dealer, keys["dealer"]["model server"]),
            timeout_s=_WAIT_S,
        )
        server = stack.enter_context(closing(leading))
        clients = []
        for worker, row in enumerate(rows):
            torch.save(row.clone(), folder / f"{worker}.pt")
            names = {"model server": server.address, "worker server": worker_server}
            client = _started(stack, "-c", _CLIENT)
            task = {
                "setup": list(rows.shape),
                "peers": [(at, keys[name][f"worker {worker}"]) for name, at in names.items()],
                "worker": worker,
                "noise": [clip_norm, noise_std],
                "message": str(folder / f"{worker}.pt"),
                "dies": worker in lost,
            }
            assert client.stdin is not None
            client.stdin.write(json.dumps(task))
            client.stdin.close()
            clients.append(client)
        for client in clients:
            client.wait(_START_S)
        began = time.perf_counter()
        return server.aggregate(deadline_s=1.0), time.perf_counter() - began


def processes_record(
    rows: Tensor, num_byzantine: int, num_lost: int, noise_std: float, clip_norm: float | None
) -> dict[str, Any]:
    """How far the aggregate of such a round is from the rule's in the clear on those who are left.

    With noise that distance, number by number, should be what the mean of so much noise has.
    """
    lost = range(len(rows) - num_lost, len(rows))
    value, seconds = secure_round(rows, num_byzantine, lost, noise_std, clip_norm)
    clear = MultiKrum(num_byzantine).explain(rows[: len(rows) - num_lost])
    assert clear.weights is not None
    unit, chosen = SecureSetup(*rows.shape).unit, int((clear.weights > 0).sum())
    off = value - clear.value.double()
    expected = noise_std / chosen**0.5
    return {
        "lost": num_lost,
        "noise": noise_std,
        "seconds": seconds,
        "largest error": off.abs().max().item() / unit,
        "root mean square error": off.square().mean().sqrt().item(),
        "expected of the noise": expected,
        "numbers": rows.shape[1],
    }


def _started(stack: ExitStack, *arguments: str) -> "subprocess.Popen[str]":
    """A process of Python, which is killed when the stack is left."""
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, *arguments], stdin=pipe, stdout=pipe, text=True)

    def end() -> None:
        process.kill()
        process.wait()
        for pipe_end in (process.stdin, process.stdout):
            if pipe_end is not None:
                pipe_end.close()

    stack.callback(end)
    return process

"""Secure aggregation with a process per party, one Byzantine client and one that dies."""

import json
import re
import subprocess
import sys
from contextlib import ExitStack, closing

import pytest
import torch

from phalanx.aggregation import MultiKrum
from phalanx.errors import ServerLostError
from phalanx.privacy import ModelServer, Peer, SecureSetup, fresh_keys

pytest.importorskip("grpc")
SETUP = SecureSetup(num_workers=8, dim=100_000)
ROUNDS = 2

CLIENT = """
import json, os, sys, torch
from phalanx.privacy import Peer, SecureClient, SecureSetup, Uploader
from phalanx.privacy.secure_aggregation.messages import Receipt
from phalanx.privacy.secure_aggregation.transport import Connection
task = json.load(sys.stdin)
torch.set_num_threads(1)
setup = SecureSetup(*task["setup"])
peers = [Peer(*peer) for peer in task["peers"]]
client = SecureClient(setup, task["worker"])
uploader = Uploader(client, *peers)
for round in range(task["rounds"]):
    generator = torch.Generator().manual_seed(1000 * round + task["worker"])
    message = torch.randn(setup.dim, generator=generator) / setup.dim**0.5
    if task["how"] == "dies" and round == 1:
        share = client.share(message, round).for_worker_server
        Connection(setup, peers[1]).ask(share, Receipt, 10.0)
        os._exit(9)
    uploader.send(message * (-50 if task["how"] == "lies" else 1), round, 60.0)
"""


def message(worker, round):
    generator = torch.Generator().manual_seed(1000 * round + worker)
    return torch.randn(SETUP.dim, generator=generator) / SETUP.dim**0.5


@pytest.fixture
def start():
    """Starts a process; all that are left are killed at the end."""
    started = []

    def run(arguments, given=None):
        process = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        if given is not None:
            process.stdin.write(json.dumps(given))
            process.stdin.close()
        return process

    yield run
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()
        if not process.stdin.closed:
            process.stdin.close()


def served(start, tmp_path, role, secrets, *options):
    file = tmp_path / f"{role}.json"
    file.write_text(json.dumps(secrets))
    sizes = [f"--setup.num_workers={SETUP.num_workers}", f"--setup.dim={SETUP.dim}"]
    process = start(["-m", "phalanx", "serve", role, str(file), *sizes, *options])
    return process, re.search(r"listening on (\S+)", process.stdout.readline())[1]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_processes_give_what_the_rule_gives_in_the_clear(start, tmp_path):
    keys = fresh_keys(SETUP)
    dealing, dealer = served(start, tmp_path, "dealer", {"accepts": keys["dealer"]})
    secrets = {"accepts": keys["worker server"], "dealer": keys["dealer"]["worker server"]}
    rule = ["--rule=MultiKrum", "--rule.num_byzantine=1", "--timeout_s=3.0"]
    serving, worker_server = served(
        start, tmp_path, "worker-server", secrets, *rule, f"--dealer={dealer}"
    )
    with ExitStack() as stack:
        model_server = stack.enter_context(
            closing(
                ModelServer(
                    SETUP,
                    keys["model server"],
                    Peer(worker_server, keys["worker server"]["model server"]),
                    Peer(dealer, keys["dealer"]["model server"]),
                    timeout_s=20.0,
                )
            )
        )
        clients = []
        for worker in range(SETUP.num_workers):
            name = f"worker {worker}"
            peers = [
                (model_server.address, keys["model server"][name]),
                (worker_server, keys["worker server"][name]),
            ]
            how = {3: "lies", 5: "dies"}.get(worker, "works")
            task = {"setup": [SETUP.num_workers, SETUP.dim], "peers": peers, "worker": worker}
            clients.append(start(["-c", CLIENT], task | {"rounds": ROUNDS, "how": how}))
        for round in range(ROUNDS):
            rows = torch.stack([message(worker, round) for worker in range(SETUP.num_workers)])
            rows[3] *= -50
            here = [worker for worker in range(SETUP.num_workers) if worker != 5 or round == 0]
            # Once one is dead the round waits for the deadline: long enough for slow starts.
            value = model_server.aggregate(deadline_s=90.0 if round == 0 else 15.0)
            expected = MultiKrum(1)(rows[here])
            torch.testing.assert_close(value.float(), expected, rtol=0, atol=SETUP.unit)
        codes = [client.wait(20) for client in clients]
        assert codes == [9 if worker == 5 else 0 for worker in range(SETUP.num_workers)]
        serving.kill()
        with pytest.raises(ServerLostError, match=re.escape(worker_server)):
            model_server.aggregate(deadline_s=0.1)
    assert dealing.poll() is None


def test_bad_files_of_keys_are_refused_in_one_line(tmp_path, capsys, subtests):
    from phalanx.cli import main

    key = "k" * 22
    for content, reason in (
        ("{", "JSON"),
        ("[]", "accepts"),
        ('{"accepts": {"a": 1}}', "accepts"),
        ('{"accepts": {"a": "b", "a": "c"}}', "'a' stands there twice"),
        ('{"accepts": {"model server": ""}}', "got none for worker server"),
        (
            f'{{"accepts": {{"model server": "", "worker server": "{key}"}}}}',
            "of model server must",
        ),
    ):
        with subtests.test(content):
            file = tmp_path / "keys.json"
            file.write_text(content)
            with pytest.raises(SystemExit) as ended:
                main(["serve", "dealer", str(file)])
            assert ended.value.code == 2
            assert reason in capsys.readouterr().err

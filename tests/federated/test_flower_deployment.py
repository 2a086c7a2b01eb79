"""Federations on Flower as processes: TLS, keys, and nodes that are killed and come back."""

import json
import os
import signal
import stat
import subprocess
import sys
import time
from contextlib import suppress

import pytest
import torch
from safetensors.torch import load_file

from federated.federations import ONE_BY_ONE, federation, linear, run
from phalanx.federated import Scaffold

pytest.importorskip("flwr", reason="flwr is not installed: pip install 'phalanx[flower]'")

from cryptography import x509

from phalanx.federated.flower.__main__ import main
from phalanx.federated.flower.certificates import AUTHORITY, SERVER, write_certificates
from phalanx.federated.flower.deployment import Deployment

MODULE = """
import torch
from torch import nn
from torch.utils.data import TensorDataset
from phalanx.federated import Scaffold
from phalanx.federated.flower import as_flower

torch.set_num_threads(1)


def data(client):
    draws = torch.Generator().manual_seed(0)
    for size in (5, 12)[: client + 1]:
        inputs = torch.randn(size, 4, generator=draws)
        targets = torch.randint(3, (size,), generator=draws)
    return TensorDataset(inputs, targets)


server_app, client_app = as_flower(
    Scaffold(), lambda: nn.Linear(4, 3), data, num_clients=2, rounds={rounds}, out={out!r},
    quorum=2, round_timeout_s=90.0, start_timeout_s=60.0, attempts=4, checkpoint_every=1,
)
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Makes a module of two clients; gives its name and where its run is written."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)

    def make(name, rounds):
        out = tmp_path / f"{name}-run"
        (tmp_path / f"{name}.py").write_text(MODULE.format(rounds=rounds, out=str(out)))
        return name, out

    return make


def rounds_of(out):
    path = out / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def alive(folder):
    """Processes that belong to a federation."""
    mark = f"FLWR_HOME={folder.resolve() / 'home'}".encode()
    found = []
    for entry in os.scandir("/proc"):
        try:
            with open(f"{entry.path}/environ", "rb") as told:
                found += [entry.name] if mark in told.read().split(b"\0") else []
        except OSError:
            continue
    return found


def test_certificates_are_for_this_machine_and_private(tmp_path):
    write_certificates(tmp_path / "keys", 2)
    root = x509.load_pem_x509_certificate((tmp_path / "keys" / AUTHORITY).read_bytes())
    leaf = x509.load_pem_x509_certificate((tmp_path / "keys" / SERVER).read_bytes())
    leaf.verify_directly_issued_by(root)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost"]
    files = {one.name: one for one in (tmp_path / "keys").iterdir()}
    assert set(files) == {
        *(AUTHORITY, SERVER, "server.key"),
        *("node-0", "node-0.pub", "node-1", "node-1.pub"),
    }
    assert all(stat.S_IMODE(one.stat().st_mode) == 0o600 for one in files.values())
    before = files["node-0"].read_bytes()
    write_certificates(tmp_path / "keys", 3)
    assert files["node-0"].read_bytes() == before
    assert (tmp_path / "keys" / "node-2").exists()


def test_what_the_launcher_cannot_run_is_told_in_a_line(tmp_path, capsys, subtests, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "without_apps.py").write_text("")
    for arguments, message in (
        (["without_apps", "--clients", "2"], "must hold server_app and client_app"),
        (["no_such_module", "--clients", "2"], "module must be importable"),
        (["without_apps", "--clients", "0"], "num_clients must be at least 1"),
    ):
        with subtests.test(message):
            with pytest.raises(SystemExit) as left:
                main(arguments)
            assert left.value.code == 2
            assert message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_two_nodes_give_the_bits_of_one_process_and_leave_nothing(tmp_path, module):
    name, out = module("two_nodes", rounds=2)
    assert main([name, "--clients", "2", "--folder", "federation", "--timeout_s", "300"]) == 0
    assert alive(tmp_path / "federation") == []
    here = run(Scaffold(), federation((5, 12)), linear, rounds=2, engine=ONE_BY_ONE)
    for key, value in load_file(next(out.glob("*.safetensors"))).items():
        assert value.equal(here.model.state_dict()[key])
    assert [entry["missing"] for entry in rounds_of(out)] == [{}, {}]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_killed_node_comes_back(tmp_path, module):
    """Its round waits for a quorum; what it remembered is lost with its process."""
    name, out = module("killed_node", rounds=4)
    with Deployment(name, 2, tmp_path / "federation") as running:
        running.submit()
        until = time.monotonic() + 400
        killed = None
        while time.monotonic() < until and not running.status().startswith("finished"):
            if killed is None and rounds_of(out):
                killed = running.nodes[1].pid
                os.killpg(killed, signal.SIGKILL)
            running.mend()
            time.sleep(1.0)
        assert running.status() == "finished:completed", running.log()[-3000:]
        assert killed is not None
        assert running.nodes[1].pid != killed
    assert alive(tmp_path / "federation") == []
    assert [entry["missing"] for entry in rounds_of(out)] == [{}] * 4
    assert all(torch.tensor(entry["loss"]).isfinite() for entry in rounds_of(out))


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_node_with_an_unknown_key_is_rejected(tmp_path, module):
    """It has the authority's certificate, and claims to be client 1; the others go on without."""
    name, out = module("unknown_key", rounds=1)
    write_certificates(tmp_path / "elsewhere", 1)
    with Deployment(name, 2, tmp_path / "federation") as running:
        own = tmp_path / "federation" / "node-1"
        known = own.read_bytes()
        own.write_bytes((tmp_path / "elsewhere" / "node-0").read_bytes())
        honest = running.nodes[1]
        running._start_node(1)  # as the launcher would start the client's own
        stranger, running.nodes[1] = running.nodes[1], honest
        own.write_bytes(known)
        log, until = tmp_path / "federation" / "node-1.log", time.monotonic() + 90
        while "Failed to activate SuperNode" not in (told := log.read_text(errors="replace")):
            assert time.monotonic() < until, told[-3000:]
            time.sleep(1.0)
        with suppress(ProcessLookupError):  # Flower leaves its helpers behind, or hangs on them
            os.killpg(stranger.pid, signal.SIGKILL)
        stranger.wait(30)
        listed = running._told("supernode", "list", "phalanx")["nodes"]
        assert len(listed) == 2
        assert running.run(300.0) == "finished:completed", running.log()[-3000:]
        assert honest.poll() is None
    assert alive(tmp_path / "federation") == []
    assert [entry["missing"] for entry in rounds_of(out)] == [{}]


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_launcher_that_is_terminated_leaves_no_process(tmp_path, module):
    name, _ = module("terminated", rounds=50)
    command = [sys.executable, "-m", "phalanx.federated.flower", name, "--clients", "2"]
    launcher = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 100
    while not (tmp_path / "federation" / "node-0.log").exists() and time.monotonic() < until:
        time.sleep(0.2)
    assert alive(tmp_path / "federation")
    launcher.send_signal(signal.SIGTERM)
    assert launcher.wait(60) == 130
    assert alive(tmp_path / "federation") == []

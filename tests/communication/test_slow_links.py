"""Network namespaces: made, limited, counted, and removed whatever happens. As root only."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from phalanx.communication import EmulatedLinks, slow_links
from phalanx.compression import ErrorFeedback, HalfPrecision, TopK
from phalanx.errors import EmulationError
from phalanx.planning import CompressorPlanner

reason = slow_links.why_unsupported()
if reason is None:
    try:
        with EmulatedLinks(1):
            pass
    except EmulationError as error:  # root, but of a container
        reason = str(error)
as_root = pytest.mark.skipif(reason is not None, reason=f"no network namespaces: {reason}")
if reason is None:
    try:
        with EmulatedLinks(1, backend="tun"):
            pass
    except EmulationError as error:
        reason = str(error)
with_tun = pytest.mark.skipif(reason is not None, reason=f"no TUN devices: {reason}")


def left(cluster):
    """What is still there of a cluster; links linger for a moment."""
    for _ in range(40):
        shown = [
            subprocess.run(["ip", *what], capture_output=True, text=True, check=True).stdout
            for what in (["netns"], ["link"])
        ]
        found = [line for text in shown for line in text.splitlines() if cluster._tag in line]
        if not found:
            break
        time.sleep(0.05)
    return found


@as_root
def test_ranks_run_in_namespaces_that_are_gone_afterwards():
    with EmulatedLinks(2, bandwidth="10mbit") as cluster:
        assert left(cluster)
        said = cluster.run(["sh", "-c", "echo $RANK of $WORLD_SIZE; ip -4 -o addr show eth0"])
        before = cluster.counters(0)
        cluster.run(["sh", "-c", "test $RANK = 1 || echo x > /dev/udp/10.77.0.2/9; true"])
        assert cluster.counters(0).sent >= before.sent
    assert [one.splitlines()[0] for one in said] == ["0 of 2", "1 of 2"]
    assert "10.77.0.1/24" in said[0]
    assert "10.77.0.2/24" in said[1]
    assert not left(cluster)
    cluster.close()  # again


@as_root
def test_a_rank_that_fails_ends_the_others_and_all_is_removed():
    with (
        pytest.raises(RuntimeError, match="rank 1 failed: broken"),
        EmulatedLinks(2) as cluster,
    ):
        cluster.run(["sh", "-c", "test $RANK = 0 && exec sleep 60; echo broken; exit 3"])
    assert not left(cluster)
    with pytest.raises(TimeoutError), EmulatedLinks(1) as cluster:
        cluster.run(["sleep", "60"], timeout_s=0.2)
    assert not left(cluster)
    with pytest.raises(KeyboardInterrupt), EmulatedLinks(1) as cluster:
        raise KeyboardInterrupt
    assert not left(cluster)


@as_root
def test_a_rate_that_is_none_leaves_nothing_behind():
    cluster = EmulatedLinks(2, bandwidth="0.1bit")  # which tc takes for none
    with pytest.raises(EmulationError, match="tc"), cluster:
        pass
    assert not left(cluster)


@as_root
def test_who_is_not_root_is_told_so():
    os.seteuid(65534)
    try:
        with pytest.raises(EmulationError, match="need root"), EmulatedLinks(1):
            pass
    finally:
        os.seteuid(0)


def test_counters_are_read_by_the_name_of_the_device():
    table = (
        "Inter-|   Receive  |  Transmit\n"
        " face |bytes packets errs drop fifo frame compressed multicast|bytes packets\n"
        "    lo:   7  1 0 0 0 0 0 0   7  1 0 0 0 0 0 0\n"
        "  eth0: 1234 9 0 0 0 0 0 0 567  8 0 0 0 0 0 0\n"
    )
    assert slow_links.interface_bytes(table, "eth0") == (1234, 567)
    with pytest.raises(ValueError, match="device must be one of this machine, got eth1"):
        slow_links.interface_bytes(table, "eth1")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": 1.0}, "loss must be at least 0 and below 1, got 1.0"),
        ({"latency": "20"}, "latency must be a time span such as 1ms or 0.2s, got '20'"),
        ({"bandwidth": "fast"}, "bandwidth must be a bandwidth such as 100mbit"),
        ({"latency": "1ms", "backend": "tbf"}, "backend must be tun where there is latency"),
    ],
)
def test_links_that_cannot_be_made_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        EmulatedLinks(2, **options)


@pytest.mark.parametrize(
    ("options", "backend"),
    [
        ({}, "tbf"),
        ({"bandwidth": None}, "none"),
        ({"loss": 0.1}, "tun"),
        ({"backend": "tun"}, "tun"),
    ],
)
def test_the_relay_is_used_where_nothing_else_will_do(options, backend):
    assert EmulatedLinks(2, **options).backend == backend


@pytest.mark.parametrize("number", [0, 251])
def test_more_ranks_than_addresses_are_refused(number):
    with pytest.raises(ValueError, match=f"num_ranks must be from 1 to 250, got {number}"):
        EmulatedLinks(number)


KILLED = """
import sys
from phalanx.communication import EmulatedLinks

with EmulatedLinks(2, latency="1ms") as cluster:
    print(cluster._tag, flush=True)
    cluster.run(["sleep", "600"])
"""


@with_tun
@pytest.mark.slow
def test_what_is_killed_leaves_nothing_behind():
    script = subprocess.Popen([sys.executable, "-c", KILLED], stdout=subprocess.PIPE, text=True)
    cluster = EmulatedLinks(2)
    cluster._tag = script.stdout.readline().strip()
    ranks = []
    while len(ranks) < 2:  # they are about to start
        ranks = [pid for rank in range(2) for pid in pids(cluster.namespace(rank))]
    script.kill()
    script.communicate()
    assert not left(cluster)
    assert not any(runs(pid) for pid in ranks)


def runs(pid):
    """Whether a process is alive; of one that nobody has waited for, the line is empty."""
    line = Path("/proc", pid, "cmdline")
    return line.exists() and line.read_bytes() != b""


def pids(namespace):
    shown = subprocess.run(
        ["ip", "netns", "pids", namespace], capture_output=True, text=True, check=True
    )
    return shown.stdout.split()


TIMES = """
import json, os, sys, time, torch
import torch.distributed as dist

torch.set_num_threads(1)
rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=rank, world_size=size)

def fastest(number, rounds):
    found = []
    for _ in range(rounds):
        dist.barrier()
        began = time.perf_counter()
        dist.all_reduce(torch.ones(number))
        found.append(time.perf_counter() - began)
    return min(found)

print(json.dumps([fastest(1, 5), fastest(1_000_000, 2)]))
dist.barrier()
dist.destroy_process_group()
"""


def times(cluster, folder):
    """Seconds of the fastest all-reduce of one number, and of one of 4 MB."""
    return json.loads(cluster.run([sys.executable, "-c", TIMES, str(folder / "store")])[0])


@with_tun
@pytest.mark.slow
def test_latency_and_rate_are_those_asked_for(tmp_path):
    """An all-reduce of two takes two hops; each rank sends, and receives, as much as it has."""
    with EmulatedLinks(2, "100mbit", latency="20ms") as cluster:
        one, many = times(cluster, tmp_path)
    assert 0.040 <= one <= 0.060
    assert 0.32 + 0.04 <= many <= 1.5 * 0.36


PROBE = """
import dataclasses, json, os, sys, torch
import torch.distributed as dist
from phalanx.communication import probe_link

torch.set_num_threads(1)
rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=rank, world_size=size)
print(json.dumps(dataclasses.asdict(probe_link(num_rounds=3))))
dist.barrier()
dist.destroy_process_group()
"""


@with_tun
@pytest.mark.slow
def test_a_link_is_probed_within_a_quarter(tmp_path):
    with EmulatedLinks(2, "100mbit", latency="10ms") as cluster:
        said = cluster.run([sys.executable, "-c", PROBE, str(tmp_path / "store")])
    one, other = (json.loads(printed) for printed in said)
    assert one == other
    assert one["rate"] == pytest.approx(1e8, rel=0.25)
    assert one["latency_s"] == pytest.approx(0.01, rel=0.25)


@with_tun
@pytest.mark.slow
def test_what_is_lost_is_sent_again(tmp_path):
    """TCP sees to that: the sum is right, and takes longer."""
    with EmulatedLinks(2, None, latency="2ms", jitter="2ms", loss=0.02) as cluster:
        one, many = times(cluster, tmp_path)
        assert cluster.counters(0).sent > 4e6
    assert 0.004 <= one <= 0.012
    assert many > 0.01


WORK = """
import os, sys, json, torch
import torch.distributed as dist
from phalanx.communication.slow_links import own_bytes
from phalanx.communication import EmulatedLinks, slow_links
from phalanx.compression import ErrorFeedback, HalfPrecision, TensorStates, TopK, communicate

torch.set_num_threads(1)
rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=rank, world_size=size)
x = {"w": torch.randn(500, 1000, generator=torch.Generator().manual_seed(rank))}
sent = []
for compressor in (HalfPrecision(), ErrorFeedback(TopK(ratio=0.1))):
    mean, memory = communicate(compressor, x, TensorStates())
    dist.barrier()
    before = own_bytes().sent
    for _ in range(3):
        mean, memory = communicate(compressor, x, memory)
    sent.append((own_bytes().sent - before) / 3)
print(json.dumps(sent))
dist.destroy_process_group()
"""


@as_root
@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4])
def test_the_interface_counts_what_the_model_says_and_headers(tmp_path, ranks):
    """Between 0 and 8 % more, by two and by four ranks."""
    compressors = [HalfPrecision(), ErrorFeedback(TopK(ratio=0.1))]
    model = nn.Linear(1000, 500, bias=False)
    batch = torch.randn(4, 1000), torch.zeros(4, dtype=torch.int64)
    planner = CompressorPlanner(num_workers=ranks, compressors=compressors, num_rounds=1)
    wire = {one.compressor: one.wire_bytes for one in planner.plan(model, *batch)}
    with EmulatedLinks(ranks, "100mbit") as cluster:
        printed = cluster.run([sys.executable, "-c", WORK, str(tmp_path / "store")])
    for one in printed:
        for compressor, sent in zip(compressors, json.loads(one.splitlines()[-1]), strict=True):
            assert 1.00 <= sent / wire[str(compressor)] <= 1.08


SUM = """
import torch, torch.distributed as dist

dist.init_process_group("gloo")
x = torch.ones(1000)
dist.all_reduce(x)
print("sum", x[0].item(), flush=True)
dist.barrier()
dist.destroy_process_group()
"""


@with_tun
@pytest.mark.slow
def test_the_command_runs_torchrun_on_every_rank(tmp_path):
    """And says who sent how much; a rank that fails is named, by exit code 1."""
    (tmp_path / "script.py").write_text(SUM)
    emulate = [sys.executable, "-m", "phalanx", "emulate-links", "--latency", "2ms", "--"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", str(tmp_path / "script.py")]
    done = subprocess.run([*emulate, *torchrun], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["sum", "2.0"] * 2
    assert "rank 1 sent 0.0" in done.stderr
    done = subprocess.run(
        [*emulate, "sh", "-c", "test $RANK = 0 || exit 3; sleep 60"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stderr == "phalanx: stopped: rank 1 ended with exit code 3\n"

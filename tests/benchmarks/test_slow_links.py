"""Network namespaces: made, limited, counted, and removed whatever happens. As root only."""

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from phalanx.compression import ErrorFeedback, HalfPrecision, TopK
from phalanx.training import LinkPlanner

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


def loaded(name):
    found = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module
    found.loader.exec_module(module)
    return module


slow_links = loaded("slow_links")
reason = slow_links.why_unsupported()
if reason is None:
    try:
        with slow_links.Cluster(1):
            pass
    except slow_links.UnsupportedError as error:  # root, but of a container
        reason = str(error)
as_root = pytest.mark.skipif(reason is not None, reason=f"no network namespaces: {reason}")


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
    with slow_links.Cluster(2, rate="10mbit") as cluster:
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
        slow_links.Cluster(2) as cluster,
    ):
        cluster.run(["sh", "-c", "test $RANK = 0 && exec sleep 60; echo broken; exit 3"])
    assert not left(cluster)
    with pytest.raises(TimeoutError), slow_links.Cluster(1) as cluster:
        cluster.run(["sleep", "60"], timeout_s=0.2)
    assert not left(cluster)
    with pytest.raises(KeyboardInterrupt), slow_links.Cluster(1) as cluster:
        raise KeyboardInterrupt
    assert not left(cluster)


@as_root
def test_a_rate_that_is_none_leaves_nothing_behind():
    cluster = slow_links.Cluster(2, rate="fast")
    with pytest.raises(slow_links.UnsupportedError, match="tc"), cluster:
        pass
    assert not left(cluster)


@as_root
def test_who_is_not_root_is_told_so():
    os.seteuid(65534)
    try:
        with pytest.raises(slow_links.UnsupportedError, match="need root"), slow_links.Cluster(1):
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


@pytest.mark.parametrize("number", [0, 251])
def test_more_ranks_than_addresses_are_refused(number):
    with pytest.raises(ValueError, match=f"num_ranks must be from 1 to 250, got {number}"):
        slow_links.Cluster(number)


WORK = """
import os, sys, json, torch
import torch.distributed as dist
from slow_links import own_bytes
from phalanx.compression import ErrorFeedback, HalfPrecision, Memory, TopK, communicate

torch.set_num_threads(1)
rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=rank, world_size=size)
x = {"w": torch.randn(500, 1000, generator=torch.Generator().manual_seed(rank))}
sent = []
for compressor in (HalfPrecision(), ErrorFeedback(TopK(ratio=0.1))):
    mean, memory = communicate(compressor, x, Memory())
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
def test_the_interface_counts_what_the_model_says_and_headers(tmp_path, monkeypatch, ranks):
    """Between 0 and 8 % more, by two and by four ranks."""
    paths = [str(FOLDER), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    compressors = [HalfPrecision(), ErrorFeedback(TopK(ratio=0.1))]
    model = nn.Linear(1000, 500, bias=False)
    batch = torch.randn(4, 1000), torch.zeros(4, dtype=torch.int64)
    planner = LinkPlanner(num_workers=ranks, compressors=compressors, num_rounds=1)
    wire = {one.compressor: one.wire_bytes for one in planner.plan(model, *batch)}
    with slow_links.Cluster(ranks, "100mbit") as cluster:
        printed = cluster.run([sys.executable, "-c", WORK, str(tmp_path / "store")])
    for one in printed:
        for compressor, sent in zip(compressors, json.loads(one.splitlines()[-1]), strict=True):
            assert 1.00 <= sent / wire[str(compressor)] <= 1.08

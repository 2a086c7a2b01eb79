"""Real processes and gloo against the simulation."""

import multiprocessing
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from compression.cases import CASES
from phalanx.communication import AllGather, ProcessGroupCollectives
from phalanx.compression import TensorStates, TernGrad, TopK, communicate, simulate
from phalanx.errors import NotFiniteError

NUM_WORKERS = 2
STEPS = 3


def gradients(step, worker):
    source = torch.Generator().manual_seed(100 * step + worker)
    return {
        "weight": torch.randn(9, 11, generator=source),
        "bias": torch.randn(9, generator=source),
        "empty": torch.zeros(0, 3),
    }


def work(rank, store, folder):
    """Several rounds of every compressor; then one with a NaN on one worker."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=NUM_WORKERS,
        timeout=timedelta(seconds=60),
    )
    found = []
    for compressor in CASES:
        memory = TensorStates()
        for step in range(STEPS):
            mean, memory = communicate(compressor, gradients(step, rank), memory, seed=3)
            found.append(mean)
    poisoned = gradients(0, rank)
    if rank == 1:
        poisoned["bias"][0] = float("nan")
    try:
        communicate(TernGrad(), poisoned, TensorStates())
    except NotFiniteError as error:
        found.append({"sick": torch.tensor(error.workers)})
    found.append({"lengths": announced(rank)})
    mean, _ = communicate(TopK(), gradients(0, rank), TensorStates())  # the group is still in step
    torch.save([*found, mean], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def announced(rank):
    """What worker 0 has of both, when worker 1 says that it sends a terabyte."""
    if rank == 0:
        rows = ProcessGroupCollectives().all_gather(
            AllGather(torch.ones(5, dtype=torch.uint8), most=100)
        )
        return torch.tensor([len(row) for row in rows])
    for said in (torch.tensor([2**40]), torch.zeros(5, dtype=torch.uint8)):
        dist.all_gather([torch.empty_like(said) for _ in range(NUM_WORKERS)], said)
    return torch.tensor([5, 0])


@pytest.mark.slow
def test_processes_come_to_the_simulated_means(tmp_path, monkeypatch):
    """Two addends have one sum: all means are equal to the bit."""
    # Processes import this file by the name that pytest gave it, from the path they are handed.
    monkeypatch.syspath_prepend(Path(__file__).parents[2])
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=work, args=(rank, tmp_path / "store", tmp_path))
        for rank in range(NUM_WORKERS)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(100)
    alive = [process.kill() for process in processes if process.is_alive()]
    assert not alive
    assert [process.exitcode for process in processes] == [0] * NUM_WORKERS
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(NUM_WORKERS)]
    expected = []
    for compressor in CASES:
        memories = [TensorStates()] * NUM_WORKERS
        for step in range(STEPS):
            rows = [gradients(step, rank) for rank in range(NUM_WORKERS)]
            means, memories = simulate(compressor, rows, memories, seed=3)
            expected.append(means[0])
    for rank in range(NUM_WORKERS):
        assert found[rank][-3]["sick"].tolist() == [1]
        assert found[rank][-2]["lengths"].tolist() == [5, 0]
        for mean, wanted in zip(found[rank], expected, strict=False):
            assert all(torch.equal(mean[name], wanted[name]) for name in wanted)


def test_one_process_alone_needs_no_other(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        mean, memory = communicate(TopK(ratio=1.0), gradients(0, 0), TensorStates())
    finally:
        dist.destroy_process_group()
    assert memory.step == 1
    assert all(torch.equal(mean[name], x) for name, x in gradients(0, 0).items())

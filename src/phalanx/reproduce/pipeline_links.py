"""Steps of a language model in two stages over emulated slow links, with a process per stage."""

import json
import os
import subprocess
import sys
import tempfile
import time
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch.optim import Adam

from phalanx.communication import EmulatedLinks, Link, bits_per_second
from phalanx.communication.slow_links import why_unsupported
from phalanx.compression import SampleQuantization
from phalanx.errors import EmulationError
from phalanx.losses import cross_entropy
from phalanx.models import GPT
from phalanx.pipeline import ActivationDifference, CompressedPipeline, split

_LENGTH, _WIDTH, _DEPTH, _BATCH, _VOCABULARY = 64, 128, 4, 8, 128


def link_record(bits: int, back: int, rate: str, steps: int) -> dict[str, Any]:
    """Seconds of a step over a link, once all samples were visited, and bytes that cross.

    As root on Linux, both stages are processes behind links of that rate. Else they are processes
    without such links, and the time that the bytes take is added; `emulated` tells which.
    """
    emulated = why_unsupported() is None
    command = [sys.executable, "-m", __name__, str(bits), str(back), str(steps)]
    with tempfile.TemporaryDirectory() as folder:
        command.append(f"{folder}/store")
        if emulated:
            try:
                with EmulatedLinks(2, rate) as links:
                    found = json.loads(links.run(command)[0].splitlines()[-1])
                return {**found, "emulated": 1, "rate": rate}
            except EmulationError:  # root, but of a container that may not
                pass
        found = _without_links(command)
    link = Link(bits_per_second(rate), 0.0)
    return {
        **found,
        "seconds": found["seconds"] + link.seconds(found["bytes"], 0),
        "emulated": 0,
        "rate": rate,
    }


def _without_links(command: list[str]) -> dict[str, Any]:
    """What two processes on this machine's loopback measure."""
    ranks = [
        subprocess.Popen(
            command,
            env={**os.environ, "RANK": str(rank), "WORLD_SIZE": "2"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    printed = [rank.communicate()[0] for rank in ranks]
    if any(rank.returncode for rank in ranks):
        raise RuntimeError("a stage failed")
    found: dict[str, Any] = json.loads(printed[0].splitlines()[-1])
    return found


def _rank(bits: int, back: int, steps: int, store: str) -> dict[str, float]:
    """Trains one stage."""
    torch.set_num_threads(1)
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    torch.manual_seed(0)
    tokens = torch.randint(_VOCABULARY, (2 * _BATCH, _LENGTH))
    model = GPT((_LENGTH,), _VOCABULARY, width=_WIDTH, depth=_DEPTH)
    pipeline = CompressedPipeline(
        split(model.layers, size),
        tokens[:1],
        cross_entropy,
        num_samples=len(tokens),
        num_microbatches=4,
        forward=ActivationDifference(bits),
        backward=SampleQuantization(back),
    )
    optimizer = Adam(pipeline.module.parameters())
    seconds, before = [], 0
    for step in range(steps + 2):  # two batches are all samples: the first visits
        ids = torch.arange(_BATCH) + _BATCH * (step % 2)
        before = _crossed(pipeline) if step == 2 else before
        dist.barrier()
        began = time.perf_counter()
        optimizer.zero_grad()
        pipeline.step(ids, tokens[ids], tokens[ids])
        optimizer.step()
        dist.barrier()
        seconds.append(time.perf_counter() - began)
    crossed = (_crossed(pipeline) - before) / steps
    dist.destroy_process_group()
    return {"seconds": median(seconds[2:]), "bytes": crossed}


def _crossed(pipeline: CompressedPipeline) -> int:
    """Bytes over the boundary so far, both ways."""
    side = pipeline.traffic[1] if pipeline.is_first else pipeline.traffic[0]
    return side.activation_bytes + side.gradient_bytes


if __name__ == "__main__":
    _bits, _back, _steps = map(int, sys.argv[1:4])
    print(json.dumps(_rank(_bits, _back, _steps, sys.argv[4])), flush=True)

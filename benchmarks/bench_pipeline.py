"""A small language model in two stages: steps of the plain pipeline against 4 bits and 8 back.

    python benchmarks/bench_pipeline.py [--quick] [--slow-link 100mbit]

Two gloo processes on this machine, over the loopback device; with `--slow-link` in network
namespaces whose links are that slow, which needs root. The text is tiny Shakespeare where
`PHALANX_DATA` names a folder that holds it, else letters drawn at random: times are the same.

    python benchmarks/bench_pipeline.py --rank 0 --world 2 --init-file /tmp/store --way plain

runs one of the ranks by itself, and prints its step times as JSON.
"""

import argparse
import gzip
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from measurement import write_measurement
from phalanx.communication import EmulatedLinks
from phalanx.compression import SampleQuantization
from phalanx.models import GPT
from phalanx.pipeline import ActivationDifference, CompressedPipeline, split
from side_by_side import environment

CLAIM = "A small language model in two stages: steps with activations in 4 bits, gradients in 8"
LENGTH, WIDTH, DEPTH = 128, 256, 4
BATCH, MICRO_BATCHES = 8, 4
FILE = "tinyshakespeare.txt.gz"
WAYS: dict[str, dict[str, Any]] = {
    "plain": {
        "forward": ActivationDifference(32),
        "backward": SampleQuantization(32),
    },
    "4 bits, 8 back": {
        "forward": ActivationDifference(4),
        "backward": SampleQuantization(8),
        "warmup_epochs": 1,
    },
    "2 bits, 4 back": {
        "forward": ActivationDifference(2),
        "backward": SampleQuantization(4),
        "warmup_epochs": 1,
    },
}


def tokens(count: int) -> Tensor:
    """Letters as numbers, from the text if it is there."""
    path = Path(os.environ.get("PHALANX_DATA", ".")) / FILE
    if not path.is_file():
        return torch.randint(65, (count,), generator=torch.Generator().manual_seed(0))
    with gzip.open(path, "rt", encoding="utf-8") as file:
        text = file.read(count)
    known = {letter: place for place, letter in enumerate(sorted(set(text)))}
    return torch.tensor([known[letter] for letter in text])


def loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean over all letters."""
    return nn.functional.cross_entropy(outputs.flatten(0, 1), targets.flatten())


def run_rank(rank: int, world: int, init_file: str, way: str, steps: int) -> dict[str, Any]:
    """Trains one stage; seconds of the steps after the first visits, and bytes of a step."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{init_file}", rank=rank, world_size=world)
    samples = 2 * BATCH
    letters = tokens(samples * LENGTH + 1)
    inputs = letters[:-1].view(samples, LENGTH)
    targets = letters[1:].view(samples, LENGTH)
    torch.manual_seed(0)
    model = GPT((LENGTH,), int(letters.max()) + 1, width=WIDTH, depth=DEPTH)
    pipeline = CompressedPipeline(
        split(model.layers, world),
        inputs[:1],
        loss,
        num_samples=samples,
        num_microbatches=MICRO_BATCHES,
        **WAYS[way],
    )
    optimizer = torch.optim.Adam(pipeline.module.parameters(), lr=1e-3)
    seconds, losses, before = [], [], (0, 0)
    for step in range(steps + 2):  # two batches are all samples: the first visits
        ids = torch.arange(BATCH) + BATCH * (step % 2)
        if step == 2:
            before = _crossed(pipeline)
        start = time.perf_counter()
        optimizer.zero_grad()
        found = pipeline.step(ids, inputs[ids], targets[ids])
        optimizer.step()
        dist.barrier()
        if step >= 2:
            seconds.append(time.perf_counter() - start)
        losses.append(None if found is None else found.item())
    after = _crossed(pipeline)
    dist.destroy_process_group()
    crossed = [(one - other) / steps for one, other in zip(after, before, strict=True)]
    return {"seconds": seconds, "loss": losses[-1], "forward": crossed[0], "backward": crossed[1]}


def _crossed(pipeline: CompressedPipeline) -> tuple[int, int]:
    """Bytes over the boundary after the first stage, forward and back."""
    side = pipeline.traffic[1] if pipeline.is_first else pipeline.traffic[0]
    return side.activation_bytes, side.gradient_bytes


def measured(way: str, steps: int, rate: str | None) -> dict[str, Any]:
    """Both ranks as processes; what the first measured."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(Path(__file__).resolve()), "--world", "2"]
        command += ["--init-file", f"{folder}/store", "--way", way, "--steps", str(steps)]
        if rate is not None:
            with EmulatedLinks(2, rate) as cluster:
                printed = cluster.run(command)
        else:
            processes = [
                subprocess.Popen([*command, "--rank", str(rank)], stdout=subprocess.PIPE, text=True)
                for rank in range(2)
            ]
            printed = [process.communicate()[0] for process in processes]
            if any(process.returncode for process in processes):
                raise SystemExit("a rank failed")
    answer = next(line for line in printed[0].splitlines() if line.startswith("{"))
    found: dict[str, Any] = json.loads(answer)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few steps, nothing is written")
    parser.add_argument("--slow-link", action="append", help="such as 100mbit; also several times")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--rank", type=int, default=int(os.environ.get("RANK", "0")))
    parser.add_argument("--world", type=int)
    parser.add_argument("--init-file")
    parser.add_argument("--way", choices=list(WAYS), default="plain")
    options = parser.parse_args()
    if options.init_file is not None:
        steps = options.steps or 4
        found = run_rank(options.rank, options.world, options.init_file, options.way, steps)
        print(json.dumps(found))
        return
    steps = options.steps or (4 if options.quick else 12)
    rows: list[dict[str, Any]] = []
    for rate in (None, *(options.slow_link or [])):
        runs = {way: measured(way, steps, rate) for way in WAYS}
        plain = statistics.median(runs["plain"]["seconds"])
        free = rows[0]["median_s"] if rows else plain
        for way, found in runs.items():
            median = statistics.median(found["seconds"])
            rows.append(
                {
                    "link": rate or "loopback",
                    "way": way,
                    "median_s": median,
                    "quartiles_s": statistics.quantiles(found["seconds"], n=4)[::2],
                    "ratio": plain / median,
                    "limit": plain / free,
                    "forward_mb": found["forward"] / 1e6,
                    "backward_mb": found["backward"] / 1e6,
                }
            )
            print(
                f"{rows[-1]['link']:10} {way:16} {1e3 * median:8.1f} ms a step, plain / this "
                f"{plain / median:5.2f} (at most {plain / free:5.2f}); "
                f"{found['forward'] / 1e6:.3f} MB forward, {found['backward'] / 1e6:.3f} MB back",
                flush=True,
            )
    if not options.quick:
        env = environment("phalanx", "torch") | {"threads": 1}
        columns = {
            "link": "link",
            "way": "way",
            "median_s": "s a step",
            "ratio": "plain / this",
            "limit": "at most",
            "forward_mb": "MB forward",
            "backward_mb": "MB back",
        }
        remark = (
            f"GPT of width {WIDTH}, {DEPTH} blocks, {LENGTH} letters; {BATCH} sequences a step in "
            f"{MICRO_BATCHES} micro-batches, two processes with gloo on one machine, one thread "
            "each; steps after the first visit of each sample. Plain is this package's pipeline "
            "with everything as it is, whose weights are those of torch's own, bit for bit. No "
            "compressor can gain more than 'at most': the plain step on the link against the plain "
            "step over loopback, which is computing alone."
        )
        write_measurement("pipeline", CLAIM, env, rows, columns, remark)


if __name__ == "__main__":
    main()

"""A full training round of DRACO against one with the geometric median as the peer computes it.

    python benchmarks/bench_round.py [--quick] [--threads 1]

Both terms apart: the gradient of a partition, which DRACO's workers compute 2 s + 1 times and the
others once, and decoding. In parallel: every worker has a machine like this one. On one machine:
each partition's gradient is computed once whatever the decoder, as the local engine does.
"""

import argparse
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from measurement import write_measurement
from peer import load_byzfl
from phalanx.aggregation import GeometricMedian
from phalanx.coding import DracoCyclic, DracoRepetition
from phalanx.models import LeNet, ResNet18
from side_by_side import environment, side_by_side

CLAIM = "A round of DRACO against one with the peer's geometric median"
SAMPLES = 8  # in a partition
CASES = [("LeNet", 15, 3), ("LeNet", 45, 5), ("ResNet-18", 15, 3)]  # model, workers, liars


def compare(peer: Any, name: str, num_workers: int, liars: int, rounds: int) -> list[dict]:
    model, shape = (
        (LeNet((1, 28, 28), 10), (1, 28, 28))
        if name == "LeNet"
        else (ResNet18((3, 32, 32), 10), (3, 32, 32))
    )
    dim = sum(weight.numel() for weight in model.parameters())
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(SAMPLES, *shape, generator=generator)
    targets = torch.randint(10, (SAMPLES,), generator=generator)

    def gradient() -> None:
        model.zero_grad()
        cross_entropy(model(inputs), targets).backward()

    gradients = torch.empty(num_workers, dim).uniform_(-1, 1, generator=generator)
    codes = {
        "DRACO repetition": DracoRepetition(num_workers, liars),
        "DRACO cyclic": DracoCyclic(num_workers, liars),
    }
    sent = {decoder: code.encode_all([gradients]) for decoder, code in codes.items()}
    for messages in (gradients, *sent.values()):
        messages[:liars] *= -100
    median, theirs = GeometricMedian(liars), peer.GeometricMedian(nu=0.1, T=3)
    timings = side_by_side(
        {
            "gradient": gradient,
            "byzfl geometric median": lambda: theirs(gradients),
            "geometric median": lambda: median(gradients),
            **{
                decoder: lambda code=code, messages=sent[decoder]: code.decode(messages)
                for decoder, code in codes.items()
            },
        },
        "gradient",
        rounds,
        warm_up=1,
    )
    compute = timings.pop("gradient")
    theirs_s = timings["byzfl geometric median"].median_s
    rows = []
    for decoder, timing in timings.items():
        copies = 2 * liars + 1 if decoder in codes else 1
        parallel = copies * compute.median_s + timing.median_s
        rows.append(
            {
                "model": name,
                "parameters": dim,
                "workers": num_workers,
                "liars": liars,
                "samples_a_partition": SAMPLES,
                "decoder": decoder,
                "gradients": copies,
                "gradient_s": compute.median_s,
                "gradient_quartiles_s": compute.quartiles_s,
                "decode_s": timing.median_s,
                "decode_quartiles_s": timing.quartiles_s,
                "parallel_s": parallel,
                "ratio_decode": theirs_s / timing.median_s,
                "ratio_parallel": (compute.median_s + theirs_s) / parallel,
                "ratio_one_machine": (num_workers * compute.median_s + theirs_s)
                / (num_workers * compute.median_s + timing.median_s),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few repeats, nothing is written")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    peer = load_byzfl()
    if peer is None:
        raise SystemExit("byzfl is not installed: make bench installs it")
    env = environment("phalanx", "torch", "byzfl") | {"threads": options.threads}
    rows = []
    for name, num_workers, liars in CASES:
        rounds = 11 if name == "LeNet" else 5
        for row in compare(peer, name, num_workers, liars, 2 if options.quick else rounds):
            print(
                f"{name:10} {num_workers:3} workers, {liars} liars, {row['decoder']:24}"
                f" {row['gradients']:3} x {1e3 * row['gradient_s']:7.1f} ms"
                f" + {1e3 * row['decode_s']:7.1f} ms; byzfl / ours: decoding"
                f" {row['ratio_decode']:6.2f}, round in parallel {row['ratio_parallel']:5.2f},"
                f" on one machine {row['ratio_one_machine']:5.2f}",
                flush=True,
            )
            rows.append(row)
    if not options.quick:
        columns = {
            "model": "model",
            "workers": "workers",
            "liars": "liars",
            "decoder": "decoder",
            "gradients": "gradients a worker",
            "gradient_s": "s a gradient",
            "decode_s": "s to decode",
            "ratio_decode": "byzfl / this: decoding",
            "ratio_parallel": "round, workers in parallel",
            "ratio_one_machine": "round, on one machine",
        }
        remark = (
            f"{SAMPLES} samples a partition, which is what decides: DRACO multiplies the gradient "
            "by 2 s + 1 and makes decoding cheap. In parallel every worker has a machine like this "
            "one; on one machine each gradient is computed once, as the local engine does. Ratios "
            "above 1 are in favour of the row. ByzFL's median takes 3 steps; ours takes as many as "
            "it needs."
        )
        write_measurement("round", CLAIM, env, rows, columns, remark)


if __name__ == "__main__":
    main()

"""Private training against Opacus: gradients clipped sample by sample, a whole step, and memory.

    python benchmarks/bench_private.py [--quick]

Needs opacus 1.6, which the package does not. The same model, batch, device and number of threads;
both sides clip every sample's gradient as a whole, sum them up, add noise and step by SGD. Opacus
draws noise from torch's generator here, its default; ours is from a cryptographic source, on a
grid, so that a step of ours also has to make 16 pseudo-random bytes a number.
"""

import argparse
import copy
from collections.abc import Callable
from typing import Any

import torch
from opacus import GradSampleModule
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from measurement import write_measurement
from memory import peak_bytes
from phalanx.computations import Broadcast, ClippedGradient, Objective, Samples
from phalanx.models import MLP, LeNet
from phalanx.training import PrivateStep, ServerMomentum
from side_by_side import environment, side_by_side

CLAIM = "Clipped gradients and a DP-SGD step against Opacus"
GOAL, MEMORY_GOAL = 1.0, 1.2
COLUMNS = {
    "model": "model",
    "batch": "batch",
    "part": "part",
    "median_s": "s",
    "ratio": "Opacus / this, time",
    "target": "goal: at least",
    "memory": "memory, this / Opacus",
    "met": "met",
}
REMARK = (
    "One process, one thread, CPU, float32. Medians over rounds in which both run in turn. Memory "
    "is how far the resident size rises during one call; the goal for it is at most 1.2."
)


class Residual(nn.Module):
    """Two convolutions with group norm, and a way around them."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.way = nn.Sequential(
            nn.Conv2d(inner, outer, 3, stride, 1, bias=False),
            nn.GroupNorm(4, outer),
            nn.ReLU(),
            nn.Conv2d(outer, outer, 3, 1, 1, bias=False),
            nn.GroupNorm(4, outer),
        )
        self.around = nn.Conv2d(inner, outer, 1, stride, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """The sum of both ways."""
        return torch.relu(self.way(inputs) + self.around(inputs))


def small_resnet() -> nn.Module:
    """Three residual blocks on images of 32 x 32."""
    blocks = [Residual(16, 16, 1), Residual(16, 32, 2), Residual(32, 64, 2)]
    first = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.GroupNorm(4, 16), nn.ReLU()]
    return nn.Sequential(*first, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "MLP": (lambda: MLP((784,), 10), (256, 784)),
    "LeNet": (lambda: LeNet((1, 28, 28), 10), (64, 1, 28, 28)),
    "ResNet, group norm": (small_resnet, (32, 3, 32, 32)),
}


def ours(model: nn.Module, samples: Samples) -> dict[str, Callable[[], object]]:
    """Parts of our step."""
    objective, size = Objective(model, cross_entropy), len(samples.inputs)
    compute = ClippedGradient(1.0, expected_samples=size)
    step = PrivateStep(ServerMomentum(0.0, lr=0.1), 1 / size, 1 / size)
    state = step.init(model)

    def gradient() -> Tensor:
        broadcast = Broadcast(objective.layout.read(model))
        return compute.compute(objective, broadcast, samples, (), None).update

    return {"gradients": gradient, "step": lambda: step.apply(model, gradient(), state)}


def theirs(model: nn.Module, samples: Samples) -> dict[str, Callable[[], object]]:
    """Parts of Opacus' step."""
    wrapped, size = GradSampleModule(model), len(samples.inputs)
    sgd = torch.optim.SGD(wrapped.parameters(), lr=0.1)
    private = DPOptimizer(sgd, noise_multiplier=1.0, max_grad_norm=1.0, expected_batch_size=size)

    def gradient() -> None:
        private.zero_grad()
        cross_entropy(wrapped(samples.inputs), samples.targets).backward()
        private.clip_and_accumulate()

    def step() -> None:
        private.zero_grad()
        cross_entropy(wrapped(samples.inputs), samples.targets).backward()
        private.step()

    return {"gradients": gradient, "step": step}


def rows_of(name: str, rounds: int) -> list[dict[str, Any]]:
    """What one model costs on both sides."""
    make, shape = CASES[name]
    model = make()
    samples = Samples(torch.randn(shape), torch.randint(10, shape[:1]))
    both = {"ours": ours(copy.deepcopy(model), samples), "Opacus": theirs(model, samples)}
    rows = []
    for part in ("gradients", "step"):
        timings = side_by_side({side: one[part] for side, one in both.items()}, "ours", rounds)
        peaks = {side: peak_bytes(one[part]) for side, one in both.items()}
        ratio = timings["Opacus"].ratio
        memory = None
        if peaks["ours"] is not None and peaks["Opacus"]:
            memory = peaks["ours"] / peaks["Opacus"]
        rows.append(
            {
                "model": name,
                "batch": shape[0],
                "part": part,
                "median_s": timings["ours"].median_s,
                "opacus_s": timings["Opacus"].median_s,
                "ratio": ratio,
                "target": GOAL,
                "memory": memory,
                "met": ratio >= GOAL and (memory or 0.0) <= MEMORY_GOAL,
            }
        )
    return rows


def main() -> None:
    """Measures, prints, and writes it down."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few repeats, nothing is written")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row for name in CASES for row in rows_of(name, 3 if options.quick else 11)]
    for row in rows:
        memory = "-" if row["memory"] is None else f"{row['memory']:.2f}"
        print(
            f"{row['model']:20} {row['part']:10} {1e3 * row['median_s']:8.1f} ms, Opacus "
            f"{1e3 * row['opacus_s']:8.1f} ms, ratio {row['ratio']:.2f}, memory {memory}",
            flush=True,
        )
    if not options.quick:
        facts = environment("phalanx", "torch", "opacus") | {"threads": 1}
        write_measurement("private", CLAIM, facts, rows, COLUMNS, REMARK)


if __name__ == "__main__":
    main()

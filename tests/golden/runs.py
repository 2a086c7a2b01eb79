"""Short whole runs that changes of the house must leave as they are.

    python tests/golden/runs.py [--ray] > digests.json

prints a digest of the weights and metrics of each, which agree to the bit only on one machine with
one version of torch: `benchmarks/compare_commits.py` runs this file in two commits. What agrees on
any machine is kept in `tests/golden/*.json` and held by `test_golden_runs.py`.
"""

import hashlib
import json
import sys
import tempfile
import warnings
from pathlib import Path

import torch
from torch import nn

import phalanx
from phalanx.aggregation import (
    CenteredClipping,
    GeometricMedian,
    Krum,
    Mean,
    NearestNeighborMixing,
    Resampling,
    TrimmedMean,
)
from phalanx.attacks import (
    ALittleIsEnough,
    Delay,
    FixedWorkers,
    LabelFlip,
    LocalModelPoisoning,
    Mimic,
    Mixed,
    NotFinite,
    OptimalALittleIsEnough,
    ReverseGradient,
    SignFlip,
    Silence,
    StaleGradient,
    WrongShape,
)
from phalanx.coding import CyclicRepetition, Detox, DracoCyclic, DracoRepetition, ErasureHead
from phalanx.compression import QSGD, ErrorFeedback, PowerSGD, TopK
from phalanx.data import Digits, DirichletPartitioner, ShardPartitioner
from phalanx.ordering import PerClient
from phalanx.randomness import seeded
from phalanx.stragglers import (
    AdaptiveDeadline,
    FirstOf,
    ShiftedExponential,
    UntilDecodable,
    WaitFor,
)
from phalanx.training import Local, Ray
from phalanx.transforms import Compressed, WorkerMomentum

# What differs from run to run: times, and what the decoder's private randomness leaves.
_VARYING = ("seconds", "compute_seconds", "decode_seconds", "residual")
_STEPS = 12


def _sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.05)


RUNS = {
    "code": {"code": DracoCyclic(9, 2), "attack": ReverseGradient()},
    "replicas": {
        "code": DracoRepetition(9, 1),
        "attack": Mixed([NotFinite(), WrongShape(), Silence()]),
    },
    "rule": {"rule": Krum(2), "num_workers": 9, "attack": SignFlip()},
    "pipeline": {
        "rule": NearestNeighborMixing(2) >> TrimmedMean(2),
        "num_workers": 9,
        "attack": ALittleIsEnough(),
    },
    "clients_with_momentum": {
        "rule": CenteredClipping(),
        "num_workers": 9,
        "attack": Mimic(),
        "byzantine": FixedWorkers([7, 8]),
        "transforms": [WorkerMomentum(0.9)],
        "order": PerClient(ShardPartitioner()),
        "optimizer": _sgd,
    },
    "compressor": {
        "rule": Mean(),
        "num_workers": 6,
        "transforms": [Compressed(ErrorFeedback(TopK(0.05)))],
        "optimizer": _sgd,
    },
    "low_rank_and_attack": {
        "rule": TrimmedMean(2),
        "num_workers": 7,
        "transforms": [Compressed(PowerSGD())],
        "attack": ReverseGradient(),
    },
    "quantised_momentum": {
        "rule": TrimmedMean(1),
        "num_workers": 6,
        "transforms": [WorkerMomentum(0.8, "sum"), Compressed(QSGD())],
        "attack": Mixed([LabelFlip()]),
    },
    "waiting_code": {
        "code": CyclicRepetition(8, 2),
        "engine": Local(
            policy=UntilDecodable(), delays=ShiftedExponential(), seconds_per_partition=0.1
        ),
    },
    "waiting_rule": {
        "rule": GeometricMedian(1),
        "num_workers": 8,
        "attack": Delay(3.0),
        "engine": Local(
            policy=FirstOf([WaitFor(6), AdaptiveDeadline(2.0)]),
            delays=ShiftedExponential(),
            deadline_s=4.0,
        ),
    },
    "erasures": {
        "code": ErasureHead(12, copies=3),
        "engine": Local(policy=WaitFor(9), delays=ShiftedExponential()),
    },
    "adaptive_attack": {"rule": Krum(2), "num_workers": 9, "attack": OptimalALittleIsEnough()},
    "poisoning": {
        "rule": TrimmedMean(2),
        "num_workers": 9,
        "attack": LocalModelPoisoning(),
        "exclude_after": 4,
    },
    "exclusion": {
        "code": Detox(15, num_byzantine=2),
        "attack": ReverseGradient(),
        "byzantine": FixedWorkers([0, 7]),
        "exclude_after": 2,
    },
    "behind": {
        "rule": Resampling(2) >> GeometricMedian(2),
        "num_workers": 10,
        "attack": StaleGradient(2),
        "order": PerClient(DirichletPartitioner(0.5)),
    },
    "random_layers": {
        "rule": TrimmedMean(1),
        "num_workers": 5,
        "attack": SignFlip(),
        "extra": [nn.Dropout(0.3)],
    },
    "diversity": {"rule": Mean(), "num_workers": 6, "measure_diversity": True},
    "resumed": {
        "rule": CenteredClipping(),
        "num_workers": 8,
        "attack": Mimic(),
        "byzantine": FixedWorkers([6, 7]),
        "transforms": [WorkerMomentum(0.9), Compressed(ErrorFeedback(TopK(0.1)))],
        "resume_at": 5,
    },
}
ON_RAY = {
    "code_on_ray": dict(RUNS["code"], engine=Ray()),
    "momentum_on_ray": dict(RUNS["clients_with_momentum"], engine=Ray()),
    "resumed_on_ray": dict(RUNS["resumed"], engine=Ray()),
    "behind_on_ray": dict(RUNS["behind"], engine=Ray()),
    "low_rank_on_ray": dict(RUNS["low_rank_and_attack"], engine=Ray()),
}


def run(name):
    """The rounds and the weights of a run."""
    options = dict((RUNS | ON_RAY)[name])
    extra, resume_at = options.pop("extra", []), options.pop("resume_at", None)
    splits = Digits().load()

    def make():
        with seeded(3, "weights"):
            return nn.Sequential(
                nn.Flatten(), nn.Linear(64, 12), *extra, nn.ReLU(), nn.Linear(12, 10)
            )

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        common = dict(options, test=splits.test, seed=11, evaluate_every=6)
        if resume_at is None:
            done = phalanx.train(make(), splits.train, steps=_STEPS, **common)
        else:
            phalanx.train(make(), splits.train, steps=resume_at, out=Path(folder) / "run", **common)
            done = phalanx.train(
                make(),
                splits.train,
                steps=_STEPS,
                out=Path(folder) / "run",
                resume=True,
                **common,
            )
    weights = torch.cat([value.detach().reshape(-1) for value in done.model.parameters()])
    rounds = [{k: v for k, v in one.items() if k not in _VARYING} for one in done.rounds]
    return rounds, weights


def digest(rounds, weights):
    """Sixteen hexadecimal digits for all bits of a run."""
    text = json.dumps(rounds, sort_keys=True).encode()
    return hashlib.blake2b(text + weights.numpy().tobytes(), digest_size=8).hexdigest()


def main():
    torch.set_num_threads(1)
    chosen = RUNS | (ON_RAY if "--ray" in sys.argv else {})
    print(json.dumps({name: digest(*run(name)) for name in chosen}, indent=1))


if __name__ == "__main__":
    main()

"""Stages beside the plain ones, alone and together: under codes, attacks and compression."""

import pytest
import torch

import phalanx
from phalanx.aggregation import Krum
from phalanx.attacks import ReverseGradient
from phalanx.coding import DracoRepetition
from phalanx.compression import ErrorFeedback, TopK
from phalanx.computations import ClippedGradient, LocalSteps
from phalanx.data import IidPartitioner
from phalanx.ordering import PerClient, ShuffleOnce
from phalanx.training import Local, Ray, ServerMomentum
from phalanx.transforms import Compressed, GaussianNoise
from training.drifting import a_model, flat, some_data

STAGES = {
    "LocalSteps": {"compute": LocalSteps(2)},
    "ClippedGradient": {"compute": ClippedGradient(0.5)},
    "ShuffleOnce": {"order": ShuffleOnce()},
    "GaussianNoise": {"transforms": [GaussianNoise(0.01)]},
    "ServerMomentum": {"step": ServerMomentum(0.9, 0.1)},
    "all": {
        "compute": LocalSteps(2),
        "order": ShuffleOnce(),
        "transforms": [GaussianNoise(0.01)],
        "step": ServerMomentum(0.9, 0.1),
    },
    "all of privacy": {
        "compute": ClippedGradient(0.5),
        "order": ShuffleOnce(),
        "transforms": [GaussianNoise(0.01)],
        "step": ServerMomentum(0.9, 0.1),
    },
}
each = pytest.mark.parametrize("stages", STAGES.values(), ids=STAGES)
COMPRESSED = Compressed(ErrorFeedback(TopK(0.25)))


def settings(stages):
    """Options of runs with these stages, by what else there is."""
    found = {"under attack": {"rule": Krum(2), "attack": ReverseGradient(), **stages}}
    sent = [*stages.get("transforms", []), COMPRESSED]
    found["compressed"] = {**stages, "transforms": sent}
    own = PerClient(IidPartitioner(), stages.get("order", ShuffleOnce()))
    found["data of their own"] = {"rule": Krum(2), **stages, "order": own}
    if "transforms" not in stages:
        found["replicas"] = {"code": DracoRepetition(6, 1), "attack": ReverseGradient(), **stages}
    return found


def trained(**options):
    size = 60 if "code" in options else 70
    defaults = {"steps": 4, "num_workers": 7, "batch_size": size, "evaluate_every": 100}
    return phalanx.train(a_model(), some_data(), **{**defaults, **options})


@each
def test_a_run_killed_at_any_checkpoint_ends_with_the_same_bits(stages, tmp_path, subtests):
    for name, options in settings(stages).items():
        with subtests.test(name):
            whole = trained(**options)
            assert flat(whole.model).isfinite().all()
            for last in range(3):  # the newer of the two that are kept is torn off
                out = tmp_path / name / str(last)
                trained(**{**options, "steps": last + 1}, out=out, checkpoint_every=1)
                (out / "checkpoints" / f"step-{last + 1:09d}.pt").unlink()
                again = trained(**options, out=out, resume=True)
                assert flat(again.model).equal(flat(whole.model))


@each
def test_replicas_that_tell_the_truth_agree(stages):
    if "transforms" in stages:
        with pytest.raises(ValueError, match="transforms must leave replicas equal"):
            trained(code=DracoRepetition(6, 1), **stages)
        return
    run = trained(code=DracoRepetition(6, 1), attack=ReverseGradient(), **stages)
    for entry in run.rounds:
        assert entry["suspects"] == entry["byzantine"]
    honest = trained(code=DracoRepetition(6, 1), **stages)
    assert flat(run.model).equal(flat(honest.model))


@pytest.mark.slow
@each
@pytest.mark.timeout(400)
def test_processes_give_the_bits_of_one_process(stages, cluster, subtests):
    for name, options in settings(stages).items():
        with subtests.test(name):
            here = trained(**options, engine=Local(chunk_size=1))
            there = trained(**options, engine=Ray())
            assert torch.equal(flat(here.model), flat(there.model))

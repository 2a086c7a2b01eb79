"""Runs whose messages are whole numbers modulo a prime: the bits of the run without an attack."""

import pytest
import torch
from safetensors.torch import load_file

import phalanx
from laws import concrete
from phalanx import attacks
from phalanx.attacks import Attack, FixedWorkers, Mimic, Mixed, ReverseGradient, StaleGradient
from phalanx.coding import DracoCyclic
from phalanx.errors import DecodeError
from phalanx.training import Local, Ray
from phalanx.training.inbox import Inbox
from phalanx.transforms import WorkerMomentum
from training.drifting import a_job

CODE = DracoCyclic(15, 3, arithmetic="field")
ATTACKS = concrete(attacks, Attack)


def flat(model):
    return torch.cat([value.detach().reshape(-1) for value in model.parameters()])


@pytest.fixture
def trained(blobs, make_model):
    def run(code=CODE, model=None, **options):
        options = {"steps": 12, "batch_size": 60, "test": blobs[1], **options}
        return phalanx.train(model or make_model(), blobs[0], code, **options)

    return run


@pytest.mark.slow
def test_every_attack_leaves_the_bits_of_the_run_without_one(trained, subtests):
    reference = flat(trained().model)
    for attack in ATTACKS:
        with subtests.test(attack=attack):
            run = trained(attack=attack(), engine=Local(deadline_s=0.5))
            assert flat(run.model).equal(reference)
            for entry in run.rounds:
                found = set(entry["suspects"]) | {int(worker) for worker in entry["missing"]}
                if attack is Mimic:
                    assert found <= set(entry["byzantine"])
                    continue
                assert found == set(entry["byzantine"])
                behind = attack is StaleGradient and entry["step"] == 0
                assert len(found) == (0 if behind else 3)


def test_a_run_follows_the_plain_mean_as_far_as_its_fixed_point_resolves(trained):
    mean = flat(trained(code=None, num_workers=15, steps=20).model)
    off = []
    for bits in (10, 18):
        run = trained(DracoCyclic(15, 3, arithmetic="field", fraction_bits=bits), steps=20)
        off.append((flat(run.model) - mean).abs().max().item())
        assert all(entry["error"] > 0 for entry in run.rounds)
        assert all(entry["saturated"] == 0 for entry in run.rounds)
    assert 0 < off[1] < off[0] / 8
    assert off[1] <= 1e-3 * mean.abs().max()


def test_models_in_double_precision_are_trained_in_it(trained, blobs, make_model):
    inputs, targets = blobs[0].tensors
    data = torch.utils.data.TensorDataset(inputs.double(), targets)
    models = [make_model().double() for _ in range(2)]
    phalanx.train(models[0], data, CODE, steps=5, batch_size=60)
    phalanx.train(models[1], data, CODE, steps=5, batch_size=60, attack=Mixed())
    assert flat(models[0]).dtype == torch.float64
    assert flat(models[0]).equal(flat(models[1]))


class Killed(BaseException):
    """Ends a run between two rounds, as a kill would."""


def test_a_run_that_was_killed_goes_on_to_the_same_bits(trained, make_model, tmp_path):
    def kill(entry):
        if entry["step"] == 7:
            raise Killed

    options = {"attack": Mixed(attacks=[StaleGradient(2), ReverseGradient()]), "steps": 14}
    whole = trained(out=tmp_path / "whole", checkpoint_every=3, **options)
    with pytest.raises(Killed):
        trained(out=tmp_path / "cut", checkpoint_every=3, on_round=kill, **options)
    trained(out=tmp_path / "cut", checkpoint_every=3, resume=True, **options)
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert all(ours[name].equal(theirs[name]) for name in ours)
    assert flat(whole.model).equal(flat(trained(**(options | {"attack": None})).model))


def test_coordinates_that_do_not_fit_are_counted_and_fit_in_the_next_round(trained):
    code = DracoCyclic(15, 3, arithmetic="field")
    run = trained(
        code,
        loss=lambda scores, targets: 1e4 * torch.nn.functional.cross_entropy(scores, targets),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1e-9),
    )
    counts = [entry["saturated"] for entry in run.rounds]
    assert counts[0] > 0
    assert run.rounds[0]["error"] > 1e-3
    assert not any(counts[1:])


def test_more_byzantine_workers_than_the_bound_are_an_error(trained):
    with pytest.raises(DecodeError, match="too many of the others"):
        trained(attack=ReverseGradient(), byzantine=FixedWorkers([1, 2, 5, 9]))


def test_transforms_want_messages_of_floats(trained):
    with pytest.raises(ValueError, match="transforms need messages of floating-point numbers"):
        trained(transforms=[WorkerMomentum()])


def test_messages_of_another_type_mark_their_sender():
    job = a_job(CODE)
    inbox = Inbox(job.empty_table(torch.device("cpu")), job.chain.decode)
    width = CODE.width(job.layout.dim)
    inbox.put(0, torch.zeros(width))
    inbox.put(1, torch.zeros(width, dtype=torch.int64))
    inbox.put(2, torch.zeros(width + 1, dtype=torch.int32))
    inbox.put(3, torch.zeros(width, dtype=torch.int32))
    assert inbox.missing == {0: "wrong type", 1: "wrong type", 2: "wrong shape"}
    assert inbox.arrived.nonzero().flatten().tolist() == [3]
    assert inbox.message_bytes == 4 * width


@pytest.mark.slow
def test_workers_in_processes_of_their_own_end_with_the_same_bits(cluster, trained, make_model):
    options = {"attack": Mixed(), "steps": 6}
    here = trained(engine=Local(chunk_size=1), **options)
    there = trained(engine=Ray(), **options)
    assert flat(here.model).equal(flat(there.model))
    for ours, theirs in zip(here.rounds, there.rounds, strict=True):
        assert ours["suspects"] == theirs["suspects"]
        assert ours["message_bytes"] == theirs["message_bytes"]

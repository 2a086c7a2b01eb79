"""Learning-rate schedulers, clipping and mixed precision: torch's numbers, and resumed runs."""

import itertools
from functools import partial

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    ExponentialLR,
    LinearLR,
    MultiStepLR,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
)

import phalanx
from phalanx.computations import Gradient, LocalSteps
from phalanx.training import ClippedStep, Local, OptimizerStep, Ray, ServerMomentum
from training.drifting import a_model, flat, some_data


def warm_up(optimizer):
    """Three rounds of warm-up, then a cosine."""
    first = LinearLR(optimizer, start_factor=0.1, total_iters=3)
    return SequentialLR(optimizer, [first, CosineAnnealingLR(optimizer, T_max=6)], milestones=[3])


SCHEDULERS = {
    "cosine": partial(CosineAnnealingLR, T_max=9),
    "one cycle": partial(OneCycleLR, max_lr=0.2, total_steps=12),
    "plateau": partial(ReduceLROnPlateau, patience=0, threshold=0.2, factor=0.3),
    "warm-up": warm_up,
    "milestones": partial(MultiStepLR, milestones=[2, 5]),
}
SGD_WITH_MOMENTUM = partial(SGD, lr=0.1, momentum=0.9)


def trained(**options):
    usual = {"steps": 9, "num_workers": 7, "batch_size": 70, "optimizer": SGD_WITH_MOMENTUM}
    return phalanx.train(a_model(), some_data(), **{**usual, **options})


class Killed(Exception):
    """Ends a run in a round, before its checkpoint."""


def killed_after(rounds):
    def on_round(entry):
        if entry["step"] + 1 == rounds:
            raise Killed

    return on_round


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_resumed_run_has_the_rates_and_the_bits_of_one_that_was_not(name, tmp_path, subtests):
    options = {"lr_scheduler": SCHEDULERS[name], "checkpoint_every": 2, "max_grad_norm": 0.5}
    whole = trained(**options)
    rates = [entry["lr"] for entry in whole.rounds]
    assert len(set(rates)) > 1
    for middle in (1, 4, 6):
        with subtests.test(middle=middle):
            out = tmp_path / str(middle)
            with pytest.raises(Killed):
                trained(out=out, on_round=killed_after(middle), **options)
            resumed = trained(out=out, resume=True, **options)
            assert flat(resumed.model).equal(flat(whole.model))
            assert [entry["lr"] for entry in resumed.rounds] == rates


@pytest.mark.parametrize("name", ["cosine", "warm-up", "one cycle"])
def test_rates_are_those_of_torch(name):
    optimizer = SGD([nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)
    scheduler, expected = SCHEDULERS[name](optimizer), []
    for _ in range(9):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    found = trained(lr_scheduler=SCHEDULERS[name])
    assert [entry["lr"] for entry in found.rounds] == expected


def test_a_scheduler_may_step_at_the_end_of_every_epoch():
    run = trained(
        lr_scheduler=partial(ExponentialLR, gamma=0.5), lr_scheduler_interval="epoch", epochs=3,
        steps=None, batch_size=28,
    )  # fmt: skip
    per_epoch = len(some_data()) // 28
    assert per_epoch > 1
    assert [entry["lr"] for entry in run.rounds] == [
        0.1 * 0.5**epoch for epoch in range(3) for _ in range(per_epoch)
    ]
    assert run.rounds[-1]["epoch"] == 3.0


def test_a_plateau_is_seen_in_the_metric_that_is_monitored():
    options = {"validation": 0.3, "evaluate_every": 2, "batch_size": 49}
    never = partial(ReduceLROnPlateau, patience=0, threshold=0.9, factor=0.5)
    run = trained(lr_scheduler=never, lr_scheduler_monitor="validation_loss", **options)
    rates = [entry["lr"] for entry in run.rounds]
    changes = [i for i, (a, b) in enumerate(itertools.pairwise(rates)) if a != b]
    assert changes
    assert set(changes) <= {i for i, one in enumerate(run.rounds) if "validation_loss" in one}


def test_a_rate_that_somebody_else_changes_is_noticed(tmp_path):
    made = []

    def kept(parameters):
        made.append(SGD(parameters, lr=0.1))
        return made[-1]

    def lower(entry):
        made[-1].param_groups[0]["lr"] *= 0.5

    with pytest.warns(UserWarning, match="changed by something other than lr_scheduler") as caught:
        run = trained(optimizer=kept, on_round=lower)
    assert len(caught) == 1
    assert run.rounds[2]["lr"] == 0.025


def test_a_step_with_a_scheduler_and_one_without_do_not_load_one_another():
    plain, scheduled = OptimizerStep(), OptimizerStep(lr_scheduler=SCHEDULERS["cosine"])
    model = a_model()
    for step, other in ((plain, scheduled), (scheduled, plain)):
        with pytest.raises(ValueError, match="lr_scheduler must be that of the run to be resumed"):
            other.load(model, step.dump(step.init(model)))


def test_updates_are_clipped_as_torch_does(tmp_path):
    data, plain = some_data(), a_model()
    optimizer = SGD(plain.parameters(), lr=0.1)
    options = {"num_workers": 1, "batch_size": len(data), "optimizer": partial(SGD, lr=0.1)}
    run = trained(max_grad_norm=0.05, steps=3, **options)
    for entry in run.rounds:
        optimizer.zero_grad()
        nn.functional.cross_entropy(plain(data.tensors[0]), data.tensors[1]).backward()
        norm = nn.utils.clip_grad_norm_(plain.parameters(), 0.05)
        assert entry["gradient_norm"] == pytest.approx(norm.item(), rel=1e-4)
        assert norm > 0.05
        optimizer.step()
    torch.testing.assert_close(flat(run.model), flat(plain), rtol=1e-4, atol=1e-5)


def test_clipping_goes_with_every_step_and_short_updates_stay():
    model = a_model()
    step = ClippedStep(ServerMomentum(momentum=0.0), max_norm=1.0)
    update = torch.zeros(len(flat(model)))
    update[0] = 0.5
    before = flat(model)
    step.apply(model, update, step.init(model))
    assert flat(model).equal(before - update)
    step.apply(model, torch.zeros_like(update), step.init(model))
    assert flat(model).isfinite().all()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_learns_nearly_the_same(precision, subtests):
    full = trained()
    for computation in (Gradient(), LocalSteps(2)):
        with subtests.test(f"{computation}"):
            half = trained(mixed_precision=precision, compute=computation)
            assert "MixedPrecision" in half.result["compute"]
            assert not flat(half.model).equal(flat(full.model))
            assert half.rounds[-1]["loss"] == pytest.approx(full.rounds[-1]["loss"], rel=0.3)
            assert flat(half.model).dtype == torch.float32


def test_small_gradients_survive_float16():
    """They vanish in 16 bits unless the loss is scaled, and overflow where the scale is kept."""
    for size in (1e-7, 1e4):

        def loss(outputs, targets, size=size):
            return size * nn.functional.cross_entropy(outputs, targets)

        found = trained(mixed_precision="fp16", loss=loss, steps=1, optimizer=partial(SGD, lr=1.0))
        exact = trained(loss=loss, steps=1, optimizer=partial(SGD, lr=1.0))
        moved, expected = (flat(one.model) - flat(a_model()) for one in (found, exact))
        assert (moved - expected).norm() < 0.02 * expected.norm() + 1e-9


@pytest.mark.slow
def test_ray_and_one_process_agree(cluster):
    options = {
        "lr_scheduler": SCHEDULERS["one cycle"],
        "max_grad_norm": 0.1,
        "validation": 0.3,
        "batch_size": 28,
        "evaluate_every": 3,
        "mixed_precision": "bf16",
    }
    one, other = trained(engine=Local(chunk_size=1), **options), trained(engine=Ray(), **options)
    assert flat(one.model).equal(flat(other.model))
    assert [entry["lr"] for entry in one.rounds] == [entry["lr"] for entry in other.rounds]

"""Private training: what it computes, refuses, has spent, and withstands."""

import json
import math
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from scipy.stats import beta
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import TensorDataset

import phalanx
from phalanx.aggregation import CoordinateMedian
from phalanx.attacks import FixedWorkers, SignFlip
from phalanx.coding import DracoRepetition
from phalanx.compression import TopK
from phalanx.computations import (
    Broadcast,
    ClippedGradient,
    Gradient,
    Objective,
    Samples,
    TopAggGradient,
)
from phalanx.errors import LedgerError
from phalanx.ordering import Batches, PoissonSampling, RandomReshuffling
from phalanx.training import DifferentialPrivacy, Local, PrivateStep, ServerMomentum
from phalanx.transforms import Compressed
from training.drifting import a_model, flat, some_data

pytest.importorskip("dp_accounting", reason="needs the extra phalanx[private]")

# Fast: a given multiplier, and the accountant that needs no Fourier transforms.
LOUD = DifferentialPrivacy(1000.0, noise_multiplier=1.0, method="rdp", repeatable=True)


def trained(model=None, data=None, **options):
    usual = {"steps": 6, "num_workers": 4, "batch_size": 32, "privacy": LOUD}
    usual |= {"compute": ClippedGradient(0.5), "order": PoissonSampling(), "progress": False}
    return phalanx.train(model or a_model(), data or some_data(), **{**usual, **options})


def test_without_noise_or_clipping_on_all_data_it_is_gradient_descent():
    data, model, other = some_data(), a_model(), a_model()
    objective, size = Objective(model, nn.functional.cross_entropy), len(data)
    batches = Batches(size, size, 1, 0)
    assert PoissonSampling().samples(batches, 0, 0).tolist() == list(range(size))
    step, compute = PrivateStep(ServerMomentum(0.0), std=0.0), ClippedGradient(1e9).expecting(size)
    state, sgd = step.init(model), torch.optim.SGD(other.parameters(), lr=1.0)
    for _ in range(3):
        broadcast = Broadcast(objective.layout.read(model))
        update = compute.compute(objective, broadcast, Samples(*data[:]), (), None).update
        state = step.apply(model, update, state)
        sgd.zero_grad()
        nn.functional.cross_entropy(other(data[:][0]), data[:][1]).backward()
        sgd.step()
    torch.testing.assert_close(flat(model), flat(other))


def test_workers_and_codes_see_the_same_batches_and_the_same_noise():
    models = [a_model() for _ in range(3)]
    trained(models[0], num_workers=1, batch_size=36)
    trained(models[1], engine=Local(chunk_size=1), batch_size=36)
    code = DracoRepetition(num_workers=6, num_byzantine=1)
    trained(models[2], code=code, batch_size=36)
    for one in models[1:]:
        torch.testing.assert_close(flat(one), flat(models[0]), rtol=1e-4, atol=1e-5)


def test_noise_has_the_size_that_is_accounted_for():
    for where, factor in (("server", 1.0), ("workers", 2.0)):  # of four workers
        privacy = DifferentialPrivacy(1e4, noise_multiplier=50.0, method="rdp", noise_at=where)
        moves = []
        for _ in range(4):
            model = a_model()
            before = flat(model)
            trained(model, privacy=privacy, steps=1, step=ServerMomentum(0.0))
            moves.append(flat(model) - before)
        wanted = factor * 50.0 * 0.5 / 32
        drawn = torch.cat(moves)
        assert len(drawn) > 150
        assert drawn.std().item() == pytest.approx(wanted, rel=0.3)
        assert not moves[0].equal(moves[1])  # from the system, not from the seed


def test_what_one_sample_does_is_bounded_even_if_it_is_not_finite(subtests):
    inputs, targets = some_data()[:]
    for compute in (ClippedGradient(0.5), TopAggGradient(0.1, "values"), TopAggGradient(0.1)):
        for scale in (1.0, 1e20, math.inf, math.nan):
            with subtests.test(compute=compute, scale=scale):
                objective, private = (
                    Objective(a_model(), nn.functional.cross_entropy),
                    compute.expecting(32),
                )
                broadcast = Broadcast(objective.layout.read(a_model()))
                added = torch.cat([inputs[:8], scale * inputs[8:9].abs().add(1)]), targets[:9]
                few = private.compute(
                    objective, broadcast, Samples(inputs[:8], targets[:8]), (), None
                )
                more = private.compute(objective, broadcast, Samples(*added), (), None)
                moved = (more.update - few.update).norm() * 32
                assert moved <= compute.influence * (1 + 1e-5)
                empty = Samples(inputs[:0], targets[:0])
                none = private.compute(objective, broadcast, empty, (), None)
                assert not none.update.any()


def test_what_breaks_the_guarantee_is_refused_by_name(subtests):
    norm = nn.Sequential(nn.Linear(6, 24), nn.BatchNorm1d(24), nn.Linear(24, 3))
    plateau = partial(ReduceLROnPlateau, patience=3)
    cases = [
        ({"compute": Gradient()}, "compute to bound what one sample does"),
        ({"order": RandomReshuffling()}, "needs order PoissonSampling"),
        ({"rule": CoordinateMedian()}, "needs the plain mean, or a code"),
        (
            {
                "attack": SignFlip(),
                "rule": CoordinateMedian(),
                "byzantine": FixedWorkers((1,)),
            },
            "attack to be none",
        ),
        ({"transforms": [Compressed(TopK())]}, "transforms to be none"),
        ({"lr_scheduler": plateau}, "does not look at the data"),
        ({"mixed_precision": "fp16"}, "mixed_precision bf16 or no"),
        (
            {"code": DracoRepetition(4, 1), "privacy": replace(LOUD, noise_at="workers")},
            "a rule instead of a code",
        ),
    ]
    for options, rule in cases:
        with subtests.test(rule=rule), pytest.raises(ValueError, match=rule):
            trained(**options)
    with pytest.raises(ValueError, match=r"'1' must not be BatchNorm1d.*put GroupNorm\(8, 24\)"):
        trained(norm, TensorDataset(torch.randn(64, 6), torch.arange(64) % 3))


def test_noise_at_the_workers_goes_with_compressors_rules_and_attacks_and_is_small_on_the_wire():
    privacy = DifferentialPrivacy(1000.0, noise_multiplier=1.0, method="rdp", noise_at="workers")
    plain = trained(privacy=privacy).rounds[0]["message_bytes"]
    small = trained(
        privacy=privacy,
        compute=TopAggGradient(0.1),
        transforms=[Compressed(TopK(0.1))],
        rule=CoordinateMedian(),
        attack=SignFlip(),
        byzantine=FixedWorkers((1,)),
    )
    assert small.rounds[0]["message_bytes"] < plain / 4
    assert "differential privacy" in small.privacy


def test_a_run_stops_before_the_round_that_would_exceed_its_budget(tmp_path):
    privacy = DifferentialPrivacy(1.8, noise_multiplier=1.0, method="rdp")
    run = trained(privacy=privacy, steps=40, out=tmp_path / "run")
    lines = (tmp_path / "run" / "privacy.jsonl").read_text().splitlines()
    assert 1 < run.done == len(lines) == len(run.rounds) < 40
    assert "would exceed the privacy budget of epsilon 1.8" in run.result["stopped_by"]
    accountant = phalanx.privacy.Accountant(method="rdp")
    rate = json.loads(lines[0])["sampling_rate"]
    accountant.compose(1.0, rate, run.done)
    assert accountant.epsilon(1e-5) <= 1.8
    accountant.compose(1.0, rate)
    assert accountant.epsilon(1e-5) > 1.8
    for part in ("1e-05", "add or remove one record", "hyper-parameters"):
        assert part in run.result["privacy"]


def test_a_ledger_that_was_tampered_with_is_an_error(tmp_path, subtests):
    folder = tmp_path / "run"
    trained(steps=4, out=folder)
    path = folder / "privacy.jsonl"
    whole = path.read_text()
    lines = whole.splitlines(keepends=True)
    broken = {
        "missing": None,
        "empty": "",
        "cut short": "".join(lines[:-1]),
        "torn": whole[:-9],
        "changed": whole.replace('"noise_multiplier": 1.0', '"noise_multiplier": 9.0', 1),
        "swapped": "".join([lines[1], lines[0], *lines[2:]]),
        "begins later": "".join(lines[1:]),
        "a line twice": whole + lines[-1],
        "no JSON": whole + "spent nothing\n",
        "no object": whole + "[]\n",
    }
    for name, text in broken.items():
        path.unlink() if text is None else path.write_text(text)
        with subtests.test(name), pytest.raises(LedgerError, match="ledger"):
            trained(steps=6, out=folder, resume=True)
        path.write_text(whole)
    trained(steps=6, out=folder, resume=True)
    assert len(path.read_text().splitlines()) == 6
    with pytest.raises(ValueError, match="privacy"):
        trained(steps=8, out=folder, resume=True, privacy=None)


KILLED = """
    import os, signal, sys
    sys.path.insert(0, sys.argv[2])
    from phalanx.training import Callback
    from training.test_differential_privacy import trained
    class Kill(Callback):
        def on_round(self, run, entry):
            if entry["step"] == 6:
                os.kill(os.getpid(), signal.SIGKILL)
    trained(steps=12, checkpoint_every=4, out=sys.argv[1], callbacks=[Kill()])
"""


def test_a_killed_run_counts_what_it_makes_a_second_time(tmp_path):
    code = textwrap.dedent(KILLED)
    words = [str(tmp_path / "run"), str(Path(__file__).parents[1])]
    done = subprocess.run([sys.executable, "-c", code, *words], check=False)
    assert done.returncode == -signal.SIGKILL
    path = tmp_path / "run" / "privacy.jsonl"
    assert len(path.read_text().splitlines()) == 7
    run = trained(steps=12, checkpoint_every=4, out=tmp_path / "run", resume=True)
    rounds = [json.loads(line)["round"] for line in path.read_text().splitlines()]
    assert rounds == [*range(7), *range(4, 12)]
    accountant = phalanx.privacy.Accountant(method="rdp")
    accountant.compose(1.0, json.loads(path.read_text().splitlines()[0])["sampling_rate"], 15)
    assert f"({accountant.epsilon(1e-5):.4g}, 1e-05)" in run.privacy


def lower_bound(sum_without, sum_with, delta):
    """Epsilon that two worlds show at least, with 99.9 % confidence (Clopper and Pearson)."""
    found, count = 0.0, len(sum_with)
    for border in torch.linspace(0.0, 6.0, 25).tolist():
        hits = int((sum_with > border).sum()), int((sum_without > border).sum())
        least = beta.ppf(5e-4, hits[0], count - hits[0] + 1) if hits[0] else 0.0
        most = beta.ppf(1 - 5e-4, hits[1] + 1, count - hits[1]) if hits[1] < count else 1.0
        if least > delta:
            found = max(found, math.log((least - delta) / most))
    return found


def two_worlds(multiplier, rate, rounds, trials, compute):
    """What is released in a world with a record, and without, in its own direction."""
    others, size = 20, round(rate * 20)
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    objective = Objective(model, lambda outputs, targets: (outputs * targets).mean())
    broadcast, worlds = Broadcast(torch.zeros(1)), []
    for present in (False, True):
        count = others + present
        inputs, targets = torch.ones(count, 1), torch.zeros(count, 1)
        if present:
            targets[-1] = 50.0  # a gradient far beyond the norm
        found = torch.zeros(trials)
        for trial in range(trials):
            order = PoissonSampling(f"{trial} {present}")
            step = PrivateStep(
                ServerMomentum(0.0), multiplier / size, 1 / size, secret=f"{trial} {present}"
            )
            state = step.init(model)
            for number in range(rounds):
                drawn = torch.arange(count)
                if rate < 1:  # the rate is public, and the same in both worlds
                    drawn = order.samples(Batches(100, round(100 * rate), 1, 0), number, 0)
                    drawn = drawn[drawn < count]
                samples = Samples(inputs[drawn], targets[drawn])
                update = compute(size).compute(objective, broadcast, samples, (), None).update
                nn.init.zeros_(model.weight)
                state = step.apply(model, update, state)
                found[trial] -= model.weight.item() * size / multiplier
        worlds.append(found / rounds**0.5)
    return worlds


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_two_worlds_show_no_more_than_the_accountant_says_and_not_less_than_half(subtests):
    """An epsilon that is wrong by a factor of two would be seen, and so are planted faults."""

    def right(size):
        return ClippedGradient(1.0).expecting(size)

    def unclipped(size):
        return ClippedGradient(4.0).expecting(size)

    delta = 0.02
    for rate, rounds, trials in [(1.0, 1, 3000), (0.5, 2, 1000)]:
        accountant = phalanx.privacy.Accountant()
        accountant.compose(1.0, rate, rounds)
        epsilon, case = accountant.epsilon(delta), (rate, rounds, trials)
        few = (rate, rounds, 1000)
        with subtests.test(rate=rate, rounds=rounds):
            shown = lower_bound(*two_worlds(1.0, *case, right), delta)
            assert shown <= epsilon
            assert shown > epsilon / 2 or rate < 1
        if rate < 1:  # the sum of rounds is no longer the best that an attacker can look at
            continue
        with subtests.test(fault="noise of half the size"):
            assert lower_bound(*two_worlds(0.5, *few, right), delta) > epsilon
        with subtests.test(fault="clipped to four times the norm"):
            assert lower_bound(*two_worlds(1.0, *few, unclipped), delta) > epsilon

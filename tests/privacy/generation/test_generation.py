"""Generators under a budget: shards, teachers at once, resume to the bit, ledger, audit."""

import csv
import json
import math
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from phalanx.privacy import (
    Accountant,
    Budget,
    ClassMoments,
    DataLens,
    Domain,
    DPGan,
    Mechanism,
    PrivateData,
    ProjectedVote,
    Teachers,
    TopAggVote,
    audit_membership,
    deal_shards,
    downstream_accuracy,
    epsilon_lower_bound,
    generate,
    hold_out_pairs,
    noise_multiplier_for,
    read_private,
    write_synthetic,
)

BUDGET = Budget(50.0, 1e-5)


def composed(noise_multiplier, releases, delta):
    """Epsilon of Gaussian releases of all records."""
    ledger = Accountant(relation="replace")
    ledger.compose(noise_multiplier, steps=releases)
    return ledger.epsilon(delta)


def digits(rows=700):
    found = load_digits()
    x = torch.from_numpy(found.images.astype("float32")).flatten(1) / 8 - 1
    y = torch.from_numpy(found.target).long()
    domain = Domain(tuple(range(10)), shape=(1, 8, 8), low=0.0, high=16.0)
    return PrivateData(x[:rows], y[:rows], domain, x[1400:], y[1400:])


def tiny(**changes):
    options = {"num_teachers": 40, "steps": 4, "width": 8, "num_hidden": 4, "pool": 8}
    return DataLens(**(options | {"vote": TopAggVote(k=6), "teacher_batch": 8} | changes))


def test_every_record_is_in_one_shard_at_most():
    for records, teachers in ((60_000, 4000), (1000, 7), (5, 5)):
        shards = deal_shards(records, teachers, seed=1)
        assert shards.shape == (teachers, records // teachers)
        assert shards.unique().numel() == shards.numel() > records - teachers
        assert 0 <= shards.min() <= shards.max() < records
    with pytest.raises(ValueError, match="num_teachers must be from 1 to the 5 records, got 6"):
        deal_shards(5, 6, seed=0)


class OneTeacher(torch.nn.Module):
    """One teacher of a stack, as anybody would write it."""

    def __init__(self, stack, t):
        super().__init__()
        for name, value in stack.named_parameters():
            self.register_parameter(name, torch.nn.Parameter(value[t].detach().clone()))

    def forward(self, x, y):
        hidden = torch.nn.functional.leaky_relu(x @ self.weight + self.bias, 0.2)
        logits = (hidden * (self.head + 10 * self.class_heads[y])).sum(1) + self.class_bias[y]
        return logits + 10 * (x * self.class_pixels[y]).sum(1)


def test_teachers_at_once_equal_one_by_one():
    chance = torch.Generator().manual_seed(0)
    data, total = digits(120), 6
    stack = Teachers(total, 64, 10, 5, chance)
    alone = [OneTeacher(stack, t) for t in range(total)]
    optimizer = torch.optim.Adam(stack.parameters(), 1e-2)
    optimizers = [torch.optim.Adam(one.parameters(), 1e-2) for one in alone]
    fakes = torch.rand(80, 64, generator=chance) * 2 - 1
    for _ in range(3):
        picked = torch.randint(120, (total, 9), generator=chance)
        beside = torch.randint(80, (total, 9), generator=chance)
        stack.learn(optimizer, data.x[picked], data.y[picked], fakes, beside)
        for t, (one, its) in enumerate(zip(alone, optimizers, strict=True)):
            its.zero_grad()
            y = data.y[picked[t]]
            real, fake = one(data.x[picked[t]], y), one(fakes[beside[t]], y)
            criterion = torch.nn.functional.binary_cross_entropy_with_logits
            loss = criterion(real, torch.ones(9)) + criterion(fake, torch.zeros(9))
            loss.backward()
            its.step()
    for t, one in enumerate(alone):
        for name, value in stack.named_parameters():
            assert torch.allclose(value[t], getattr(one, name), atol=1e-5), name
    x, y = fakes[:4].clone().requires_grad_(), data.y[:4]
    for t, one in enumerate(alone):
        (wanted,) = torch.autograd.grad(torch.nn.functional.softplus(-one(x, y)).sum(), x)
        found = stack.directions(x.detach(), y, slice(t, t + 1))[0]
        assert torch.allclose(found, -wanted, atol=1e-6)


def test_one_teacher_moves_a_vote_by_its_sensitivity_at_most():
    chance = torch.Generator().manual_seed(0)
    for vote in (TopAggVote(k=5), TopAggVote(k=5, stochastic=True), ProjectedVote(4, 6)):
        furthest = 0.0
        for _ in range(200):
            directions = torch.randn(3, 1, 12, generator=chance)
            others = directions.clone()
            others[1] = torch.randn(1, 12, generator=chance) * 10 ** torch.randn(
                1, generator=chance
            )
            if torch.rand(1, generator=chance) < 0.3:
                others[1] = -directions[1]
            a, b = (vote.count(one, seed=3, part=0) for one in (directions, others))
            furthest = max(furthest, (a - b).norm().item())
        assert furthest <= vote.sensitivity + 1e-6
        if isinstance(vote, TopAggVote):
            assert furthest == pytest.approx(vote.sensitivity)


def published_steps(k, sigma, epsilon):
    """Steps until epsilon by the classic conversion over the authors' orders."""
    steps, orders = 0, (1.1, *range(2, 200))
    while (
        min(30 * (steps + 1) * 2 * k * a / sigma**2 - math.log(1e-5) / (a - 1) for a in orders)
        <= epsilon
    ):
        steps += 1
    return steps


def exact_steps(k, sigma, epsilon):
    """Steps until epsilon by the exact composition of Gaussian releases."""
    steps, noise = 0, sigma / TopAggVote(k=k).sensitivity
    while composed(noise, 30 * (steps + 1), 1e-5) <= epsilon:
        steps += 1
    return steps


def test_the_steps_of_the_published_settings():
    settings = [(200, 5000, 1, 43), (200, 5000, 1, 43), (700, 9000, 1, 40), (300, 800, 10, 54),
                (350, 1000, 10, 73), (500, 700, 10, 25)]  # fmt: skip
    assert [published_steps(*one[:3]) for one in settings] == [one[3] for one in settings]
    exact = []
    for k, sigma, epsilon, steps in settings:
        noise = sigma / TopAggVote(k=k).sensitivity
        spent = composed(noise, 30 * steps, 1e-5)
        assert spent < epsilon
        exact.append(round(spent, 3))
    assert exact[0] == exact[1] < 0.808  # what the better conversion of Renyi divergences gives
    assert [exact_steps(*one[:3]) for one in settings] == [74, 74, 69, 71, 95, 32]


def test_noise_is_the_least_that_fits_the_budget():
    for epsilon, releases in ((0.1, 1), (1.0, 1500), (10.0, 900), (50.0, 30)):
        noise = noise_multiplier_for(Budget(epsilon, 1e-6), steps=releases)
        assert composed(noise, releases, 1e-6) <= epsilon
        assert composed(noise * 0.9998, releases, 1e-6) > epsilon


def test_a_run_stops_before_it_would_overspend():
    data = digits(200)
    method = tiny(noise_std=30.0, steps=100)
    found = generate(data, method, Budget(5.0, 1e-5), seed=1)
    noise = 30.0 / method.vote.sensitivity
    assert 1 <= found.steps < 100
    assert found.epsilon == composed(noise, 30 * found.steps, 1e-5) <= 5.0
    assert composed(noise, 30 * (found.steps + 1), 1e-5) > 5.0
    assert "neighbours replace one record" in found.statement
    assert "not counted: choice of hyper-parameters, number of records" in found.statement
    with pytest.raises(ValueError, match="budget must last for at least one step"):
        generate(data, tiny(noise_std=1.0), Budget(1.0, 1e-5), seed=1)


def test_a_seed_repeats_a_run_and_another_does_not():
    data = digits(200)
    runs = [generate(data, tiny(), BUDGET, seed=seed).sample(50) for seed in (1, 1, 2)]
    assert torch.equal(runs[0][0], runs[1][0])
    assert torch.equal(runs[0][1], runs[1][1])
    assert not torch.equal(runs[0][0], runs[2][0])
    drawn = {generate(data, ClassMoments(), BUDGET).seed for _ in range(2)}
    assert len(drawn) == 2


def test_a_stopped_run_goes_on_to_the_bit_and_refuses_other_data(tmp_path):
    data, method = digits(200), tiny()
    whole = generate(data, method, BUDGET, seed=5)
    asked = iter([False, False, True])
    with pytest.raises(KeyboardInterrupt, match="2 of 4 steps are made"):
        generate(data, method, BUDGET, seed=5, folder=tmp_path, stop=lambda: next(asked))
    other = PrivateData(data.x.flip(0), data.y.flip(0), data.domain)
    for changed in ((other, method), (data, tiny(lr=0.1))):
        with pytest.raises(ValueError, match="whose noise must not be used again"):
            generate(*changed, BUDGET, folder=tmp_path)
    with pytest.raises(ValueError, match="whose noise must not be used again"):
        generate(data, method, Budget(40.0, 1e-5), folder=tmp_path)
    resumed = generate(data, method, BUDGET, folder=tmp_path)
    assert resumed.seed == 5
    assert resumed.epsilon == whole.epsilon
    assert torch.equal(resumed.sample(50)[0], whole.sample(50)[0])
    ledger = json.loads((tmp_path / "ledger.json").read_text())["ledger"]
    assert sum(event[2] for event in ledger["events"]) == 30 * 4
    (tmp_path / "checkpoint.pt").write_bytes(b"torn")
    with pytest.warns(UserWarning, match="damaged checkpoint, the run begins anew"):
        again = generate(data, method, BUDGET, folder=tmp_path)
    assert torch.equal(again.sample(50)[0], whole.sample(50)[0])


@pytest.mark.slow
def test_a_killed_run_spends_its_budget_once(tmp_path):
    """SIGKILL at any moment, again and again: the records and the ledger of a run never killed."""
    np.savez(tmp_path / "d.npz", x_train=load_digits().images[:300].astype(np.uint8) * 15,
             y_train=load_digits().target[:300])  # fmt: skip
    options = ["--method", "DataLens", "--method.num_teachers", "60", "--method.steps", "300"]
    options += ["--method.vote", "TopAggVote", "--method.vote.k", "5", "--epsilon", "20"]
    options += ["--method.width", "8", "--samples", "100", "--seed", "3"]

    def start(out):
        command = [sys.executable, "-m", "phalanx", "generate", "d.npz", *options, "--out", out]
        return subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL)

    assert start("a.npz").wait(timeout=300) == 0
    for number in (signal.SIGKILL, signal.SIGINT, signal.SIGKILL):
        running = start("b.npz")
        waited = time.monotonic() + 100
        before = (
            os.path.getmtime(seen) if (seen := tmp_path / "b.run/checkpoint.pt").exists() else 0
        )
        while running.poll() is None and time.monotonic() < waited:
            if seen.exists() and os.path.getmtime(seen) > before:
                break
            time.sleep(0.01)
        running.send_signal(number)
        assert running.wait(timeout=60) in (-9, 130, 0)
    assert start("b.npz").wait(timeout=300) == 0
    a, b = (np.load(tmp_path / name) for name in ("a.npz", "b.npz"))
    assert np.array_equal(a["x_train"], b["x_train"])
    ledgers = [(tmp_path / name / "ledger.json").read_text() for name in ("a.run", "b.run")]
    assert ledgers[0] == ledgers[1]


def test_moments_of_a_large_budget_are_the_exact_ones():
    data = digits()
    found = generate(data, ClassMoments(clip=1.0), Budget(5000.0, 1e-5), seed=0)
    means = found.fitting.state_dict()["means"]
    for one in range(10):
        exact = ((data.x[data.y == one] + 1) / 2).mean(dim=0).double() / 8.0
        assert torch.allclose(means[one], exact, atol=3e-3)
    shares = found.fitting.class_shares()
    assert torch.allclose(shares, torch.bincount(data.y).double() / len(data.y), atol=3e-3)
    x, y = found.sample(2000)
    assert downstream_accuracy(x, y, data, steps=200) > 0.6
    split = generate(data, ClassMoments(shared=False), Budget(5000.0, 1e-5), seed=0)
    assert downstream_accuracy(*split.sample(2000), data, steps=200) > 0.6


def test_contributions_to_moments_stay_within_their_sensitivity():
    """Exact releases of neighbours, the noise set to zero: no further apart than is claimed."""
    data, chance = digits(60), torch.Generator().manual_seed(0)
    for shared in (True, False):
        method = ClassMoments(shared=shared)
        for extreme in range(20):
            x, y = data.x.clone(), data.y.clone()
            x[0] = torch.rand(64, generator=chance).round() * 2 - 1 if extreme else 1.0
            x[1] = -1.0 if extreme % 2 else x[1]
            y[0] = extreme % 10
            near = x.clone()
            near[0] = (torch.rand(64, generator=chance) < 0.4) * 2.0 - 1
            labels = y.clone()
            labels[0] = (extreme * 7) % 10
            one = _exact(method, PrivateData(x, y, data.domain))
            other = _exact(method, PrivateData(near, labels, data.domain))
            distance = sum(((a - b) ** 2).sum().item() for a, b in zip(one, other, strict=True))
            assert math.sqrt(distance) <= math.sqrt(2 * (0.2**2 + 0.5**2 + 1)) + 1e-5


def _exact(method, data):
    """What is released, weighted, without the noise."""
    fit = method.start(data, Mechanism(0.0, 1.0, 1, 1), seed=0)
    fit.step(0)
    released = fit.state_dict()
    return 0.2 * released["counts"], 0.5 * released["sums"], released["second"]


def test_the_discriminator_of_dp_gan_sees_clipped_and_noisy_gradients():
    data = digits(100)
    method = DPGan(steps=1, num_hidden=4, width=8, max_norm=0.5)
    fit = method.start(data, Mechanism(0.0, 0.5, 1, 1), seed=0)
    fit._noise, fit._expected = 0.0, 1
    one = fit._private_gradients(data.x[:1], data.y[:1], 0)
    assert math.sqrt(sum((g**2).sum().item() for g in one.values())) <= 0.5 * (1 + 1e-6)
    none = fit._private_gradients(data.x[:0], data.y[:0], 1)
    assert all((g == 0).all() for g in none.values())
    fit._noise = 3.0
    drowned = fit._private_gradients(data.x[:0], data.y[:0], 1)
    values = torch.cat([g.flatten() for g in drowned.values()])
    assert values.std().item() == pytest.approx(0.5 * 3.0, rel=0.15)


def test_an_audit_finds_a_generator_that_copies_and_clears_one_that_does_not():
    data = digits(1400)
    kept, pairs = hold_out_pairs(data, 200, seed=0)
    assert len(kept.x) == 1200
    relabelled = PrivateData(data.x, data.y.roll(1), data.domain)
    again, same = hold_out_pairs(relabelled, 200, seed=0)
    assert torch.equal(again.x, kept.x)  # who is left out does not depend on what is private
    assert torch.equal(same.coins, pairs.coins)
    copied = audit_membership(data, pairs, kept.x, kept.y, delta=1e-5)
    assert copied.epsilon > 3.0
    private = generate(kept, ClassMoments(), Budget(1.0, 1e-5), seed=0)
    x, y = private.sample(1000)
    found = audit_membership(data, pairs, x, y, delta=1e-5)
    assert found.epsilon <= 1.0
    assert found.num_guesses == 100


def test_bounds_of_audits_hold_as_often_as_they_say():
    """Randomised response at epsilon 1 guesses best: it is refuted in at most 5 % of audits."""
    q = math.e / (1 + math.e)
    refuted = 0.0
    for right in range(55, 101):
        if epsilon_lower_bound(100, 100, right, 0.0) > 1.0:
            refuted += math.comb(100, right) * q**right * (1 - q) ** (100 - right)
    assert 0.01 < refuted <= 0.05
    assert epsilon_lower_bound(100, 100, 90, 1e-3) < epsilon_lower_bound(100, 100, 90, 0.0)


def test_tables_go_in_and_out_as_they_were(tmp_path):
    path = tmp_path / "t.csv"
    rows = [(20 + i % 50, ["a", "b, c", "?"][i % 3], round(i / 7, 3), ["no", "yes"][i % 2])
            for i in range(200)]  # fmt: skip
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("age", "kind", "size", "rich"), *rows])
    data = read_private(path, label="rich")
    assert data.domain.from_data == ("the bounds and values of the columns", "the list of classes")
    assert data.domain.num_features == 1 + 3 + 1
    assert len(data.x) == 200
    assert data.x_test is None
    (tmp_path / "domain.json").write_text(json.dumps(
        {"age": [0, 120], "kind": ["a", "b, c", "?"], "size": [0.0, 30.0], "rich": ["no", "yes"]}
    ))  # fmt: skip
    stated = read_private(path, label="rich", domain=tmp_path / "domain.json")
    assert stated.domain.from_data == ()
    found = generate(stated, ClassMoments(), Budget(20.0, 1e-4), seed=0)
    assert found.statement.endswith("not counted: choice of hyper-parameters")
    x, y = found.sample(60)
    write_synthetic(tmp_path / "s.csv", stated.domain, x, y)
    with (tmp_path / "s.csv").open(newline="") as file:
        made = list(csv.DictReader(file))
    assert len(made) == 60
    assert all(one["kind"] in ("a", "b, c", "?") and one["rich"] in ("no", "yes") for one in made)
    assert all(0 <= int(one["age"]) <= 120 for one in made)
    write_synthetic(tmp_path / "again.csv", stated.domain, stated.x, stated.y)
    back = read_private(tmp_path / "again.csv", label="rich", domain=tmp_path / "domain.json")
    assert sorted(map(tuple, back.x.round(decimals=4).tolist())) == sorted(
        map(tuple, stated.x.round(decimals=4).tolist())
    )


def test_the_command_writes_records_and_a_report_and_refuses_what_does_not_fit(
    tmp_path, monkeypatch, capsys
):
    from phalanx.cli import main

    monkeypatch.chdir(tmp_path)
    found = load_digits()
    images = found.images.astype(np.uint8) * 15
    np.savez("d.npz", x_train=images[:500], y_train=found.target[:500],
             x_test=images[500:700], y_test=found.target[500:700])  # fmt: skip
    begin = ["generate", "d.npz", "--epsilon", "20", "--method", "ClassMoments", "--samples", "300"]
    classes = ["--classes", "[0,1,2,3,4,5,6,7,8,9]"]
    main([*begin, *classes, "--audit_pairs", "20", "--out", "s.npz"])
    said = " ".join(capsys.readouterr().out.split())
    assert "(20, 1e-05)-differential privacy; neighbours replace one record; not counted:" in said
    assert "does not contradict the claim of 20" in said
    made = np.load("s.npz")
    assert made["x_train"].shape == (300, 8, 8)
    assert made["x_train"].dtype == np.uint8
    page = (tmp_path / "s.run/report.html").read_text()
    assert "Synthetic images by class" in page
    assert "What is not protected" in page
    for wrong, message in (
        (["--out", "s.npz", "--epsilon", "9"], "whose noise must not be used again"),
        (["--out", "s.csv"], "out must end in .npz"),
        (["--out", "n.npz", "--delta", "0.01"], "delta must be below one over the 500 records"),
        (["--out", "n.npz", "--label", "y"], "label and domain are of tables"),
        (["--out", "n.npz", "--classes", "[0,1]"], "labels must be of the classes"),
        (["--out", "n.npz", "--method", "DataLens", "--method.num_teachers", "9999"],
         "num_teachers must be at most the 500 records"),
    ):  # fmt: skip
        with pytest.raises(SystemExit) as ended:
            main([*begin, *wrong])
        assert ended.value.code == 2
        assert message in " ".join(capsys.readouterr().err.split())
        assert not (tmp_path / "n.npz").exists()

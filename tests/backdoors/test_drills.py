"""Drills and audits at a tiny size: what they measure, what resumes, and what is refused."""

import json
from dataclasses import replace

import pytest
import torch

from phalanx.aggregation import CoordinateMedian, Krum, Mean, NormClipping
from phalanx.attacks import PeriodicWorkers
from phalanx.backdoors import (
    AttackBudget,
    Attacker,
    Defence,
    Federation,
    LowDensity,
    TailDensity,
    audit_backdoor,
    backdoor_run,
    default_defences,
    harm_run,
)
from phalanx.backdoors.drill import edge_set
from phalanx.experiments import load

EDGE = LowDensity(7, 1, tail=0.2, density=TailDensity(num_components=2, num_dimensions=8))
TINY = Federation(
    edge=EDGE, num_clients=12, clients_per_round=5, rounds=3, pretraining=60, num_clean=40
)
STRONG = Attacker(replacement=True, every=1, epochs=10)


def test_replacement_gets_through_the_mean_and_clipping_cuts_it():
    plain = backdoor_run(TINY, STRONG, Defence())
    clipped = backdoor_run(TINY, STRONG, Defence(NormClipping(0.1) >> Mean()))
    calm = backdoor_run(TINY, None, Defence())
    assert plain["backdoor"] >= 0.7
    assert clipped["backdoor"] <= plain["backdoor"] - 0.3
    assert calm["backdoor"] == pytest.approx(calm["backdoor_before"], abs=0.11)
    assert len(plain["backdoors"]) == 3
    assert calm["left_out"] == 0
    assert backdoor_run(TINY, STRONG, Defence()) == plain


def test_every_default_defence_runs_and_reduces_to_the_mean_of_equal_updates():
    message = torch.randn(50, generator=torch.Generator().manual_seed(0)) * 0.01
    for name, defence in default_defences().items():
        assert defence.rule(message.expand(10, -1)).allclose(message, atol=1e-6), name
        assert 0 <= backdoor_run(TINY, Attacker(1.0), defence)["main"] <= 1


def test_clients_hold_everything_once_and_few_hold_what_is_rare():
    for share in (0.0, 0.5, 1.0):
        federation = Federation(edge=EDGE, num_clients=12, honest_share=share, rare_share=0.25)
        edge = edge_set(federation)
        clients = federation.clients(edge, seed=3)
        held = torch.cat([torch.tensor(one.indices) for one in clients])
        size = len(load(federation.data).train) - len(edge.taken) + edge.num_honest(share)
        assert held.sort().values.equal(torch.arange(size))
        rare = federation.rare_clients(len(clients), seed=3)
        first = size - edge.num_honest(share)
        for client, own in enumerate(clients):
            assert client in rare or max(own.indices) < first


def test_attackers_take_seats_of_the_round():
    schedule = PeriodicWorkers(every=3, first=1, workers=[0, 1])
    for step in range(8):
        due = step >= 1 and (step - 1) % 3 == 0
        mask = schedule.among([5, 17, 40], step, 100, seed=0)
        assert mask.tolist() == [due, due, False]


def test_edge_cases_at_hand_are_those_that_are_described():
    at_hand = replace(TINY, edge=edge_set(TINY))
    assert backdoor_run(at_hand, STRONG, Defence()) == backdoor_run(TINY, STRONG, Defence())


def test_krum_leaves_out_all_but_one_and_coordinates_are_nobodys():
    found = harm_run(TINY, Defence(Krum(1)), draws=20)
    assert 4 * found["usual_left_out"] + found["rare_left_out"] == pytest.approx(4)
    assert harm_run(TINY, Defence(), draws=20)["rare_left_out"] == 0
    assert harm_run(TINY, Defence(CoordinateMedian()), draws=20)["rare_left_out"] is None


def audited(out, **options):
    defences = {"none": Defence(), "median": Defence(CoordinateMedian())}
    budget = AttackBudget(every=1, radii=(1.0,), epochs=(10,))
    return audit_backdoor(TINY, defences, budget=budget, seeds=(0, 1), out=out, jobs=1, **options)


@pytest.mark.slow
def test_an_audit_names_the_worst_attacker_and_resumes(tmp_path):
    found = audited(tmp_path)
    none, median = found.findings
    assert none.worst_attacker == "black box + replacement, every 1, 10 epochs"
    assert none.let_through > 0.3
    assert none.let_through > median.let_through
    assert "none" not in found.held
    assert none.rare_left_out == 0
    assert median.rare_left_out is None
    page = (tmp_path / "audit.html").read_text(encoding="utf-8")
    for text in ("Threat model", "What was not tried", "Whom it wrongs", none.worst_attacker):
        assert text in page
    told = json.loads((tmp_path / "audit.json").read_text(encoding="utf-8"))
    assert told["search_seed"] == 0
    assert told["seeds"] == [1]
    seen = []
    again = audited(tmp_path, watch=lambda progress: seen.append(progress.found))
    assert not seen
    assert again.findings == found.findings


def test_what_does_not_fit_is_refused_before_anything_is_run(tmp_path):
    for wrong, message in (
        ({"seeds": (0,)}, "seeds must be at least 2"),
        ({"defences": {}}, "defences must name at least 1"),
        ({"defences": {"Krum": Defence(Krum(5))}}, "defences: Krum: num_byzantine"),
        ({"budget": AttackBudget(attackers=5)}, "attackers must be below the 5 clients"),
        ({"margin": -0.1}, "margin"),
    ):
        with pytest.raises(ValueError, match=message):
            audit_backdoor(TINY, out=tmp_path / "out", **wrong)
        assert not (tmp_path / "out").exists()
    for wrong in ({"honest_share": 2.0}, {"rounds": 0}, {"num_clients": 3}, {"lr": 0.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Federation(**wrong)
    with pytest.raises(ValueError, match="radii must name at least 1"):
        AttackBudget(radii=())

"""Suspicion over rounds: who is excluded, who is not, and that a killed run does the same."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import phalanx
from laws import concrete
from phalanx import aggregation
from phalanx.aggregation import Aggregator, CoordinateMedian, Krum, Mean
from phalanx.attacks import (
    Constant,
    FixedWorkers,
    Mixed,
    NotFinite,
    RandomWorkers,
    Silence,
    SleeperWorkers,
    WrongShape,
)
from phalanx.coding import Detox, DracoCyclic, DracoRepetition, Uncoded
from phalanx.training import Local, OutlierTest, Ray, Reputation, rounds_until_excluded

ALL = torch.ones(5, dtype=torch.bool)


@pytest.fixture
def trained(blobs, make_model):
    """Runs 12 rounds on 9 workers, unless told otherwise."""

    def run(**options):
        options = {"steps": 12, "batch_size": 36, "checkpoint_every": 3, **options}
        if "rule" in options:
            options = {"num_workers": 9, **options}
        return phalanx.train(make_model(), blobs[0], **options)

    return run


def weights(run):
    return torch.cat([value.detach().reshape(-1) for value in run.model.parameters()])


def follow(reputation, verdicts):
    standing = reputation.init(5)
    for suspects, arrived in verdicts:
        standing = reputation.update(standing, suspects, arrived)
    return standing


def test_the_counter_goes_up_and_down_and_stays_where_nothing_arrives():
    absent = torch.tensor([True, True, True, True, False])
    rounds = [([1, 3], ALL), ([1, 3], ALL), ([1], absent), ([1, 4], absent)]
    standing = follow(Reputation(), rounds)
    assert standing.counter.tolist() == [0, 4, 0, 0, 1]  # 4 was silent, then sent a wrong shape
    expected = [0, 1 - 0.9**4, 0, 0.9**2 * (1 - 0.9**2), 0.1]
    assert standing.suspicion.tolist() == pytest.approx(expected)
    assert standing.out == []


def test_who_reaches_the_limit_is_out_for_good():
    reputation = Reputation(exclude_after=3, max_excluded=2)
    standing = follow(reputation, [([2], ALL)] * 3)
    assert standing.out == [2]
    for _ in range(5):  # it is not heard any more
        standing = reputation.update(standing, [], torch.arange(5) != 2)
    assert standing.out == [2]
    assert standing.suspicion[2] == pytest.approx(1 - 0.9**3)


def test_never_more_are_excluded_than_are_survived_the_most_suspicious_first():
    reputation = Reputation(exclude_after=3, max_excluded=2)
    standing = follow(reputation, [([4], ALL), ([4], ALL), ([], ALL), ([], ALL)])
    for _ in range(9):  # a rule that suspects everybody
        standing = reputation.update(standing, range(5), ALL)
    assert standing.out == [0, 4]


@given(
    rounds=st.lists(st.tuples(st.sets(st.integers(0, 4)), st.sets(st.integers(0, 4))), max_size=30),
    limit=st.integers(1, 5),
    most=st.integers(0, 3),
)
def test_what_holds_whatever_the_verdicts_are(rounds, limit, most):
    reputation = Reputation(limit, most)
    standing, before = reputation.init(5), set()
    for number, (suspects, absent) in enumerate(rounds, start=1):
        arrived = torch.tensor([worker not in absent for worker in range(5)])
        standing = reputation.update(standing, suspects, arrived)
        assert ((standing.suspicion >= 0) & (standing.suspicion <= 1)).all()
        assert ((standing.counter >= 0) & (standing.counter <= number)).all()
        assert before <= set(standing.out)
        assert len(standing.out) <= most
        before = set(standing.out)


def test_the_expected_time_is_that_of_the_chain_of_counters():
    chance, limit = 0.35, 6
    move = torch.zeros(limit, limit, dtype=torch.float64)  # counters below the limit
    for count in range(limit):
        move[count, max(count - 1, 0)] += 1 - chance
        if count + 1 < limit:
            move[count, count + 1] += chance
    eye = torch.eye(limit, dtype=torch.float64)
    absorbed = torch.linalg.solve(eye - move, torch.ones(limit, dtype=torch.float64))
    assert rounds_until_excluded(chance, limit) == pytest.approx(absorbed[0].item())


def test_the_expected_time_separates_liars_from_the_now_and_then_suspected():
    assert rounds_until_excluded(1.0, 10) == 10
    assert rounds_until_excluded(0.9, 10) < 15
    assert rounds_until_excluded(0.2, 10) > 1e6


@pytest.mark.parametrize(
    "method",
    [
        {"code": DracoRepetition(9, 2)},
        {"code": DracoCyclic(9, 2)},
    ],
    ids=repr,
)
def test_liars_are_excluded_and_training_goes_on_without_them(trained, blobs, method):
    drill = {"attack": Constant(-50.0), "byzantine": FixedWorkers([3, 7])}
    run = trained(exclude_after=4, test=blobs[1], steps=20, **method, **drill)
    assert run.rounds[3]["excluded"] == run.rounds[-1]["excluded"] == [3, 7]
    assert run.rounds[2]["excluded"] == []
    for entry in run.rounds[4:]:
        assert entry["missing"] == {"3": "excluded", "7": "excluded"}
        assert not {3, 7} & set(entry["suspects"])
    assert run.rounds[-1]["suspicion"][3] == pytest.approx(1 - 0.9**4, abs=1e-4)
    assert run.result["excluded"] == [3, 7]
    assert run.result["test_accuracy"] > 0.7  # lies in four rounds of few gradients


@pytest.mark.parametrize(
    "method",
    [{"code": Detox(9, 1)}, {"rule": Krum(2)}, {"rule": CoordinateMedian(2)}],
    ids=repr,
)
def test_outliers_are_excluded_by_a_test_of_their_own(trained, blobs, method):
    drill = {"attack": Constant(-50.0), "byzantine": FixedWorkers([3]), "test": blobs[1]}
    options = {"steps": 40, "exclude_outliers": OutlierTest(0.05), **method, **drill}
    run = trained(**options)
    if "rule" in method:
        assert all(3 in entry["outliers"] for entry in run.rounds if not entry["excluded"])
        assert run.result["excluded"] == [3]
        assert run.result["test_accuracy"] > 0.7
    assert set(run.result["excluded"]) <= {3}
    without = trained(**options | {"exclude_outliers": None, "exclude_after": 3, "steps": 9})
    assert without.result["excluded"] == ([] if "rule" in method else [3])  # by proof alone


def test_a_rule_is_told_that_there_are_fewer_liars_left(trained):
    """With two of nine excluded, Krum may leave out nobody: it suspects nobody any more."""
    drill = {"attack": NotFinite(), "byzantine": FixedWorkers([0, 1])}
    run = trained(rule=Krum(2), exclude_after=2, **drill)
    assert [entry["suspects"] for entry in run.rounds[:2]] == [[0, 1]] * 2
    assert all(entry["suspects"] == entry["outliers"] == [] for entry in run.rounds[2:])


RULES = [
    one for one in (rule() for rule in concrete(aggregation, Aggregator)) if one.num_tolerated(9)
]


def test_nobody_is_excluded_where_all_send_the_same(trained, subtests):
    """Rules that leave out so many of n break ties by id, in every round alike."""
    reputation = Reputation(3, 2, OutlierTest(), 40)
    for rule in RULES:
        for row in (torch.zeros(4), torch.tensor([1.0, -2.0, 0.1, 3e5])):
            with subtests.test(rule=rule, row=row):
                code, standing = Uncoded(9, rule), reputation.init(9)
                decoded = code.decode(row.expand(9, 4).clone())
                assert not decoded.suspects.any()
                assert not decoded.outliers.any()
                half = torch.cat([row.expand(7, 4), torch.randn(2, 4)])  # seven tie
                for _ in range(40):
                    found = code.decode(half).outliers.nonzero().flatten().tolist()
                    assert set(found) <= {7, 8}
                    standing = reputation.update(standing, [], torch.ones(9).bool(), found)
                assert set(standing.out) <= {7, 8}


def excluded_by_chance(chances, test, rounds, runs, num_byzantine, seed=0):
    """The share of runs in which an honest worker is excluded, verdicts drawn by `chances`."""
    source = torch.Generator().manual_seed(seed)
    n, wrong = len(chances), 0
    everybody = torch.ones(n, dtype=torch.bool)
    for _ in range(runs):
        evidence = torch.zeros(n, dtype=torch.float64)
        highest = evidence
        draws = torch.rand(rounds, n, generator=source)
        for drawn in draws:
            # as many as the rule leaves out, the likely ones first
            order = (drawn.log() / chances).argsort(descending=True)
            outliers = torch.zeros(n, dtype=torch.bool)
            outliers[order[:num_byzantine]] = True
            evidence = test.update(evidence, outliers, everybody, num_byzantine)
            highest = torch.maximum(highest, evidence)
        wrong += bool((highest >= test.bar(n, rounds)).any())
    return wrong / runs


@pytest.mark.slow
def test_honest_workers_are_excluded_no_more_often_than_stated(subtests):
    """Monte-Carlo, nobody Byzantine, with 3 standard errors: a lax bar makes the figures large."""
    runs = 150
    for name, chances, test in [
        ("alike", torch.ones(9), OutlierTest(0.3, skew=1.0)),
        ("heterogeneous", torch.tensor([2.0, 2.0, 1, 1, 1, 1, 1, 0.5, 0.5]), OutlierTest(0.3)),
    ]:
        with subtests.test(name):
            share = excluded_by_chance(chances, test, rounds=100, runs=runs, num_byzantine=2)
            assert share <= 0.3 + 3 * (0.3 * 0.7 / runs) ** 0.5
    certain = torch.tensor([1e9, 1, 1, 1, 1, 1, 1, 1, 1])  # beyond the skew, and it is excluded
    assert excluded_by_chance(certain, OutlierTest(0.3), 100, 3, num_byzantine=2) == 1.0


@given(data=st.data())
def test_the_likelihood_ratio_of_an_honest_worker_is_no_more_than_one_on_average(data):
    n, f = data.draw(st.integers(5, 30)), data.draw(st.integers(1, 2))
    number = data.draw(st.integers(0, n))
    test = OutlierTest(skew=data.draw(st.floats(1.0, 3.0)))
    start = torch.full((n,), 50.0, dtype=torch.float64)
    outliers = torch.arange(n) < number
    moved = test.update(start, outliers, torch.ones(n, dtype=torch.bool), f) - start
    chance = min(test.skew * number / (n - f), 1.0)  # of the null hypothesis, at most
    up = moved[0].exp().item() if number else 1.0
    down = moved[-1].exp().item() if number < n else 1.0
    assert chance * up + (1 - chance) * down <= 1 + 1e-9
    assert up >= down or number in (0, n)


def test_an_exact_code_ends_with_the_same_weights_with_and_without_exclusion(trained):
    drill = {"attack": Mixed(), "byzantine": FixedWorkers([2, 5])}
    code = DracoRepetition(10, 2)
    options = {"code": code, "batch_size": 40}
    kept, excluded = trained(**drill, **options), trained(exclude_after=3, **drill, **options)
    assert excluded.result["excluded"] == [2, 5]
    assert kept.result["excluded"] == []
    assert weights(excluded).equal(weights(kept))


def test_who_lies_less_than_half_of_the_time_stays(trained):
    drill = {"attack": Constant(), "byzantine": RandomWorkers(2)}
    run = trained(code=DracoRepetition(9, 2), exclude_after=8, steps=40, **drill)
    assert run.result["excluded"] == []
    assert max(run.rounds[-1]["suspicion"]) > 0


def test_malformed_messages_count_and_silence_does_not(trained):
    attack, schedule = Mixed([WrongShape(), Silence()]), FixedWorkers([1, 6])
    options = {"attack": attack, "byzantine": schedule, "exclude_after": 5}
    run = trained(code=DracoCyclic(9, 2), **options)
    assert run.result["excluded"] == [1]


@pytest.mark.parametrize("stop", [3, 6])
def test_a_killed_run_excludes_the_same_once_it_goes_on(trained, tmp_path, stop):
    options = {
        "code": DracoRepetition(9, 2),
        "attack": Constant(),
        "byzantine": SleeperWorkers([3, 8], from_step=1),
        "exclude_after": 4,
    }
    whole = trained(**options)
    trained(steps=stop, out=tmp_path / "run", **options)
    resumed = trained(out=tmp_path / "run", resume=True, **options)
    assert weights(resumed).equal(weights(whole))
    for name in ("excluded", "suspicion", "missing", "suspects"):
        assert [entry[name] for entry in resumed.rounds] == [entry[name] for entry in whole.rounds]
    assert whole.result["excluded"] == [3, 8]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"exclude_outliers": OutlierTest(), "rule": Mean()}, "exclude_outliers needs a code or"),
        ({"exclude_outliers": OutlierTest(), "code": DracoCyclic(9, 2)}, "which has no outliers"),
        ({"exclude_after": 0, "rule": Krum(2)}, "exclude_after must be at least 1, got 0"),
        ({"exclude_after": 3, "rule": Mean()}, "exclude_after needs a code or rule that survives"),
        ({"exclude_after": 3, "code": DracoCyclic(9, 0)}, "exclude_after needs a code or rule"),
    ],
)
def test_bad_arguments_are_refused(trained, options, message):
    with pytest.raises(ValueError, match=message):
        trained(**options)


@pytest.mark.slow
@pytest.mark.parametrize(
    "method", [{"code": Detox(9, 1)}, {"rule": Krum(1), "num_workers": 6}], ids=repr
)
def test_processes_exclude_the_same_with_the_same_bits(trained, cluster, tmp_path, method):
    attack = Constant() if "code" in method else NotFinite()
    drill = {"attack": attack, "byzantine": FixedWorkers([4]), "exclude_after": 3}
    here = trained(engine=Local(chunk_size=1), **method, **drill)
    options = {"engine": Ray(deadline_s=20.0), "out": tmp_path / "run", **method, **drill}
    trained(steps=6, **options)
    there = trained(resume=True, **options)
    assert there.result["excluded"] == [4]
    assert weights(there).equal(weights(here))
    assert [entry["missing"] for entry in there.rounds] == [e["missing"] for e in here.rounds]

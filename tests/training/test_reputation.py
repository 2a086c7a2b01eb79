"""Suspicion over rounds: who is excluded, who is not, and that a killed run does the same."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import phalanx
from phalanx.aggregation import CoordinateMedian, Krum, Mean
from phalanx.attacks import (
    Constant,
    FixedWorkers,
    Mixed,
    RandomWorkers,
    ReverseGradient,
    Silence,
    SleeperWorkers,
    WrongShape,
)
from phalanx.coding import Detox, DracoCyclic, DracoRepetition
from phalanx.training import Local, Ray, Reputation, rounds_until_excluded

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
        {"code": Detox(9, 2)},
        {"rule": Krum(2)},
        {"rule": CoordinateMedian(2)},
    ],
    ids=repr,
)
@pytest.mark.filterwarnings("ignore:.* on average")
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


def test_a_rule_is_told_that_there_are_fewer_liars_left(trained):
    """With two of nine excluded, Krum may leave out nobody: it names nobody any more."""
    drill = {"attack": ReverseGradient(), "byzantine": FixedWorkers([0, 1])}
    run = trained(rule=Krum(2), exclude_after=2, **drill)
    assert [entry["suspects"] for entry in run.rounds[:2]] == [[0, 1]] * 2
    assert all(entry["suspects"] == [] for entry in run.rounds[2:])


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
    drill = {"attack": Constant(), "byzantine": FixedWorkers([4]), "exclude_after": 3}
    here = trained(engine=Local(chunk_size=1), **method, **drill)
    options = {"engine": Ray(deadline_s=20.0), "out": tmp_path / "run", **method, **drill}
    trained(steps=6, **options)
    there = trained(resume=True, **options)
    assert there.result["excluded"] == [4]
    assert weights(there).equal(weights(here))
    assert [entry["missing"] for entry in there.rounds] == [e["missing"] for e in here.rounds]

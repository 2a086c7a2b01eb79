"""Whole runs in one process: the weights of the fault-free run, or an error with a name."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import mse_loss
from torch.utils.data import Dataset, IterableDataset, TensorDataset

import phalanx
from laws import concrete
from phalanx import aggregation, attacks, coding
from phalanx.aggregation import (
    Aggregator,
    CenteredClipping,
    CoordinateMedian,
    GeometricMedian,
    Krum,
    Mean,
)
from phalanx.attacks import (
    Attack,
    Constant,
    Delay,
    FixedWorkers,
    LeastVisible,
    Mimic,
    Mixed,
    NotFinite,
    OptimalALittleIsEnough,
    OptimalInnerProductManipulation,
    RandomWorkers,
    ReverseGradient,
    Silence,
    SleeperWorkers,
    StaleGradient,
    WrongShape,
)
from phalanx.coding import (
    Code,
    CyclicRepetition,
    Detox,
    DracoCyclic,
    DracoRepetition,
    ErasureHead,
    FractionalRepetition,
)
from phalanx.errors import DecodeError, TooManyByzantineError
from phalanx.training import Local

AGAINST_LIARS = [kind for kind in concrete(coding, Code) if hasattr(kind(), "num_byzantine")]
AGAINST_STRAGGLERS = [kind for kind in concrete(coding, Code) if kind not in AGAINST_LIARS]
EXACT_CODES = [code for code in AGAINST_LIARS if code.exact]
RULES = concrete(aggregation, Aggregator)
ATTACKS = concrete(attacks, Attack)
named = {"ids": lambda kind: kind.__name__}


class Stream(IterableDataset):
    """Data without a length."""

    def __iter__(self):
        return iter(())


def flat(model):
    return torch.cat([value.detach().reshape(-1) for value in model.parameters()])


def weights(run):
    return flat(run.model)


def assert_same_weights(run, reference, relative=1e-5):
    difference = (weights(run) - weights(reference)).abs().max()
    assert difference <= relative * weights(reference).abs().max()


@pytest.fixture
def trained(blobs, make_model):
    """Runs 20 rounds on 15 workers, unless told otherwise."""

    def run(model=None, **options):
        options = {"steps": 20, "batch_size": 60, "test": blobs[1], **options}
        return phalanx.train(model or make_model(), options.pop("dataset", blobs[0]), **options)

    return run


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(trained):
    drill = {"code": DracoCyclic(15, 3), "attack": Mixed()}
    assert weights(trained(**drill)).equal(weights(trained(**drill)))
    assert not weights(trained(seed=1)).allclose(weights(trained()))


def test_a_run_learns_and_reports_it(trained):
    run = trained()
    assert run.result["test_accuracy"] > 0.9
    assert run.rounds[-1]["test_accuracy"] == run.result["test_accuracy"]
    assert run.rounds[-1]["loss"] < 0.5 * run.rounds[0]["loss"]
    assert [entry["step"] for entry in run.rounds] == list(range(20))


def test_the_mean_of_one_partition_a_worker_is_plain_sgd(blobs, make_model, trained):
    def plain(parameters):
        return torch.optim.SGD(parameters, lr=0.1)

    whole = trained(num_workers=1, optimizer=plain)
    cut = trained(num_workers=15, optimizer=plain)
    assert_same_weights(cut, whole)


@pytest.mark.parametrize("attack", ATTACKS, **named)
@pytest.mark.parametrize("code", EXACT_CODES, **named)
def test_codes_end_with_the_weights_of_the_run_without_liars(trained, code, attack):
    reference = trained()
    run = trained(
        code=code(num_workers=15, num_byzantine=3), attack=attack(), engine=Local(deadline_s=0.5)
    )
    assert_same_weights(run, reference)
    for entry in run.rounds:
        found = set(entry["suspects"]) | {int(worker) for worker in entry["missing"]}
        # A copy of a message from one's own group is the truth, and a small lie proves nothing.
        if attack in (LeastVisible, Mimic):
            assert found <= set(entry["byzantine"])
            continue
        assert found == set(entry["byzantine"])
        # Nobody is behind in the first round.
        assert len(found) == (0 if attack is StaleGradient and entry["step"] == 0 else 3)


@pytest.mark.parametrize("code", [FractionalRepetition(), CyclicRepetition()], ids=repr)
@pytest.mark.parametrize("attack", [Silence(), NotFinite()], ids=repr)
def test_exact_codes_end_with_the_weights_of_the_run_without_stragglers(trained, code, attack):
    run = trained(code=code, attack=attack, byzantine=RandomWorkers(2))
    assert_same_weights(run, trained())
    assert all(entry["error"] == 0 for entry in run.rounds)
    assert all(len(entry["missing"]) + len(entry["suspects"]) == 2 for entry in run.rounds)


@pytest.mark.parametrize("code", AGAINST_STRAGGLERS, **named)
def test_codes_against_stragglers_learn_without_two_workers(trained, code):
    run = trained(code=code(num_workers=15), attack=Silence(), byzantine=RandomWorkers(2))
    assert run.result["test_accuracy"] > 0.9
    assert all(0 <= entry["error"] < 0.9 for entry in run.rounds)


def test_the_error_that_missing_messages_leave_is_written_down(trained):
    run = trained(
        code=ErasureHead(15, copies=3), attack=Silence(), byzantine=FixedWorkers([0, 1, 2])
    )
    # Twelve of fifteen partitions are covered, and count 15 / 12 times.
    assert all(entry["error"] == pytest.approx(0.5) for entry in run.rounds)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*num_byzantine")
@pytest.mark.parametrize("attack", ATTACKS, **named)
@pytest.mark.parametrize("rule", RULES, **named)
def test_every_rule_meets_every_attack_with_weights_or_a_named_error(trained, rule, attack):
    options = {"attack": attack(), "byzantine": RandomWorkers(2), "engine": Local(deadline_s=0.5)}
    try:
        run = trained(rule=rule(), num_workers=11, batch_size=66, steps=5, **options)
    except TooManyByzantineError:
        # Two lie where a rule survives one: what searches against the rule may find the way out.
        searches = attack in (OptimalALittleIsEnough, OptimalInnerProductManipulation)
        assert rule is Mean or attack is NotFinite or searches
    else:
        assert len(run.rounds) == 5


@pytest.mark.parametrize("rule", [GeometricMedian(3), CoordinateMedian(), Krum(3)], ids=repr)
def test_robust_rules_learn_where_the_mean_does_not(trained, rule):
    drill = {"attack": ReverseGradient(), "byzantine": RandomWorkers(3), "steps": 40}
    assert trained(rule=rule, **drill).result["test_accuracy"] > 0.9
    try:
        lost = trained(rule=Mean(), **drill)
    except TooManyByzantineError:
        return
    assert lost.result["test_accuracy"] < 0.6


@pytest.mark.parametrize("code", [DracoCyclic(9, 2), DracoRepetition(9, 2)], ids=repr)
def test_200_rounds_under_attack_end_with_the_weights_of_the_fault_free_mean(trained, code):
    options = {"num_workers": 9, "batch_size": 36, "steps": 200, "evaluate_every": 100}
    assert_same_weights(trained(code=code, attack=Mixed(), **options), trained(**options))


def test_repetition_is_bitwise_its_own_run_without_liars(trained):
    code = DracoRepetition(15, 3)
    liars = trained(code=code, attack=Mixed(), steps=60)
    assert weights(liars).equal(weights(trained(code=code, steps=60)))


def test_groups_that_liars_never_win_end_with_the_bits_of_the_run_without_liars(trained):
    code = Detox(15, num_byzantine=1, outer=CenteredClipping())
    liars = trained(code=code, attack=Mixed(), steps=40)
    assert weights(liars).equal(weights(trained(code=code, steps=40)))
    assert all(set(entry["byzantine"]) <= set(entry["suspects"]) for entry in liars.rounds)
    assert liars.result["test_accuracy"] > 0.9


def test_detox_learns_where_liars_win_a_group_now_and_then(trained):
    code = Detox(15, num_byzantine=3, num_buckets=5)
    run = trained(code=code, attack=ReverseGradient(), steps=60)
    won = [
        sum(len(set(group) & set(entry["byzantine"])) > 1 for group in code.at(step).groups)
        for step, entry in enumerate(run.rounds)
    ]
    assert max(won) == 1
    assert run.result["test_accuracy"] > 0.9


@pytest.mark.parametrize("code", [DracoCyclic(9, 2), DracoRepetition(9, 2)], ids=repr)
def test_batch_norm_and_dropout_are_exact_under_attack(trained, make_model, code):
    def run(**drill):
        model = make_model(nn.BatchNorm1d(12), nn.Dropout(0.2))
        return trained(model, code=code, batch_size=72, **drill)

    liars, honest = run(attack=Mixed()), run()
    assert_same_weights(liars, honest)
    statistics = [dict(found.model.named_buffers()) for found in (liars, honest)]
    torch.testing.assert_close(*statistics, rtol=1e-4, atol=1e-5)
    assert statistics[0]["1.running_mean"].abs().sum() > 0
    assert liars.result["test_accuracy"] > 0.9


def test_a_model_of_ones_own_with_a_dataset_and_loss_of_ones_own(make_model):
    class Sines(Dataset):
        def __len__(self):
            return 90

        def __getitem__(self, index):
            inputs = torch.full((6,), index / 90)
            return inputs, inputs[:4].sin()

    options = {"loss": mse_loss, "batch_size": 45, "steps": 10, "test": Sines()}
    run = phalanx.train(make_model(), Sines(), DracoCyclic(9, 2), attack=Mixed(), **options)
    assert run.result["test_accuracy"] is None
    assert run.result["test_loss"] < 0.2
    assert_same_weights(run, phalanx.train(make_model(), Sines(), num_workers=9, **options))


@settings(max_examples=25)
@given(data=st.data())
def test_mixed_faults_within_the_bound_are_survived(blobs, data):
    num_byzantine = data.draw(st.integers(1, 3))
    liars = data.draw(st.integers(0, num_byzantine))
    silent = data.draw(st.integers(0, 2 * (num_byzantine - liars)))
    workers = data.draw(st.permutations(range(9)))[: liars + silent]
    faults = data.draw(st.permutations([Silence()] * silent + [Constant()] * liars))
    drill = {"attack": Mixed(faults), "byzantine": FixedWorkers(workers)} if faults else {}
    torch.manual_seed(0)
    model, twin = (nn.Linear(6, 4) for _ in range(2))
    twin.load_state_dict(model.state_dict())
    options = {"steps": 2, "batch_size": 18}
    code = DracoCyclic(9, num_byzantine)
    run = phalanx.train(model, blobs[0], code, **drill, **options)
    reference = phalanx.train(twin, blobs[0], num_workers=9, **options)
    assert_same_weights(run, reference)
    assert len(run.rounds[0]["suspects"]) == liars
    assert len(run.rounds[0]["missing"]) == silent


@pytest.mark.parametrize(
    ("code", "attack", "workers"),
    [
        (DracoCyclic(9, 2), Constant(), 5),
        (DracoCyclic(9, 2), Silence(), 5),
        (DracoCyclic(9, 2), NotFinite(), 5),
        (DracoRepetition(10, 2), Mixed([Constant(), Silence()]), 3),  # 2 of each left to vote
        (DracoRepetition(10, 2), Silence(), 5),
        (DracoRepetition(10, 2), NotFinite(), 3),
    ],
    ids=repr,
)
def test_more_than_the_bound_stops_and_goes_on_once_the_cause_is_gone(
    trained, tmp_path, code, attack, workers
):
    options = {"code": code, "batch_size": 90, "out": tmp_path / "run", "steps": 12}
    sleepers = SleeperWorkers(list(range(workers)), from_step=7)
    with pytest.raises(DecodeError) as caught:
        trained(attack=attack, byzantine=sleepers, **options)
    assert caught.value.bound == 2
    assert "stopped in round 7" in caught.value.__notes__[0]
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["stopped"] == str(caught.value)
    assert result["rounds"] == 7
    assert (tmp_path / "run" / "checkpoints" / "step-000000007.pt").is_file()
    run = trained(resume=True, changes=["attack", "byzantine"], **options)
    assert run.result["stopped"] is None
    assert [entry["step"] for entry in run.rounds] == list(range(12))
    assert weights(run).equal(weights(trained(**{**options, "out": None})))


def test_a_run_stopped_in_its_first_round_keeps_the_weights_too(trained, make_model, tmp_path):
    options = {"code": DracoRepetition(9, 1), "batch_size": 36, "out": tmp_path / "run"}
    with pytest.raises(DecodeError):
        trained(attack=Silence(), byzantine=FixedWorkers([0, 1, 2]), **options)
    run = trained(resume=True, changes=["attack", "byzantine"], **options)
    assert weights(run).equal(weights(trained(**{**options, "out": None})))


def test_the_mean_goes_on_without_missing_messages_and_stops_at_one_that_is_no_number(trained):
    drill = {"byzantine": FixedWorkers([4])}
    silent, malformed = (trained(attack=attack, **drill) for attack in (Silence(), WrongShape()))
    assert weights(silent).equal(weights(malformed))
    assert silent.result["test_accuracy"] > 0.9
    with pytest.raises(TooManyByzantineError, match=r"workers \[4\] contain NaN or Inf; Mean"):
        trained(attack=NotFinite(), **drill)
    with pytest.raises(DecodeError, match="no message arrived"):
        trained(attack=Silence(), byzantine=FixedWorkers(list(range(15))))


@pytest.mark.parametrize("rule", [CoordinateMedian(), GeometricMedian(3), Krum(3)], ids=repr)
def test_rules_do_without_the_messages_that_are_missing(trained, rule):
    run = trained(rule=rule, attack=Silence(), byzantine=FixedWorkers([2, 5]))
    assert run.result["test_accuracy"] > 0.9
    assert run.rounds[0]["missing"] == {"2": "silent", "5": "silent"}
    assert not {2, 5} & {worker for entry in run.rounds for worker in entry["suspects"]}


def test_too_few_messages_for_a_rule_are_a_decode_error(trained):
    drill = {"attack": Silence(), "byzantine": FixedWorkers(list(range(10)))}
    with pytest.raises(DecodeError, match=r"too few messages arrived for Krum.*missing: \[0, 1"):
        trained(rule=Krum(3), **drill)


def test_a_wrong_shape_marks_its_worker(trained):
    run = trained(code=DracoCyclic(9, 2), batch_size=36, attack=WrongShape(), steps=3)
    for entry in run.rounds:
        assert set(entry["missing"].values()) == {"wrong shape"}
        assert sorted(entry["missing"]) == [str(worker) for worker in entry["byzantine"]]
        assert entry["suspects"] == entry["byzantine"]


def test_slow_workers_are_late_only_beyond_the_deadline(trained):
    slow = {"attack": Delay(2.0), "code": DracoRepetition(9, 1), "batch_size": 36, "steps": 3}
    patient = trained(**slow)
    assert all(not entry["missing"] and not entry["byzantine"] for entry in patient.rounds)
    strict = trained(engine=Local(deadline_s=1.0), **slow)
    assert all(list(entry["missing"].values()) == ["late"] for entry in strict.rounds)
    assert weights(patient).equal(weights(strict))


def test_losses_that_liars_claim_are_left_out(trained):
    options = {"code": DracoCyclic(9, 2), "batch_size": 36}
    honest = trained(**options).rounds
    for one, other in zip(honest, trained(attack=Constant(), **options).rounds, strict=True):
        assert math.isfinite(other["loss"])
        assert other["loss"] == pytest.approx(one["loss"], rel=0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"batch_size": 17}, "batch_size must be a multiple of the 15 partitions, got 17"),
        ({"batch_size": 0}, "batch_size must be a multiple of the 15 partitions, got 0"),
        ({"batch_size": 900}, "dataset must fill one batch of 900 samples, got 600"),
        ({"evaluate_every": 0}, "evaluate_every must be at least 1"),
        ({"checkpoint_every": -1, "steps": 0}, "steps must .*; checkpoint_every must be"),
        ({"num_workers": 0}, "num_workers must be at least 1, got 0"),
        ({"rule": Mean(), "code": DracoCyclic()}, "a code or a rule, not both"),
        ({"attack": Silence()}, "does not say how many Byzantine"),
        ({"byzantine": RandomWorkers()}, "needs attack"),
        ({"attack": Silence(), "byzantine": FixedWorkers([20])}, r"below num_workers, got \[20\]"),
        ({"rule": Krum(8)}, "num_byzantine must be below num_workers / 2, got 8 of 15"),
        ({"model": nn.Linear(6, 4).requires_grad_(False)}, "parameters that require gradients"),
        ({"model": nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 4).double())}, "one dtype"),
        ({"dataset": Stream()}, "dataset must have a length"),
        ({"test": TensorDataset(torch.ones(0, 6), torch.ones(0))}, "test must have at least 1"),
        ({"optimizer": lambda p: torch.optim.LBFGS(p)}, "one gradient per step, got LBFGS"),
        ({"resume": True, "out": None}, "resume needs out"),
        ({"resume": True}, "resume needs the folder of a run"),
    ],
    ids=lambda value: value if isinstance(value, str) else ",".join(value),
)
def test_bad_arguments_are_refused_and_leave_nothing_behind(trained, tmp_path, options, message):
    out = tmp_path / "run"
    with pytest.raises(ValueError, match=message):
        trained(**{"out": out, **options})
    assert not out.exists()

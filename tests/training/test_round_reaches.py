"""Every stage of the round reaches `phalanx.train`, and the runs of experiments."""

import inspect
from dataclasses import fields

import pytest

import phalanx
from phalanx.aggregation import Krum
from phalanx.attacks import FixedWorkers, ReverseGradient
from phalanx.cli.train import train as command
from phalanx.coding import Uncoded
from phalanx.computations import LocalSteps
from phalanx.data import Digits
from phalanx.experiments.runs import train_run
from phalanx.ordering import ShuffleOnce
from phalanx.training import Round, ServerMomentum
from phalanx.transforms import WorkerMomentum

OTHER = {
    "code": Uncoded(5, Krum(1)),
    "order": ShuffleOnce(),
    "compute": LocalSteps(2, lr=0.2),
    "transforms": [WorkerMomentum(0.5)],
    "attack": ReverseGradient(),
    "byzantine": FixedWorkers([1]),
    "step": ServerMomentum(0.5, 0.2),
}

BY_FEDERATION = {"preparation", "weighted", "aggregation"}  # which `federate` says


def test_every_stage_has_a_value_here_and_is_an_argument_of_train():
    names = [one.name for one in fields(Round) if one.name not in BY_FEDERATION]
    assert sorted(names) == sorted(OTHER)
    assert set(names) <= set(inspect.signature(phalanx.train).parameters)
    assert command.options_of is phalanx.train
    assert not set(names) & set(command.given)


@pytest.mark.parametrize("name", OTHER)
def test_every_stage_changes_a_run_of_experiments(name):
    common = {"data": Digits(), "num_workers": 5, "batch_size": 40, "steps": 3}
    stages = {name: OTHER[name]}
    if name == "byzantine":  # nobody else attacks
        common |= {"rule": Krum(1), "attack": ReverseGradient()}
    elif name == "attack":
        stages["byzantine"] = FixedWorkers([1])
    elif name == "order":
        common["steps"] = 40  # the second epoch is another one
    plain, other = train_run(**common), train_run(**common, **stages)
    assert plain["weights"] != other["weights"]
    assert other["rounds"] == common["steps"]

"""What every engine promises: the same task has the same replies."""

import pickle

import pytest

from ddp.ranks import Ranks
from laws import concrete
from phalanx import training
from phalanx.training import Engine, Local, Ray, TorchDistributed
from training import adders
from training.distributed_cases import on_server


def test_workers_keep_what_they_hold_and_reply_alike_in_one_process():
    adders.check_replies(Local())


@pytest.mark.slow
def test_workers_keep_what_they_hold_and_reply_alike_on_ray(cluster):
    cluster.cloudpickle.register_pickle_by_value(adders)  # workers know no tests
    adders.check_replies(Ray())


@pytest.mark.slow
def test_workers_keep_what_they_hold_and_reply_alike_on_ranks(tmp_path):
    with Ranks(4, tmp_path) as ranks:
        for _ in range(2):  # a second session, and a second block
            assert ranks(on_server, adders.check_replies) == [None] * 4


def test_every_engine_is_covered_here():
    assert set(concrete(training, Engine)) == {Local, Ray, TorchDistributed}


@pytest.mark.parametrize("kind", concrete(training, Engine))
def test_an_engine_is_a_value(kind):
    assert pickle.loads(pickle.dumps(kind())) == kind()
